"""The tables that report a circuit, as they are stored (`utils/results/kinds.toml` has their columns).

Besides its edges and its faithfulness they say how far to trust it: random circuits beside it, its spread over prompts,
and statistical tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.circuit_size import THRESHOLDS
from circuits_over_time.edge_attribution_patching.circuits.controls import Controls, random_circuits
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import (
    Baselines,
    FaithfulnessCurve,
    too_few_prompts,
)
from circuits_over_time.edge_attribution_patching.circuits.hypothesis_tests import N_REFERENCES, run_tests
from circuits_over_time.edge_attribution_patching.circuits.search import count_nodes, edges_in, top_n_masks
from circuits_over_time.edge_attribution_patching.circuits.stability import CircuitBootstrap
from circuits_over_time.edge_attribution_patching.scores.folds import KeptFolds
from circuits_over_time.edge_attribution_patching.statistics import quotient_interval, standard_error

from ..results.kinds import BASELINES, CONTROLS, FAITHFULNESS, GIVEN, HYPOTHESIS_TESTS, NOT_LEARNED, PROMPT_GROUPS
from ..tasks.prompts import metric_columns, metric_name, metric_unit
from .find import CircuitPrompts, FoundCircuit
from .keys import CircuitSettings, SearchConfig


def edges_table(found: FoundCircuit, kept: KeptFolds, settings: CircuitSettings) -> pd.DataFrame:
    """The edges of the circuit, with the error and the q-value of their scores, stability and inclusion.

    A given circuit has none of these.
    Stability is worked out from the fold scores that are kept with the circuit, and from no others.
    """
    search, seed = settings.search, settings.seed
    stability = shares = torch.full_like(found.circuit.scores, torch.nan)
    if found.status != GIVEN:
        shares = inclusion(found, search)
    if found.size is not None and found.status != GIVEN:
        bootstrap = CircuitBootstrap(kept, search.order, search.selection, search.positive_share, seed)
        stability = bootstrap.stability(found.size, seed)
    return found.circuit.to_table(
        score_se=found.folds.standard_error,
        q_value=found.folds.q_values,
        stability=stability,
        inclusion=shares,
    )


def inclusion(found: FoundCircuit, search: SearchConfig) -> Tensor:
    """The share of `THRESHOLDS` whose circuit has each edge of the circuit, [n_forward, n_backward].

    The circuits of lower thresholds are chosen among the sizes that were evaluated, which the adaptive search sees to.
    Circuits are nested, so those of higher thresholds have all edges of this one, whatever their size.
    """
    rule = search.rule()
    counts = torch.zeros_like(found.circuit.scores)
    values = rule.values(found.curve)
    for threshold in THRESHOLDS:
        size = found.size
        if threshold < search.threshold and size is not None:
            size = replace(rule, threshold=threshold).select(found.curve.sizes, values, found.starts)
        if size is not None:
            counts += top_n_masks(found.order, found.circuit.graph, [size])[0]
    return counts / len(THRESHOLDS)


def faithfulness_table(found: FoundCircuit, prompts: CircuitPrompts) -> pd.DataFrame:
    """One row per size evaluated, with 95% intervals."""
    graph, rows = found.circuit.graph, []
    for size, columns in measured_columns(found.curve, prompts).items():
        mask = top_n_masks(found.order, graph, [size])
        counts = int(edges_in(mask, graph).sum()), int(count_nodes(mask, graph)[0])
        own = {"size": size, "n_edges": counts[0], "n_nodes": counts[1], "selected": size == found.size}
        rows.append(own | columns)
    return pd.DataFrame(rows, columns=list(FAITHFULNESS.columns))


def measured_columns(curve: FaithfulnessCurve, prompts: CircuitPrompts) -> dict[int, dict[str, Any]]:
    """What tables say of a circuit of each size: its metric and faithfulness, with 95% intervals."""
    if not curve.sizes:
        return {}
    (low, high), (raw_low, raw_high) = curve.intervals(), curve.intervals(raw=True)
    return {
        size: {
            "metric": curve.metric(size),
            "metric_se": standard_error(curve.values[size]),
            "faithfulness": curve.faithfulness(size),
            "faithfulness_low": float(low[place]),
            "faithfulness_high": float(high[place]),
            "faithfulness_raw": curve.raw(size),
            "faithfulness_raw_low": float(raw_low[place]),
            "faithfulness_raw_high": float(raw_high[place]),
            **metric_columns(prompts.task, prompts.evaluation, curve.values[size]),
        }
        for place, size in enumerate(curve.sizes)
    }


def baselines_table(
    found: FoundCircuit, prompts: CircuitPrompts, settings: CircuitSettings, accuracy: Sequence[float]
) -> pd.DataFrame:
    """One row: the whole model's metric, whether a circuit was found, its size, CPR and CMD, with 95% intervals.

    `reason` says why there are no intervals, if there are none.

    Args:
        accuracy: on clean and on corrupted prompts.
    """
    curve, areas = found.curve, found.areas
    model = Baselines.of(curve.full, curve.corrupted)
    row: dict[str, object] = dict.fromkeys(BASELINES.columns) | {
        "metric": metric_name(prompts.task.primary),
        "unit": metric_unit(prompts.task.primary),
        "accuracy": accuracy[0],
        "accuracy_corrupted": accuracy[1],
        "full": model.full,
        "corrupted": model.corrupted,
        "n_prompts": model.n_prompts,
        "full_se": model.full_se,
        "corrupted_se": model.corrupted_se,
        "status": found.status,
        "size": found.size,
        "reason": too_few_prompts(curve.full, curve.corrupted),
        "ig_points": found.folds.points,
        "ig_error": found.folds.integration_error,
    }
    if areas is not None:
        row |= {"cpr": areas.cpr, "cmd": areas.cmd}
        row["cpr_low"], row["cpr_high"] = areas.cpr_interval
        row["cmd_low"], row["cmd_high"] = areas.cmd_interval
    if curve.sizes and found.status not in (NOT_LEARNED, GIVEN):
        row["size_low"], row["size_high"] = settings.search.rule().interval(curve, found.starts)
    return pd.DataFrame([row]).astype(dict.fromkeys(("size", "size_low", "size_high", "ig_points"), "Int64"))


def compare_with_random(
    found: FoundCircuit, prompts: CircuitPrompts, settings: CircuitSettings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of random circuits (`n_random`) and of statistical tests (`hypothesis_tests`).

    They have no rows where there is no circuit, or none are asked for. Both use the same random circuits.
    """
    controls = pd.DataFrame(columns=list(CONTROLS.columns))
    tests = pd.DataFrame(columns=list(HYPOTHESIS_TESTS.columns))
    n_random, seed = settings.n_random, settings.seed
    n_masks = max(n_random, N_REFERENCES) if settings.hypothesis_tests else n_random
    if found.size is None or not n_masks:
        return controls, tests
    masks = random_circuits(found.circuit, n_masks, seed, settings.search.order, found.signed)
    measured = Controls.of(found.evaluator, found.circuit, masks)
    if n_random:
        controls = _controls_table(found, prompts, measured, n_random)
    if settings.hypothesis_tests:
        values = found.curve.values[found.size]
        outcomes = run_tests(found.evaluator, found.circuit, values, measured, seed)
        rows = [(o.test, o.statistic, o.p_value, o.passes, o.n) for o in outcomes]
        tests = pd.DataFrame(rows, columns=list(HYPOTHESIS_TESTS.columns))
    return controls, tests


