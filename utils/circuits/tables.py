"""The tables that report a circuit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import Baselines, FaithfulnessCurve
from circuits_over_time.edge_attribution_patching.circuits.mib import MibAreas
from circuits_over_time.edge_attribution_patching.circuits.search import count_nodes, top_n_masks
from circuits_over_time.edge_attribution_patching.circuits.stability import CircuitBootstrap
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.scores.folds import KeptFolds
from circuits_over_time.edge_attribution_patching.statistics import percentile_interval, standard_error

from ..results.kinds import BASELINES, FAITHFULNESS

if TYPE_CHECKING:
    from .keys import CircuitsConfig
    from .report import CircuitReport, Status

THRESHOLDS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Faithfulness thresholds over which an edge's inclusion is counted."""


def edges_table(report: CircuitReport, kept: KeptFolds, config: CircuitsConfig) -> pd.DataFrame:
    """The edges of the circuit, with the standard error of their scores, stability and inclusion.

    Args:
        report: the circuit.
        kept: the fold scores that are stored with it; stability is worked out from these alone.
        config: the run's.
    """
    circuit, search = report.circuit, config.search
    stability = torch.full_like(circuit.scores, torch.nan)
    if report.size is not None:
        bootstrap = CircuitBootstrap(kept, search.order, search.selection, search.positive_share, config.seed)
        stability = bootstrap.stability(report.size, config.seed)
    included = inclusion(report, config)
    return circuit.to_table(score_se=report.folds.standard_error, stability=stability, inclusion=included)


def inclusion(report: CircuitReport, config: CircuitsConfig) -> Tensor:
    """The share of `THRESHOLDS` whose circuit has each edge of the circuit, [n_forward, n_backward].

    The circuits of lower thresholds are chosen among the sizes that were evaluated. Circuits are nested, so those of
    higher thresholds have all edges of this one, whatever their size.
    """
    counts = torch.zeros_like(report.circuit.scores)
    values = config.search.rule().values(report.curve)
    for threshold in THRESHOLDS:
        size = report.size
        if threshold < config.search.threshold and size is not None:
            rule = replace(config.search.rule(), threshold=threshold)
            size = rule.select(report.curve.sizes, values, report.circuit.graph.n_edges)
        if size is not None:
            counts += top_n_masks(report.order, report.circuit.graph, [size])[0]
    return counts / len(THRESHOLDS)


def faithfulness_table(
    curve: FaithfulnessCurve, order: Tensor, graph: Graph, selected: int | None, seed: int
) -> pd.DataFrame:
    """One row per size evaluated, with 95% intervals from resampled prompts."""
    rows = []
    if curve.sizes:
        low, high = percentile_interval(curve.resampled(seed))
    for place, size in enumerate(curve.sizes):
        mask = top_n_masks(order, graph, [size])
        rows.append(
            {
                "size": size,
                "n_edges": int(mask.sum()),
                "n_nodes": int(count_nodes(mask, graph)[0]),
                "metric": curve.metric(size),
                "faithfulness": curve.faithfulness(size),
                "faithfulness_raw": curve.raw(size),
                "selected": size == selected,
                "metric_se": standard_error(curve.values[size]),
                "faithfulness_low": float(low[place]),
                "faithfulness_high": float(high[place]),
            }
        )
    return pd.DataFrame(rows, columns=list(FAITHFULNESS.columns))


def baselines_table(
    baselines: Baselines,
    curve: FaithfulnessCurve,
    graph: Graph,
    status: Status,
    selected: int | None,
    areas: MibAreas | None,
    config: CircuitsConfig,
) -> pd.DataFrame:
    """One row: the whole model's metric, whether a circuit was found, its size with a 95% interval, CPR and CMD.

    The interval of the size resamples prompts and chooses among the sizes evaluated. An end is empty if the resamples
    there find no size.
    """
    row: dict[str, object] = dict.fromkeys(BASELINES.columns) | {
        "full": baselines.full,
        "corrupted": baselines.corrupted,
        "n_prompts": baselines.n_prompts,
        "full_se": baselines.full_se,
        "corrupted_se": baselines.corrupted_se,
        "status": status,
        "size": selected,
        "cpr": None if areas is None else areas.cpr,
        "cmd": None if areas is None else areas.cmd,
    }
    if curve.sizes and status != "task not learned":
        rule = config.search.rule()
        resampled = rule.resampled(curve, config.seed).tolist()
        found = [rule.select(curve.sizes, values, graph.n_edges) for values in resampled]
        # A resample without a circuit counts as larger than every size.
        ranked = sorted(float("inf") if size is None else float(size) for size in found)
        low, high = ranked[int(0.025 * len(ranked))], ranked[int(0.975 * len(ranked))]
        row["size_low"] = None if low == float("inf") else int(low)
        row["size_high"] = None if high == float("inf") else int(high)
    return pd.DataFrame([row]).astype({"size": "Int64", "size_low": "Int64", "size_high": "Int64"})
