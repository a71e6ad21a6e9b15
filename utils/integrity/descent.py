"""Does each checkpoint descend from the one before? What equal hashes cannot show.

Between two consecutive checkpoints, a few tensors change by a relative distance |W' - W| / |W| (L2 norms, mean over the
tensors). Along a training this changes gradually. A pair whose distance is more than `FACTOR` times the median of the
two pairs before and the two after stands out: a checkpoint of another run is about sqrt(2) away, the distance of two
independent random matrices of the same size.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..base.errors import CheckpointUnusable
from ..models.family import Family
from ..models.weight_files import read_some

if TYPE_CHECKING:
    from torch import Tensor

FACTOR, FLOOR, TENSORS = 5.0, 1e-3, 4
"""How far is too far, which distances are too small to matter, and how many tensors to compare."""


@dataclass(frozen=True)
class WeightChange:
    """From one checkpoint to the next."""

    before: int
    step: int
    distance: float  # relative L2 distance, mean over tensors; 0 if they are equal
    usual: float | None  # the median of the neighbouring pairs' distances; None if there are fewer than two

    @property
    def stands_out(self) -> bool:
        """Whether the later checkpoint does not seem to descend from the earlier one."""
        return self.usual is not None and self.distance > max(FACTOR * self.usual, FLOOR)


def weight_changes(
    family: Family,
    steps: Sequence[int],
    keep: Literal["all", "none"] | int = "all",
    advance: Callable[[], object] = lambda: None,
) -> tuple[list[WeightChange], dict[int, str]]:
    """Load a few tensors of each step and compare consecutive ones; what is not on disk is downloaded.

    Returns the changes, and the steps that could not be read with what is wrong; `advance` is called after each, and
    `keep` is as in `Family.release`.
    """
    pairs: list[tuple[int, int, float]] = []
    unusable: dict[int, str] = {}
    before: tuple[int, dict[str, Tensor]] | None = None
    for step in steps:
        try:
            now = read_some(family.fetch(step).folder, _spread_over_depth)
        except CheckpointUnusable as error:
            unusable[step] = str(error)
        else:
            if before is not None:
                pairs.append((before[0], step, distance(before[1], now)))
            before = step, now
        family.release(step, keep)
        advance()
    changes = []
    for index, (earlier, step, moved) in enumerate(pairs):
        near = [other[2] for other in (*pairs[max(index - 2, 0) : index], *pairs[index + 1 : index + 3])]
        changes.append(WeightChange(earlier, step, moved, statistics.median(near) if len(near) > 1 else None))
    return changes, unusable


def distance(before: dict[str, Tensor], now: dict[str, Tensor]) -> float:
    """Relative L2 distance, mean over the tensors that both have in the same shape; infinite if there are none."""
    each = []
    for name in before.keys() & now.keys():
        first, second = before[name].double(), now[name].double()
        if first.shape == second.shape:
            norm = float(first.norm())
            each.append(float((second - first).norm()) / norm if norm else float(second.norm() > 0))
    return statistics.fmean(each) if each else float("inf")


def _spread_over_depth(names: list[str]) -> list[str]:
    """Matrices spread over the depth of the model: the same names in all checkpoints of a family."""
    matrices = [name for name in sorted(names) if name.endswith("weight") and ".layers." in f".{name}"]
    matrices = matrices or sorted(names)
    count = min(TENSORS, len(matrices))
    return [matrices[round(place * (len(matrices) - 1) / max(count - 1, 1))] for place in range(count)]
