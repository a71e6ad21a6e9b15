"""Effects in their unit, and the percentage of them that some heads have, with intervals from resampled prompts."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.statistics import Bootstrap, percentile_interval

NAN = float("nan")


@dataclass(frozen=True)
class Effects:
    """Effects of some heads, and the same in every resample of the prompts; float64."""

    values: Float[Tensor, " head"]
    resampled: Float[Tensor, "resample head"]


@dataclass(frozen=True)
class Percentage:
    """A percentage, the ends of its 95% interval, and the sums that it is a quotient of."""

    percent: float
    low: float
    high: float
    numerator: float
    denominator: float


class Scale:
    """Turns logit differences into effects and shares.

    Args:
        divisor: a value per prompt. Effects are mean changes of the logit difference, divided by its mean.
    """

    def __init__(self, clean: Float[Tensor, " prompt"], divisor: Float[Tensor, " prompt"], seed: int) -> None:
        self.clean, self.divisor = clean.double(), divisor.double()
        self.bootstrap = Bootstrap.of(len(clean), seed)

    def effects(self, patched: Float[Tensor, "head prompt"]) -> Effects:
        """The effects of heads, from the logit difference of every prompt with each of them patched."""
        change = patched.double() - self.clean
        values = change.mean(dim=1) / self.divisor.mean()
        return Effects(values, self.bootstrap.means(change) / self.bootstrap.means(self.divisor)[:, None])

    def errors(self, effects: Effects) -> Float[Tensor, " head"]:
        """Standard errors of effects; nan for a single prompt."""
        return self.bootstrap.error(effects.resampled)

    def percentage(self, effects: Effects, of: Bool[Tensor, " head"], among: Bool[Tensor, " head"]) -> Percentage:
        """100 * sum of some absolute effects / sum of some others; nan if the latter is 0."""
        numerator, denominator = (float(effects.values[heads].abs().sum()) for heads in (of, among))
        if denominator == 0:
            return Percentage(NAN, NAN, NAN, numerator, denominator)
        sizes = effects.resampled.abs()
        low, high = self.interval(100 * sizes[:, of].sum(dim=1) / sizes[:, among].sum(dim=1))
        return Percentage(100 * numerator / denominator, low, high, numerator, denominator)

    def interval(self, resampled: Float[Tensor, " resample"]) -> tuple[float, float]:
        """The 95% interval of what was worked out for every resample; nan and nan for a single prompt."""
        if len(self.clean) == 1:
            return NAN, NAN
        low, high = percentile_interval(resampled)
        return float(low), float(high)
