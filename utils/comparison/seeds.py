"""What is common to models that differ in their seed alone, and whether they fall apart into groups.

A curve that jumps in one run says little: with few checkpoints everything jumps. Across seeds an abrupt change shows as
two groups of models at one checkpoint, those before and those after (Zhao et al. 2025, arXiv 2502.17356). The dip test
(Hartigan and Hartigan 1985) asks whether values have more than one mode. Nothing is called abrupt without it, nor with
fewer than six models, nor at a checkpoint where the curve has emerged in all models or in none.

Few models have little power. The test finds a perfect jump only where the models split nearly in half: of six models
three on either side. So the verdict stands beside the probability that it would find a perfect jump (`jump_power`).

The test takes values to be continuous. Shares of prompts and counts of edges are not, and models that tie would look
like groups. So values that are equal are spread evenly over the smallest distance between unequal ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import diptest
import numpy as np
import pandas as pd
from scipy import stats

from ..base.multiple_tests import adjusted_p_values
from ..results.comparison import COMPARISONS

if TYPE_CHECKING:
    from .curves import Curve  # Figures use this module, and do without torch.

FEWEST = 6
"""Models without which nothing is called abrupt."""
ABRUPT, NOT_SHOWN = "abrupt", "not shown to be abrupt"

_SEED = re.compile(r"[-_](?:weight-|data-)?seed[-_]?\d+")


def without_seed(model: str) -> str:
    """The name that seeds share: `pythia-14m-seed3`, `pythia-14m-weight-seed3` and `pythia-14m` give `pythia-14m`."""
    return _SEED.sub("", model)


def seed_groups(models: Iterable[str], same_shape: Callable[[str, str], bool]) -> dict[str, list[str]]:
    """Models whose names differ in `-seed3` or `_seed3` alone and that have one shape; groups of two or more."""
    groups: dict[str, list[str]] = {}
    for model in models:
        name = without_seed(model)
        if all(same_shape(model, other) for other in groups.get(name, [])):
            groups.setdefault(name, []).append(model)
    return {name: members for name, members in groups.items() if len(members) > 1}


def seeds_table(curves: Mapping[str, Sequence[Curve]], groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Median, quartiles and dip test of curves of one name, at every step that two models of a group or more have."""
    rows: list[dict[str, object]] = []
    for group, models in groups.items():
        points = [
            (curve.name, *point)
            for model in models
            for curve in curves.get(model, ())
            for point in zip(curve.steps, curve.tokens, curve.values, strict=True)
        ]
        table = pd.DataFrame(points, columns=["curve", "step", "tokens", "value"]).dropna(subset="value")
        for name, of_curve in table.groupby("curve", sort=False):
            summaries = []
            for step, at in of_curve.groupby("step", sort=True):
                if len(at) > 1:
                    stamp = {"group": group, "curve": name, "step": step, "tokens": at["tokens"].iloc[0]}
                    summaries.append(stamp | _summary(at["value"].to_numpy(dtype=float)))
            adjusted = adjusted_p_values(np.array([row["dip_p"] for row in summaries], dtype=float))
            rows += [row | {"dip_q": float(q)} for row, q in zip(summaries, adjusted, strict=True)]
    return pd.DataFrame(rows, columns=list(COMPARISONS["seeds"]))


def seed_emergence(
    emergence: pd.DataFrame, seeds: pd.DataFrame, groups: Mapping[str, Sequence[str]], rate: float
) -> pd.DataFrame:
    """When each curve emerges over the models of a group; an empty step means never.

    A curve is abrupt if its models fall into groups at a checkpoint by which it has emerged in some and not in others.
    """
    rows = []
    for group, models in groups.items():
        of_group = emergence[emergence["model"].isin(models)]
        for name, of_curve in of_group.groupby("curve", sort=False):
            if len(of_curve) < 2:
                continue
            steps = of_curve["step"].to_numpy(dtype=float, na_value=np.nan)
            emerged_at = steps[~np.isnan(steps)]
            # The lower median. Never is later than every step.
            middle = float(np.sort(np.nan_to_num(steps, nan=np.inf))[(len(steps) - 1) // 2])
            dips = seeds[(seeds["group"] == group) & (seeds["curve"] == name)]
            # At each step, in how many models the curve has emerged. Groups count between the first model and the last.
            emerged = (steps[None, :] <= dips["step"].to_numpy(dtype=float)[:, None]).sum(axis=1)
            between = (emerged > 0) & (emerged < len(of_curve))
            q_values = dips["dip_q"].to_numpy(dtype=float)
            abrupt, tests = bool((between & (q_values <= rate)).any()), int(np.isfinite(q_values).sum())
            row = {"group": group, "curve": name, "n_seeds": len(of_curve), "n_emerged": len(emerged_at)}
            row["median_step"] = middle if np.isfinite(middle) else np.nan
            if len(emerged_at):
                row |= {"earliest_step": emerged_at.min(), "latest_step": emerged_at.max()}
            if len(of_curve) >= FEWEST:
                row["shape"] = ABRUPT if abrupt else NOT_SHOWN
                row["power"] = jump_power(len(of_curve), tests, rate) if tests else np.nan
            rows.append(row)
    table = pd.DataFrame(rows, columns=list(COMPARISONS["seed_emergence"]))
    return table.astype(dict.fromkeys(("median_step", "earliest_step", "latest_step"), "Int64"))


@cache
def jump_power(models: int, tests: int, rate: float) -> float:
    """The probability that a perfect jump is found where some models, but not all, have made it, at odds of one half.

    Of so many tests beside each other, the smallest p-value must be at most rate / tests (Benjamini and Hochberg 1995).
    """
    split = np.arange(1, models)
    # Two tight groups: within each, values are a hundredth of the jump apart.
    p_values = [
        diptest.diptest(np.concatenate([0.01 * np.arange(before), 1 + 0.01 * np.arange(models - before)]))[1]
        for before in split
    ]
    weights = stats.binom.pmf(split, models, 0.5)
    return float(weights[np.array(p_values) <= rate / tests].sum() / weights.sum())


def _summary(values: np.ndarray) -> dict[str, float | int]:
    names = ("lowest", "lower_quartile", "median", "upper_quartile", "highest")
    row = {"n_seeds": len(values), "dip": np.nan, "dip_p": np.nan}
    row |= dict(zip(names, np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True))
    found, counts = np.unique(values, return_counts=True)
    if len(values) >= FEWEST and len(found) > 1:
        # Equal ones are spread over half the smallest distance between unequal ones, either way.
        width = np.diff(found).min()
        spread = [value + width * ((np.arange(n) + 0.5) / n - 0.5) for value, n in zip(found, counts, strict=True)]
        row["dip"], row["dip_p"] = map(float, diptest.diptest(np.concatenate(spread)))
    return row
