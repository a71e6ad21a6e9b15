"""Component swap: what the heads and MLPs of one checkpoint do in the model of another (Tigges et al. 2024).

Two checkpoints may have the same circuit, and yet its heads may have changed. So the weights of some components of step
A are put into the model of step B (`model/swap.py`). Does it still do the task, and does B's circuit? Random heads of
the same layers, swapped alike, say how much any swap does.

The circuit and the roles are those of the model that components are put into.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import Baselines, FaithfulnessCurve
from circuits_over_time.edge_attribution_patching.circuits.search import nodes_in
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.model.swap import moved_together, swapped
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.statistics import standard_error

from ..base.errors import UserError
from ..config.keys import as_list
from ..heads.attention_and_copy import attention_samples, mean_scores, ordinary_tokens, repeated_blocks
from ..heads.needs import require_context
from ..models.checkpoint import LoadedCheckpoint
from ..models.family import Family
from ..results.kinds import GRAPHS, IOI_CONSISTENCY_HEADS, KINDS, ROLES
from ..results.store import Result, ResultsFolder, Store
from ..tasks import Task
from ..tasks.performance import task_performance
from ..tasks.prompts import metric_name, metric_unit
from .find import CircuitPrompts, circuit_prompts, evaluator_of
from .keys import CircuitSettings, SearchConfig
from .swap_keys import SwapConfig, check_components, family_named, settings_of, source_steps, tasks_of_swaps
from .transfer import StoredCircuit, StoredCircuits

SWAPS, SWAP_HEADS = KINDS["swaps"], KINDS["swap_heads"]
log = logging.getLogger(__name__)
MIN_GAP: float = SearchConfig.model_fields["min_gap"].default


@dataclass(frozen=True)
class SwapInputs:
    """Prompts by task, blocks of tokens for the heads' scores, and the families that components come from."""

    prompts: dict[str, CircuitPrompts]
    blocks: Int[Tensor, "sequence position"] | None
    families: dict[str, Family] = field(default_factory=dict)