def _controls_table(found: FoundCircuit, prompts: CircuitPrompts, measured: Controls, n_random: int) -> pd.DataFrame:
    """The circuit and the model without it, and the same for the first `n_random` random circuits."""
    assert found.size is not None
    corrupted, full = found.curve.corrupted, found.curve.full
    sizes = edges_in(measured.masks, found.circuit.graph).flatten(1).sum(1).tolist()
    rows: list[dict[str, object]] = []

    def add(control: str, number: int | None, n_edges: int, metric: Tensor, beaten: bool | None) -> None:
        mean = float(metric.double().mean())
        ends = map(float, quotient_interval(metric - corrupted, full - corrupted))
        values = (control, number, n_edges, mean, standard_error(metric), found.curve.normalised(mean), beaten, *ends)
        columns = metric_columns(prompts.task, prompts.evaluation, metric)
        rows.append(dict(zip(CONTROLS.columns, (*values, *columns.values()), strict=True)))

    own, n_edges = found.curve.values[found.size], found.circuit.as_edges.n_edges
    add("circuit", None, n_edges, own, None)
    for number in range(n_random):
        metric = measured.random[number]
        beaten = float(own.double().mean()) > float(metric.double().mean())
        add("random", number, sizes[number], metric, beaten)
    add("without_circuit", None, n_edges, measured.without, None)
    for number in range(n_random):
        metric = measured.without_random[number]
        beaten = float(measured.without.double().mean()) < float(metric.double().mean())
        add("without_random", number, sizes[number], metric, beaten)
    return pd.DataFrame(rows, columns=list(CONTROLS.columns)).astype({"number": "Int64", "beaten": "boolean"})


def groups_table(found: FoundCircuit, prompts: CircuitPrompts) -> pd.DataFrame:
    """One row for all prompts and one for each kind of them, with quartiles over prompts."""
    groups: dict[str, Bool[Tensor, " prompt"]] = {"all": torch.ones(len(prompts.evaluation), dtype=torch.bool)}
    column = prompts.task.group
    if column is not None:
        kinds = prompts.evaluation.meta[column].astype(str)
        groups |= {kind: torch.tensor((kinds == kind).to_numpy()) for kind in sorted(kinds.unique())}
    curve = found.curve
    rows = []
    for name, members in groups.items():
        row = dict.fromkeys(PROMPT_GROUPS.columns) | {"group": name, "n_prompts": int(members.sum())}
        row |= {f"full{key}": value for key, value in _spread(curve.full[members]).items()}
        row["corrupted"] = float(curve.corrupted[members].double().mean())
        row |= metric_columns(prompts.task, prompts.evaluation.select(members.nonzero()[:, 0]), curve.full[members])
        if found.size is not None:
            own = curve.values[found.size][members]
            here = FaithfulnessCurve(curve.full[members], curve.corrupted[members], {found.size: own})
            low, high = here.intervals()
            row |= {f"circuit{key}": value for key, value in _spread(own).items()}
            row["faithfulness"] = here.faithfulness(found.size)
            row["faithfulness_low"], row["faithfulness_high"] = float(low[0]), float(high[0])
        rows.append(row)
    return pd.DataFrame(rows, columns=list(PROMPT_GROUPS.columns))


def _spread(values: Float[Tensor, " prompt"]) -> dict[str, float]:
    quartiles = values.double().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    named = dict(zip(("_q25", "_median", "_q75"), quartiles, strict=True))
    return {"": float(values.double().mean()), "_se": standard_error(values)} | named
