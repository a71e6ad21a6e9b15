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
    BestAfter = Callable[[Sequence[int]], int | None]

FIRST = 8
"""Smallest size of the adaptive ladder."""
STACK = 6
"""Sizes that are evaluated together."""
STUDY_STEP, STUDY_LAST, STUDY_AROUND = 25, 1600, 5


@dataclass(frozen=True)
class SizeRule:
    """When a circuit is faithful enough, and how to find the smallest one that is."""

    threshold: float  # what its faithfulness must reach
    criterion: Criterion = "normalised"
    grid: Grid = "adaptive"

    def values(self, curve: FaithfulnessCurve) -> list[float]:
        """What must reach the threshold, at every size evaluated, in the order of the sizes."""
        of_size = curve.faithfulness if self.criterion == "normalised" else curve.raw
        return [of_size(size) for size in curve.sizes]

    def resampled(self, curve: FaithfulnessCurve, seed: int) -> Float[Tensor, "resample size"]:
        """The same on prompts drawn with replacement."""
        return curve.resampled(seed, raw=self.criterion == "raw")

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
        """Find the size of the smallest circuit that is faithful enough, or None.

        Args:
            curve: receives every size that is evaluated.
            evaluate: sizes -> the metric of their circuits, per prompt.
            n_edges: edges in the whole graph.
        """

        def best_after(sizes: Sequence[int]) -> int | None:
            fresh = [size for size in sizes if size not in curve.values]
            for start in range(0, len(fresh), STACK):
                stack = fresh[start : start + STACK]
                curve.values.update(zip(stack, evaluate(stack), strict=True))
            return self.select(curve.sizes, self.values(curve), n_edges)

        if self.grid == "study":
            return self._study(curve, best_after, n_edges)
        return self._adaptive(curve, best_after, n_edges)

    def _adaptive(self, curve: FaithfulnessCurve, best_after: BestAfter, n_edges: int) -> int | None:
        """Doubling sizes, then several sizes a round."""
        ladder = sorted({min(FIRST << power, n_edges) for power in range(n_edges.bit_length() + 1)})
        best = _first(best_after, ladder, STACK // 2)
        while best is not None:
            below = max((size for size in curve.sizes if size < best), default=0)
            if best - below <= 1:
                return best
            # Six sizes at equal distances between the two cost one pass together.
            gap = best - below
            best = best_after(sorted({below + gap * step // (STACK + 1) for step in range(1, STACK + 1)} - {below}))
        return None

    def _study(self, curve: FaithfulnessCurve, best_after: BestAfter, n_edges: int) -> int | None:
        """Steps of 25, bisection, and a look around."""
        high = _first(best_after, [*range(STUDY_STEP, min(STUDY_LAST, n_edges) + 1, STUDY_STEP)] or [n_edges], STACK)
        if high is None:
            return None
        low = max(high - STUDY_STEP, 0)  # too small, and `high` is enough
        while high - low > 1:
            middle = (low + high) // 2
            best_after([middle])
            enough = self.reached(self.values(curve)[curve.sizes.index(middle)])
            low, high = (low, middle) if enough else (middle, high)
        return best_after(range(max(1, high - STUDY_AROUND), min(n_edges, high + STUDY_AROUND) + 1))


def _first(best_after: BestAfter, sizes: list[int], at_once: int) -> int | None:
    """The best size as soon as there is one, with some sizes evaluated together."""
    parts = (sizes[start : start + at_once] for start in range(0, len(sizes), at_once))
    return next((best for part in parts if (best := best_after(part)) is not None), None)
