"""The circuit behind a task in one checkpoint: attribution, search, faithfulness, and the tables that report them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Int
from pydantic import Field, field_validator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from edge_attribution_patching.architectures import Shape
from edge_attribution_patching.attribution import Quadrature, attribute_folds
from edge_attribution_patching.circuit import Circuit
from edge_attribution_patching.circuit_size import Criterion, Grid, SizeRule
from edge_attribution_patching.faithfulness import (
    Baselines,
    CircuitEvaluator,
    FaithfulnessCurve,
)
from edge_attribution_patching.folds import FoldScores, assign_folds
from edge_attribution_patching.graph import Graph
from edge_attribution_patching.mib import mib_areas
from edge_attribution_patching.search import Order, Selection, Signed, edge_order, prefix_masks
from edge_attribution_patching.stability import POSITIVE_SHARE, sign_stable
from edge_attribution_patching.weights import ModelWeights
from utils.circuit_checks import check
from utils.circuit_tables import baselines_table, edges_table, faithfulness_table
from utils.config.keys import MemoryKeys, Section, TaskConfig, execution
from utils.errors import UserError
from utils.models.checkpoint import LoadedCheckpoint
from utils.results.store import Result
from utils.tasks import Prompts, Task, tasks_of

Status = Literal["found", "task not learned", "threshold not reached"]

log = logging.getLogger(__name__)


class EapConfig(Section):
    """How edges are scored."""

    ig_steps: int = Field(20, gt=0)
    """Integration steps of EAP-IG. 20 keep every score within 1% of the integral on a real model; 12 do on the toy
    family. The published runs use 30."""
    quadrature: Quadrature = "left"
    """Where the m steps lie between the corrupted (alpha = 0) and the clean prompt (alpha = 1): `left` (alpha = k/m for
    k = 0 to m - 1, the published EAP-IG), `right` (k = 1 to m; a single step is plain EAP), `midpoint` or
    `gauss-legendre`."""
    n_folds: int = Field(10, ge=2)
    """Into how many folds the prompts are dealt. Scores are kept apart for each, which says how sure they are. With
    fewer prompts than folds, each prompt is one. It costs no pass of the model, but on its device 4 bytes per fold and
    pair of nodes: with 10 folds 3 MB for pythia-160m, 257 MB for 12b."""


class SearchConfig(Section):
    """How the circuit is searched."""

    threshold: float = Field(0.8, gt=0)
    """The faithfulness a circuit must reach."""
    criterion: Criterion = "normalised"
    """Which faithfulness must reach the threshold: `normalised`, (M(C) - M(corrupted)) / (M(clean) - M(corrupted)), or
    `raw`, M(C) / M(clean), as in the study. The corrupted metric is mostly negative, so `raw` asks for more."""
    grid: Grid = "adaptive"
    """Which sizes to try. `adaptive` tries 8, 16, 32, ... edges until two sizes in a row reach the threshold, then
    narrows down to the smallest size that reaches it and that the next larger one confirms. `study` tries 25, 50, 75,
    ... up to 1,600, bisects, and looks at 5 sizes on either side, without confirmation."""
    order: Order = "greedy"
    """In which order edges join: `greedy` goes backwards from the logits and always takes the strongest edge into the
    circuit so far; `top_n` takes the strongest edges wherever they are."""
    selection: Selection = "absolute"
    """What makes an edge strong: `absolute`, its |score| alone, or `signed` (Nikankin et al. 2025). Signed selection
    takes edges whose score has one sign in 95% of the bootstrap resamples of folds before all others, and keeps up a
    share of edges that raise the metric."""
    positive_share: float = Field(POSITIVE_SHARE, ge=0, le=1)
    """With `selection: signed`: at least this share of the edges have a positive score, as long as there are some."""
    sizes: list[int] | None = None
    """Evaluate exactly these numbers of edges (`[25, 50, 100]`) instead of searching."""
    mib: bool = False
    """Also report CPR and CMD of the Mechanistic Interpretability Benchmark (MIB), from circuits of 0.1% to 100% of all
    edges. This costs 20 more circuits, most of them large."""
    min_gap: float = Field(0.01, ge=0)
    """A task counts as learned if the metric on clean prompts beats that on corrupted prompts by more than this, in the
    metric's units, and by more than 3 standard errors."""

    def rule(self) -> SizeRule:
        """How the size is chosen."""
        return SizeRule(self.threshold, self.criterion, self.grid)

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, sizes: list[int] | None) -> list[int] | None:
        if sizes is not None and (not sizes or min(sizes) < 1 or sorted(set(sizes)) != sizes):
            raise ValueError("sizes are numbers of edges, 1 or more, ascending, each once")
        return sizes


class CircuitKeys(Section):
    """What a circuit depends on, apart from the model and the task."""

    n_prompts: int = Field(100, gt=0)
    """How many prompt pairs to score edges on. With `evaluate_on: heldout`, faithfulness gets as many again."""
    eap: EapConfig = EapConfig()
    search: SearchConfig = SearchConfig()
    evaluate_on: Literal["heldout", "same"] = "heldout"
    """Which prompts to measure faithfulness on: `heldout` ones, or the `same` that edges were scored on."""


class CircuitsConfig(CircuitKeys, MemoryKeys, TaskConfig):
    """Keys of get_circuits_over_time.py."""

    n_random: int = Field(20, ge=0)
    """Random circuits of the circuit's size, grown by the same rule from shuffled scores, to compare it with. Each is
    evaluated alone and removed from the whole model. `0` leaves them out."""
    hypothesis_tests: bool = False
    """Also test the circuit as Shi et al. 2024: equivalence, independence, minimality, sufficiency and necessity. This
    evaluates one circuit for each edge of the circuit and 200 more."""
    transfer: Literal["all", "neighbours"] | list[int] | None = execution(None)
    """Then also put circuits into the models of other checkpoints, which are loaded once more for it: the circuits
    found at these steps, at the steps before and after (`neighbours`) or at `all` steps. In every model that has
    learned the task, its own circuit and those of the other tasks are evaluated too. Costs one circuit a pair of
    steps."""
    export_json: bool = execution(False)
    """Also write every graph in the JSON format of EAP-IG, next to its `.pt`."""


@dataclass(frozen=True)
class CircuitPrompts:
    """A task's prompts for one circuit.

    Attributes:
        task: the task.
        scoring: the prompts that edges are scored on.
        evaluation: the prompts that circuits are evaluated on: others, or the same ones (`evaluate_on`).
    """

    task: Task
    scoring: Prompts
    evaluation: Prompts


@dataclass(frozen=True)
class CircuitReport:
    """The circuit of one task in one checkpoint, and the tables that say how good it is.

    Attributes:
        circuit: the scores of all edges, and the edges of the circuit (none if there is no circuit).
        folds: the scores of every fold of the prompts.
        order: the edges in the order in which circuits take them.
        signed: what signed selection knew of the scores; None if edges were selected by |score|.
        status: whether there is a circuit, or why not.
        size: edges asked for of the circuit, before pruning; None if there is none.
        curve: the metric of every size evaluated, per prompt.
        evaluator: evaluates more circuits on the same prompts.
        faithfulness: one row per size evaluated.
        baselines: one row about the whole model and the size of the circuit.
    """

    circuit: Circuit
    folds: FoldScores
    order: Int[Tensor, "edge 2"]
    signed: Signed | None
    status: Status
    size: int | None
    curve: FaithfulnessCurve
    evaluator: CircuitEvaluator
    faithfulness: pd.DataFrame
    baselines: pd.DataFrame


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
    in_circuit = prefix_masks(order, graph, [selected or 0])[0]
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
