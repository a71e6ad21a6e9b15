"""What the IOI consistency needs to know before it patches anything: prompts, the circuit, and scores of every head.

The circuit, the copy, induction and duplicate-token scores, and the CSPA scores are taken from the store if they were
measured on the same weights with the settings that this run would use. Otherwise they are computed from the loaded
checkpoint, or refused with `require_stored`, naming the command or the key.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.search import nodes_in
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.architectures import Shape

from ..base.errors import UserError
from ..circuits.find import CircuitPrompts, circuit_prompts, find_circuit
from ..config.keys import BaseConfig
from ..heads import attention_and_copy, cspa
from ..heads.attention_and_copy import ComponentsInputs, component_scores
from ..heads.cspa import CspaInputs, score_heads
from ..models.checkpoint import LoadedCheckpoint
from ..results.record import RunRecord, differences, shown
from ..results.store import ResultsFolder, Store
from ..tasks import TASKS, Prompts
from ..tasks.ioi import signal_variants
from .keys import IoiConsistencyConfig

STORED, COMPUTED, ALL_HEADS = "stored", "computed", "all heads"
SCORES = ("copy", "negative_copy", "induction", "duplicate_token")

OfHeads = Float[Tensor, "layer head"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IoiInputs:
    """What is prepared once for a model.

    Attributes:
        prompts: IOI prompts that effects are measured on.
        variants: their four signal variants (`utils/tasks/ioi.py`).
        circuit, components, cspa: what the circuit and the scores are computed from; None if they must not be computed.
        told: what the log has already said.
    """

    prompts: Prompts
    variants: Mapping[str, Int[Tensor, "n width"]]
    circuit: CircuitPrompts | None
    components: ComponentsInputs | None
    cspa: CspaInputs | None
    told: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class HeadFacts:
    """What is known about every head before anything is patched.

    Attributes:
        graph: the graph of the model.
        edges: the edges of the IOI circuit.
        status: `found`, or why there is no circuit.
        copy, negative_copy: copy scores, in percent.
        induction, duplicate_token: attention probabilities.
        cspa: copy-suppression score; nan if a head has none.
        sources: input -> `stored` or `computed` (for the circuit also `all heads`).
    """

    graph: Graph
    edges: Bool[Tensor, "n_forward n_backward"]
    status: str
    copy: OfHeads
    negative_copy: OfHeads
    induction: OfHeads
    duplicate_token: OfHeads
    cspa: OfHeads
    sources: dict[str, str]

    @cached_property
    def in_circuit(self) -> Bool[Tensor, "layer head"]:
        """Which heads the circuit holds."""
        graph = self.graph
        nodes = nodes_in(self.edges[None], graph)[0]
        return torch.stack([nodes[graph.head(layer) : graph.mlp(layer)] for layer in range(graph.n_layers)])

    @property
    def circuit_heads(self) -> list[tuple[int, int]]:
        """The circuit's heads, in order."""
        return [(layer, head) for layer, head in self.in_circuit.nonzero().tolist()]

    def writes_to_queries(self, sender: tuple[int, int], receivers: Sequence[tuple[int, int]]) -> bool:
        """Whether an edge of the circuit joins a head to the query of one of these others."""
        queries = [self.graph.head_input(layer, head, "q") for layer, head in receivers]
        return bool(self.edges[self.graph.head(*sender), queries].any())


