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

    Leaving and dying count at the first checkpoint without the edge.
    """
    before = np.vstack([np.zeros_like(present[:1]), present[:-1]])
    ever_before = np.maximum.accumulate(before, axis=0)
    ever_after = np.maximum.accumulate(present[::-1], axis=0)[::-1]  # at this checkpoint or later
    joined, gone = present & ~before, before & ~present
    counts = {"n_edges": present, "born": joined & ~ever_before, "returned": joined & ever_before}
    counts |= {"left": gone & ever_after, "died": gone & ~ever_after}
    return pd.DataFrame({name: flags.sum(axis=1) for name, flags in counts.items()})


def lifetimes(present: Bool[np.ndarray, "checkpoint edge"], steps: Sequence[int]) -> pd.DataFrame:
    """One row for every edge that is ever present, in the order of the edges: `edge` is its place."""
    n, at = len(steps), np.asarray(steps)
    edges = np.flatnonzero(present.any(axis=0))
    alive = present[:, edges]
    birth, last = alive.argmax(axis=0), n - 1 - alive[::-1].argmax(axis=0)
    before = np.vstack([np.zeros_like(alive[:1]), alive[:-1]])
    table = pd.DataFrame({"edge": edges, "birth_step": at[birth], "last_step": at[last], "lifetime": last - birth + 1})
    # The last step without it before, and the first after: none where it was there from the first, or to the last.
    table["birth_after"] = pd.Series(at[birth - 1], dtype="Int64").mask(birth == 0)
    table["death_step"] = pd.Series(at[(last + 1) % n], dtype="Int64").mask(last == n - 1)
    table["n_present"], table["n_spells"] = alive.sum(axis=0), (alive & ~before).sum(axis=0)
    return table.assign(median_lifetime=median_lifetime(table["lifetime"].to_numpy(), last < n - 1))


def median_lifetime(lifetimes: np.ndarray, died: np.ndarray) -> float:
    """Median by Kaplan and Meier (1958) where not all died; nan if the curve of survivors does not fall to one half."""
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
        medians = [median_lifetime(*both) for both in zip(np.split(lived, starts), np.split(died, starts), strict=True)]
        known = np.nan_to_num(medians, nan=self._n_checkpoints + 1)
        return np.sqrt(np.where(count > 1, np.maximum(variance, 0), np.nan)), float(known.std(ddof=1))
