"""Circuit size against model size: correlations over models, for as few models as there are.

With a handful of models no approximation of a p-value holds, so all permutations of the models are counted. Resampled
models do not give an interval either: of five, 95% would be 83%. Fisher's interval of Pearson's correlation holds for
given sizes of models and normal errors; ranks have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from ..results.comparison import COMPARISONS
from .statistics import TAILS

if TYPE_CHECKING:
    from jaxtyping import Float  # Figures use this module, and do without it.

EXACT_UP_TO = 8
"""Models of which all permutations are counted: 40,320."""
RANDOM_PERMUTATIONS = 9999
FEWEST_FOR_INTERVAL = 5
COUNTS = {"edges": "n_edges", "nodes": "n_nodes"}


@dataclass(frozen=True)
class Correlation:
    """A correlation over models."""

    statistic: str
    value: float  # nan with fewer than three models, or without variation
    low: float  # ends of the 95% interval of `pearson`; nan with fewer than five models, and for `spearman`
    high: float
    p_value: float
    exact: bool  # whether all permutations were counted
    n: int


def mean_sizes(faithfulness: pd.DataFrame, count: str) -> pd.DataFrame:
    """Mean and standard deviation over checkpoints of the selected circuit's size: `model, task, size, sd, n_steps`."""
    chosen = faithfulness[faithfulness["selected"].astype(bool)]
    means = chosen.groupby(["model", "task"])[COUNTS[count]].agg(size="mean", sd="std", n_steps="count")
    return means.reset_index()


def correlations(x: Float[np.ndarray, " model"], y: Float[np.ndarray, " model"], seed: int = 0) -> list[Correlation]:
    """Pearson's and Spearman's correlation of two quantities over models."""
    ranks = stats.rankdata(x), stats.rankdata(y)
    return [
        _correlate(name, np.asarray(a, dtype=float), np.asarray(b, dtype=float), seed)
        for name, (a, b) in {"pearson": (x, y), "spearman": ranks}.items()
    ]


def scale_table(faithfulness: pd.DataFrame, parameters: Mapping[str, float], seed: int = 0) -> pd.DataFrame:
    """Correlations of mean circuit size with parameters for every task; models without a count are left out."""
    rows = []
    for count in COUNTS:
        sizes = mean_sizes(faithfulness[faithfulness["model"].isin(list(parameters))], count)
        for task, of_task in sizes.groupby("task", sort=True):
            x = of_task["model"].map(parameters).to_numpy(dtype=float)
            found = correlations(x, of_task["size"].to_numpy(dtype=float), seed)
            rows += [{"task": task, "count": count, "n_models": len(x)} | asdict(one) for one in found]
    return pd.DataFrame(rows, columns=list(COMPARISONS["scale"]))


def _correlate(name: str, x: np.ndarray, y: np.ndarray, seed: int) -> Correlation:
    n = len(x)
    exact = n <= EXACT_UP_TO
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(name, np.nan, np.nan, np.nan, np.nan, exact, n)

    def r(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        a, b = a - a.mean(axis, keepdims=True), b - b.mean(axis, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((a * b).sum(axis) / np.sqrt((a * a).sum(axis) * (b * b).sum(axis)))

    # With as many resamples as there are permutations, scipy goes through each of them once.
    test = stats.permutation_test(
        (y,),
        lambda b, axis=-1: r(np.broadcast_to(x, b.shape), b, axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=math.factorial(n) if exact else RANDOM_PERMUTATIONS,
        rng=np.random.default_rng(seed),
    )
    value = float(r(x, y))
    low = high = np.nan
    if name == "pearson" and n >= FEWEST_FOR_INTERVAL and abs(value) < 1:
        reach = stats.norm.ppf(TAILS[1]) / math.sqrt(n - 3)
        low, high = (math.tanh(math.atanh(value) + side * reach) for side in (-1, 1))
    return Correlation(name, value, low, high, float(test.pvalue), exact, n)
