"""The circuit behind a task in one checkpoint: attribution, search, faithfulness, and what is reported of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from edge_attribution_patching.attribution import Quadrature, attribute
from edge_attribution_patching.circuit import Circuit
from edge_attribution_patching.faithfulness import (
    Baselines,
    CircuitEvaluator,
    FaithfulnessCurve,
    search_circuit_size,
    smallest_confirmed,
    standard_error,
)
from edge_attribution_patching.graph import Graph
from edge_attribution_patching.pairs import Metric, TokenPairs
from edge_attribution_patching.search import Order, count_nodes, edge_order, prefix_masks
from edge_attribution_patching.weights import ModelWeights
from utils.config.keys import Section, TaskConfig, execution
from utils.errors import UserError
from utils.faithfulness_area import cmd, cpr
from utils.tasks import Prompts, build_prompts, get_task
from utils.tasks.metrics import METRICS

FOUND, NOT_LEARNED, NOT_REACHED = "found", "task not learned", "threshold not reached"

FAITHFULNESS_COLUMNS = [
    "size",
    "n_edges",
    "n_nodes",
    "metric",
    "faithfulness",
    "faithfulness_raw",
    "selected",
    "metric_se",
    "faithfulness_low",
    "faithfulness_high",
]


class EapConfig(Section):
    """How edges are scored."""

    ig_steps: int = Field(12, gt=0)
    """Integration steps."""
    quadrature: Quadrature = "left"
    """Where the steps lie: left (published EAP-IG), right, midpoint, gauss-legendre."""


class SearchConfig(Section):
    """How the circuit's size is found."""

    threshold: float = Field(0.8, gt=0)
    """Faithfulness that the circuit must reach."""
    order: Order = "greedy"
    """greedy: grow from the logits; top_n: strongest edges."""
    sizes: list[int] | None = None
    """Evaluate these numbers of edges instead of searching."""
    min_gap: float = Field(0.01, ge=0)
    """Below this difference of the metric between clean and corrupted prompts a task counts as not learned."""

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, sizes: list[int] | None) -> list[int] | None:
        if sizes is not None and (not sizes or min(sizes) < 1 or sorted(set(sizes)) != sizes):
            raise ValueError("sizes are numbers of edges, 1 or more, ascending, each once")
        return sizes


class CircuitsConfig(TaskConfig):
    """Keys of get_circuits_over_time.py."""

    eap: EapConfig = EapConfig()
    search: SearchConfig = SearchConfig()
    evaluate_on: Literal["heldout", "same"] = "heldout"
    """Measure faithfulness on other prompts than the edges were scored on, or on the same."""
    export_json: bool = execution(False)
    """Also write every graph as EAP-IG's JSON."""
    memory_budget_gb: float = execution(1.0, gt=0)
    """Memory that one step of the computation may take beside the weights."""


@dataclass(frozen=True)
class CircuitReport:
    """The circuit of one task in one checkpoint, and the tables that say how good it is."""

    circuit: Circuit
    faithfulness: pd.DataFrame
    baselines: pd.DataFrame


def circuit_prompts(config: CircuitsConfig, task: str, tokenizer: PreTrainedTokenizerBase) -> tuple[Prompts, Prompts]:
    """Prompts to score edges on and prompts to evaluate circuits on: disjoint, or the same (`evaluate_on`).

    Raises:
        UserError: if the task has too few prompts under this tokenizer.
    """
    held_out = config.evaluate_on == "heldout"
    try:
        prompts = build_prompts(
            task,
            tokenizer,
            config.n_prompts * (2 if held_out else 1),
            config.seed,
            prepend_bos=config.prepend_bos,
            ioi_corruption=config.ioi_corruption,
            metric=config.metric,
        )
    except UserError as error:
        if not held_out:
            raise
        raise UserError(f"{error} (evaluate_on=heldout needs twice n_prompts={config.n_prompts} prompts)") from None
    if not held_out:
        return prompts, prompts
    return prompts.select(slice(0, config.n_prompts)), prompts.select(slice(config.n_prompts, None))


def prompt_metric(prompts: Prompts, name: str) -> Metric:
    """The engine's metric of some prompts: a function of logits and of which prompts they belong to."""
    batches: dict[tuple[int, ...], Prompts] = {}

    def metric(logits: Tensor, index: Tensor) -> Tensor:
        key = tuple(index.tolist())
        if key not in batches:
            batches[key] = prompts.select(index)
        return METRICS[name](logits, batches[key])

    return metric


def token_pairs(prompts: Prompts) -> TokenPairs:
    """The tokens of prompts as the engine takes them."""
    return TokenPairs(prompts.clean, prompts.corrupted, prompts.lengths)


