"""Effects in their unit, and the percentage of them that some heads have: intervals from resampled prompts, and tests.

Tests are Student's, one-sided, of means over prompts. That an effect is below a limit, mean(change) / mean(divisor) <
limit, is tested as mean(change - limit * divisor) < 0, which needs no error of a quotient; and the divisor itself must
be above 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from circuits_over_time.edge_attribution_patching.statistics import Bootstrap, percentile_interval, standard_errors

NAN = float("nan")

PValues = Float[np.ndarray, " head"]


def p_above(estimates: Tensor, errors: Tensor, n: int) -> PValues:
    """How likely estimates so far above 0 are if the truth is 0, by Student's t of n independent samples.

    0 or 1 where there is no error; nan for a single sample.
    """
    distance, error = estimates.double().numpy(), errors.double().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, distance <= 0, stats.t.sf(distance / error, n - 1))


def p_mean_above(samples: Float[Tensor, "head prompt"], limit: float = 0) -> PValues:
    """The same for means over prompts that are above a limit."""
    return p_above(samples.double().mean(dim=-1) - limit, standard_errors(samples), samples.shape[-1])


@dataclass(frozen=True)
class Effects:
    """Effects of some heads, and the same in every resample of the prompts; float64."""

    values: Float[Tensor, " head"]
    resampled: Float[Tensor, "resample head"]
    change: Float[Tensor, "head prompt"]  # of the logit difference
    divisor: Float[Tensor, " prompt"]

    def sum(self, heads: Bool[Tensor, " head"]) -> float:
        """The sum of some heads' absolute effects."""
        return float(self.values[heads].abs().sum())

    def p_below(self, limit: float) -> PValues:
        """Tests that each effect is below a limit."""
        return np.maximum(p_mean_above(limit * self.divisor - self.change), p_mean_above(self.divisor[None]))

    def p_larger(self, size: float) -> PValues:
        """Tests that each effect is larger than some size, with either sign."""
        least = size * self.divisor
        one_sided = np.minimum(p_mean_above(self.change - least), p_mean_above(-self.change - least))
        return np.maximum(np.minimum(2 * one_sided, 1), p_mean_above(self.divisor[None]))


def random_percentages(
    effects: Effects, of: Bool[Tensor, " node"], among: Bool[Tensor, " node"], layers: Tensor, n: int, seed: int
) -> Float[Tensor, " draw"]:
    """The percentage (`Scale.percentage`) of random nodes in place of some: as many of each layer, from all of it.

    `layers` are those of the nodes, ascending.
    """
    # Within its layer every node gets a random place; the first ones are drawn.
    keys = torch.rand(n, len(layers), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = (layers + keys).argsort(dim=1)
    place = torch.arange(len(layers)) - torch.searchsorted(layers, layers)
    wanted = place < torch.zeros(int(layers.max()) + 1).index_add_(0, layers, of.float())[layers]
    return 100 * effects.values.abs()[order[:, wanted]].sum(dim=1) / effects.sum(among)


class Scale:
    """Turns logit differences into effects, mean changes over the mean of a divisor of each prompt, and into shares."""

    def __init__(self, clean: Float[Tensor, " prompt"], divisor: Float[Tensor, " prompt"], seed: int) -> None:
        self.clean, self.divisor = clean.double(), divisor.double()
        self.bootstrap = Bootstrap.of(len(clean), seed)

    def effects(self, patched: Float[Tensor, "head prompt"]) -> Effects:
        """The effects of heads, from the logit difference of every prompt with each of them patched."""
        change = patched.double() - self.clean  # paired: the same prompts in both
        values = change.mean(dim=1) / self.divisor.mean()
        resampled = self.bootstrap.means(change) / self.bootstrap.means(self.divisor)[:, None]
        return Effects(values, resampled, change, self.divisor)

    def percentage(
        self, effects: Effects, of: Bool[Tensor, " head"], among: Bool[Tensor, " head"]
    ) -> tuple[float, float, float]:
        """100 * sum of some absolute effects / sum of some others (not 0), and the ends of its 95% interval."""
        sizes = effects.resampled.abs()
        interval = self.interval(100 * sizes[:, of].sum(dim=1) / sizes[:, among].sum(dim=1))
        return 100 * effects.sum(of) / effects.sum(among), *interval

    def interval(self, resampled: Float[Tensor, " resample"]) -> tuple[float, float]:
        """The 95% interval of what was worked out for every resample; nan and nan for a single prompt."""
        if len(self.clean) == 1:
            return NAN, NAN
        low, high = percentile_interval(resampled)
        return float(low), float(high)
