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

    def sum(self, heads: Bool[Tensor, " head"]) -> float:
        """The sum of some heads' absolute effects."""
        return float(self.values[heads].abs().sum())


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
        change = patched.double() - self.clean  # paired: the same prompts in both
        values = change.mean(dim=1) / self.divisor.mean()
        return Effects(values, self.bootstrap.means(change) / self.bootstrap.means(self.divisor)[:, None])

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
