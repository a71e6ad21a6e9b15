"""The circuit behind a task in one model.

1. Score every edge by EAP-IG, apart for each fold of the prompts.
2. Order the edges; every circuit is the first n of this order, pruned.
3. Evaluate circuits on other prompts until the smallest one that is faithful enough is found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import (
    Baselines,
    CircuitEvaluator,
    FaithfulnessCurve,
)
from circuits_over_time.edge_attribution_patching.circuits.mib import MibAreas, mib_areas
from circuits_over_time.edge_attribution_patching.circuits.search import (
    Signed,
    circuit_sizes,
    edge_order,
    ranked_edges,
    top_n_masks,
)
from circuits_over_time.edge_attribution_patching.circuits.stability import signed_selection
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.model.pairs import Metric
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.scores.folds import FoldScores, assign_folds
from circuits_over_time.edge_attribution_patching.scores.methods import edge_scores
from circuits_over_time.edge_attribution_patching.units import graph_of

from ..base.errors import UserError
from ..models.checkpoint import LoadedCheckpoint
from ..results.kinds import FOUND, GIVEN, NOT_LEARNED, NOT_REACHED, UNCONFIRMED, Status
from ..tasks import Prompts, Task
from .keys import CircuitsConfig, CircuitSettings, PairSettings, circuit_pairs


@dataclass(frozen=True)
class CircuitPrompts:
    """A task's prompts to score edges on, and to evaluate circuits on: others, or the same ones (`evaluate_on`).

    With a `given` circuit, no other one is searched.
    """

    task: Task
    scoring: Prompts
    evaluation: Prompts
    given: Circuit | None = None


@dataclass(frozen=True)
class FoundCircuit:
    """The circuit of one task in one model, and what the search saw.

    Attributes:
        circuit: the scores of all edges, and the edges of the circuit (none if there is no circuit).
        folds: the scores of every fold of the prompts.
        order: the edges in the order in which circuits take them.
        starts: the sizes at which the pruned circuit changes.
        signed: what signed selection knew of the scores; None if edges were selected by |score|.
        status: whether there is a circuit, or why not; one among sizes that were given is not confirmed, and a given
            one is a circuit wherever the task is learned.
        size: edges asked for of the circuit, before pruning; None if there is none.
        curve: the metric of every size evaluated, per prompt.
        areas: CPR and CMD, if asked for.
        evaluator: evaluates more circuits on the same prompts.
    """

    circuit: Circuit
    folds: FoldScores
    order: Int[Tensor, "edge 2"]
    starts: list[int]
    signed: Signed | None
    status: Status
    size: int | None
    curve: FaithfulnessCurve
    areas: MibAreas | None
    evaluator: CircuitEvaluator


def circuit_prompts(
    settings: CircuitSettings, task: Task, tokenizer: PreTrainedTokenizerBase, shape: Shape
) -> CircuitPrompts:
    """A task's prompts for one circuit.

    Raises:
        UserError: if the task has too few prompts under this tokenizer, a prompt is longer than the model's context, or
            a size in `search.sizes` exceeds the graph, or the metric has no raw faithfulness, or not the gradient that
            scores need.
    """
    sizes, n_edges = settings.search.sizes, graph_of(shape, settings.level).n_edges
    if sizes and sizes[-1] > n_edges:
        raise UserError(
            f"search.sizes: {sizes[-1]} is more than the {n_edges} {settings.level}s of the model; leave it out"
        )
    if settings.level != "edge" and settings.eap.method == "information_flow_routes":
        raise UserError("eap.method: information_flow_routes scores edges alone; use eap_ig, or level=edge")
    if settings.level == "neuron" and settings.hypothesis_tests:
        raise UserError("hypothesis_tests: takes a run for every neuron of the circuit; leave it out, or level")
    if task.primary == "kl" and settings.search.criterion == "raw":
        raise UserError("search.criterion: raw divides by the whole model's metric, and kl has 0 there; use normalised")
    if task.primary == "kl" and settings.eap.method in ("eap", "relp"):
        raise UserError(
            f"eap.method: {settings.eap.method} takes the gradient of the clean run, where that of kl is 0; use eap_ig"
        )
    return split_prompts(settings, task, tokenizer, shape)


def split_prompts(
    settings: PairSettings, task: Task, tokenizer: PreTrainedTokenizerBase, shape: Shape
) -> CircuitPrompts:
    """The same, whatever is measured on them."""
    pairs = circuit_pairs(settings, task, tokenizer)
    prompts = task.tokenise(tokenizer, pairs, settings.prepend_bos)
    prompts.require_fit(task.name, shape)
    if settings.evaluate_on == "same":
        return CircuitPrompts(task, prompts, prompts)
    half = len(prompts) // 2
    return CircuitPrompts(task, prompts.select(slice(0, half)), prompts.select(slice(half, None)))


def prompts_at(checkpoint: LoadedCheckpoint, config: CircuitsConfig, prompts: CircuitPrompts) -> CircuitPrompts:
    """A task's prompts in one checkpoint: these, or others with `redraw_prompts`."""
    if not config.redraws(prompts.task.name):
        return prompts
    drawn = circuit_prompts(config.at_step(checkpoint.step), prompts.task, checkpoint.tokenizer, checkpoint.weights)
    return replace(drawn, given=prompts.given)


