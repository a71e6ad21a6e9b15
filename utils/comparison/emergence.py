"""When a curve emerges: the first checkpoint at which it crosses a fraction of its plateau and stays there.

The plateau is the largest running median of five checkpoints (of fewer at the ends of the curve): the largest value of
many noisy ones lies above what the curve ever is, and a level taken from it is crossed too late. Levels count from
chance, which is what the curve is where nothing has emerged.

Noise alone has a plateau and crosses half of it. So a curve emerges only if its plateau is higher than that of curves
which stay at chance and err as much. Their errors are normal, and may be correlated, as those of the same prompts at
every checkpoint are: no more is known of them. A median of five is as high as the plateau only where three neighbours
are. So the plateau of n checkpoints is at most, roughly, the largest of as many independent values as there are
disjoint groups of three, and of two at the ends, where medians are shorter: (n + 2) / 3. Correlation beyond a group
makes it smaller (Slepian 1962). The test is exact for errors shared by these groups, and cautious for all others.

Between two checkpoints nothing is known, so emergence is an interval: after the last checkpoint below the level, and
not after the first one of the sustained crossing. Uncertainty of the values comes on top. Every resample has its own
plateau, level and crossing. The 95% interval reaches from the 2.5% quantile of the interval's lower ends to the 97.5%
quantile of its upper ends; both ends belong to it, as a curve may reach its level at a checkpoint. A resample that
never crosses counts as later than all checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from .statistics import TAILS

MEDIAN_OVER = 5
"""Checkpoints of a running median."""


@dataclass(frozen=True)
class Emergence:
    """When a curve emerges, as indices among its n checkpoints; n means never."""

    plateau: float
    level: float
    index: int  # first checkpoint of the sustained crossing
    resampled: Int[np.ndarray, " resample"]  # the same in every resample; a single one without uncertainty
    p_value: float  # how often, at most, a curve that stays at chance has such a plateau; nan without uncertainty
    n: int

    @property
    def interval(self) -> tuple[int, int]:
        """Places of the two ends of the 95% interval: the last checkpoint before (-1: the first one is already there),
        and the first after (n: not before the last)."""
        low, high = (np.quantile(self.resampled, tail, method="nearest") for tail in TAILS)
        return int(low) - 1, int(high)

    @property
    def share(self) -> float:
        """Share of the resamples in which the curve emerges."""
        return float((self.resampled < self.n).mean())


def find_emergence(
    values: Float[np.ndarray, " checkpoint"],
    resampled: Float[np.ndarray, "resample checkpoint"] | None,
    fraction: float,
    sustained: int,
    chance: float = 0.0,
    signed_errors: Float[np.ndarray, " checkpoint"] | None = None,
    among: int = 1,
) -> Emergence:
    """When a curve emerges: stays at or above chance + fraction * (plateau - chance) for enough checkpoints in a row.

    Args:
        resampled: the values under other draws, if anything is known of their uncertainty.
        signed_errors: where values are sizes |x|, the standard errors of x.
        among: of how many curves the values are the largest.
    """
    plateau = float(plateaus(values[None])[0])
    indices = crossings(values[None], fraction, sustained, chance)
    index, p_value = int(indices[0]), np.nan
    if resampled is not None:
        indices = crossings(resampled, fraction, sustained, chance)
        errors = resampled.std(axis=0, ddof=1) if signed_errors is None else signed_errors
        p_value = _reached_at_chance(plateau - chance, errors, 1 if signed_errors is None else 2, among)
    return Emergence(plateau, chance + fraction * (plateau - chance), index, indices, p_value, len(values))


def plateaus(values: Float[np.ndarray, "curve checkpoint"]) -> Float[np.ndarray, " curve"]:
    """The largest running median of every curve; missing values do not count."""
    return np.fmax.reduce(_running_medians(values), axis=1)


def _running_medians(values: Float[np.ndarray, "curve checkpoint"]) -> Float[np.ndarray, "curve checkpoint"]:
    """Medians of the values known among five neighbours, of fewer at the ends; nan where none is."""
    half = MEDIAN_OVER // 2
    padded = np.pad(values, ((0, 0), (half, half)), constant_values=np.nan)
    # Missing values sort behind all others, so the median of a window stands in the middle of those before.
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(padded, MEDIAN_OVER, axis=1), axis=2)
    known = (~np.isnan(windows)).sum(axis=2)
    middle = np.stack([np.maximum(known - 1, 0) // 2, known // 2], axis=2)
    return np.asarray(np.take_along_axis(windows, middle, axis=2).sum(axis=2) / 2)


def _reached_at_chance(above: float, errors: Float[np.ndarray, " checkpoint"], sides: int, among: int) -> float:
    """A bound of the probability that a plateau lies so far above chance (1 side), or away from it (2), by error alone.

    A window's median has at most the error of its middle checkpoint: three of five must reach the plateau.
    """
    if not above > 0:  # nor where no value is known
        return 1.0
    errors = _running_medians(errors[None])[0]
    errors = errors[~np.isnan(errors)]
    if not len(errors):
        return np.nan  # No value has an error.
    # Each is a third of a group, or half of one at the ends, where the larger error of two medians counts.
    groups = np.full(len(errors), 1 / 3)
    for end in (slice(0, 2), slice(-2, None)):
        groups[end], errors[end] = 1 / 2, errors[end].max()
    groups *= (len(errors) + 2) / 3 / groups.sum()
    with np.errstate(divide="ignore"):  # A value without error never leaves chance.
        stays = np.log1p(-sides * stats.norm.sf(above / errors))
    return abs(float(np.expm1(groups @ stays * among)))


def crossings(
    values: Float[np.ndarray, "curve checkpoint"], fraction: float, sustained: int, chance: float = 0.0
) -> Int[np.ndarray, " curve"]:
    """The first checkpoint of the sustained crossing of every curve; the number of checkpoints if there is none.

    A missing value is not above the level. A curve whose plateau does not exceed chance does not emerge.
    """
    n = values.shape[1]
    plateau = plateaus(values)[:, None]
    above = np.nan_to_num(values, nan=-np.inf) >= chance + fraction * (plateau - chance)
    above &= plateau > chance
    stays = np.zeros_like(above)
    if n >= sustained:
        windows = np.lib.stride_tricks.sliding_window_view(above, sustained, axis=1)
        stays[:, : windows.shape[1]] = windows.all(axis=2)
    return np.where(stays.any(axis=1), stays.argmax(axis=1), n)


def order_shares(
    first: Int[np.ndarray, " resample"], second: Int[np.ndarray, " resample"], n: int
) -> tuple[float, float, float]:
    """Shares of the resamples in which the first curve emerges before the second, with it, and after it.

    Both are indices from `Emergence.resampled` over the same n checkpoints. Resamples in which neither emerges do not
    count; nan if there are no others.
    """
    counted = (first < n) | (second < n)
    if not counted.any():
        return (float("nan"),) * 3
    a, b = first[counted], second[counted]
    return float((a < b).mean()), float((a == b).mean()), float((a > b).mean())
