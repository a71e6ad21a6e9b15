"""Births, deaths and lifetimes of edges over the checkpoints of one model and task.

An edge is born at the first checkpoint whose circuit has it and dies after the last one. In between it may leave and
return: those are its spells. A lifetime counts checkpoints, because nothing is known of the time between them. Edges of
the last circuit may live on, so their lifetimes are right-censored.

Lifetimes have standard errors: how much they differ between histories of other draws of the prompts. They have no
intervals. Noise adds edges that flicker, and takes others away for a while, so that a noisy history's lifetimes are
biased, and an interval around them would miss the truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float


def turnover(present: Bool[np.ndarray, "checkpoint edge"]) -> pd.DataFrame:
    """How many edges are born, return, leave for a while, and die: one row a checkpoint.

    Returns:
        `n_edges, born, returned, left, died`. Leaving and dying count at the first checkpoint without the edge.
    """
    before = np.vstack([np.zeros_like(present[:1]), present[:-1]])
    ever_before = np.maximum.accumulate(before, axis=0)
    ever_after = np.maximum.accumulate(present[::-1], axis=0)[::-1]  # at this checkpoint or later
    joined, gone = present & ~before, before & ~present
    counts = {
        "n_edges": present,
        "born": joined & ~ever_before,
        "returned": joined & ever_before,
        "left": gone & ever_after,
        "died": gone & ~ever_after,
    }
    return pd.DataFrame({name: flags.sum(axis=1) for name, flags in counts.items()})


def lifetimes(present: Bool[np.ndarray, "checkpoint edge"], steps: Sequence[int]) -> pd.DataFrame:
    """One row for every edge that is ever present, in the order of the edges.

    Returns:
        `edge` (its place), `birth_after, birth_step, last_step, death_step, lifetime, n_present, n_spells` and
        `median_lifetime` of all of them.
    """
    n = len(steps)
    edges = np.flatnonzero(present.any(axis=0))
    alive = present[:, edges]
    birth, last = alive.argmax(axis=0), n - 1 - alive[::-1].argmax(axis=0)
    before = np.vstack([np.zeros_like(alive[:1]), alive[:-1]])
    at = np.asarray(steps)
    table = pd.DataFrame(
        {
            "edge": edges,
            "birth_after": [at[index - 1] if index else pd.NA for index in birth],
            "birth_step": at[birth],
            "last_step": at[last],
            "death_step": [at[index + 1] if index < n - 1 else pd.NA for index in last],
            "lifetime": last - birth + 1,
            "n_present": alive.sum(axis=0),
            "n_spells": (alive & ~before).sum(axis=0),
        }
    ).astype({"birth_after": "Int64", "death_step": "Int64"})
    return table.assign(median_lifetime=median_lifetime(table["lifetime"].to_numpy(), last < n - 1))


def median_lifetime(lifetimes: np.ndarray, died: np.ndarray) -> float:
    """Median by Kaplan and Meier (1958); nan if the curve of survivors does not fall to one half.

    Args:
        died: whether each ended; if not, it is censored.
    """
    alive = 1.0
    for age in np.unique(lifetimes[died]):
        at_risk, deaths = (lifetimes >= age).sum(), (died & (lifetimes == age)).sum()
        alive *= 1 - deaths / at_risk
        if alive <= 0.5:
            return float(age)
    return float("nan")


class RedrawnLives:
    """Births and last checkpoints of edges in histories of other draws of the prompts, gathered by checkpoint."""

    def __init__(self, n_draws: int, n_edges: int) -> None:
        self._n_draws, self._n_edges, self._n_checkpoints = n_draws, n_edges, 0
        # Circuits hold few of the edges: of each draw and edge that was seen, draw * n_edges + edge, in order.
        self._seen, self._birth, self._last = np.zeros((3, 0), dtype=np.int64)

    def add(self, circuits: Bool[np.ndarray, "draw edge"]) -> None:
        """The next checkpoint's circuits."""
        present = np.flatnonzero(circuits)
        seen = np.union1d(self._seen, present)
        birth, last = np.full((2, len(seen)), self._n_checkpoints)
        before = np.searchsorted(seen, self._seen)
        birth[before], last[before] = self._birth, self._last
        last[np.searchsorted(seen, present)] = self._n_checkpoints
        self._seen, self._birth, self._last = seen, birth, last
        self._n_checkpoints += 1

    def errors(self) -> tuple[Float[np.ndarray, " edge"], float]:
        """Standard errors of every edge's lifetime, over the draws that ever have it, and of the median lifetime.

        A median beyond the last checkpoint counts as one checkpoint more. nan for an edge of fewer than two draws.
        """
        draw, edge = np.divmod(self._seen, self._n_edges)
        lived, died = self._last - self._birth + 1, self._last < self._n_checkpoints - 1
        count, total, squares = (
            np.bincount(edge, weights, minlength=self._n_edges) for weights in (np.ones(len(edge)), lived, lived**2)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = (squares - total**2 / count) / (count - 1)
        starts = np.searchsorted(draw, np.arange(1, self._n_draws))
        medians = [
            median_lifetime(*of_draw) if len(of_draw[0]) else np.nan
            for of_draw in zip(np.split(lived, starts), np.split(died, starts), strict=True)
        ]
        known = np.nan_to_num(medians, nan=self._n_checkpoints + 1)
        return np.sqrt(np.where(count > 1, np.maximum(variance, 0), np.nan)), float(known.std(ddof=1))
