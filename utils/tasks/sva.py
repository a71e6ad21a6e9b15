"""Subject-verb agreement in the 15 structures of Marvin & Linzen 2018 (arXiv 1808.09031).

"The officers near the guard" -> verbs in the plural, not in the singular. In the corrupted prompt the subject has the
other number, and so does every verb that agrees with it ("The officer that likes the guard" -> "The officers that like
the guard"). Everything else stays, including the number of the other noun. Singular and plural subjects alternate, and
all structures come equally often until a small one has no prompts left. `sva.toml` has the words and the structures.

`meta` columns: structure (its name), subject (in the singular), number (singular or plural, of the subject), other and
other_number (the second noun, in the singular, or empty), verbs (the right answers' words, separated by ";").
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.keys import PromptOptions
from .prompts import Pair, Task
from .roles import slot_spans
from .sampling import draw, unravel
from .vocabulary import continuations, require, say_left, single_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Words that inflect are (singular, plural) pairs.
Inflected = tuple[str, str]


@dataclass(frozen=True)
class Structure:
    """One sentence frame, up to the verb that is asked for; `sva.toml` says what its slots are.

    `subjects, others, verbs, other_verbs, links` are the words for each slot; empty if the frame has no such slot.
    """

    name: str
    description: str
    template: str
    subjects: tuple[Inflected, ...]
    others: tuple[Inflected, ...] = ()
    verbs: tuple[Inflected, ...] = ()
    other_verbs: tuple[Inflected, ...] = ()
    links: tuple[str, ...] = ()


_FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _listed(words: Iterable[str]) -> tuple[Any, ...]:
    """Words as they are, or (singular, plural) where they inflect."""
    return tuple(tuple(word.split("/")) if "/" in word else word for word in words)


VERBS: tuple[Inflected, ...] = _listed(_FILE["asked_for"].split())
WORDS: dict[str, tuple[Any, ...]] = {name: _listed(text.split()) for name, text in _FILE["words"].items()}
WORDS |= {name: _listed(phrases) for name, phrases in _FILE["phrases"].items()}
SLOTS = ("subjects", "others", "verbs", "other_verbs", "links")
STRUCTURES: tuple[Structure, ...] = tuple(
    Structure(**dict[str, Any]({key: WORDS[value] if key in SLOTS else value for key, value in structure.items()}))
    for structure in _FILE["structures"]
)

NUMBERS: tuple[str, ...] = ("singular", "plural")
LEAST_VERBS = 2


def pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int, options: PromptOptions) -> list[Pair]:
    """n distinct prompts over all structures; a UserError for too few single-token words or prompts."""
    known = _single_tokens(tokenizer)
    structures = [_known(known, structure) for structure in STRUCTURES]
    verbs = _single_token_pairs(known, VERBS)
    require(len(verbs), len(VERBS), "sva", "verbs (in both numbers)", LEAST_VERBS)
    say_left(
        tokenizer, "sva", "words and phrases of prompts", *(len(_words(every)) for every in (structures, STRUCTURES))
    )
    say_left(tokenizer, "sva", "verbs asked for (in both numbers)", len(verbs), len(VERBS))
    tokens = single_tokens(tokenizer, [verb for pair in verbs for verb in pair], "sva", "verbs", LEAST_VERBS)
    answers = [tuple(tokens[pair[number]] for pair in verbs) for number in range(len(NUMBERS))]
    words = [";".join(pair[number] for pair in verbs) for number in range(len(NUMBERS))]
    # Every verb that is left counts as an answer, in the subject's number right and in the other wrong.
    sizes = [prod(_slot_sizes(structure)) for structure in structures]
    made: list[Pair] = []
    if options.prompt_set == "study":  # Uniform over all prompts, so that large structures come more often.
        rows = [
            unravel(row, (len(NUMBERS), sum(sizes)))
            for _, _, row in draw("sva", [[len(NUMBERS) * sum(sizes)]], n, seed)
        ]
        ends = list(accumulate(sizes))
        drawn = [(number, at := bisect_right(ends, row), row - ends[at] + sizes[at]) for number, row in rows]
    else:
        drawn = draw("sva", [sizes] * len(NUMBERS), n, seed)
    for number, stratum, index in drawn:
        structure = structures[stratum]
        choice = unravel(index, _slot_sizes(structure))
        filled = [_words_of(structure, choice, which) for which in (number, 1 - number)]
        clean, corrupted = (structure.template.format(**words) for words in filled)
        meta = {
            "structure": structure.name,
            "subject": structure.subjects[choice[0]][0],
            "number": NUMBERS[number],
            "other": structure.others[choice[1]][0] if structure.others else "",
            "other_number": NUMBERS[choice[2]] if structure.others else "",
            "verbs": words[number],
        }
        where = f"sva prompt {len(made)} ({structure.name})"
        roles = slot_spans(structure.template, filled[0])
        made.append(Pair(clean, corrupted, answers[number], answers[1 - number], meta, where, roles))
    return made


def _single_tokens(tokenizer: PreTrainedTokenizerBase) -> Container[str]:
    """Every word of the task that is one token after a space, with the space."""
    slots = [VERBS, *(getattr(structure, slot) for structure in STRUCTURES for slot in SLOTS)]
    phrases = [" ".join(words) if isinstance(words, tuple) else words for slot in slots for words in slot]
    return continuations(tokenizer, [f" {word}" for phrase in phrases for word in phrase.split()])


def _single_token_pairs(known: Container[str], pairs: Iterable[Inflected]) -> tuple[Inflected, ...]:
    """The pairs of words or phrases whose every word, in both numbers, is one token."""
    return tuple(pair for pair in pairs if all(f" {word}" in known for phrase in pair for word in phrase.split()))


def _known(known: Container[str], structure: Structure) -> Structure:
    """A structure with the words that are single tokens, refused if one of its slots is left empty."""
    kept: dict[str, Any] = {}
    for slot in SLOTS[:-1]:
        words = getattr(structure, slot)
        kept[slot] = _single_token_pairs(known, words)
        require(len(kept[slot]), len(words), f"sva ({structure.name})", f"{slot} (in both numbers)", min(1, len(words)))
    links = _single_token_pairs(known, ((link, link) for link in structure.links))
    require(len(links), len(structure.links), f"sva ({structure.name})", "links", min(1, len(structure.links)))
    return replace(structure, **kept, links=tuple(link for link, _ in links))


def _words(structures: Iterable[Structure]) -> set[Inflected | str]:
    """All that fills the slots of some structures."""
    return {word for structure in structures for slot in SLOTS for word in getattr(structure, slot)}


def _slot_sizes(structure: Structure) -> tuple[int, ...]:
    """How many choices of subject, other noun, its number, verb, other verb and link; 1 where there is no such slot."""
    others = (len(structure.others), len(NUMBERS)) if structure.others else (1, 1)
    slots = (structure.verbs, structure.other_verbs, structure.links)
    return (len(structure.subjects), *others, *(max(1, len(slot)) for slot in slots))


def _words_of(structure: Structure, choice: list[int], number: int) -> dict[str, str]:
    """What fills a structure's slots, with its subject in the given number (0 singular, 1 plural)."""
    subject, other, other_number, verb, other_verb, link = choice
    words = {"subject": structure.subjects[subject][number]}
    if structure.others:
        words["other"] = structure.others[other][other_number]
    if structure.verbs:
        words["verb"] = structure.verbs[verb][number]
    if structure.other_verbs:
        words["other_verb"] = structure.other_verbs[other_verb][other_number]
    if structure.links:
        words["link"] = structure.links[link]
    return words


TASK = Task("sva", pairs, "prob_diff", group="structure", label="Subject-verb agreement")
