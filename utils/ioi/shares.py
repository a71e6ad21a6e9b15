"""Effects in their unit, and the share of them that belongs to some heads, with intervals from resampled prompts."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.statistics import Bootstrap, percentile_interval

NAN = float("nan")


@dataclass(frozen=True)
class Effects:
    """Effects of some heads, and the same in every resample of the prompts; float64."""

    sizes: Float[Tensor, " head"]
    resampled: Float[Tensor, "resample head"]


@dataclass(frozen=True)
class Share:
    """A percentage, the ends of its 95% interval, and what it is the share of."""

    percent: float
    low: float
    high: float
    numerator: float
    denominator: float


class Scale:
    """Turns logit differences into effects and shares.

    Args:
        clean: logit difference of every clean prompt.
        divisor: a value per prompt. Effects are mean changes of the logit difference, divided by its mean.
        seed: of the resamples of the prompts.
    """

    def __init__(self, clean: Float[Tensor, " prompt"], divisor: Float[Tensor, " prompt"], seed: int) -> None:
        self.clean, self.divisor = clean.double(), divisor.double()
        self.bootstrap = Bootstrap.of(len(clean), seed)

    def effects(self, patched: Float[Tensor, "head prompt"]) -> Effects:
        """The effects of heads, from the logit difference of every prompt with each of them patched."""
        change = patched.double() - self.clean
        sizes = change.mean(dim=1) / self.divisor.mean()
        return Effects(sizes, self.bootstrap.means(change) / self.bootstrap.means(self.divisor)[:, None])

    def errors(self, effects: Effects) -> Float[Tensor, " head"]:
        """Standard errors of effects; nan for a single prompt."""
        return self.bootstrap.error(effects.resampled)

    def share(self, effects: Effects, of: Bool[Tensor, " head"], among: Bool[Tensor, " head"]) -> Share:
        """100 * sum of some absolute effects / sum of some others; nan if the latter is 0."""
        numerator, denominator = (float(effects.sizes[part].abs().sum()) for part in (of, among))
        if denominator == 0:
            return Share(NAN, NAN, NAN, numerator, denominator)
        sizes = effects.resampled.abs()
        low, high = self.interval(100 * sizes[:, of].sum(dim=1) / sizes[:, among].sum(dim=1))
        return Share(100 * numerator / denominator, low, high, numerator, denominator)

    def interval(self, resampled: Float[Tensor, " resample"]) -> tuple[float, float]:
        """The 95% interval of what was worked out for every resample; nan and nan for a single prompt."""
        if len(self.clean) == 1:
            return NAN, NAN
        low, high = percentile_interval(resampled)
        return float(low), float(high)
