"""How similar two circuits would be if only the prompts differed, and whether an observed similarity is lower.

Scores are stored for every fold of the prompts (`edge_attribution_patching/scores/folds.py`), so that circuits for
other draws of prompts can be grown without a model. Sizes are kept: the first circuit of a pair always has as many
edges as the first observed one, the second as many as the second, so that a difference of size alone is never a change.

Noise floor: pairs of bootstrap resamples of the folds of one checkpoint. A bootstrapped mean of K folds has only
(K - 1) / K of the variance of the mean, so deviations from the mean are widened by sqrt(K / (K - 1)) (Davison and
Hinkley 1997, section 2.7).

p-value: another null, because two resamples of one checkpoint lie around an observed mean, which its own noise has
spread out. If both circuits came from draws of one distribution of prompts' scores, the mean of all folds would be the
best guess of it, and only deviations from it would set the two apart. So both sides start from this mean; the folds'
deviations, each from the mean of its own checkpoint, are permuted between the two, and circuits grown (permutation of
residuals, ter Braak 1992; Anderson and Legendre 1999). p is the share of permutations, the observed circuits among
them, that are at most as alike as the observed ones: never below 1 / (1 + permutations) (Phipson and Smyth 2010).
Deviations of n folds in all are widened by sqrt((n - 1) / (n - 2)), which gives the permuted ones the variance of the
observed ones, and each permutation by a random factor that turns a normal distribution into Student's t of n - 2
degrees of freedom, because the variance is an estimate too. In simulations of two draws of one distribution 1% to 4% of
the p-values are at most 5%; of rank correlations almost none, because those of many edges average over what the factor
allows for.

Permuting whole folds would be exact, but mixes the change itself into its null: most permutations give one side more of
either checkpoint, and their circuits differ by the very edges that changed. It finds fewer changes of a few edges.

Scores grow with the metric while a model learns, which changes no circuit. So the folds of each checkpoint are first
divided by its sum of |score|, but where scores count as they are (`raw`). Sizes are taken as given. Checkpoints that
were measured on the same prompts are more alike than two draws, so for them the test errs to the safe side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from circuits_over_time.edge_attribution_patching.choices import POSITIVE_SHARE, Order, Selection
from circuits_over_time.edge_attribution_patching.circuits.stability import CircuitBootstrap, resampled_scores
from circuits_over_time.edge_attribution_patching.scores.folds import KeptFolds

from .similarity import COUNTS, Circuits, Edges, of_circuits, rank_correlation

Samples = dict[str, Float[np.ndarray, " sample"]]
_AT_ONCE = 20_000_000
"""How many permuted scores are worked on at once."""


@dataclass(frozen=True)
class SelectionRule:
    """How the stored circuits were grown from scores: `search.order`, `search.selection`, and so on, of their run."""

    order: Order = "greedy"
    selection: Selection = "absolute"
    positive_share: float = POSITIVE_SHARE
    seed: int = 0

    def __str__(self) -> str:
        share = f", positive_share={self.positive_share:g}" if self.selection == "signed" else ""
        return f"order={self.order}, selection={self.selection}{share}"

    def grows(self) -> tuple[object, ...]:
        """What sets which edges a circuit takes, apart from their scores: equal in circuits that can be compared."""
        return self.order, self.selection, self.positive_share if self.selection == "signed" else None

    def grower(self, folds: KeptFolds) -> CircuitBootstrap:
        """What grows circuits from scores of these folds' edges."""
        return CircuitBootstrap(folds, self.order, self.selection, self.positive_share, self.seed)


def bootstrap_scores(folds: KeptFolds, seed: int, n: int) -> Float[Tensor, "draw kept"]:
    """Scores as n other draws of as many prompts would give them: the widened bootstrap."""
    n_folds = len(folds.sizes)
    mean = _mean_of(folds.sizes, folds.means)
    return mean + sqrt(n_folds / max(n_folds - 1, 1)) * (resampled_scores(folds, seed, n) - mean)


def noise_floor(
    folds: KeptFolds,
    sizes: Mapping[str, tuple[int, int]],
    rule: SelectionRule,
    seed: int,
    pairs: int,
    raw: bool = False,
) -> Samples:
    """Similarities of pairs of circuits that differ only in the prompts drawn.

    Args:
        sizes: edges before pruning of the first and the second circuit, under names of the caller's choice.

    Returns:
        `<name>/<measure>` for every measure of the circuits, and `rank_correlation`.
    """
    scores = bootstrap_scores(folds, seed, 2 * pairs)
    return _similarities(rule.grower(folds), scores[0::2], scores[1::2], sizes, raw)


