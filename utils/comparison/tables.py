"""Tables of emergence, of its order, of change points and of the turnover of edges."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from ..results.comparison import COMPARISONS
from .changes import AT, grown
from .curves import Curve, change_points
from .emergence import Emergence, find_emergence, order_shares
from .inputs import Trajectory
from .keys import ComparisonConfig
from .lifetimes import lifetimes, turnover
from .similarity import Edges

_NOT_CURVED = "n_edges"
"""A size falls as often as it rises, so it has change points instead of an emergence."""


def curves_table(curves: Sequence[Curve]) -> pd.DataFrame:
    """Curves with their intervals, one row a checkpoint."""
    frames = []
    for curve in curves:
        low, high = curve.interval()
        frame = pd.DataFrame(
            {"step": curve.steps, "tokens": curve.tokens, "value": curve.values, "low": low, "high": high}
        )
        frames.append(frame.assign(**curve.stamp(), uncertainty=curve.uncertainty))
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COMPARISONS["curves"]))
    return table.reindex(columns=list(COMPARISONS["curves"])).astype({"layer": "Int64", "head": "Int64"})


def emergence_table(
    curves: Sequence[Curve], config: ComparisonConfig
) -> tuple[pd.DataFrame, dict[str, tuple[Curve, Emergence]]]:
    """When each curve of one model emerges; and the leading curves that do, by name, for the order of emergence."""
    keys = config.emergence
    strongest: dict[str, float] = {}
    for curve in curves:
        if curve.kind == "head":
            strongest[curve.score] = max(strongest.get(curve.score, 0.0), float(np.nanmax(curve.values)))
    rows, leading = [], {}
    for curve in curves:
        if curve.score == _NOT_CURVED:
            continue
        emergence = find_emergence(
            curve.values, curve.resampled, keys.fraction, keys.sustained, curve.baseline, resamples=config.resamples
        )
        # What is known of a curve goes into its row; the first reason why it has no step ends it.
        row: dict[str, object] = curve.stamp() | {"maximum": emergence.maximum, "uncertainty": curve.uncertainty}
        if curve.kind == "head" and emergence.maximum < keys.weakest * strongest[curve.score]:
            rows.append(row | {"reason": f"weaker than {keys.weakest:g} of the score's strongest head"})
            continue
        row["level"] = emergence.level
        row["share_emerged"] = emergence.share
        if emergence.maximum <= curve.baseline:
            rows.append(row | {"reason": "never above what guessing gives" if curve.baseline else "never above 0"})
            continue
        if emergence.index == emergence.n:
            rows.append(row | {"reason": f"crosses its level at fewer than {keys.sustained} checkpoints in a row"})
            continue
        low, high = emergence.interval
        index = emergence.index
        row |= {"step": curve.steps[index], "tokens": curve.tokens[index]}
        if index > 0:
            row |= {"after_step": curve.steps[index - 1], "after_tokens": curve.tokens[index - 1]}
        # The interval is open where it reaches past the first or the last checkpoint.
        row |= {"low_step": curve.steps[low]} if low >= 0 else {}
        row |= {"high_step": curve.steps[high]} if high < emergence.n else {}
        rows.append(row)
        if curve.leading:
            leading[curve.name] = (curve, emergence)
    table = pd.DataFrame(rows, columns=list(COMPARISONS["emergence"]))
    whole = ("layer", "head", "after_step", "step", "after_tokens", "tokens", "low_step", "high_step")
    return table.astype(dict.fromkeys(whole, "Int64")), leading


def order_table(model: str, leading: dict[str, tuple[Curve, Emergence]], resamples: int) -> pd.DataFrame:
    """Which of every two leading curves emerges first, and in which share of the resamples.

    Curves of the same checkpoints are compared. Resamples of different curves are independent of each other, except for
    curves of circuits, which are all taken from the same draws of folds.
    """
    rows = []
    for (first, (a, of_a)), (second, (b, of_b)) in combinations(leading.items(), 2):
        if not np.array_equal(a.steps, b.steps):
            continue
        sides = [np.resize(emergence.resampled, resamples) for emergence in (of_a, of_b)]
        shares = order_shares(sides[0], sides[1], len(a.steps))
        names = ("share_before", "share_same", "share_after")
        rows.append({"model": model, "first": first, "second": second} | dict(zip(names, shares, strict=True)))
    return pd.DataFrame(rows, columns=list(COMPARISONS["order"]))


def change_points_table(similarity: pd.DataFrame, curves: Sequence[Curve]) -> pd.DataFrame:
    """Change points of the size of circuits and of their similarity with the previous checkpoint."""
    series: list[tuple[str, str, str, np.ndarray, np.ndarray]] = []
    for curve in curves:
        if curve.score == "n_edges" and curve.task is not None:
            known = ~np.isnan(curve.values)
            series.append((curve.model, curve.task, "n_edges", curve.steps[known], curve.values[known]))
    wanted = (similarity["against"] == "previous") & (similarity["at"] == "size")
    wanted &= similarity["measure"] == "edge_jaccard"
    for (model, task), group in similarity[wanted].groupby(["model", "task"], sort=False):
        known_rows = group.dropna(subset="value").sort_values("step")
        values = known_rows["value"].to_numpy(dtype=float)
        series.append((str(model), str(task), "similarity", known_rows["step"].to_numpy(), values))
    rows = []
    for model, task, quantity, steps, values in series:
        logarithmic = quantity == "n_edges"
        # Sizes change by factors: their levels are means of logarithms.
        points = change_points(np.log(values) if logarithmic else values)
        bounds = [0, *points, len(values)]
        for i, start in enumerate(points, 1):
            stretches = values[bounds[i - 1] : start], values[start : bounds[i + 1]]
            means = [float(np.exp(np.log(stretch).mean()) if logarithmic else stretch.mean()) for stretch in stretches]
            row: dict[str, object] = {"model": model, "task": task, "quantity": quantity}
            row |= {"after_step": steps[start - 1], "step": steps[start], "before": means[0], "after": means[1]}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(COMPARISONS["change_points"]))


def edges_tables(trajectory: Trajectory, size: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`turnover` and `lifetimes` of one model and task, at either size.

    At fixed faithfulness a checkpoint without a circuit has no edges.
    """
    edges = Edges.all_of(trajectory.graph)
    names = edges.names()
    checkpoints = list(trajectory.checkpoints.values())
    of_unit = {"model": trajectory.model, "task": trajectory.task}
    turned, lived = [], []
    for at in AT:
        masks = [
            (checkpoint.circuit.in_circuit if at == "faithfulness" else grown(checkpoint, size))
            for checkpoint in checkpoints
        ]
        present = np.stack([mask.flatten()[edges.flat].numpy() for mask in masks])
        if not present.any():
            continue
        stamp = {"step": trajectory.steps, "tokens": [checkpoint.tokens for checkpoint in checkpoints]}
        turned.append(turnover(present).assign(**of_unit, at=at, **stamp))
        table = lifetimes(present, trajectory.steps)
        ends = {
            "source": [names[edge][0] for edge in table["edge"]],
            "target": [names[edge][1] for edge in table["edge"]],
        }
        lived.append(table.assign(**of_unit, at=at, **ends))
    columns = list(COMPARISONS["turnover"]), list(COMPARISONS["lifetimes"])
    frames = [pd.concat(parts, ignore_index=True) if parts else pd.DataFrame() for parts in (turned, lived)]
    return frames[0].reindex(columns=columns[0]), frames[1].reindex(columns=columns[1])