def find_circuit(
    weights: ModelWeights, tokenizer: PreTrainedTokenizerBase, config: CircuitsConfig, task: str
) -> CircuitReport:
    """Score all edges, search the smallest faithful circuit, and report.

    Raises:
        UserError: if a size in `search.sizes` exceeds the graph.
    """
    graph = Graph.of(weights)
    sizes = config.search.sizes
    if sizes and sizes[-1] > graph.n_edges:
        raise UserError(f"search.sizes: {sizes[-1]} is more than the model's {graph.n_edges} edges; leave it out")
    for_scores, for_faithfulness = (prompts.to(weights.device) for prompts in circuit_prompts(config, task, tokenizer))
    primary = get_task(task, config.metric).primary
    try:
        scores = attribute(
            weights,
            token_pairs(for_scores),
            prompt_metric(for_scores, primary),
            steps=config.eap.ig_steps,
            quadrature=config.eap.quadrature,
            batch_size=config.batch_size,
            memory_budget_gb=config.memory_budget_gb,
        )
    except FloatingPointError as error:
        raise UserError(f"dtype: {config.dtype}: {error}; use dtype=float32 or bfloat16") from None
    order = edge_order(scores, graph, config.search.order)
    evaluate = CircuitEvaluator(
        weights,
        token_pairs(for_faithfulness),
        prompt_metric(for_faithfulness, primary),
        order,
        batch_size=config.batch_size,
        memory_budget_gb=config.memory_budget_gb,
    )
    baselines = Baselines.of(evaluate.full, evaluate.corrupted)
    curve = FaithfulnessCurve(evaluate.full, evaluate.corrupted)
    selected = None
    status = NOT_LEARNED
    if baselines.learned(config.search.min_gap):
        if sizes:
            curve.values.update(zip(sizes, evaluate(sizes), strict=True))
            faithfulness = [curve.faithfulness(size) for size in sizes]
            selected = smallest_confirmed(sizes, faithfulness, config.search.threshold, graph.n_edges)
        else:
            selected = search_circuit_size(curve, evaluate, graph.n_edges, config.search.threshold)
        status = NOT_REACHED if selected is None else FOUND
    in_circuit = prefix_masks(order, graph, [selected or 0])[0]
    return CircuitReport(
        Circuit(graph, scores, in_circuit),
        _faithfulness_table(curve, order, graph, selected, config.seed),
        _baselines_table(baselines, curve, graph, status, selected, config),
    )


def _faithfulness_table(
    curve: FaithfulnessCurve, order: Tensor, graph: Graph, selected: int | None, seed: int
) -> pd.DataFrame:
    """One row per size evaluated, with 95% intervals from resampled prompts."""
    rows = []
    if curve.sizes:
        low, high = curve.resampled(seed).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    for place, size in enumerate(curve.sizes):
        mask = prefix_masks(order, graph, [size])
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
    return pd.DataFrame(rows, columns=FAITHFULNESS_COLUMNS)


def _baselines_table(
    baselines: Baselines,
    curve: FaithfulnessCurve,
    graph: Graph,
    status: str,
    selected: int | None,
    config: CircuitsConfig,
) -> pd.DataFrame:
    """One row: the whole model's metric, whether a circuit was found, its size with a 95% interval, CPR and CMD.

    The size's interval resamples prompts among the sizes evaluated; it is open (empty) where resamples find no size.
    """
    row: dict[str, object] = {
        "full": baselines.full,
        "corrupted": baselines.corrupted,
        "n_prompts": baselines.n_prompts,
        "full_se": baselines.full_se,
        "corrupted_se": baselines.corrupted_se,
        "status": status,
        "size": selected,
        "size_low": None,
        "size_high": None,
        "cpr": None,
        "cmd": None,
    }
    if curve.sizes:
        found = [
            smallest_confirmed(curve.sizes, faithfulness, config.search.threshold, graph.n_edges)
            for faithfulness in curve.resampled(config.seed).tolist()
        ]
        # A resample without a circuit counts as larger than any.
        ranked = sorted(float("inf") if size is None else float(size) for size in found)
        low, high = ranked[int(0.025 * len(ranked))], ranked[int(0.975 * len(ranked))]
        row["size_low"] = None if low == float("inf") else int(low)
        row["size_high"] = None if high == float("inf") else int(high)
        shares = [size / graph.n_edges for size in curve.sizes]
        faithfulness = [curve.faithfulness(size) for size in curve.sizes]
        row["cpr"], row["cmd"] = cpr(shares, faithfulness), cmd(shares, faithfulness)
    return pd.DataFrame([row]).astype({"size": "Int64", "size_low": "Int64", "size_high": "Int64"})
