"""When a curve emerges: the first checkpoint at which it crosses a fraction of its maximum and stays there.

Between two checkpoints nothing is known, so emergence is an interval: after the last checkpoint below the level, and
not after the first one of the sustained crossing. Uncertainty of the values comes on top. Every resample has its own
maximum, level and crossing. The 95% interval reaches from the 2.5% quantile of the interval's lower ends to the 97.5%
quantile of its upper ends; both ends belong to it, as a curve may reach its level at a checkpoint. A resample that
never crosses counts as later than all checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .statistics import TAILS


@dataclass(frozen=True)
class Emergence:
    """When a curve emerges, as indices among its checkpoints; len(checkpoints) means never.

    Attributes:
        index: first checkpoint of the sustained crossing.
        resampled: the same in every resample; as many equal ones where values have no uncertainty.
    """

    maximum: float
    level: float
    index: int
    resampled: Int[np.ndarray, " resample"]
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
    baseline: float = 0.0,
    resamples: int = 1000,
) -> Emergence:
    """When a curve emerges.

    Args:
        resampled: the values under other draws; None where nothing is known of their uncertainty.
        fraction: the level is baseline + fraction * (maximum - baseline).
        sustained: at how many checkpoints in a row the curve must be at or above the level.
    """
    index = int(crossings(values[None], fraction, sustained, baseline)[0])
    maximum = float(np.nanmax(values))
    indices = np.full(resamples, index)
    if resampled is not None:
        indices = crossings(resampled, fraction, sustained, baseline)
    return Emergence(maximum, baseline + fraction * (maximum - baseline), index, indices, len(values))


def crossings(
    values: Float[np.ndarray, "curve checkpoint"], fraction: float, sustained: int, baseline: float = 0.0
) -> Int[np.ndarray, " curve"]:
    """The first checkpoint of the sustained crossing of every curve; the number of checkpoints if there is none.

    A missing value is not above the level. A curve that never exceeds the baseline does not emerge.
    """
    n = values.shape[1]
    maximum = np.nanmax(values, axis=1, keepdims=True)
    above = np.nan_to_num(values, nan=-np.inf) >= baseline + fraction * (maximum - baseline)
    above &= maximum > baseline
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