def prepare(config: IoiConsistencyConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> IoiInputs:
    """Build the prompts, and check everything that a checkpoint's inputs may have to be computed from.

    Raises:
        UserError: if this tokenizer cannot make prompts, random blocks or text, or they do not fit the model.
    """
    task = TASKS["ioi"]
    prompts = task.build(tokenizer, config.n_prompts, config.seed, config)
    prompts.require_fit(task.name, shape.n_positions)
    variants = signal_variants(prompts, tokenizer, config.seed)
    if config.require_stored:
        return IoiInputs(prompts, variants, None, None, None)
    circuit = None
    if config.circuit.heads == "circuit":
        circuit = circuit_prompts(config.circuits_config(), task, tokenizer, shape)
    components = attention_and_copy.prepare(config.components_config(), tokenizer, shape)
    of_cspa = config.cspa_config()
    text = None if of_cspa is None else cspa.prepare(of_cspa, tokenizer, shape)
    return IoiInputs(prompts, variants, circuit, components, text)


def gather(checkpoint: LoadedCheckpoint, config: IoiConsistencyConfig, inputs: IoiInputs) -> HeadFacts:
    """Read or compute the circuit and the scores of one checkpoint.

    Raises:
        UserError: if one is missing or depends on other settings and `require_stored` is set, if no text is named for
            CSPA scores that must be computed, or if stored results do not fit the model.
    """
    reader = _Reader(checkpoint, config, inputs)
    # All three are looked up before any is computed, to say at once what is missing.
    stored = reader.circuit(), reader.components(), reader.cspa()
    circuit = stored[0] or reader.compute_circuit()
    components = stored[1] or reader.compute_components()
    of_cspa = stored[2] if stored[2] is not None else reader.compute_cspa()
    sources = {
        name: COMPUTED if found is None else STORED
        for name, found in zip(("circuit", "components", "cspa"), stored, strict=True)
    }
    if config.circuit.heads == "all":
        sources["circuit"] = ALL_HEADS
    edges, status = circuit
    scores = {name: components[name] for name in SCORES}
    return HeadFacts(reader.graph, edges, status, cspa=of_cspa, sources=sources, **scores)


class _Reader:
    """One checkpoint's inputs, from the store or from its weights."""

    def __init__(self, checkpoint: LoadedCheckpoint, config: IoiConsistencyConfig, inputs: IoiInputs) -> None:
        self.checkpoint, self.config, self.inputs = checkpoint, config, inputs
        self.store = Store(config.results_dir)
        self.weights = checkpoint.weights
        self.graph = Graph.of(self.weights)
        self.shape = (self.weights.n_layers, self.weights.n_heads)

    def circuit(self) -> tuple[Bool[Tensor, "n_forward n_backward"], str] | None:
        """Edges of the stored IOI circuit, and its status."""
        if self.config.circuit.heads == "all":
            return self.graph.edge_mask, "found"
        folder = self._stored("graphs", self.config.circuits_config(), "ioi")
        if folder is None:
            return None
        step = self.checkpoint.step
        circuit = Circuit.from_tensors(folder.read_tensors(step))
        if (circuit.graph.n_layers, circuit.graph.n_heads) != self.shape:
            raise UserError(f"{folder.file(step, '.pt')} is a circuit of another architecture; {_again(folder)}")
        baselines = self.store.folder("baselines", self.checkpoint.name, "ioi").read_table(step)
        return circuit.in_circuit, str(baselines["status"][0])

    def compute_circuit(self) -> tuple[Bool[Tensor, "n_forward n_backward"], str]:
        """Edges of the loaded checkpoint's IOI circuit, and whether there is one."""
        assert self.inputs.circuit is not None
        report = find_circuit(self.weights, self.inputs.circuit, self.config.circuits_config())
        return report.circuit.in_circuit, report.status

    def components(self) -> dict[str, OfHeads] | None:
        """Stored copy, induction and duplicate-token scores."""
        folder = self._stored("components", self.config.components_config())
        if folder is None:
            return None
        table = folder.read_table(self.checkpoint.step)
        return {name: self._by_head(folder, table[table["score"] == name], "value") for name in SCORES}

    def compute_components(self) -> dict[str, OfHeads]:
        """The same scores of the loaded checkpoint."""
        assert self.inputs.components is not None
        return component_scores(self.weights, self.inputs.components, self.config.batch_size)

    def cspa(self) -> OfHeads | None:
        """Stored CSPA scores."""
        folder = self._stored("cspa", self.config.cspa_config())
        if folder is None and self.config.cspa is None:
            raise UserError("cspa: no scores are stored, and no text is named to compute them; pass cspa.corpus=FILE")
        if folder is None:
            return None
        return self._by_head(folder, folder.read_table(self.checkpoint.step), "score", some=True)

    def compute_cspa(self) -> OfHeads:
        """CSPA scores of the loaded checkpoint."""
        assert self.inputs.cspa is not None
        assert self.config.cspa is not None
        table = score_heads(self.weights, self.inputs.cspa, self.config.cspa, self.config.batch_size)
        return self._fill(table, "score")

    def _stored(self, kind: str, asked: BaseConfig | None, task: str | None = None) -> ResultsFolder | None:
        """The folder of a kind, if it holds this step, measured on these weights and as this run would.

        Raises:
            UserError: with `require_stored`, instead of None.
        """
        folder = self.store.folder(kind, self.checkpoint.name, task)
        reason = self._unusable(folder, asked)
        if not reason:
            return folder
        if self.config.require_stored:
            raise UserError(reason)
        if folder.has(self.checkpoint.step) and reason not in self.inputs.told:
            self.inputs.told.add(reason)
            log.warning("%s; computed here instead", reason.partition("; run:")[0])
        return None

    def _unusable(self, folder: ResultsFolder, asked: BaseConfig | None) -> str:
        """Why a stored result cannot be used; empty if it can."""
        step = self.checkpoint.step
        if not folder.has(step):
            return f"{folder.file(step)} is missing; run: {folder.how_to_make()}"
        run = folder.read_run()
        if run["checkpoints"].get(str(step), {}).get("sha256") != self.checkpoint.provenance["sha256"]:
            return f"{folder.file(step)} was measured on other weights; {_again(folder)}"
        if damaged := RunRecord(folder).damaged([step]):
            return f"{damaged[0]} is damaged; {_again(folder)[: -len('overwrite=true')]}repair=true"
        if asked is not None and (differing := _differing(folder, run, asked)):
            name, held, new = differing[0]
            return f"{folder.path} holds {name}={shown(held)}, this run asks for {shown(new)}; {_again(folder)}"
        return ""

    def _by_head(self, folder: ResultsFolder, table: pd.DataFrame, column: str, *, some: bool = False) -> OfHeads:
        """A column of a stored table as [layer, head]. With `some`, heads may be missing."""
        inside = (table["layer"] < self.shape[0]) & (table["head"] < self.shape[1])
        if not inside.all() or not (some or len(table) == self.shape[0] * self.shape[1]):
            path = folder.file(self.checkpoint.step)
            raise UserError(f"{path} does not hold the heads of this model; {_again(folder)}")
        return self._fill(table, column)

    def _fill(self, table: pd.DataFrame, column: str) -> OfHeads:
        scores = torch.full(self.shape, torch.nan)
        layers, heads = (torch.tensor(table[name].to_numpy()) for name in ("layer", "head"))
        scores[layers, heads] = torch.tensor(table[column].to_numpy(dtype="float32"))
        return scores


def _differing(folder: ResultsFolder, run: dict[str, Any], asked: BaseConfig) -> list[tuple[str, Any, Any]]:
    """Where the settings of stored results differ from those asked for. Keys that only fill a column do not count."""
    found = differences(run, folder.kind, folder.kind.script.removesuffix(".py"), asked)
    return [difference for difference in found if difference[0] not in ("mib", "n_random", "hypothesis_tests")]


def _again(folder: ResultsFolder) -> str:
    return f"run: {folder.how_to_make()} overwrite=true"