def find_circuit(
    weights: ModelWeights, prompts: CircuitPrompts, settings: CircuitSettings, folds: FoldScores
) -> FoundCircuit:
    """Search for the smallest faithful circuit by the scores of all edges (`score_edges`), or measure the given one."""
    graph, search, given = folds.graph, settings.search, prompts.given
    signed = None
    if given is None and search.selection == "signed":
        signed = signed_selection(folds.keep_all(), settings.seed, search.positive_share)
    if given is None:
        order = edge_order(folds.scores, graph, search.order, signed=signed)
    else:
        order = ranked_edges(folds.scores.abs().where(given.in_circuit, -1), graph, given.n_edges)

    evaluator = evaluator_of(weights, prompts, settings, graph)
    starts = circuit_sizes(order, graph)
    curve = FaithfulnessCurve(evaluator.full, evaluator.corrupted)
    learned = Baselines.of(evaluator.full, evaluator.corrupted).learned(search.min_gap)
    size, evaluate = None, evaluator.prefixes_of(order)
    # What is given is measured wherever there is a model.
    if given is not None:
        size = given.n_edges
        curve.values[size] = evaluate([size])[0]
    elif learned or search.sizes:
        size = search.rule().search(curve, evaluate, starts)
    status = GIVEN if given is not None else UNCONFIRMED if search.sizes else FOUND
    if not learned:
        size, status = None, NOT_LEARNED
    elif size is None:
        status = NOT_REACHED
    circuit = Circuit(graph, folds.scores, top_n_masks(order, graph, [size or 0])[0])
    areas = mib_areas(evaluator, folds.scores) if search.mib and learned else None
    return FoundCircuit(circuit, folds, order, starts, signed, status, size, curve, areas, evaluator)


def score_edges(weights: ModelWeights, prompts: CircuitPrompts, settings: CircuitSettings) -> FoldScores:
    """Scores of every edge by the method of the settings; those of the given circuit, as one fold, if there is one."""
    if (given := prompts.given) is not None:
        return FoldScores(given.graph, (given.scores * given.graph.edge_mask)[None], torch.tensor([1]))
    scoring, eap, edges = prompts.scoring, settings.eap, settings.exact.edges
    return edge_scores(
        weights,
        scoring.pairs,
        metric_of(scoring, prompts.task, weights, settings),
        assign_folds(len(scoring), eap.n_folds, settings.seed),
        method=eap.method,
        level=settings.level,
        steps=eap.ig_steps,
        tolerance=eap.tolerance,
        quadrature=eap.quadrature,
        accumulate=eap.accumulate,
        n_exact=None if edges == "all" else edges,
        batch_size=settings.batch_size,
        memory_budget_gb=settings.budget_gb(weights.device),
    )


def metric_of(prompts: Prompts, task: Task, weights: ModelWeights, settings: PairSettings) -> Metric:
    """The primary metric of each prompt; `by_batch` times the weight that makes their mean the mean of batch means."""
    metric = prompts.metric(task.primary, weights)
    if settings.batch_weighting == "equal":
        return metric
    n, size = len(prompts), settings.batch_size
    sizes = torch.tensor([min(size, n - row // size * size) for row in range(n)])
    on_device = cache((n / (-(n // -size) * sizes)).float().to)
    return lambda logits, index: metric(logits, index) * on_device(logits.device)[index]


def evaluator_of(
    weights: ModelWeights, prompts: CircuitPrompts, settings: PairSettings, graph: Graph | None = None
) -> CircuitEvaluator:
    """Evaluates any circuits on the evaluation prompts: sets of edges, or of the units of a graph."""
    return CircuitEvaluator(
        weights,
        prompts.evaluation.pairs,
        metric_of(prompts.evaluation, prompts.task, weights, settings),
        graph=graph,
        batch_size=settings.batch_size,
        memory_budget_gb=settings.budget_gb(weights.device),
    )
