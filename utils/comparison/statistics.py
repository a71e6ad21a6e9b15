"""Statistics that several comparisons use: intervals and parametric bootstraps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

TAILS = (0.025, 0.975)
"""Quantiles at the ends of a 95% interval."""


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
    n = np.asarray(counts, dtype=int)
    return np.asarray(np.random.default_rng(seed).binomial(n, np.clip(shares, 0, 1), size=(resamples, len(n))) / n)
