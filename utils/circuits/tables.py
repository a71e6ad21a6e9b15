"""The tables that report a circuit, as they are stored (`utils/results/kinds.toml` has their columns)."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import Baselines
from circuits_over_time.edge_attribution_patching.circuits.search import count_nodes, top_n_masks
from circuits_over_time.edge_attribution_patching.circuits.stability import CircuitBootstrap
from circuits_over_time.edge_attribution_patching.scores.folds import KeptFolds
from circuits_over_time.edge_attribution_patching.statistics import percentile_interval, standard_error

from ..results.kinds import BASELINES, FAITHFULNESS
from .find import FoundCircuit
from .keys import CircuitSettings, SearchConfig

THRESHOLDS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Faithfulness thresholds over which an edge's inclusion is counted."""


def edges_table(found: FoundCircuit, kept: KeptFolds, settings: CircuitSettings) -> pd.DataFrame:
    """The edges of the circuit, with the standard error of their scores, stability and inclusion.

    Stability is worked out from the fold scores that are kept with the circuit, and from no others.
    """
    search, seed = settings.search, settings.seed
    stability = torch.full_like(found.circuit.scores, torch.nan)
    if found.size is not None:
        bootstrap = CircuitBootstrap(kept, search.order, search.selection, search.positive_share, seed)
        stability = bootstrap.stability(found.size, seed)
    return found.circuit.to_table(
        score_se=found.folds.standard_error, stability=stability, inclusion=inclusion(found, search)
    )


def inclusion(found: FoundCircuit, search: SearchConfig) -> Tensor:
    """The share of `THRESHOLDS` whose circuit has each edge of the circuit, [n_forward, n_backward].

    The circuits of lower thresholds are chosen among the sizes that were evaluated. Circuits are nested, so those of
    higher thresholds have all edges of this one, whatever their size.
    """
    graph, rule = found.circuit.graph, search.rule()
    counts = torch.zeros_like(found.circuit.scores)
    values = rule.values(found.curve)
    for threshold in THRESHOLDS:
        size = found.size
        if threshold < search.threshold and size is not None:
            size = replace(rule, threshold=threshold).select(found.curve.sizes, values, graph.n_edges)
        if size is not None:
            counts += top_n_masks(found.order, graph, [size])[0]
    return counts / len(THRESHOLDS)


def faithfulness_table(found: FoundCircuit, seed: int) -> pd.DataFrame:
    """One row per size evaluated, with 95% intervals from resampled prompts."""
    curve, graph, rows = found.curve, found.circuit.graph, []
    if curve.sizes:
        low, high = percentile_interval(curve.resampled(seed))
    for place, size in enumerate(curve.sizes):
        mask = top_n_masks(found.order, graph, [size])
        rows.append(
            {
                "size": size,
                "n_edges": int(mask.sum()),
                "n_nodes": int(count_nodes(mask, graph)[0]),
                "metric": curve.metric(size),
                "faithfulness": curve.faithfulness(size),
                "faithfulness_raw": curve.raw(size),
                "selected": size == found.size,
                "metric_se": standard_error(curve.values[size]),
                "faithfulness_low": float(low[place]),
                "faithfulness_high": float(high[place]),
            }
        )
    return pd.DataFrame(rows, columns=list(FAITHFULNESS.columns))


def baselines_table(found: FoundCircuit, settings: CircuitSettings) -> pd.DataFrame:
    """One row: the whole model's metric, whether a circuit was found, its size with a 95% interval, CPR and CMD.

    The interval of the size resamples prompts and chooses among the sizes evaluated. An end is empty if the resamples
    there find no size.
    """
    curve, areas = found.curve, found.areas
    model = Baselines.of(curve.full, curve.corrupted)
    row: dict[str, object] = dict.fromkeys(BASELINES.columns) | {
        "full": model.full,
        "corrupted": model.corrupted,
        "n_prompts": model.n_prompts,
        "full_se": model.full_se,
        "corrupted_se": model.corrupted_se,
        "status": found.status,
        "size": found.size,
        "cpr": None if areas is None else areas.cpr,
        "cmd": None if areas is None else areas.cmd,
    }
    if curve.sizes and found.status != "task not learned":
        rule, n_edges = settings.search.rule(), found.circuit.graph.n_edges
        resampled = rule.resampled(curve, settings.seed).tolist()
        sizes = [rule.select(curve.sizes, values, n_edges) for values in resampled]
        # A resample without a circuit counts as larger than every size.
        ranked = sorted(float("inf") if size is None else float(size) for size in sizes)
        low, high = ranked[int(0.025 * len(ranked))], ranked[int(0.975 * len(ranked))]
        row["size_low"] = None if low == float("inf") else int(low)
        row["size_high"] = None if high == float("inf") else int(high)
    return pd.DataFrame([row]).astype({"size": "Int64", "size_low": "Int64", "size_high": "Int64"})
