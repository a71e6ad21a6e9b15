"""When a curve emerges: the first checkpoint at which it crosses a fraction of its plateau and stays there.

The plateau is the largest running median of five checkpoints (of fewer at the ends of the curve): the largest value of
many noisy ones lies above what the curve ever is, and a level taken from it is crossed too late. Levels count from
chance, which is what the curve is where nothing has emerged.

Noise alone has a plateau and crosses half of it. So a curve emerges only if its plateau is higher than that of curves
which stay at chance and err as the resamples do. The p-value is the share of such curves that reach it.

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
    """When a curve emerges, as indices among its checkpoints; len(checkpoints) means never.

    Attributes:
        index: first checkpoint of the sustained crossing.
        resampled: the same in every resample; as many equal ones where values have no uncertainty.
        p_value: how often a curve that stays at chance has such a plateau; nan where values have no uncertainty.
    """

    plateau: float
    level: float
    index: int
    resampled: Int[np.ndarray, " resample"]
    p_value: float
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
    at_chance: Float[np.ndarray, "resample checkpoint"] | None = None,
    resamples: int = 1000,
) -> Emergence:
    """When a curve emerges.

    Args:
        resampled: the values under other draws; None where nothing is known of their uncertainty.
        fraction: the level is chance + fraction * (plateau - chance).
        sustained: at how many checkpoints in a row the curve must be at or above the level.
        at_chance: draws of a curve that stays at chance; by default the resamples, moved there.
    """
    plateau = float(plateaus(values[None])[0])
    index = int(crossings(values[None], fraction, sustained, chance)[0])
    indices, p_value = np.full(resamples, index), np.nan
    if resampled is not None:
        indices = crossings(resampled, fraction, sustained, chance)
        if at_chance is None:
            at_chance = chance + resampled - np.median(resampled, axis=0)
        p_value = _tail(plateaus(at_chance), plateau)
    return Emergence(plateau, chance + fraction * (plateau - chance), index, indices, p_value, len(values))


def plateaus(values: Float[np.ndarray, "curve checkpoint"]) -> Float[np.ndarray, " curve"]:
    """The largest running median of every curve; missing values do not count."""
    half = MEDIAN_OVER // 2
    padded = np.pad(values, ((0, 0), (half, half)), constant_values=np.nan)
    # Missing values sort behind all others, so the median of a window stands in the middle of those before.
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(padded, MEDIAN_OVER, axis=1), axis=2)
    known = (~np.isnan(windows)).sum(axis=2)
    below, above = (
        np.take_along_axis(windows, place[..., None], axis=2)[..., 0]
        for place in (np.maximum(known - 1, 0) // 2, known // 2)
    )
    return np.nanmax((below + above) / 2, axis=1)


def _tail(drawn: Float[np.ndarray, " resample"], value: float) -> float:
    """The probability of a value at least as large, from draws of its distribution.

    Maxima are distributed as Gumbel's law says, roughly. It reaches further than counting does, which cannot tell
    1 in 1,000 from 1 in a million; the larger of the two counts where both can be had.
    """
    drawn = drawn[~np.isnan(drawn)]
    reached = int((drawn >= value).sum())
    spread = float(drawn.std())
    if spread == 0:
        return float(reached > 0)
    scale = spread * np.sqrt(6) / np.pi
    law = float(stats.gumbel_r.sf(value, loc=drawn.mean() - np.euler_gamma * scale, scale=scale))
    return max(law, reached / len(drawn))


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

    Args:
        first, second: indices from `Emergence.resampled` over the same checkpoints.
        n: how many checkpoints there are. Resamples in which neither emerges do not count; nan if there are no others.
    """
    counted = (first < n) | (second < n)
    if not counted.any():
        return (float("nan"),) * 3
    a, b = first[counted], second[counted]
    return float((a < b).mean()), float((a == b).mean()), float((a > b).mean())
