"""The smallest circuit that keeps enough of the model: which sizes to evaluate, and which of them to choose.

`criterion` says what must reach the threshold:

    normalised   (M(C) - M(corrupted)) / (M(clean) - M(corrupted)) >= threshold      (Hanna et al. 2024)
    raw          M(C) / M(clean) > threshold                                         (Tigges et al. 2024)

`grid` says which sizes to look at:

    adaptive   8, 16, 32, ... until a size is confirmed, then several sizes a round between it and the next smaller one.
               A size is confirmed if the next larger one evaluated reaches the threshold too.
    study      25, 50, 75, ... up to 1,600 until one reaches the threshold, then bisection below it, then 5 sizes on
               either side. The smallest that reaches the threshold counts (Tigges et al. 2024, arXiv 2407.10827).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..choices import Criterion, Grid

if TYPE_CHECKING:  # A config has a rule before anything needs torch.
    from jaxtyping import Float
    from torch import Tensor

    from .faithfulness import FaithfulnessCurve

    Evaluate = Callable[[Sequence[int]], Float[Tensor, "size prompt"]]

FIRST = 8
"""Smallest size of the adaptive ladder."""
STACK = 6
"""Sizes that are evaluated together."""
STUDY_STEP, STUDY_LAST, STUDY_AROUND = 25, 1600, 5


@dataclass(frozen=True)
class SizeRule:
    """When a circuit is faithful enough, and how to find the smallest one that is.

    Attributes:
        threshold: what its faithfulness must reach.
        criterion: see the module.
        grid: see the module.
    """

    threshold: float
    criterion: Criterion = "normalised"
    grid: Grid = "adaptive"

    def values(self, curve: FaithfulnessCurve) -> list[float]:
        """What must reach the threshold, at every size evaluated, in the order of the sizes."""
        of_size = curve.faithfulness if self.criterion == "normalised" else curve.raw
        return [of_size(size) for size in curve.sizes]

    def resampled(self, curve: FaithfulnessCurve, seed: int) -> Float[Tensor, "resample size"]:
        """The same on prompts drawn with replacement."""
        return curve.resampled(seed) if self.criterion == "normalised" else curve.resampled_raw(seed)

    def reached(self, value: float) -> bool:
        """Whether a value reaches the threshold."""
        return value >= self.threshold if self.criterion == "normalised" else value > self.threshold

    def select(self, sizes: Sequence[int], values: Sequence[float], n_edges: int) -> int | None:
        """The size to choose among those evaluated (ascending), or None.

        The whole graph needs no confirmation.
        """
        enough = [self.reached(value) for value in values]
        for place, size in enumerate(sizes):
            confirmed = size >= n_edges or (place + 1 < len(sizes) and enough[place + 1])
            if enough[place] and (confirmed or self.grid == "study"):
                return size
        return None

    def search(self, curve: FaithfulnessCurve, evaluate: Evaluate, n_edges: int) -> int | None:
        """Find the size.

        Args:
            curve: receives every size that is evaluated.
            evaluate: sizes -> the metric of their circuits, per prompt.
            n_edges: edges in the whole graph.

        Returns:
            The size of the smallest circuit that is faithful enough, or None.
        """
        search = _Search(self, curve, evaluate, n_edges)
        return search.study() if self.grid == "study" else search.adaptive()


class _Search:
    def __init__(self, rule: SizeRule, curve: FaithfulnessCurve, evaluate: Evaluate, n_edges: int) -> None:
        self.rule, self.curve, self.evaluate, self.n_edges = rule, curve, evaluate, n_edges

    def adaptive(self) -> int | None:
        """Doubling sizes, then several sizes a round."""
        ladder = sorted({min(FIRST << power, self.n_edges) for power in range(self.n_edges.bit_length() + 1)})
        best = None
        for start in range(0, len(ladder), STACK // 2):
            self._add(ladder[start : start + STACK // 2])
            if (best := self._best()) is not None:
                break
        while best is not None:
            below = max((size for size in self.curve.sizes if size < best), default=0)
            if best - below <= 1:
                return best
            gap = best - below
            self._add(sorted({below + gap * step // (STACK + 1) for step in range(1, STACK + 1)} - {below}))
            best = self._best()
        return None

    def study(self) -> int | None:
        """Steps of 25, bisection, and a look around."""
        grid = [*range(STUDY_STEP, min(STUDY_LAST, self.n_edges) + 1, STUDY_STEP)] or [self.n_edges]
        high = None
        for start in range(0, len(grid), STACK):
            self._add(grid[start : start + STACK])
            if (high := self._best()) is not None:
                break
        if high is None:
            return None
        low = max(high - STUDY_STEP, 0)
        while high - low > 1:
            middle = (low + high) // 2
            self._add([middle])
            low, high = (low, middle) if self._enough(middle) else (middle, high)
        around = range(max(1, high - STUDY_AROUND), min(self.n_edges, high + STUDY_AROUND) + 1)
        self._add(list(around))
        return self._best()

    def _enough(self, size: int) -> bool:
        return self.rule.reached(self.rule.values(self.curve)[self.curve.sizes.index(size)])

    def _add(self, sizes: list[int]) -> None:
        fresh = [size for size in sizes if size not in self.curve.values]
        for start in range(0, len(fresh), STACK):
            part = fresh[start : start + STACK]
            self.curve.values.update(zip(part, self.evaluate(part), strict=True))

    def _best(self) -> int | None:
        return self.rule.select(self.curve.sizes, self.rule.values(self.curve), self.n_edges)
