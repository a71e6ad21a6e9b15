"""Pairs of clean and corrupted prompts, in batches that run only what differs between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .packed_tokens import PackedTokens

GB = 1e9
"""Bytes of the unit in which memory budgets are given."""

Metric = Callable[[Float[Tensor, "batch vocab"], Int[Tensor, " batch"]], Float[Tensor, " batch"]]
"""Per prompt: logits at the answer, and which prompts they belong to -> values."""

BAR_DELAY = 3.0
"""Seconds after which a progress bar appears: what is over sooner needs none."""

T = TypeVar("T")


@dataclass(frozen=True)
class PairBatch:
    """Some prompt pairs and where their tokens run."""

    index: Int[Tensor, " batch"]  # which prompts of the whole set these are
    clean: Int[Tensor, "batch position"]
    corrupted: Int[Tensor, "batch position"]
    layout: PackedTokens  # with prefix sharing each pair starts at the first position where it differs


@dataclass(frozen=True)
class TokenPairs:
    """Right-padded token ids of clean and corrupted prompts of equal length.

    Raises:
        ValueError: if shapes disagree or a prompt is empty.
    """

    clean: Int[Tensor, "prompt position"]
    corrupted: Int[Tensor, "prompt position"]
    lengths: Int[Tensor, " prompt"]

    def __post_init__(self) -> None:
        if self.clean.shape != self.corrupted.shape or len(self.lengths) != len(self.clean):
            raise ValueError(
                f"clean {tuple(self.clean.shape)}, corrupted {tuple(self.corrupted.shape)} and lengths "
                f"{tuple(self.lengths.shape)} do not describe the same prompts"
            )
        if len(self.lengths) == 0 or int(self.lengths.min()) < 1 or int(self.lengths.max()) > self.clean.shape[1]:
            raise ValueError("every prompt needs between 1 token and the width of the padded ids")

    def __len__(self) -> int:
        return len(self.lengths)

    def batches(self, batch_size: int, *, share_prefix: bool = True) -> Iterator[PairBatch]:
        """All pairs. Those whose tails have similar lengths come together, so that attention pads little."""
        starts = torch.zeros_like(self.lengths)
        if share_prefix:  # The first position where each pair differs; the last position of a pair that never does.
            positions = torch.arange(self.clean.shape[1], device=self.clean.device)
            differs = (self.clean != self.corrupted) & (positions < self.lengths[:, None])
            starts = torch.where(differs.any(dim=1), differs.int().argmax(dim=1), self.lengths - 1)
        order = torch.argsort((self.lengths - starts) * (self.clean.shape[1] + 1) + self.lengths, stable=True)
        for index in order.split(batch_size):
            width = int(self.lengths[index].max())
            yield PairBatch(
                index,
                self.clean[index, :width],
                self.corrupted[index, :width],
                PackedTokens(starts[index], self.lengths[index]),
            )


def bar(items: Iterable[T], what: str) -> Iterable[T]:
    """The items, with a bar below the sweep's own while they are worked on; none where stderr is no terminal."""
    from tqdm.auto import tqdm  # Slow to import in a notebook.

    watched: Iterable[T] = tqdm(items, desc=f"  {what}", leave=False, delay=BAR_DELAY, disable=None, dynamic_ncols=True)
    return watched
