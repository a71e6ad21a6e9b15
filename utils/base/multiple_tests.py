"""Many hypotheses at once: p-values corrected for how many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float


def adjusted_p_values(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted for the false discovery rate (Benjamini and Hochberg 1995); a nan p-value is no test, and stays nan."""
    from scipy import stats  # Slow to import, and many import this room.

    adjusted = np.full(len(p_values), np.nan)
    tested = np.isfinite(p_values)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p_values[tested], method="bh")
    return adjusted
