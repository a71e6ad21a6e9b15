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

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.circuits.search import nodes_in
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.architectures import Shape

from ..base.errors import UserError
from ..circuits.find import CircuitPrompts, circuit_prompts, find_circuit, prompts_at, score_edges
from ..config.keys import BaseConfig, errors_named
from ..heads import attention_and_copy, cspa
from ..heads.attention_and_copy import ComponentsInputs
from ..heads.cspa import CspaInputs
from ..heads.keys import ComponentsKeys, CspaKeys
from ..models.checkpoint import LoadedCheckpoint
from ..results.kinds import FOUND
from ..results.record import changed_inputs, differences, shown
from ..results.store import ResultsFolder, Store
from ..tasks import TASKS, Prompts
from ..tasks.ioi import signal_variants
from ..tasks.vocabulary import require_embedded
from .keys import CircuitInput, ConsistencyKeys, IoiConsistencyConfig, ablated_sets
from .shares import PValues, p_above

STORED, COMPUTED, ALL_HEADS = "stored", "computed", "all heads"
SCORES = ("copy", "negative_copy", "induction", "duplicate_token")

OfHeads = Float[Tensor, "layer head"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IoiInputs:
    """What is prepared once for a model."""

    prompts: Prompts  # that effects are measured on
    variants: Mapping[str, Int[Tensor, "n width"]]  # their four signal variants (`utils/tasks/ioi.py`)
    circuit: CircuitPrompts | None  # what this and the scores are computed from; None if they must not be
    components: ComponentsInputs | None
    cspa: CspaInputs | None
    already_warned: set[str] = field(default_factory=set)  # what the log has already said


@dataclass(frozen=True)
class FoundEdges:
    """The edges of a task's circuit."""

    graph: Graph
    edges: Bool[Tensor, "n_forward n_backward"]
    status: str  # `found`, or why there is no circuit

    @cached_property
    def nodes(self) -> Bool[Tensor, " n_forward"]:
        """Which nodes the circuit holds."""
        return nodes_in(self.edges[None], self.graph)[0]


@dataclass(frozen=True)
class HeadFacts(FoundEdges):
    """What is known about every head before anything is patched."""

    copy: OfHeads
    negative_copy: OfHeads
    induction: OfHeads
    duplicate_token: OfHeads
    cspa: OfHeads  # copy-suppression score; nan if a head has none
    sources: dict[str, str]  # input -> `stored` or `computed` (for the circuit also `all heads`)
    errors: dict[str, OfHeads]  # standard errors of the five scores
    n_samples: dict[str, int]  # how many samples each score is an average over
    chance: dict[str, float]  # scores of a head that attends to all tokens alike

    @cached_property
    def in_circuit(self) -> Bool[Tensor, "layer head"]:
        """Which heads the circuit holds."""
        graph = self.graph
        return torch.stack([self.nodes[graph.head(layer) : graph.mlp(layer)] for layer in range(graph.n_layers)])

    @property
    def circuit_heads(self) -> list[tuple[int, int]]:
        """The circuit's heads, in order."""
        return [(layer, head) for layer, head in self.in_circuit.nonzero().tolist()]

    def at(self, of_heads: Shaped[Tensor, "layer head"], heads: Sequence[tuple[int, int]]) -> np.ndarray:
        """The numbers of some heads."""
        return np.array([of_heads[head].item() for head in heads])

    def p_above(
        self, name: str, limit: float | Tensor, heads: Sequence[tuple[int, int]], times_mean: float = 0.0
    ) -> PValues:
        """Tests that a score of some heads is above a limit, which may be a multiple of the mean over all heads.

        The mean errs too, as that of independent scores.
        """
        error, score = self.errors[name], getattr(self, name)
        error = (error.square() + (times_mean / error.numel()) ** 2 * error.square().nansum()).sqrt()
        distance, error = (torch.tensor(self.at(of_heads, heads)) for of_heads in (score - limit, error))
        return p_above(distance, error, self.n_samples[name])

    def writes_to_queries(self, sender: tuple[int, int], receivers: Sequence[tuple[int, int]]) -> bool:
        """Whether an edge of the circuit joins a head to the query of one of these others."""
        queries = [self.graph.head_input(*receiver, "q") for receiver in receivers]
        return bool(self.edges[self.graph.head(*sender), queries].any())


def prepare(config: IoiConsistencyConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> IoiInputs:
    """Build the prompts, and all that a checkpoint's inputs may be computed from; a UserError where that cannot be."""
    task = TASKS["ioi"]
    prompts = task.build(tokenizer, config.n_prompts, config.seed, config)
    prompts.require_fit(task.name, shape)
    if config.backup:
        ablated_sets(config.backup_of, Graph.of(shape), {})
    variants = signal_variants(prompts, tokenizer, config.seed)
    for tokens in variants.values():
        require_embedded(tokens, shape.d_vocab, "ioi", [clean for clean, _ in prompts.texts])
    if config.require_stored:
        return IoiInputs(prompts, variants, None, None, None)
    circuit = prompts_of_circuit(config, tokenizer, shape)
    with errors_named("components.", ComponentsKeys):
        components = attention_and_copy.prepare(config.components_config(), tokenizer, shape)
    of_cspa = config.cspa_config()
    with errors_named("cspa.", CspaKeys):
        text = None if of_cspa is None else cspa.prepare(of_cspa, tokenizer, shape)
    return IoiInputs(prompts, variants, circuit, components, text)


def prompts_of_circuit(
    config: ConsistencyKeys, tokenizer: PreTrainedTokenizerBase, shape: Shape
) -> CircuitPrompts | None:
    """The prompts that the task's circuit may have to be found on; None if it must not be computed."""
    if config.require_stored or config.circuit.heads == "all":
        return None
    with errors_named("circuit.", CircuitInput):
        return circuit_prompts(config.circuits_config(), TASKS[config.task], tokenizer, shape)


def gather(checkpoint: LoadedCheckpoint, config: IoiConsistencyConfig, inputs: IoiInputs) -> HeadFacts:
    """Read or compute the circuit and the scores of one checkpoint.

    A UserError if one is missing or depends on other settings and `require_stored` is set, if no text is named for CSPA
    scores that must be computed, or if stored results do not fit the model.
    """
    lookup, step = Lookup(checkpoint, config, inputs.already_warned), checkpoint.step
    # All three are looked up before any is computed, to say at once what is missing.
    stored_circuit = lookup.stored_circuit(config)
    stored_components = lookup.usable("components", config.components_config())
    stored_cspa = lookup.usable("cspa", config.cspa_config())
    if stored_cspa is None and config.cspa is None:
        raise UserError("cspa: no scores are stored, and no text is named to compute them; pass cspa.corpus=FILE")

    circuit, origin = lookup.circuit(config, stored_circuit, inputs.circuit)

    # Each script's own table, read or made; only a stored one may be of another model.
    if stored_components is not None:
        table = stored_components.read_table(step)
    else:
        assert inputs.components is not None
        made = attention_and_copy.measure(checkpoint, config.components_config(), inputs.components, None)
        table = made["components"].table
    scores, errors, chance, n_samples = dict[str, OfHeads](), dict[str, OfHeads](), dict[str, float](), dict[str, int]()
    for name in SCORES:
        rows = table[table["score"] == name]
        scores[name], errors[name] = (lookup.by_head(stored_components, rows, column) for column in ("value", "se"))
        chance[name] = float(rows["chance"].iloc[0])
        n_samples[name] = config.components.n_prompts if "copy" in name else config.components.n_sequences

    if stored_cspa is not None:
        table = stored_cspa.read_table(step)
        n_samples["cspa"] = int(stored_cspa.read_run()["settings"]["n_sequences"])
    else:
        cspa_config = config.cspa_config()
        assert inputs.cspa is not None
        assert cspa_config is not None
        in_format = checkpoint.in_format(cspa_config.dtype)
        table = cspa.measure(in_format, cspa_config, inputs.cspa, None)["cspa"].table
        n_samples["cspa"] = cspa_config.n_sequences
    # Heads below `start_layer` have no score.
    scores["cspa"] = lookup.by_head(stored_cspa, table, "score", some=True)
    errors["cspa"] = lookup.by_head(stored_cspa, table, "score_se", some=True)

    folders = {"components": stored_components, "cspa": stored_cspa}
    sources = {"circuit": origin}
    sources |= {name: COMPUTED if folder is None else STORED for name, folder in folders.items()}
    known: dict[str, Any] = {**scores, "sources": sources, "errors": errors, "n_samples": n_samples, "chance": chance}
    return HeadFacts(circuit.graph, circuit.edges, circuit.status, **known)


class Lookup:
    """Finds out which stored results of a checkpoint can be used."""

    def __init__(self, checkpoint: LoadedCheckpoint, config: ConsistencyKeys, already_warned: set[str]) -> None:
        self.checkpoint, self.require_stored, self.already_warned = checkpoint, config.require_stored, already_warned
        self.store = Store(config.results_dir)
        self.shape = (checkpoint.weights.n_layers, checkpoint.weights.n_heads)

    def usable(self, kind: str, asked: BaseConfig | None, task: str | None = None) -> ResultsFolder | None:
        """The folder of a kind, if it holds this step, measured on these weights and as this run would.

        If not, None, or with `require_stored` a UserError.
        """
        folder = self.store.folder(kind, self.checkpoint.name, task)
        reason = self._unusable(folder, asked)
        if not reason:
            return folder
        if self.require_stored:
            raise UserError(reason)
        # That results do not exist yet is no news; that they do not fit is said once, not at every checkpoint.
        if folder.has(self.checkpoint.step) and reason not in self.already_warned:
            self.already_warned.add(reason)
            log.warning("%s; computed here instead", reason.partition("; run:")[0])
        return None

    def stored_circuit(self, config: ConsistencyKeys) -> ResultsFolder | None:
        """The folder that the task's circuit can be read from; errors as of `usable`."""
        if config.circuit.heads == "all":
            return None
        settings = config.circuits_config()
        return self.usable("graphs", settings, settings.name_in_results(config.task))

    def circuit(
        self, config: ConsistencyKeys, stored: ResultsFolder | None, prompts: CircuitPrompts | None
    ) -> tuple[FoundEdges, str]:
        """The task's circuit, all edges if the config says so, and where it is from.

        A UserError if the stored circuit does not fit the model.
        """
        step, graph = self.checkpoint.step, Graph.of(self.checkpoint.weights)
        settings = config.circuits_config()
        if config.circuit.heads == "all":
            return FoundEdges(graph, graph.edge_mask, str(FOUND)), ALL_HEADS
        if stored is not None:
            circuit, _ = stored.read_circuit(step)
            if (circuit.model_graph.n_layers, circuit.model_graph.n_heads) != self.shape:
                path = stored.file(step, ".pt")
                raise UserError(f"{path} is a circuit of another architecture; {_again(stored)}")
            baselines = self.store.folder("baselines", self.checkpoint.name, stored.task).read_table(step)
            return FoundEdges(graph, circuit.as_edges.over_roles.in_circuit, str(baselines["status"][0])), STORED
        assert prompts is not None
        checkpoint = self.checkpoint.in_format(settings.dtype)
        weights, prompts = checkpoint.weights, prompts_at(checkpoint, settings, prompts)
        report = find_circuit(weights, prompts, settings, score_edges(weights, prompts, settings))
        return FoundEdges(graph, report.circuit.as_edges.over_roles.in_circuit, report.status), COMPUTED

    def _unusable(self, folder: ResultsFolder, asked: BaseConfig | None) -> str:
        """Why a stored result cannot be used; empty if it can."""
        step = self.checkpoint.step
        if not folder.has(step):
            return f"{folder.file(step)} is missing; run: {folder.how_to_make()}"
        run = folder.read_run()
        held, mine = run.get("checkpoints", {}).get(str(step), {}), self.checkpoint.provenance
        for what, key in (("other weights", "sha256"), ("another config or tokenizer", "inputs")):
            if held.get(key, mine[key] if held else None) != mine[key]:  # Results of an older version have no inputs.
                return f"{folder.file(step)} was measured on {what}; {_again(folder)}"
        if damaged := folder.damage(step):
            return f"{damaged[0].path} is damaged; run: {folder.how_to_make(repair=True)}"
        if asked is None:
            return ""
        for name, old, new in differences(run, folder, folder.kind.script.removesuffix(".py"), asked):
            if name not in ("mib", "n_random", "hypothesis_tests"):  # They only fill a column.
                return f"{folder.path} holds {name}={shown(old)}, this run asks for {shown(new)}; {_again(folder)}"
        reason = changed_inputs(run, asked, folder.task)
        return f"{folder.path} holds {reason}; {_again(folder)}" if reason else ""

    def by_head(self, folder: ResultsFolder | None, table: pd.DataFrame, column: str, *, some: bool = False) -> OfHeads:
        """A column of a table, a folder's or made here, as [layer, head]. With `some`, heads may be missing."""
        n_layers, n_heads = self.shape
        inside = (table["layer"] < n_layers) & (table["head"] < n_heads)
        if folder is not None and not (inside.all() and (some or len(table) == n_layers * n_heads)):
            path = folder.file(self.checkpoint.step)
            raise UserError(f"{path} does not hold the heads of this model; {_again(folder)}")
        scores = torch.full(self.shape, torch.nan)
        layers, heads = (torch.tensor(table[name].to_numpy()) for name in ("layer", "head"))
        scores[layers, heads] = torch.tensor(table[column].to_numpy(dtype="float32"))
        return scores


def _again(folder: ResultsFolder) -> str:
    return f"run: {folder.how_to_make(overwrite=True)}"
