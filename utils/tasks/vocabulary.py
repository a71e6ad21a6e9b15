"""Which words are single tokens under the tokenizer at hand.

Words are looked up after other text, never alone: a byte-level tokenizer keeps the space before a word in its token, a
SentencePiece one marks it, and a word-level one drops it. After a prompt, all three are right.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..base.errors import UserError, shortened

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

CARRIER = "The"
"""The text before a word that is looked up."""

log = logging.getLogger(__name__)
_already_logged: set[tuple[str, str]] = set()


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens, from one call of the tokenizer."""
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    ids: list[list[int]] = encoded["input_ids"]
    # The rules that transformers has in place of those of tokenizer.json, if they are others (`models.tokenizers`).
    if (others := getattr(tokenizer, "of_transformers", None)) is not None:
        for text, row, other in zip(
            texts, ids, others(list(texts), add_special_tokens=False)["input_ids"], strict=True
        ):
            if row != other:
                log.warning(
                    "%s: tokenizer.json has other tokens than %s of transformers (%d, not %d, for %r); the file counts",
                    *(tokenizer.name_or_path, type(others).__name__, len(row), len(other), text),
                )
                tokenizer.of_transformers = None  # Said once.
                break
    return ids


def refuse(problems: Sequence[str]) -> None:
    """Refuse prompts with what is wrong with them, up to five things at once; nothing if that is none.

    A problem is `where: what`. What stands before the first colon of all is said once.
    """
    if problems:
        start = problems[0].partition(": ")[0] + ": "
        raise UserError(shortened([problems[0], *(one.removeprefix(start) for one in problems[1:])], 5, "; "))


def require_embedded(tokens: Tensor, d_vocab: int, where: str, texts: Sequence[str]) -> None:
    """Refuse tokens that the model has no embedding for: the tokenizer is another model's, or tokens were added to it.
    There is a row of tokens for each text; `where` says what the texts are for.
    """
    beyond = (tokens >= d_vocab).nonzero()
    if len(beyond):
        token = int(tokens[tuple(beyond[0])])
        raise UserError(
            f"tokenizer: not the model's: token {token} in {texts[int(beyond[0][0])]!r} ({where}), but the model has "
            f"{d_vocab} embeddings; use the tokenizer that it was trained with, or leave this text out"
        )


def unknown_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token for words outside the vocabulary, if the tokenizer has one."""
    unknown = tokenizer.unk_token_id
    # Byte-level tokenizers know every text. Theirs is the document separator, which a prompt may contain.
    return None if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id) else unknown


def known_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], task: str, what: str) -> list[str]:
    """Those that hold no word outside the vocabulary; a UserError if there is none, which names the task and `what`."""
    unknown = unknown_token(tokenizer)
    known = [text for text, row in zip(texts, encode(tokenizer, texts), strict=True) if unknown not in row]
    if not known:
        raise UserError(f"{task}: this tokenizer knows none of the {what}; use another model or prompt_set=standard")
    return known


def continuations(tokenizer: PreTrainedTokenizerBase, words: Iterable[str], carrier: str = CARRIER) -> dict[str, int]:
    """The words that follow a text as exactly one token, each with its id, in order. Words are left out if they are
    several tokens, change the tokens of the carrier, or are not known to the tokenizer.
    """
    words = list(dict.fromkeys(words))
    base, *rows = encode(tokenizer, [carrier, *(carrier + word for word in words)])
    unknown = unknown_token(tokenizer)
    return {
        word: row[-1]
        for word, row in zip(words, rows, strict=True)
        if len(row) == len(base) + 1 and row[:-1] == base and row[-1] != unknown
    }


def single_tokens(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], task: str, what: str, least: int
) -> dict[str, int]:
    """The words that are one token after a space, with their ids; a UserError if there are fewer than `least`."""
    tokens = {word[1:]: token for word, token in continuations(tokenizer, [f" {word}" for word in words]).items()}
    require(len(tokens), len(words), task, what, least)
    say_left(tokenizer, task, what, len(tokens), len(words))
    return tokens


def say_once(tokenizer: PreTrainedTokenizerBase, line: str) -> None:
    """Log a line, once for each tokenizer: prompts are built more than once in a run."""
    if (key := (tokenizer.name_or_path, line)) not in _already_logged:
        _already_logged.add(key)
        log.info("%s", line)


def say_left(tokenizer: PreTrainedTokenizerBase, task: str, what: str, found: int, of: int) -> None:
    """Log how many words a tokenizer leaves a task, once, unless it leaves all."""
    if found < of:
        line = f"{task}: {found} of {of} {what} are single tokens under this tokenizer; the others are left out"
        say_once(tokenizer, line)


def require(found: int, of: int, task: str, what: str, least: int) -> None:
    """Refuse a tokenizer that leaves a task fewer words than it needs."""
    if found < least:
        raise UserError(
            f"{task}: only {found} of {of} {what} are single tokens under this tokenizer, but the task needs {least}; "
            "use another model or a prompts CSV"
        )