def prepare(config: SwapConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> SwapInputs:
    """The evaluation prompts of every task, and random blocks of tokens.

    Raises:
        UserError: if they do not fit the tokenizer or the model, or no model has such a component, or the metric says
            nothing of a whole model.
    """
    if unfit := [task.name for task in tasks_of_swaps(config) if task.primary == "kl"]:
        raise UserError(
            "metric: kl compares with the whole model, so it is 0 in every whole model, swapped or not; "
            f"give {unfit[0]} another metric"
        )
    check_components(config, shape.n_layers, shape.n_heads)
    prompts = {
        task.name: circuit_prompts(settings_of(config, task.name), task, tokenizer, shape)
        for task in tasks_of_swaps(config)
    }
    blocks = None
    if config.n_sequences:
        require_context(config.seq_len, shape.n_positions)
        tokens = ordinary_tokens(tokenizer, shape.d_vocab)
        blocks = repeated_blocks(tokens, config.n_sequences, config.seq_len, config.seed)
    return SwapInputs(prompts, blocks)


def measure(checkpoint: LoadedCheckpoint, config: SwapConfig, inputs: SwapInputs, task: Task) -> dict[str, Result]:
    """Components of every source in one checkpoint's model: the task, the circuit, and the scores of heads."""
    into, store = checkpoint.weights, Store(config.results_dir)
    if checkpoint.name not in inputs.families:
        inputs.families[checkpoint.name] = family_named(config, checkpoint.name)
    family = inputs.families[checkpoint.name]
    folder = store.folder(GRAPHS, checkpoint.name, task.name)
    if not folder.has(checkpoint.step) and "circuit" in [
        name for names in config.components for name in as_list(names)
    ]:
        raise _absent("circuit", folder, checkpoint.step)
    stored = StoredCircuits(store, checkpoint.name).at(task.name, checkpoint.step)
    circuit = "" if stored is None else stored.fingerprint
    sets = _sets(config, into, stored, store.folder(IOI_CONSISTENCY_HEADS, checkpoint.name), checkpoint.step)
    prompts = inputs.prompts[task.name]
    evaluation = prompts.evaluation.to(into.device)  # Once, for all the models that follow.
    if stored is not None and evaluation.roles is not None:
        try:
            evaluation = replace(evaluation, roles=evaluation.roles.named_as(stored.graph.roles))
        except ValueError as error:
            stores = folder.file(checkpoint.step, ".pt")
            raise UserError(f"n_prompts: {stores}: {error}; ask for as many as it was found on") from None
    prompts = replace(prompts, evaluation=evaluation)
    measuring = partial(_measured, settings_of(config, task.name), prompts, inputs.blocks, stored)
    own = measuring(into)
    rows: list[dict[str, Any]] = []
    scores: list[pd.DataFrame] = []
    for step in source_steps(config, family) if sets else ():
        placed = config.dtype, config.device, config.device_map
        source = into if step == checkpoint.step else family.load(step, *placed).weights
        whole = own if source is into else measuring(source)
        for label, nodes in sets.items():
            found = measuring(swapped(into, source, nodes, config.parts))
            of_row = {"from_step": step, "components": label, "circuit": circuit}
            both: dict[str, Any] = {"own_metric": own.metric, "source_metric": whole.metric}
            both |= {"metric_name": metric_name(task.primary), "unit": metric_unit(task.primary)}
            rows.append(of_row | found.row("swap", None, nodes) | both)
            if found.heads is not None:
                scores.append(found.scores(own, whole).assign(from_step=step, components=label))
            if source is into:
                continue  # Random heads would change as little.
            for number, drawn in enumerate(random_sets(nodes, into, config)):
                other = measuring(swapped(into, source, drawn, config.parts), scored=False)
                rows.append(of_row | other.row("random", number, drawn) | both)
    found_scores = pd.concat(scores) if scores else pd.DataFrame(columns=list(SWAP_HEADS.columns))
    return {
        "swaps": Result(pd.DataFrame(rows, columns=list(SWAPS.columns))),
        "swap_heads": Result(found_scores[list(SWAP_HEADS.columns)]),
    }


def outdated(config: SwapConfig, store: Store, model: str) -> set[tuple[str, int]]:
    """The tasks and steps whose swaps were measured with another circuit than is stored there now."""
    circuits, found = StoredCircuits(store, model), set[tuple[str, int]]()
    for task in tasks_of_swaps(config):
        folder = store.folder(SWAPS, model, task.name)
        for step in folder.steps():
            held = folder.read_table(step)["circuit"].fillna("").unique().tolist()
            if held != [now := _fingerprint(circuits, task.name, step)] and (held or now):
                log.info("%s was measured with another circuit than is there now; measured again", folder.file(step))
                found.add((task.name, step))
    return found


def _fingerprint(circuits: StoredCircuits, task: str, step: int) -> str:
    """That of a checkpoint's circuit; empty if there is none."""
    circuit = circuits.at(task, step)
    return "" if circuit is None else circuit.fingerprint


@dataclass(frozen=True)
class _Found:
    """What a model does.

    Attributes:
        curve: per-prompt metrics of its whole and its corrupted run, and of the circuit, if there is one, as size 0.
        heads: attention scores of its heads.
    """

    curve: FaithfulnessCurve
    accuracy: float
    heads: Mapping[str, Float[Tensor, "layer head"]] | None

    @property
    def metric(self) -> float:
        return float(self.curve.full.double().mean())

    def row(self, control: str, number: int | None, nodes: list[str]) -> dict[str, Any]:
        """What a table says of it."""
        faithfulness, low, high = math.nan, math.nan, math.nan
        # Where the two runs hardly differ, a share of their gap is noise.
        if self.curve.sizes and Baselines.of(self.curve.full, self.curve.corrupted).learned(MIN_GAP):
            faithfulness = self.curve.faithfulness(0)
            low, high = (float(end[0]) for end in self.curve.intervals())
        return {
            "control": control,
            "number": number,
            "nodes": " ".join(nodes),
            "n_nodes": len(nodes),
            "metric": self.metric,
            "metric_se": standard_error(self.curve.full),
            "accuracy": self.accuracy,
            "faithfulness": faithfulness,
            "faithfulness_low": low,
            "faithfulness_high": high,
        }

    def scores(self, own: _Found, source: _Found) -> pd.DataFrame:
        """The scores of its heads, beside those of the two models that it was made of."""
        held = {"value": self.heads or {}, "own": own.heads or {}, "source": source.heads or {}}
        tables = []
        for name, values in held["value"].items():
            places = pd.MultiIndex.from_product([range(size) for size in values.shape], names=["layer", "head"])
            columns = {column: scores[name].flatten().tolist() for column, scores in held.items()}
            table = pd.DataFrame(columns, places)
            tables.append(table.reset_index().assign(score=name))
        return pd.concat(tables)


def _measured(
    settings: CircuitSettings,
    prompts: CircuitPrompts,
    blocks: Int[Tensor, "sequence position"] | None,
    circuit: StoredCircuit | None,
    weights: ModelWeights,
    *,
    scored: bool = True,
) -> _Found:
    """What a model does, with the circuit if there is one; without accuracy and scores of heads unless `scored`."""
    graph = None if circuit is None else circuit.graph
    evaluator = evaluator_of(weights, prompts.with_reference(weights, settings, graph), settings, graph)
    curve = FaithfulnessCurve(evaluator.full, evaluator.corrupted)
    if circuit is not None:
        curve.values[0] = evaluator(circuit.mask[None])[0]
    accuracy, heads = math.nan, None
    if scored:
        table = task_performance(weights, prompts.evaluation, ["accuracy"], settings.batch_size)
        accuracy = float(table["value"][0])  # of the clean prompts
        if blocks is not None:
            heads = mean_scores(attention_samples(weights, blocks, settings.batch_size))
    return _Found(curve, accuracy, heads)


def _sets(
    config: SwapConfig,
    into: ModelWeights,
    circuit: StoredCircuit | None,
    roles: ResultsFolder,
    step: int,
) -> dict[str, list[str]]:
    """Label -> the nodes to swap, in the order of the graph; without sets that are empty in this model."""
    graph = Graph.of(into)
    heads, mlps = ([name for name in graph.forward_nodes if name.startswith(letter)] for letter in "am")
    of_name = {"heads": heads, "mlps": mlps, "all": [*graph.forward_nodes, "logits"]}
    if circuit is not None:
        members = nodes_in(circuit.mask[None], circuit.graph)[0, 1:-1].tolist()
        of_name["circuit"] = [name for name, there in zip(graph.forward_nodes[1:], members, strict=True) if there]
    found: dict[str, list[str]] = {}
    for names in config.components:
        nodes: list[str] = []
        for name in as_list(names):
            if name in ROLES:
                nodes += _with_role(roles, name, step)
            else:
                nodes += of_name.get(name, [] if name == "circuit" else [name])
        if nodes:
            found["+".join(as_list(names))] = moved_together(nodes, into, config.parts)
    return found


def _with_role(folder: ResultsFolder, role: str, step: int) -> list[str]:
    """The heads that hold a role of IOI in a checkpoint, by its results."""
    if not folder.has(step):
        raise _absent(role, folder, step)
    table = folder.read_table(step)
    held = table[(table["role"] == role) & table["passes"].astype(bool)].drop_duplicates(["layer", "head"])
    return [f"a{layer}.h{head}" for layer, head in zip(held["layer"], held["head"], strict=True)]


def _absent(name: str, folder: ResultsFolder, step: int) -> UserError:
    return UserError(f"components: {name}: {folder.file(step)} is not there; run: {folder.how_to_make()}")


def random_sets(nodes: list[str], shape: Shape, config: SwapConfig) -> Iterator[list[str]]:
    """Other sets with as many heads in each layer, drawn at random, and all else of the set. No two are the same.

    Heads that move together are drawn together. There are fewer than `n_random` if there are no more.
    """
    graph = Graph.of(shape)
    group = len(moved_together([graph.forward_nodes[1]], shape, config.parts))
    n_groups = shape.n_heads // group
    counts = [sum(name.startswith(f"a{layer}.") for name in nodes) // group for layer in range(shape.n_layers)]
    possible = math.prod(math.comb(n_groups, count) for count in counts)
    others = [name for name in nodes if not name.startswith("a")]
    generator = torch.Generator().manual_seed(config.seed)
    seen = {frozenset(nodes)}
    while len(seen) < min(possible, 1 + config.n_random):
        drawn = list(others)
        for layer, count in enumerate(counts):
            for place in torch.randperm(n_groups, generator=generator)[:count].tolist():
                drawn += [f"a{layer}.h{head}" for head in range(place * group, (place + 1) * group)]
        if frozenset(drawn) not in seen:
            seen.add(frozenset(drawn))
            yield moved_together(drawn, shape, config.parts)
