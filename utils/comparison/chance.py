"""What similarity chance alone gives: two circuits of the same sizes as the observed ones, drawn at random.

Edges (and heads, and nodes apart from `input` and `logits`, which are in every circuit) are drawn without replacement,
one circuit independently of the other. The number that both hold is then hypergeometric, and everything that depends on
it alone has a closed form. Scores dealt to the edges at random correlate with 0. The weighted Jaccard similarity has no
closed form: there the circuits' own scores are dealt to random edges, many times.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from .similarity import weighted_jaccard

DRAWS = 1000
"""How often scores are dealt at random."""


def expected_jaccard(first: int, second: int, total: int, always: int = 0) -> float:
    """Mean Jaccard similarity of two random sets.

    Args:
        always: how many of them are in both sets whatever is drawn; they are counted in all three numbers.

    Returns:
        sum over k of P(k) (k + always) / (first + second - k - always) with hypergeometric P; nan if both are empty.
    """
    a, b, n = first - always, second - always, total - always
    shared = np.arange(max(0, a + b - n), min(a, b) + 1)
    probability = stats.hypergeom(n, a, b).pmf(shared)
    union = a + b - shared + always
    if (union == 0).any():
        return float("nan")
    return float((probability * (shared + always) / union).sum())


def expected_added(first: int, second: int, total: int) -> float:
    """How many items of the second random set the first lacks, on average: second (1 - first / total)."""
    return second * (1 - first / total)


def expected_weighted_jaccard(
    first: Float[np.ndarray, " a"],  # scores of each circuit's edges
    second: Float[np.ndarray, " b"],
    total: int,
    seed: int,
    draws: int = DRAWS,
    raw: bool = False,
) -> float:
    """Mean weighted Jaccard similarity where the scores of both circuits are dealt to random edges."""
    if not len(first) or not len(second):
        return float("nan")
    rng, values = np.random.default_rng(seed), []
    # One circuit may stay where it is: only where the other lies relative to it matters.
    fixed = np.zeros((1, total))
    fixed[0, : len(first)] = first
    for _ in range(draws):
        dealt = np.zeros((1, total))
        dealt[0, rng.choice(total, len(second), replace=False)] = second
        values.append(float(weighted_jaccard(torch.from_numpy(fixed), torch.from_numpy(dealt), raw)[0]))
    return float(np.mean(values))
