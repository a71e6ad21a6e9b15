"""The circuit behind a task in one checkpoint: attribution, search, faithfulness, and the tables that report them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import (
    Baselines,
    CircuitEvaluator,
    FaithfulnessCurve,
)
from circuits_over_time.edge_attribution_patching.circuits.mib import mib_areas
from circuits_over_time.edge_attribution_patching.circuits.search import (
    Signed,
    edge_order,
    top_n_masks,
)
from circuits_over_time.edge_attribution_patching.circuits.stability import sign_stable
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute_folds
from circuits_over_time.edge_attribution_patching.scores.folds import FoldScores, assign_folds

from ..base.errors import UserError
from ..models.checkpoint import LoadedCheckpoint
from ..results.store import Result
from ..tasks import Task, tasks_of
from .checks import check
from .keys import CircuitsConfig
from .report import CircuitPrompts, CircuitReport, Status
from .tables import baselines_table, edges_table, faithfulness_table

log = logging.getLogger(__name__)


def prepare(config: CircuitsConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> dict[str, CircuitPrompts]:
    """The prompts of every task, by its name.

    Raises:
        UserError: if a task has too few prompts under this tokenizer, a prompt is longer than the model's context, or
            a size in `search.sizes` exceeds the graph.
    """
    sizes = config.search.sizes
    n_edges = Graph(shape.n_layers, shape.n_heads, shape.parallel).n_edges
    if sizes and sizes[-1] > n_edges:
        raise UserError(f"search.sizes: {sizes[-1]} is more than the {n_edges} edges of the model; leave it out")
    prepared = {}
    for task in tasks_of(config):
        prompts = circuit_prompts(config, task, tokenizer)
        prompts.scoring.require_fit(task.name, shape.n_positions)
        prompts.evaluation.require_fit(task.name, shape.n_positions)
        prepared[task.name] = prompts
    return prepared


def measure(
    checkpoint: LoadedCheckpoint, config: CircuitsConfig, inputs: Mapping[str, CircuitPrompts], task: Task
) -> dict[str, Result]:
    """The circuit of one task in one checkpoint."""
    report = find_circuit(checkpoint.weights, inputs[task.name], config)
    circuit = report.circuit
    json = circuit.to_json(checkpoint.weights.d_model) if config.export_json else None
    kept = report.folds.keep(report.order, max(report.curve.sizes, default=0))
    tensors = circuit.to_tensors() | {"score_se": report.folds.standard_error} | kept.to_tensors()
    checked = check(report, inputs[task.name], config)
    if checked.summary:
        log.info("%s step %d %s: %s", checkpoint.name, checkpoint.step, task.name, checked.summary)
    return {
        "graphs": Result(edges_table(report, kept, config), tensors=tensors, json=json),
        "faithfulness": Result(report.faithfulness),
        "baselines": Result(report.baselines),
        "controls": Result(checked.controls),
        "prompt_groups": Result(checked.groups),
        "hypothesis_tests": Result(checked.tests),
    }


def circuit_prompts(config: CircuitsConfig, task: Task, tokenizer: PreTrainedTokenizerBase) -> CircuitPrompts:
    """Prompts to score edges on and prompts to evaluate circuits on: disjoint, or the same ones (`evaluate_on`).

    Raises:
        UserError: if the task has too few prompts under this tokenizer.
    """
    if config.evaluate_on == "same":
        prompts = task.build(tokenizer, config.n_prompts, config.seed, config)
        return CircuitPrompts(task, prompts, prompts)
    try:
        prompts = task.build(tokenizer, 2 * config.n_prompts, config.seed, config)
    except UserError as error:
        raise UserError(f"{error} (evaluate_on=heldout needs twice n_prompts={config.n_prompts} prompts)") from None
    halves = slice(0, config.n_prompts), slice(config.n_prompts, None)
    return CircuitPrompts(task, *(prompts.select(half) for half in halves))


def find_circuit(weights: ModelWeights, prompts: CircuitPrompts, config: CircuitsConfig) -> CircuitReport:
    """Score all edges, search for the smallest faithful circuit, and report it.

    Raises:
        UserError: if scores overflow in the model's number format.
    """
    graph = Graph.of(weights)
    scoring, evaluation = prompts.scoring.to(weights.device), prompts.evaluation.to(weights.device)
    primary = prompts.task.primary
    try:
        folds = attribute_folds(
            weights,
            scoring.pairs,
            scoring.metric(primary),
            assign_folds(len(scoring), config.eap.n_folds, config.seed),
            steps=config.eap.ig_steps,
            quadrature=config.eap.quadrature,
            batch_size=config.batch_size,
            memory_budget_gb=config.memory_budget_gb,
        )
    except FloatingPointError as error:
        raise UserError(f"dtype: {config.dtype}: {error}; use dtype=float32 or bfloat16") from None
    scores = folds.scores
    signed = signed_selection(folds, config)
    order = edge_order(scores, graph, config.search.order, signed=signed)
    evaluator = CircuitEvaluator(
        weights,
        evaluation.pairs,
        evaluation.metric(primary),
        batch_size=config.batch_size,
        memory_budget_gb=config.memory_budget_gb,
    )
    evaluate = evaluator.prefixes_of(order)
    baselines = Baselines.of(evaluator.full, evaluator.corrupted)
    curve = FaithfulnessCurve(evaluator.full, evaluator.corrupted)
    learned = baselines.learned(config.search.min_gap)
    selected = None
    sizes, rule = config.search.sizes, config.search.rule()
    if sizes:
        curve.values.update(zip(sizes, evaluate(sizes), strict=True))
        if learned:
            selected = rule.select(sizes, rule.values(curve), graph.n_edges)
    elif learned:
        selected = rule.search(curve, evaluate, graph.n_edges)
    status: Status = "found" if selected is not None else "threshold not reached" if learned else "task not learned"
    in_circuit = top_n_masks(order, graph, [selected or 0])[0]
    areas = mib_areas(evaluator, scores) if config.search.mib and learned else None
    return CircuitReport(
        Circuit(graph, scores, in_circuit),
        folds,
        order,
        signed,
        status,
        selected,
        curve,
        evaluator,
        faithfulness_table(curve, order, graph, selected, config.seed),
        baselines_table(baselines, curve, graph, status, selected, areas, config),
    )


def signed_selection(folds: FoldScores, config: CircuitsConfig) -> Signed | None:
    """What `search.selection: signed` needs to know of the scores; None for `absolute`."""
    if config.search.selection == "absolute":
        return None
    graph = folds.graph
    everything = folds.keep_all()
    stable = torch.zeros(graph.n_forward * graph.n_backward, dtype=torch.bool)
    stable[everything.edges] = sign_stable(everything, config.seed)
    return Signed(stable.view_as(graph.edge_mask), config.search.positive_share)
