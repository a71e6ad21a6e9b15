"""Change points: stretches of training over which a quantity keeps its level (Killick et al. 2012, PELT).

The levels minimise the sum of squared deviations plus a penalty for every change, 3 sigma^2 log n, with sigma from the
differences of neighbours: their median absolute deviation, which single jumps do not move.
"""

from __future__ import annotations

import numpy as np
import ruptures
from jaxtyping import Float

PENALTY = 3.0
SHORTEST = 2
"""Checkpoints of a stretch."""


def change_points(values: Float[np.ndarray, " checkpoint"]) -> list[int]:
    """The first places of new stretches, ascending; none where there are fewer than four values, or all are equal.

    Args:
        values: in order, without gaps.
    """
    n = len(values)
    if n < 2 * SHORTEST or np.ptp(values) == 0:
        return []
    differences = np.diff(values)
    spread = 1.4826 * float(np.median(np.abs(differences - np.median(differences)))) / np.sqrt(2)
    if spread == 0:  # Most neighbours are equal: any change is one.
        spread = 1e-3 * float(np.ptp(values))
    found = ruptures.Pelt(model="l2", min_size=SHORTEST, jump=1).fit(np.asarray(values, dtype=float)[:, None])
    return [int(place) for place in found.predict(pen=PENALTY * spread**2 * np.log(n))[:-1]]
