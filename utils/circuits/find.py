"""The circuit behind a task in one model.

1. Score every edge by EAP-IG, apart for each fold of the prompts.
2. Order the edges; every circuit is the first n of this order, pruned.
3. Evaluate circuits on other prompts until the smallest one that is faithful enough is found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.choices import USUAL_STEPS
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
from circuits_over_time.edge_attribution_patching.model.reference import Reference
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.scores.folds import FoldScores, assign_folds
from circuits_over_time.edge_attribution_patching.scores.methods import edge_scores
from circuits_over_time.edge_attribution_patching.units import graph_of, of_neurons

from ..base.errors import UserError
from ..config.keys import USUAL_PROMPTS
from ..heads.corpus import Corpus, draw_sequences
from ..models.checkpoint import LoadedCheckpoint
from ..results.kinds import FOUND, GIVEN, NOT_LEARNED, NOT_REACHED, UNCONFIRMED, Status
from ..tasks import Prompts, Task
from ..tasks.roles import token_roles
from .keys import CircuitsConfig, CircuitSettings, PairSettings, circuit_pairs


@dataclass(frozen=True)
class CircuitPrompts:
    """A task's prompts to score edges on, and to evaluate circuits on: others, or the same ones (`evaluate_on`).

    With a `given` circuit, no other one is searched. The token ids and lengths of the reference prompts are there where
    ablated nodes write means, and for one model what they write (`with_reference`).
    """

    task: Task
    scoring: Prompts
    evaluation: Prompts
    given: Circuit | None = None
    reference_tokens: tuple[Int[Tensor, "prompt position"], Int[Tensor, " prompt"]] | None = None
    reference: Reference | None = None

    def with_reference(
        self, weights: ModelWeights, settings: CircuitSettings, graph: Graph | None = None
    ) -> CircuitPrompts:
        """With what ablated nodes write in a model, for circuits of a `graph`; the same for `patching`."""
        tokens = self.reference_tokens or (self.scoring.clean, self.scoring.lengths)  # which `zero` does not look at
        graph = self.given.graph if graph is None and self.given is not None else graph
        neurons = settings.level == "neuron" if graph is None else of_neurons(graph)
        how = settings.ablation, *tokens, settings.batch_size
        return replace(self, reference=Reference.of(weights, *how, neurons=neurons))


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
    if settings.positions and settings.level != "edge":
        raise UserError(f"positions: tells edges apart, not {settings.level}s; leave it out, or use level=edge")
    if settings.level != "edge" and settings.eap.method == "information_flow_routes":
        raise UserError("eap.method: information_flow_routes scores edges alone; use eap_ig, or level=edge")
    _require_edges(settings, settings.level == "neuron" or settings.positions)
    if settings.level == "neuron" and settings.hypothesis_tests:
        raise UserError("hypothesis_tests: takes a run for every neuron of the circuit; leave it out, or level")
    if task.primary == "kl" and settings.search.criterion == "raw":
        raise UserError("search.criterion: raw divides by the whole model's metric, and kl has 0 there; use normalised")
    if task.primary == "kl" and settings.eap.method in ("eap", "relp"):
        raise UserError(
            f"eap.method: {settings.eap.method} takes the gradient of the clean run, where that of kl is 0; use eap_ig"
        )
    prompts = split_prompts(settings, task, tokenizer, shape, with_roles=settings.positions)
    sizes, n_edges = settings.search.sizes, graph_of(shape, settings.level, prompts.scoring.roles).n_edges
    if sizes and sizes[-1] > n_edges:
        raise UserError(
            f"search.sizes: {sizes[-1]} is more than the {n_edges} {settings.level}s of the model; leave it out"
        )
    if "mean" not in settings.ablation:
        return prompts
    return replace(prompts, reference_tokens=_reference_tokens(settings, prompts, tokenizer))


def _reference_tokens(
    settings: CircuitSettings, prompts: CircuitPrompts, tokenizer: PreTrainedTokenizerBase
) -> tuple[Int[Tensor, "prompt position"], Int[Tensor, " prompt"]]:
    """The prompts that ablated nodes write means of: the task's own, or running text of the longest one's length."""
    reference, (first, *others) = settings.reference, {id(p): p for p in (prompts.scoring, prompts.evaluation)}.values()
    tokens = torch.cat([first.clean, *(other.clean for other in others)])
    lengths = torch.cat([first.lengths, *(other.lengths for other in others)])
    longest = int(lengths.max())
    if reference.corpus is not None:
        n = reference.n_prompts or USUAL_PROMPTS
        how = n, longest, settings.seed, settings.prepend_bos, "(reference.n_prompts); name a longer text, or lower it"
        try:
            rows = draw_sequences(Corpus(reference.corpus), tokenizer, *how)
        except UserError as error:
            raise UserError(f"reference.{error}") from None
        return torch.tensor(rows), torch.full((n,), longest)
    tokens, lengths = tokens[: reference.n_prompts], lengths[: reference.n_prompts]
    if settings.ablation == "mean_positional" and int(lengths.max()) < longest:
        raise UserError(
            f"reference.n_prompts: the first {len(lengths)} prompts of {prompts.task.name} have up to "
            f"{int(lengths.max())} tokens, others {longest}: the last positions have no mean; leave it out, or use "
            "ablation=mean"
        )
    return tokens, lengths


def split_prompts(
    settings: PairSettings,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    shape: Shape,
    *,
    with_roles: bool = False,
) -> CircuitPrompts:
    """The same, whatever is measured on them."""
    pairs = circuit_pairs(settings, task, tokenizer)
    prompts = task.tokenise(tokenizer, pairs, settings.prepend_bos)
    if with_roles:
        prompts = replace(prompts, roles=token_roles(tokenizer, pairs, prompts))
    prompts.require_fit(task.name, shape)
    if settings.evaluate_on == "same":
        return CircuitPrompts(task, prompts, prompts)
    half = len(prompts) // 2
    return CircuitPrompts(task, prompts.select(slice(0, half)), prompts.select(slice(half, None)))


def prompts_at(checkpoint: LoadedCheckpoint, config: CircuitsConfig, prompts: CircuitPrompts) -> CircuitPrompts:
    """A task's prompts in one checkpoint: these, or others with `redraw_prompts`; and what ablated nodes write."""
    if config.redraws(prompts.task.name):
        at_step = config.at_step(checkpoint.step)
        drawn = circuit_prompts(at_step, prompts.task, checkpoint.tokenizer, checkpoint.weights)
        if (roles := prompts.scoring.roles) is not None:  # Circuits of all steps are of the same edges.
            try:
                scoring, evaluation = (
                    replace(part, roles=part.roles and part.roles.named_as(roles.names))
                    for part in (drawn.scoring, drawn.evaluation)
                )
                drawn = replace(drawn, scoring=scoring, evaluation=evaluation)
            except ValueError as error:
                way_out = "raise n_prompts, or leave redraw_prompts out"
                raise UserError(
                    f"redraw_prompts: {prompts.task.name} at {checkpoint.step}: {error}; {way_out}"
                ) from None
        prompts = replace(drawn, given=prompts.given)
    return prompts.with_reference(checkpoint.weights, config)


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
    steps = eap.steps(settings.ablation)
    folds = edge_scores(
        weights,
        scoring.pairs,
        metric_of(scoring, prompts.task, weights, settings),
        assign_folds(len(scoring), eap.n_folds, settings.seed),
        method=eap.method,
        level=settings.level,
        steps=steps,
        tolerance=eap.tolerance,
        quadrature=eap.quadrature,
        accumulate=eap.accumulate,
        n_exact=None if edges == "all" else edges,
        batch_size=settings.batch_size,
        memory_budget_gb=settings.budget_gb(*weights.devices),
        reference=prompts.reference,
    )
    # What stands for `auto` is told as what `auto` finds is.
    told = eap.ig_steps == "auto" != steps and eap.method in USUAL_STEPS
    return replace(folds, points=int(steps)) if told else folds


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
    """Evaluates any circuits on the evaluation prompts: sets of edges, or of the units of a graph.

    Raises:
        UserError: if the settings ask for absent edges one by one, and the graph has neurons or roles.
    """
    pairs = prompts.evaluation.pairs
    _require_edges(settings, of_neurons(graph) or pairs.roles is not None)
    return CircuitEvaluator(
        weights,
        pairs,
        metric_of(prompts.evaluation, prompts.task, weights, settings),
        reference=prompts.reference,
        accumulate=settings.accumulate_evaluation,
        graph=graph,
        batch_size=settings.batch_size,
        memory_budget_gb=settings.budget_gb(*weights.devices),
    )


def require_units(name: str | Path, graph: Graph, shape: Shape) -> None:
    """Refuse, with a UserError, a circuit of neurons that a model has not got.

    `name` is what the error begins with: the circuit's file, or the keyword that gives it.
    """
    if not of_neurons(graph):
        return
    sizes = [(graph.d_head, graph.d_mlp), (shape.d_head, shape.d_mlp)]
    if sizes[0] != sizes[1]:
        theirs, own = (f"{d_head} neurons in a head and {d_mlp} in an MLP" for d_head, d_mlp in sizes)
        raise UserError(f"{name}: the circuit is one of {theirs}, the model has {own}")


def _require_edges(settings: PairSettings, others: bool) -> None:
    """Refuse absent edges one by one where circuits are of others, with a UserError."""
    if settings.accumulate_evaluation == "model" and others:
        raise UserError("accumulate_evaluation: model puts in edges of all tokens, not neurons or roles; leave it out")
