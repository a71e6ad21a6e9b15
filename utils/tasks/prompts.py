"""Tokenised prompt pairs: what a task hands to everything that runs a model.

A pair is a clean prompt and a corrupted one of the same number of tokens, with the tokens that count as right and as
wrong answers at the clean prompt's end. All pairs of a set stand in two tensors, padded on the right, so that position
i of a clean prompt faces position i of its corruption and causal attention needs no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from utils.errors import UserError
from utils.tasks.vocabulary import encode, unknown_token


@dataclass(frozen=True)
class Prompts:
    """n prompt pairs under one tokenizer.

    Attributes:
        clean, corrupted: token ids, padded on the right to a common width.
        lengths: tokens of each prompt without padding; the answer is read at position `lengths - 1`.
        answers, wrong_answers: token ids, padded on the right.
        answer_mask, wrong_mask: true where `answers` and `wrong_answers` hold a token; at least one a row.
        texts: the (clean, corrupted) texts.
        meta: one row a prompt, the facts the task was built from (each task's module lists its columns).
        positions: named positions in the clean prompt; every task has `end`, the last token.
    """

    clean: Int[Tensor, "n width"]
    corrupted: Int[Tensor, "n width"]
    lengths: Int[Tensor, n]
    answers: Int[Tensor, "n a"]
    answer_mask: Bool[Tensor, "n a"]
    wrong_answers: Int[Tensor, "n w"]
    wrong_mask: Bool[Tensor, "n w"]
    texts: list[tuple[str, str]]
    meta: pd.DataFrame
    positions: dict[str, Int[Tensor, n]]

    def __post_init__(self) -> None:
        """Check that every part describes the same prompts.

        Raises:
            ValueError: if two parts disagree on the number of prompts or a mask does not fit its tokens.
        """
        parts: list[Sized] = [*self._tensors().values(), self.texts, self.meta, *self.positions.values()]
        counts = {len(part) for part in parts}
        if len(counts) != 1:
            raise ValueError(f"the parts of the prompts have different numbers of rows: {sorted(counts)}")
        if self.clean.shape != self.corrupted.shape:
            raise ValueError(f"clean {tuple(self.clean.shape)} and corrupted {tuple(self.corrupted.shape)} differ")
        if self.answers.shape != self.answer_mask.shape or self.wrong_answers.shape != self.wrong_mask.shape:
            raise ValueError("a mask has another shape than its answers")

    def __len__(self) -> int:
        return len(self.texts)

    def _tensors(self) -> dict[str, Tensor]:
        names = ("clean", "corrupted", "lengths", "answers", "answer_mask", "wrong_answers", "wrong_mask")
        return {name: getattr(self, name) for name in names}

    def select(self, index: slice | Sequence[int] | Sequence[bool] | np.ndarray | pd.Series | Tensor) -> Prompts:
        """The prompts at the given rows, in the given order, at the same width.

        Args:
            index: a slice, row numbers (negative ones count from the end), or a boolean mask over all rows, such as a
                condition on `meta`.

        Raises:
            IndexError: if a row does not exist or a mask has another length.
        """
        if isinstance(index, pd.Series):
            index = index.to_numpy()
        if not isinstance(index, slice):
            index = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
            if index.size == 0:
                index = index.astype(np.int64)
        rows = np.arange(len(self))[index]
        chosen = {name: part[torch.as_tensor(rows, device=part.device)] for name, part in self._tensors().items()}
        return Prompts(
            **chosen,
            texts=[self.texts[row] for row in rows],
            meta=self.meta.iloc[rows].reset_index(drop=True),
            positions={k: v[torch.as_tensor(rows, device=v.device)] for k, v in self.positions.items()},
        )

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts with every tensor on `device`."""
        moved: dict[str, Any] = {name: part.to(device) for name, part in self._tensors().items()}
        return replace(self, **moved, positions={name: part.to(device) for name, part in self.positions.items()})


@dataclass(frozen=True)
class PromptOptions:
    """What a run may choose about its prompts beyond their number and seed.

    Attributes:
        prepend_bos: put the beginning-of-sequence token in front of every prompt.
        ioi_corruption: how the `ioi` task corrupts a prompt; other tasks ignore it.
    """

    prepend_bos: bool = False
    ioi_corruption: Literal["swap", "abc"] = "swap"


@dataclass(frozen=True)
class Task:
    """A task: how its prompts are built and how a model is scored on them.

    Attributes:
        name: the registry's name, or the stem of a prompts CSV; names the results folder.
        build: (tokenizer, n, seed, options) -> Prompts.
        primary: the metric circuits are found with, a key of `utils.tasks.metrics.METRICS`.
        metrics: every metric reported, the primary first.
    """

    name: str
    build: Callable[[PreTrainedTokenizerBase, int, int, PromptOptions], Prompts]
    primary: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """One prompt pair before it is tokenised, its answers as token ids."""

    clean: str
    corrupted: str
    answers: tuple[int, ...]
    wrong_answers: tuple[int, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)


def assemble(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], where: Callable[[int], str], prepend_bos: bool = False
) -> Prompts:
    """Tokenise prompt pairs and check that they can be compared position by position.

    Args:
        tokenizer: adds no special tokens, whatever its default.
        pairs: at least one.
        where: names a pair in error messages, by its index.
        prepend_bos: exactly one beginning-of-sequence token (the end-of-sequence token where the tokenizer has no
            other) in front of every prompt; positions count it.

    Returns:
        The prompts in the order of `pairs`, with the one position `end`.

    Raises:
        UserError: if a pair's lengths differ, its prompts are the same or empty, hold a word unknown to the tokenizer,
            or an answer is both right and wrong; or if the tokenizer has no token to put in front.
    """
    rows = encode(tokenizer, [pair.clean for pair in pairs] + [pair.corrupted for pair in pairs])
    if prepend_bos:
        first = bos_token(tokenizer)
        rows = [row if row[:1] == [first] else [first, *row] for row in rows]
    clean, corrupted = rows[: len(pairs)], rows[len(pairs) :]
    unknown = unknown_token(tokenizer)
    for index, (pair, x, y) in enumerate(zip(pairs, clean, corrupted, strict=True)):
        if len(x) != len(y):
            raise UserError(
                f"{where(index)}: clean has {len(x)} tokens and corrupted {len(y)}, they must have as many: "
                f"{pair.clean!r} / {pair.corrupted!r}"
            )
        if x == y:
            raise UserError(f"{where(index)}: clean and corrupted are the same tokens: {pair.clean!r}")
        if unknown is not None and (unknown in x or unknown in y):
            raise UserError(
                f"{where(index)}: holds a word unknown to the tokenizer: {pair.clean!r} / {pair.corrupted!r}"
            )
        if both := set(pair.answers) & set(pair.wrong_answers):
            raise UserError(f"{where(index)}: {tokenizer.decode(min(both))!r} is both an answer and a wrong answer")
    padding = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    lengths = torch.tensor([len(row) for row in clean])
    answers, answer_mask = padded([pair.answers for pair in pairs], fill=0)
    wrong_answers, wrong_mask = padded([pair.wrong_answers for pair in pairs], fill=0)
    return Prompts(
        clean=padded(clean, padding)[0],
        corrupted=padded(corrupted, padding)[0],
        lengths=lengths,
        answers=answers,
        answer_mask=answer_mask,
        wrong_answers=wrong_answers,
        wrong_mask=wrong_mask,
        texts=[(pair.clean, pair.corrupted) for pair in pairs],
        meta=pd.DataFrame([pair.meta for pair in pairs], index=range(len(pairs))),
        positions={"end": lengths - 1},
    )


def bos_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands in front of a sequence: BOS, or EOS where there is no BOS.

    Raises:
        UserError: if the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise UserError("prepend_bos: the tokenizer has neither a BOS nor an EOS token; set prepend_bos=false")


def padded(rows: Sequence[Sequence[int]], fill: int) -> tuple[Int[Tensor, "n width"], Bool[Tensor, "n width"]]:
    """Rows of token ids as one tensor padded on the right with `fill`, and true where it holds a row's own token."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return tokens, torch.arange(width)[None, :] < lengths[:, None]
