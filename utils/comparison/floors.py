"""How similar two circuits would be if only the prompts differed, and whether an observed similarity is lower.

Scores are stored for every fold of the prompts (`edge_attribution_patching/folds.py`), so that circuits for other draws
of prompts can be grown without a model. Sizes are kept: the first circuit of a pair always has as many edges as the
first observed one, the second as many as the second, so that a difference of size alone is never a change.

Noise floor: pairs of bootstrap resamples of the folds of one checkpoint. A bootstrapped mean of K folds has only
(K - 1) / K of the variance of the mean, so deviations from the mean are widened by sqrt(K / (K - 1)) (Davison and
Hinkley 1997, section 2.7).

p-value: the share of such pairs that are at most as alike as the observed circuits. Resamples lie around an observed
mean, which its own noise has spread out, and are therefore slightly more alike than two true draws. So a change counts
only if neither checkpoint's noise explains it: the p-value is the larger of the two checkpoints'. In simulations of two
draws of one distribution this flags at most its nominal rate, mostly less than half of it. Checkpoints that were
measured on the same prompts are more alike than two draws, so for them it errs further to the safe side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from edge_attribution_patching.folds import KeptFolds
from edge_attribution_patching.search import Order, Selection
from edge_attribution_patching.stability import POSITIVE_SHARE, CircuitBootstrap, resampled_scores
from utils.comparison.similarity import COUNTS, Circuits, Edges, of_circuits, rank_correlation

Samples = dict[str, Float[np.ndarray, " sample"]]


@dataclass(frozen=True)
class Rule:
    """How the stored circuits were grown from scores: `search.order`, `search.selection`, and so on, of their run."""

    order: Order = "greedy"
    selection: Selection = "absolute"
    positive_share: float = POSITIVE_SHARE
    seed: int = 0

    def grower(self, folds: KeptFolds) -> CircuitBootstrap:
        """What grows circuits from scores of these folds' edges."""
        return CircuitBootstrap(folds, self.order, self.selection, self.positive_share, self.seed)


def draws(folds: KeptFolds, seed: int, n: int) -> Float[Tensor, "draw kept"]:
    """Scores as n other draws of as many prompts would give them: the widened bootstrap."""
    n_folds = len(folds.sizes)
    mean = _weighted(folds.means, folds.sizes)
    return mean + sqrt(n_folds / max(n_folds - 1, 1)) * (resampled_scores(folds, seed, n) - mean)


def noise_floor(folds: KeptFolds, sizes: Mapping[str, tuple[int, int]], rule: Rule, seed: int, pairs: int) -> Samples:
    """Similarities of pairs of circuits that differ only in the prompts drawn.

    Args:
        folds: the folds of one checkpoint.
        sizes: edges before pruning of the first and the second circuit, under names of the caller's choice.
        rule: how circuits are grown.
        seed: of the draws.
        pairs: how many.

    Returns:
        `<name>/<measure>` for every measure of the circuits, and `rank_correlation`.
    """
    scores = draws(folds, seed, 2 * pairs)
    return _similarities(rule.grower(folds), scores[0::2], scores[1::2], sizes)


def p_value(observed: float, floors: Sequence[Float[np.ndarray, " sample"]], measure: str) -> float:
    """How often the prompts alone make circuits at most as alike as the observed ones.

    Args:
        observed: their similarity.
        floors: similarities of pairs of either checkpoint. A pair without a similarity does not speak against chance.
        measure: counts of edges grow where circuits differ, similarities fall.

    Returns:
        The largest over checkpoints of (1 + pairs at most as alike) / (1 + pairs); nan if `observed` is.
    """
    if np.isnan(observed):
        return float("nan")
    sign = -1 if measure in COUNTS else 1
    # Rounding errors do not break ties.
    as_far = [np.nan_to_num(sign * floor, nan=-np.inf) <= sign * observed + 1e-9 for floor in floors]
    return max(float((1 + flags.sum()) / (1 + len(flags))) for flags in as_far)


def changed(p_values: Float[np.ndarray, " test"], rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Adjusted p-values and flags of Benjamini and Hochberg (1995); nan p-values are no tests.

    Args:
        p_values: one for each checkpoint.
        rate: of false discoveries among the flags.
    """
    adjusted = np.full(len(p_values), np.nan)
    tested = np.isfinite(p_values)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p_values[tested], method="bh")
    return adjusted, np.nan_to_num(adjusted, nan=1.0) <= rate


def _similarities(
    grower: CircuitBootstrap,
    first: Float[Tensor, "pair kept"],
    second: Float[Tensor, "pair kept"],
    sizes: Mapping[str, tuple[int, int]],
) -> Samples:
    edges = Edges(grower.folds.graph, grower.folds.edges)
    found: Samples = {"rank_correlation": rank_correlation(first, second)}
    for name, (a, b) in sizes.items():
        sides = (Circuits(edges, grower.circuits(scores, size), scores) for scores, size in ((first, a), (second, b)))
        found |= {f"{name}/{measure}": values for measure, values in of_circuits(*sides).items()}
    return found


def _weighted(means: Float[Tensor, "fold kept"], sizes: Tensor) -> Float[Tensor, " kept"]:
    return (sizes / sizes.sum()).float() @ means