def change_test(
    first: KeptFolds,
    second: KeptFolds,
    sizes: Mapping[str, tuple[int, int]],
    rule: SelectionRule,
    seed: int,
    permutations: int,
    raw: bool = False,
) -> dict[str, float]:
    """Whether two circuits are less alike than two draws of prompts would leave them.

    Args:
        first, second: folds of the two checkpoints, of the same graph. Edges that only one of them keeps are left out.
        sizes: as of `noise_floor`.
        rule: how circuits are grown. Which signs are stable is worked out from all folds together.
        permutations: how many besides the observed circuits.
        raw: the size of scores is then a difference like any other.

    Returns:
        p-values by `<name>/<measure>`, and of `rank_correlation`; nan where the similarity is not defined, or where
        both checkpoints have a single fold.
    """
    pooled = _pool(first, second, raw)
    n_first, n = len(first.sizes), len(pooled.sizes)
    grower = rule.grower(pooled)
    # The observed circuits, grown from the mean of each side's own folds.
    own = [_mean_of(pooled.sizes[side], pooled.means[side]) for side in (slice(n_first), slice(n_first, None))]
    samples = [_similarities(grower, own[0][None], own[1][None], sizes, raw)]
    if n <= 2:
        return dict.fromkeys(samples[0], float("nan"))
    # Under the null both sides have the mean of all folds, and only deviations tell them apart. Each fold deviates
    # from the mean of its own checkpoint, so the deviations do not hold the change that is tested. That of a small fold
    # is larger: times the root of its size, they are all of one size.
    centre, roots = _mean_of(pooled.sizes, pooled.means), pooled.sizes.sqrt()
    deviations = torch.cat([pooled.means[:n_first] - own[0], pooled.means[n_first:] - own[1]])
    deviations *= roots[:, None] * sqrt((n - 1) / (n - 2))
    # What each deviation weighs in the means of both sides, in the place of a fold where a permutation puts it.
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(2, permutations, n)
    for of_first, of_second in zip(*weights, strict=True):
        order = torch.randperm(n, generator=generator)
        of_first[order[:n_first]] = roots[:n_first] / pooled.sizes[:n_first].sum()
        of_second[order[n_first:]] = roots[n_first:] / pooled.sizes[n_first:].sum()
    # Student's t instead of a normal distribution: how much folds deviate is itself an estimate.
    widths = ((n - 2) / torch.randn(permutations, n - 2, generator=generator).square().sum(1, keepdim=True)).sqrt()
    at_once = max(1, _AT_ONCE // max(len(pooled.edges), 1))
    for of_sides, width in zip(weights.split(at_once, dim=1), widths.split(at_once), strict=True):
        sides = centre + width * (of_sides @ deviations)
        samples.append(_similarities(grower, sides[0], sides[1], sizes, raw))
    return {
        name: p_value(np.concatenate([sample[name] for sample in samples]), name.rpartition("/")[2])
        for name in samples[0]
    }


def p_value(values: Float[np.ndarray, " permutation"], measure: str) -> float:
    """The share of circuits that are at most as alike as the observed ones, which count themselves.

    The observed value comes first; nan if it is none. Another without a value is not less alike.
    """
    if np.isnan(values[0]):
        return float("nan")
    alike = -values if measure in COUNTS else values  # Counts of edges grow where circuits differ.
    # Rounding errors do not break ties.
    return float(np.mean(np.nan_to_num(alike, nan=np.inf) <= alike[0] + 1e-9))


def _similarities(
    grower: CircuitBootstrap,
    first: Float[Tensor, "pair kept"],
    second: Float[Tensor, "pair kept"],
    sizes: Mapping[str, tuple[int, int]],
    raw: bool,
) -> Samples:
    edges = Edges(grower.folds.graph, grower.folds.edges)
    similarities: Samples = {"rank_correlation": rank_correlation(first, second)}
    for name, (a, b) in sizes.items():
        sides = (Circuits(edges, grower.circuits(scores, size), scores) for scores, size in ((first, a), (second, b)))
        similarities |= {f"{name}/{measure}": values for measure, values in of_circuits(*sides, raw=raw).items()}
    return similarities


def _pool(first: KeptFolds, second: KeptFolds, raw: bool) -> KeptFolds:
    """The folds of both, over the edges that both keep; unless `raw` divided by their checkpoint's sum of |score|."""
    common = np.intersect1d(first.edges.numpy(), second.edges.numpy())
    scaled = []
    for folds in (first, second):
        means_of_common = folds.means[:, torch.from_numpy(np.searchsorted(folds.edges.numpy(), common))]
        total = _mean_of(folds.sizes, means_of_common).abs().sum()
        scaled.append(means_of_common / total if total > 0 and not raw else means_of_common)
    sizes = torch.cat([first.sizes, second.sizes])
    return KeptFolds(first.graph, torch.from_numpy(common), torch.cat(scaled), sizes, 1.0)


def _mean_of(weights: Num[Tensor, "*row fold"], means: Float[Tensor, "fold kept"]) -> Float[Tensor, "*row kept"]:
    return weights / weights.sum(-1, keepdim=True) @ means
