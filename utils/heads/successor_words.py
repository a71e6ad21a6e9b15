"""The words whose successors are asked for, and which of them a tokenizer keeps whole. It imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ..base.errors import UserError
from ..tasks.vocabulary import encode
from ..tasks.word_lists import DAYS, LETTERS, MONTHS, NUMBER_WORDS, ORDINALS, ROMAN_NUMERALS, SHORT_DAYS, SHORT_MONTHS
from .keys import Definition, SuccessorConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class WordList:
    """Words in order."""

    words: tuple[str, ...]
    cyclic: bool = False  # whether the first follows the last
    study_count: int | None = None  # how many of them the study has; None for all
    study_capitals: bool = False  # whether the study has them in capitals only

    def spellings(self, definition: Definition = "standard") -> list[tuple[str, ...]]:
        """The list as written, in lower case and in upper case, each with and without a leading space.

        Under `study`, as written and with the first letter in lower case; two of these may be the same.
        """
        cased: list[tuple[str, ...]]
        if definition == "study":
            words = self.words[: self.study_count]
            cased = [words] if self.study_capitals else [words, tuple(word[0].lower() + word[1:] for word in words)]
        else:
            cases = (str, str.lower, str.upper)
            cased = list(dict.fromkeys(tuple(case(word) for word in self.words) for case in cases))
        return [tuple(space + word for word in words) for words in cased for space in (" ", "")]


CLASSES: dict[str, tuple[WordList, ...]] = {
    "numbers": (WordList(tuple(str(number) for number in range(1, 201))),),
    "number_words": (WordList(NUMBER_WORDS),),
    "ordinals": (WordList(ORDINALS, study_count=10),),
    "days": (WordList(DAYS, cyclic=True), WordList(SHORT_DAYS, cyclic=True)),
    "months": (WordList(MONTHS, cyclic=True), WordList(SHORT_MONTHS, cyclic=True)),
    "letters": (WordList(LETTERS, study_capitals=True),),
    "roman_numerals": (WordList(ROMAN_NUMERALS, study_capitals=True),),
}

Pairs = tuple[tuple[int, int], ...]
"""(token, successor) ids of one list in one spelling."""


def some_pairs(tokenizer: PreTrainedTokenizerBase, config: SuccessorConfig) -> dict[str, list[Pairs]]:
    """`successor_pairs`; a UserError if there is none."""
    pairs = successor_pairs(tokenizer, config.head_scores, faults=config.study_faults)
    if not any(pairs.values()):
        raise UserError(
            f"model: no class of words ({', '.join(CLASSES)}) has two words that are single tokens under this "
            "tokenizer; use another model"
        )
    return pairs


def successor_pairs(
    tokenizer: PreTrainedTokenizerBase, definition: Definition = "standard", *, faults: bool = False
) -> dict[str, list[Pairs]]:
    """The pairs of every class whose words are both single tokens, list by list.

    Spellings that are the same tokens count once, and lists with one pair do not count; under `study` all count. If
    nothing is left of a class, its list is empty. With `faults`, XVII is in the place of XVIII, as in the study.
    """
    by_class: dict[str, list[Pairs]] = {}
    numerals = tuple("XVII" if word == "XVIII" else word for word in ROMAN_NUMERALS)
    faulty = {"roman_numerals": (WordList(numerals, study_capitals=True),)} if faults else {}
    for name, word_lists in (CLASSES | faulty).items():
        lists: list[Pairs] = []
        for word_list in word_lists:
            for words in word_list.spellings(definition):
                ids = _single_tokens(tokenizer, words)
                # A word that is no single token takes both pairs that it is in with it.
                neighbours = [*pairwise(ids), *([(ids[-1], ids[0])] if word_list.cyclic else [])]
                pairs = tuple((a, b) for a, b in neighbours if a is not None and b is not None)
                if pairs and (definition == "study" or (len(pairs) > 1 and pairs not in lists)):
                    lists.append(pairs)
        by_class[name] = lists
    return by_class


def _single_tokens(tokenizer: PreTrainedTokenizerBase, words: tuple[str, ...]) -> list[int | None]:
    """Each word's token; None if it is several, or the token of something else (unknown words, lost capitals)."""
    rows = encode(tokenizer, words)
    return [
        row[0] if len(row) == 1 and str(tokenizer.decode(row)).strip() == word.strip() else None
        for word, row in zip(words, rows, strict=True)
    ]
