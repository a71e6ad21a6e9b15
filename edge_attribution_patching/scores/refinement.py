"""As many integration steps as the prompts can tell apart (`ig_steps: auto`).

The trapezoidal rule T(m) over m equal parts of the path, with m doubled until the error of integration is small beside
that of sampling. T(2m) is the mean of T(m) and of the gradients in the middle of its parts, so every gradient counts
again. How far T(2m) errs is estimated by how far it moved. Where the gradient is smooth, its error is a third of that
(Richardson 1911). Where the gradient jumps, elsewhere for each prompt, its root mean square is 1 / sqrt(3) of that of
the move: in a part of the width h with a jump of J at a random place, T(m) errs by J h / sqrt(12), T(2m) by half as
much, and the move is J h / 4. Models do both, and a single run may be unlucky, so three quarters of the move are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..choices import MOST_PARTS
from .folds import FoldScores

Points = tuple[list[float], list[float]]
"""Of the path, ascending, and their weights."""

FIRST = 3
"""Parts of the first rule; the last has 49 points."""
STRONGEST, SHARE = 500, 0.95
"""The error is one that so many strongest edges stay below, all but 5% of them."""
OF_MOVE = 0.75
"""The error as a share of the last move."""
ROUNDING = 1e-6
"""Of the largest score: what moves by less has not moved."""
OF_LARGEST = 0.04
"""Without folds, so much of the largest score stands for the standard error."""


def refined(at: Callable[[Sequence[Points]], FoldScores], tolerance: float, most: int = MOST_PARTS) -> FoldScores:
    """Scores with an error of integration of at most `tolerance` standard errors, or from `most` parts of the path.

    Args:
        at: rules -> the sum of all edges' scores by the first of them; later calls may ask for the others.
    """
    parts, inside = FIRST, [1 / FIRST] * (FIRST - 1)
    rules: list[Points] = [([k / FIRST for k in range(FIRST + 1)], [0.5 / FIRST, *inside, 0.5 / FIRST])]
    while parts < most:
        rules.append(([(k + 0.5) / parts for k in range(parts)], [1 / parts] * parts))
        parts *= 2
    scores = at(rules)
    for number in range(1, len(rules)):
        coarse, middles = scores, at(rules[number:])
        scores = replace(coarse, sums=(coarse.sums + middles.sums) / 2)
        error = integration_error(coarse, scores)
        if error <= tolerance:
            break
    return replace(scores, points=2 * len(rules[number][0]) + 1, integration_error=error)


def integration_error(coarse: FoldScores, fine: FoldScores) -> float:
    """The estimated error of integration of `fine`, which has twice the parts, in standard errors of the scores."""
    strongest = fine.scores.abs().flatten().topk(min(STRONGEST, fine.graph.n_edges)).indices
    largest = fine.scores.abs().max()
    moved, sampling = ((fine.scores - coarse.scores).abs(), fine.standard_error)
    if len(fine.sizes) == 1:
        sampling = (OF_LARGEST * largest).expand_as(moved)
    moved, sampling = moved.flatten()[strongest].double(), sampling.flatten()[strongest].double()
    return float((OF_MOVE * moved / sampling).where(moved > ROUNDING * largest, 0).quantile(SHARE))
