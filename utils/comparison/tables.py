"""Tables of emergence, of its order, and of the turnover of edges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from ..base.multiple_tests import adjusted_p_values
from ..results.comparison import COMPARISONS
from .changes import AT, grown, redrawn
from .curves import Curve
from .emergence import Emergence, find_emergence, order_shares
from .inputs import Trajectory
from .keys import ComparisonConfig
from .lifetimes import RedrawnLives, lifetimes, turnover
from .similarity import Edges


def curves_table(curves: Sequence[Curve]) -> pd.DataFrame:
    """Curves with their intervals, one row a checkpoint."""
    frames = [pd.DataFrame(columns=list(COMPARISONS["curves"]))] if not curves else []
    for curve in curves:
        low, high = curve.interval()
        points = {"step": curve.steps, "tokens": curve.tokens, "value": curve.values, "low": low, "high": high}
        frames.append(pd.DataFrame(points).assign(**curve.stamp()))
    table = pd.concat(frames, ignore_index=True).reindex(columns=list(COMPARISONS["curves"]))
    return table.astype({"layer": "Int64", "head": "Int64"})


def emergence_table(
    curves: Sequence[Curve], config: ComparisonConfig
) -> tuple[pd.DataFrame, dict[str, tuple[Curve, Emergence]]]:
    """When each curve of one model emerges; and the leading curves that do, by name, for the order of emergence."""
    keys = config.emergence
    curved = [curve for curve in curves if curve.score != "n_edges"]  # A size falls as often as it rises.
    strongest: dict[str, float] = defaultdict(float)
    for curve in curved:
        if curve.kind == "head":
            strongest[curve.score] = max(strongest[curve.score], float(np.nanmax(curve.values)))
    found: list[Emergence | None] = []
    for curve in curved:
        weak = curve.kind == "head" and float(np.nanmax(curve.values)) < keys.weakest * strongest[curve.score]
        given = curve.values, curve.resampled, keys.fraction, keys.sustained
        found.append(None if weak else find_emergence(*given, curve.chance, curve.signed_errors, curve.among))
    # Curves of one score are tests of one kind: heads of a score, tasks of a metric.
    p_values = pd.Series([np.nan if emergence is None else emergence.p_value for emergence in found], dtype=float)
    families = p_values.groupby([f"{curve.kind} {curve.score}" for curve in curved])
    q_values = families.transform(lambda of_family: adjusted_p_values(of_family.to_numpy()))
    rows, leading = [], {}
    for curve, emergence, q_value in zip(curved, found, q_values, strict=True):
        # What is known of a curve goes into its row; the first reason why it has no step ends it.
        row: dict[str, object] = curve.stamp() | {"maximum": pd.Series(curve.values).max()}
        rows.append(row)
        if emergence is None:
            row["reason"] = f"weaker than {keys.weakest:g} of the score's strongest head"
            continue
        row |= {"plateau": emergence.plateau, "level": emergence.level, "share_emerged": emergence.share}
        row |= {"p_value": emergence.p_value, "q_value": q_value}
        if np.isnan(curve.values).all():
            row["reason"] = "has no value at any checkpoint"
        elif emergence.plateau <= curve.chance:
            row["reason"] = "stays at or below chance"
        elif emergence.index == emergence.n:
            row["reason"] = f"crosses its level at fewer than {keys.sustained} checkpoints in a row"
        elif q_value > config.false_discovery_rate:
            row["reason"] = "no more than chance and its errors explain"
        if "reason" in row:
            continue
        low, high = emergence.interval
        index = emergence.index
        row |= {"step": curve.steps[index], "tokens": curve.tokens[index]}
        if index > 0:
            row |= {"after_step": curve.steps[index - 1], "after_tokens": curve.tokens[index - 1]}
        # The interval is open where it reaches past the first or the last checkpoint.
        row |= {"low_step": curve.steps[low]} if low >= 0 else {}
        row |= {"high_step": curve.steps[high]} if high < emergence.n else {}
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


def edges_tables(trajectory: Trajectory, size: int, config: ComparisonConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`turnover` and `lifetimes` of one model and task, at either size.

    At fixed faithfulness a checkpoint without a circuit has no edges.
    """
    edges = Edges.all_of(trajectory.graph)
    names = edges.names()
    checkpoints = list(trajectory.checkpoints.values())
    turned, lived = [], []
    for at in AT:
        fixed = at == "size"
        masks = [grown(each, size) if fixed else each.circuit.in_circuit for each in checkpoints]
        present = np.stack([mask.flatten()[edges.flat].numpy() for mask in masks])
        if not present.any():
            continue
        stamp = {"model": trajectory.model, "task": trajectory.task, "at": at}
        tokens = [checkpoint.tokens for checkpoint in checkpoints]
        turned.append(turnover(present).assign(**stamp, step=trajectory.steps, tokens=tokens))
        table = lifetimes(present, trajectory.steps).assign(**stamp)
        if min(len(checkpoint.folds.sizes) for checkpoint in checkpoints) > 1:
            lives = RedrawnLives(config.resamples // 5, len(names))
            for checkpoint in checkpoints:
                own = size if fixed else checkpoint.size
                lives.add(redrawn(checkpoint, own, config, edges).numpy() if own else np.zeros((1, len(names)), bool))
            of_edges, of_median = lives.errors()
            table["lifetime_se"] = of_edges[table["edge"]]
            table["median_lifetime_se"] = of_median if table["median_lifetime"].notna().all() else np.nan
        table["source"], table["target"] = zip(*(names[edge] for edge in table["edge"]), strict=True)
        lived.append(table)
    columns = list(COMPARISONS["turnover"]), list(COMPARISONS["lifetimes"])
    frames = [pd.concat(parts, ignore_index=True) if parts else pd.DataFrame() for parts in (turned, lived)]
    return frames[0].reindex(columns=columns[0]), frames[1].reindex(columns=columns[1])
