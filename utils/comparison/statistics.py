"""Statistics that several comparisons use: intervals, parametric bootstraps, corrections for many tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from jaxtyping import Float

TAILS = (0.025, 0.975)
"""Quantiles at the ends of a 95% interval."""


def adjusted_p_values(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted for the false discovery rate (Benjamini and Hochberg 1995); a nan p-value is no test, and stays nan."""
    adjusted = np.full(len(p_values), np.nan)
    tested = np.isfinite(p_values)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p_values[tested], method="bh")
    return adjusted


def normal_resamples(
    values: Sequence[float] | np.ndarray, errors: Sequence[float] | np.ndarray, seed: int, resamples: int
) -> Float[np.ndarray, "resample checkpoint"]:
    """A parametric bootstrap: normal errors of the stored size, independent between checkpoints."""
    noise = np.random.default_rng(seed).normal(size=(resamples, len(values)))
    return np.asarray(values, dtype=float) + noise * np.asarray(errors, dtype=float)


def binomial_resamples(
    shares: Sequence[float] | np.ndarray, counts: Sequence[int] | np.ndarray, seed: int, resamples: int
) -> Float[np.ndarray, "resample checkpoint"]:
    """A parametric bootstrap of shares of independent trials."""
    counts = np.asarray(counts, dtype=int)
    successes = np.random.default_rng(seed).binomial(counts, np.clip(shares, 0, 1), size=(resamples, len(counts)))
    return np.asarray(successes / counts)
