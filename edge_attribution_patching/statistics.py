"""Uncertainty of averages over prompts: standard errors for means, and the bootstrap for everything else.

The bootstrap draws as many prompts as there are, with replacement, many times (Efron 1979). Quantities that use the
same `Bootstrap` are paired: they are averaged over the same prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

RESAMPLES = 1000


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
    "Sampling Techniques", section 6.3).
    """
    above, below = above.cpu().double(), below.cpu().double()
    mean = below.mean(dim=-1, keepdim=True)
    return standard_errors((above - above.mean(dim=-1, keepdim=True) / mean * below) / mean)


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
