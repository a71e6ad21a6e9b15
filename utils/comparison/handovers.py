"""Hand-overs of roles in the IOI algorithm: where another head becomes the strongest of those that hold a role."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pandas as pd

from ..results.comparison import COMPARISONS

MeasuredEffects = defaultdict[tuple[int, str], tuple[float, float]]
"""Effect and standard error by step and head; nan where the head was not measured."""


def handovers(heads: pd.DataFrame, seed: int, resamples: int) -> pd.DataFrame:
    """Every change of a role's strongest head in a model, between consecutive checkpoints at which some head holds it.

    Effects are resampled with normal errors, independent of each other.
    """
    rng = np.random.default_rng(seed)
    rows = []
    named = heads.assign(name=[f"a{layer}.h{head}" for layer, head in zip(heads["layer"], heads["head"], strict=True)])
    for role, of_role in named[named["passes"].astype(bool)].groupby("role", sort=True):
        at_levels = named[named["level"].isin(of_role["level"])]
        measured = MeasuredEffects(lambda: (np.nan, np.nan))
        for step, name, effect, error in at_levels[["step", "name", "effect", "effect_se"]].to_numpy():
            measured[int(step), str(name)] = float(effect), float(error)
        strongest = [
            (int(str(step)), str(at["name"].iloc[int(at["effect"].abs().argmax())]))
            for step, at in of_role.groupby("step", sort=True)
        ]
        for (before, old), (after, new) in pairwise(strongest):
            if old != new:
                effects = (measured[after, name][0] for name in (old, new))
                share = _share_agreeing(measured, before, after, old, new, rng, resamples)
                rows.append((of_role["model"].iloc[0], role, before, after, old, new, *effects, share))
    return pd.DataFrame(rows, columns=list(COMPARISONS["handovers"]))


def _share_agreeing(
    measured: MeasuredEffects, before: int, after: int, old: str, new: str, rng: np.random.Generator, resamples: int
) -> float:
    """Share of resamples in which the old head is stronger before and the new one after.

    A head that was not measured at a checkpoint counts as weaker there.
    """
    agreed = np.ones(resamples, dtype=bool)
    for step, stronger, weaker in ((before, old, new), (after, new, old)):
        (a, a_se), (b, b_se) = measured[step, stronger], measured[step, weaker]
        if np.isnan(a_se) or (np.isnan(b_se) and not np.isnan(b)):
            return float("nan")
        if not np.isnan(b):
            first, second = rng.normal(a, a_se, resamples), rng.normal(b, b_se, resamples)
            agreed &= np.abs(first) > np.abs(second)
    return float(agreed.mean())
