"""Uncertainty of averages over prompts: standard errors of means, intervals of their quotients, and the bootstrap.

A faithfulness is a quotient of two means, mean(a) / mean(b). Fieller's interval holds every q for which mean(a - q b)
lies within t standard errors of 0; its ends are the roots of a quadratic (Fieller 1954). That is enough for prompts
like those seen. But a kind of prompt of which none was seen may still make up 3 in n of all prompts (the rule of three,
Hanley and Lippman-Hand 1983). So the interval also covers what one prompt of average b more could change: the low end
one whose a is 0, on which a circuit does nothing, the high end one whose a is b.
`benchmarks/bench_coverage.py` measures how often it holds the truth.

The bootstrap draws as many prompts as there are, with replacement, many times (Efron 1979). Quantities that use the
same `Bootstrap` are paired: they are averaged over the same prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

RESAMPLES = 1000
FEWEST = 3
"""Prompts from which on a quotient has an interval."""


def _t_quantile(n: int) -> float:
    """The quantile of Student's t at the end of a 95% interval of n values."""
    return float(stdtrit(n - 1, 0.975))


def standard_error(values: Float[Tensor, " n"]) -> float:
    """Standard error of the mean; nan for a single value."""
    return float(standard_errors(values))


def standard_errors(values: Float[Tensor, "... n"]) -> Float[Tensor, ...]:
    """Standard error of each mean over the last axis, float64 on the CPU; nan for a single value."""
    n = values.shape[-1]
    if n < 2:
        return torch.full(values.shape[:-1], float("nan"), dtype=torch.float64)
    return values.cpu().double().std(dim=-1) / sqrt(n)


def quotient_errors(above: Float[Tensor, "... n"], below: Float[Tensor, "... n"]) -> Float[Tensor, ...]:
    """Standard error of the quotient of two means over the last axis, float64 on the CPU; nan for a single pair.

    To first order, the quotient errs as the mean of (above - quotient * below) / mean(below) does (Cochran 1977,
    "Sampling Techniques", section 6.3). Where few pairs make most of that, a small sample may hold too few of them. So
    there is room for three more like the one that is furthest off (the rule of three, as above).
    """
    above, below = above.cpu().double(), below.cpu().double()
    mean, n = below.mean(dim=-1, keepdim=True), below.shape[-1]
    if n < 2:
        return torch.full(above.shape[:-1], float("nan"), dtype=torch.float64)
    squares = ((above - above.mean(dim=-1, keepdim=True) / mean * below) / mean).square()
    return ((squares.sum(dim=-1) + 3 * squares.amax(dim=-1)) / (n * (n - 1))).sqrt()


def quotient_interval(
    above: Float[Tensor, "... n"], below: Float[Tensor, "#... n"]
) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """The ends of the 95% interval of mean(above) / mean(below), means over the last axis (see above), float64.

    Both are nan where the mean of `below` cannot be told from 0, and of two values (`prompts_needed`).
    """
    above, below = torch.broadcast_tensors(above.double(), below.double())
    mean = below.mean(dim=-1, keepdim=True)
    low, high = fieller_interval(above, below)
    more = torch.cat((below, mean), dim=-1)
    lower, _ = fieller_interval(torch.cat((above, torch.zeros_like(mean)), dim=-1), more)
    _, higher = fieller_interval(torch.cat((above, mean), dim=-1), more)
    return torch.minimum(low, lower), torch.maximum(high, higher)


def fieller_interval(
    above: Float[Tensor, "... n"], below: Float[Tensor, "... n"]
) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """The ends of Fieller's 95% interval of a quotient of means over the last axis; nan where it has none."""
    n = above.shape[-1]
    if n < FEWEST:
        return (torch.full(above.shape[:-1], float("nan"), dtype=torch.float64),) * 2
    mean_above, mean_below = above.mean(dim=-1), below.mean(dim=-1)
    off_above, off_below = above - mean_above[..., None], below - mean_below[..., None]
    share = _t_quantile(n) ** 2 / (n * (n - 1))  # of a sum of squares: t squared times the squared standard error
    # mean(above - q below) squared is at most t squared times its squared error: a q^2 - 2 b q + c <= 0.
    a = mean_below**2 - share * (off_below**2).sum(dim=-1)
    b = mean_above * mean_below - share * (off_above * off_below).sum(dim=-1)
    c = mean_above**2 - share * (off_above**2).sum(dim=-1)
    root = (b**2 - a * c).clamp(min=0).sqrt()
    bounded = a > 0
    low, high = (((b + sign * root) / a).where(bounded, torch.nan) for sign in (-1, 1))
    return low, high


def prompts_needed(below: Float[Tensor, " n"]) -> int | None:
    """From how many prompts like these on the mean can be told from 0, so that a quotient by it has an interval.

    None if more of them would not help: their mean is 0.
    """
    values = below.double()
    mean, spread = float(values.mean()), float(values.std()) if len(values) > 1 else 0.0
    if mean == 0:
        return None
    n = FEWEST
    while _t_quantile(n) ** 2 * spread**2 >= n * mean**2:
        n = max(n + 1, int((1.96 * spread / mean) ** 2))
    return n


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of some prompts."""

    shares: Float[Tensor, "resample prompt"]  # of each prompt in each resample, float64; every row adds up to 1

    @classmethod
    def of(cls, n_prompts: int, seed: int, resamples: int = RESAMPLES) -> Bootstrap:
        """Draw the resamples; the same ones for the same seed."""
        draws = torch.randint(0, n_prompts, (resamples, n_prompts), generator=torch.Generator().manual_seed(seed))
        shares = torch.zeros(resamples, n_prompts, dtype=torch.float64)
        return cls(shares.scatter_add_(1, draws, torch.full_like(shares, 1 / n_prompts)))

    def means(self, values: Float[Tensor, "... prompt"]) -> Float[Tensor, "resample ..."]:
        """The mean over prompts of one or several quantities in every resample, float64 on the CPU."""
        return self.shares @ values.cpu().double().movedim(-1, 0)

    def error(self, resampled: Float[Tensor, "resample ..."]) -> Tensor:
        """Standard error of what was worked out for every resample: its spread, [...]. nan for a single prompt."""
        spread = resampled.std(dim=0, correction=0)
        return spread if self.shares.shape[1] > 1 else torch.full_like(spread, float("nan"))


def percentile_interval(
    resampled: Float[Tensor, "resample ..."], tails: tuple[float, float] = (0.025, 0.975)
) -> tuple[Tensor, Tensor]:
    """The low and the high end, each [...], of the percentile interval (95% by default); nan resamples do not count."""
    low, high = resampled.nanquantile(torch.tensor(tails, dtype=resampled.dtype), dim=0)
    return low, high
