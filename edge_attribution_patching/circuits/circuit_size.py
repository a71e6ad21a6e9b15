"""The smallest circuit that keeps enough of the model: which sizes to evaluate, and which of them to choose.

`criterion` says what must reach the threshold:

    normalised   (M(C) - M(corrupted)) / (M(clean) - M(corrupted)) >= threshold      (Hanna et al. 2024)
    raw          M(C) / M(clean) > threshold                                         (Tigges et al. 2024)

`grid` says which sizes to look at:

    adaptive   8, 16, 32, ... until a size is confirmed, then several sizes a round between it and the next smaller one.
               A size is confirmed if the next larger circuit reaches the threshold too: that of the next size at which
               pruning leaves other edges. So the circuit that is found reaches the threshold, the next larger circuit
               does too, and the next smaller one does not. Of the sizes tried, no smaller one is confirmed.
    study      25, 50, 75, ... below 1,600 until one reaches the threshold. Above 3/4 of it each step is half of the one
               before (25, 12, 6, 3, 1), and 25 again where faithfulness falls. Then bisection between that size and a
               step below it; within a tenth of the threshold also up to 5 sizes on either side, the smallest first,
               until one reaches it. The smallest that does counts (Tigges et al. 2024, arXiv 2407.10827).

Of `sizes` that are given, too, the smallest that reaches the threshold counts.

How sure is the size? The ends of its interval are the sizes that would be chosen if the faithfulness of every size were
at the high or at the low end of its own interval. With `adaptive` they are searched like the size itself, and so are
those that lower thresholds choose (`THRESHOLDS`).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
BEYOND = 4
"""The high end of a size's interval is searched up to so many times the size."""
STUDY_STEP, STUDY_LAST, STUDY_AROUND = 25, 1600, 5
STUDY_NEAR, STUDY_CLOSE = 0.75, 0.1
"""Shares of the threshold above which the study's steps shrink, and within which its bisection looks around."""
THRESHOLDS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Faithfulness thresholds over which an edge's inclusion is counted."""


@dataclass(frozen=True)
class SizeRule:
    """When a circuit is faithful enough, and how to find the smallest one that is.

    Where sizes are chosen, `starts` are the sizes at which the pruned circuit changes, ascending (`search.join_sizes`).
    """

    threshold: float  # what its faithfulness must reach
    criterion: Criterion = "normalised"
    grid: Grid = "adaptive"
    sizes: Sequence[int] | None = None  # ascending; evaluate these, and no grid

    @property
    def confirms(self) -> bool:
        """Whether the next larger circuit must reach the threshold, too."""
        return self.sizes is None and self.grid == "adaptive"

    def values(self, curve: FaithfulnessCurve) -> list[float]:
        """What must reach the threshold, at every size evaluated, in the order of the sizes."""
        of_size = curve.faithfulness if self.criterion == "normalised" else curve.raw
        return [of_size(size) for size in curve.sizes]

    def reached(self, value: float) -> bool:
        """Whether a value reaches the threshold."""
        return value >= self.threshold if self.criterion == "normalised" else value > self.threshold

    def select(self, sizes: Sequence[int], values: Sequence[float], starts: Sequence[int]) -> int | None:
        """The size to choose among those evaluated (ascending), or None. The whole graph needs no confirmation."""
        enough = [self.reached(value) for value in values]
        circuits = [bisect_right(starts, size) for size in sizes]
        for place, size in enumerate(sizes):
            after = bisect_right(circuits, circuits[place])
            if enough[place] and (
                not self.confirms or (enough[after] if after < len(sizes) else circuits[place] == len(starts))
            ):
                return size
        return None

    def interval(self, curve: FaithfulnessCurve, starts: Sequence[int]) -> tuple[int | None, int | None]:
        """The ends of the size's 95% interval; None where no size that was evaluated is one."""
        low, high = curve.intervals(raw=self.criterion == "raw")
        ends = (self.select(curve.sizes, values.tolist(), starts) for values in (high, low))
        return next(ends), next(ends)

    def search(self, curve: FaithfulnessCurve, evaluate: Evaluate, starts: Sequence[int]) -> int | None:
        """Find the size of the smallest circuit that is faithful enough, or None.

        Args:
            curve: receives every size that is evaluated.
            evaluate: sizes -> the metric of their circuits, per prompt.
        """

        def add(sizes: Sequence[int]) -> None:
            # Of a circuit that several sizes have, one evaluation is enough.
            known = {bisect_right(starts, size): values for size, values in curve.values.items()}
            fresh = {bisect_right(starts, size): size for size in sizes}
            stacked = [size for circuit, size in fresh.items() if circuit not in known]
            for start in range(0, len(stacked), STACK):
                stack = stacked[start : start + STACK]
                known |= zip((bisect_right(starts, size) for size in stack), evaluate(stack), strict=True)
            curve.values.update((size, known[bisect_right(starts, size)]) for size in sizes)

        if self.sizes is not None:
            curve.values.update(zip(self.sizes, evaluate(self.sizes), strict=True))
        elif self.grid == "study":
            self._study(curve, add, starts[-1])
        else:
            while sizes := next(self._next(curve, starts), None):
                add(sizes)
        return self.select(curve.sizes, self.values(curve), starts)

    def _next(self, curve: FaithfulnessCurve, starts: Sequence[int]) -> Iterator[list[int]]:
        """What to evaluate next: for the size itself, and once that is settled for all that is said about it."""
        sizes, values, n_edges = curve.sizes, self.values(curve), starts[-1]
        size = self.select(sizes, values, starts)
        ladder = [n for n in _ladder(n_edges) if n > max(sizes, default=0)]
        if size is None:
            yield from filter(None, [ladder[: STACK // 2]])
            return
        yield from filter(None, [self._between(sizes, values, starts, STACK)])
        low, high = (ends.tolist() for ends in curve.intervals(raw=self.criterion == "raw"))
        wanted = [(self, high), (self, low)]
        wanted += [(replace(self, threshold=lower), values) for lower in THRESHOLDS if lower < self.threshold]
        # One size each, halfway, so that all are found by the fewest circuits.
        fresh = {one for rule, of_sizes in wanted for one in rule._between(sizes, of_sizes, starts, 1)}
        if self.select(sizes, low, starts) is None:
            fresh |= {n for n in ladder[:1] if n <= BEYOND * size}
        yield from filter(None, [sorted(fresh)])

    def _between(self, sizes: Sequence[int], values: Sequence[float], starts: Sequence[int], most: int) -> list[int]:
        """Sizes below the one chosen whose circuits may do as well, and the one that must confirm it."""
        size = self.select(sizes, values, starts)
        if size is None:
            return []
        below = max((other for other in sizes if other < size), default=0)
        first, last = bisect_right(starts, below), bisect_left(starts, size)
        # At equal distances between the two; all of them if there are no more.
        steps = {(last - first + 1) * step // (most + 1) for step in range(1, most + 1)} - {0}
        after = starts[bisect_right(starts, size) :][:1]
        return sorted({*(starts[first + step - 1] for step in steps), *after} - {*sizes})

    def _study(self, curve: FaithfulnessCurve, add: Callable[[Sequence[int]], None], n_edges: int) -> None:
        """Growth by steps that shrink near the threshold, then bisection with a look around (Tigges et al. 2024)."""

        def value(size: int) -> float:
            add([size])
            return self.values(curve)[curve.sizes.index(size)]

        size, step, before = min(STUDY_STEP, n_edges), STUDY_STEP, -math.inf
        while not self.reached(now := value(size)):
            # A step that was halved is forgotten where faithfulness falls, or is low again.
            if step < STUDY_STEP and (now < STUDY_NEAR * self.threshold or now < before):
                step = STUDY_STEP
            if now > STUDY_NEAR * self.threshold:
                step = max(step // 2, 1)
            before, size = now, size + step
            if size >= STUDY_LAST or size > n_edges:
                return
        low, high = max(size - step, 1), size
        first, last, found = low, high, None
        while low <= high:
            middle = (low + high) // 2
            now = value(middle)
            if self.reached(now):
                found, high = middle, middle - 1
            else:
                low = middle + 1
            if abs(now - self.threshold) <= STUDY_CLOSE * self.threshold:
                around = range(max(middle - STUDY_AROUND, first), min(middle + STUDY_AROUND, last) + 1)
                for other in around:
                    if other != middle and self.reached(value(other)) and (found is None or other < found):
                        found, high = other, other - 1
                        break


def _ladder(n_edges: int) -> list[int]:
    return sorted({min(FIRST << power, n_edges) for power in range(n_edges.bit_length() + 1)})
