"""What the IOI consistency needs to know of every head: the circuit, copy, induction, duplicate-token and CSPA scores.

Each is read from the store where it lies there for the model and step, and computed from the loaded checkpoint where it
does not; with `require_stored` a missing one is an error that names the command that makes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from edge_attribution_patching.circuit import Circuit
from edge_attribution_patching.search import nodes_in
from utils.circuits import FOUND, CircuitsConfig, find_circuit
from utils.errors import UserError
from utils.heads.attention_and_copy import attention_scores, copy_scores, ordinary_tokens, repeated_blocks
from utils.heads.corpus import Corpus, draw_sequences
from utils.heads.cspa import cspa_scores, mean_outputs, require_fit
from utils.heads.cspa_sources import Cspa
from utils.heads.function_words import function_tokens
from utils.ioi.keys import IoiConsistencyConfig
from utils.models.family import LoadedCheckpoint
from utils.results.store import Store, how_to_make
from utils.tasks import build_prompts

STORED, COMPUTED, ALL_HEADS = "stored", "computed", "all heads"

OfHeads = Float[Tensor, "layer head"]


@dataclass(frozen=True)
class HeadFacts:
    """What is known of every head before anything is patched.

    Attributes:
        in_circuit: which heads the IOI circuit holds.
        status: `found`, or why there is no circuit.
        copy: copy score, percent.
        induction, duplicate_token: attention probabilities.
        cspa: copy-suppression score; nan where a head has none.
        sources: input -> `stored` or `computed` (the circuit: or `all heads`).
    """

    in_circuit: Bool[Tensor, "layer head"]
    status: str
    copy: OfHeads
    induction: OfHeads
    duplicate_token: OfHeads
    cspa: OfHeads
    sources: dict[str, str]


def gather(checkpoint: LoadedCheckpoint, config: IoiConsistencyConfig) -> HeadFacts:
    """Read or compute the inputs of one checkpoint.

    Raises:
        UserError: if an input is missing and `require_stored` is set, was measured on other weights, or does not fit
            the model.
    """
    inputs = _Inputs(checkpoint, config)
    in_circuit, status, circuit_source = inputs.circuit()
    components, components_source = inputs.components()
    cspa, cspa_source = inputs.cspa()
    sources = {"circuit": circuit_source, "components": components_source, "cspa": cspa_source}
    return HeadFacts(
        in_circuit,
        status,
        components["copy"],
        components["induction"],
        components["duplicate_token"],
        cspa,
        sources,
    )


def cspa_text(
    config: IoiConsistencyConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Int[Tensor, "sequence position"], int]:
    """The sequences that CSPA is scored on, then those of its means, as get_model_cspa.py draws them; and how many
    are scored.

    Raises:
        UserError: if the text is not to be had or too short.
    """
    asked = config.cspa
    if asked is None:
        raise UserError("cspa: no scores are stored and no text is named to compute them; pass cspa.corpus=FILE")
    corpus = Corpus(asked.corpus, asked.corpus_split, asked.corpus_field)
    n = asked.n_sequences + asked.n_mean_sequences
    return draw_sequences(corpus, tokenizer, n, asked.seq_len, config.seed), asked.n_sequences


class _Inputs:
    def __init__(self, checkpoint: LoadedCheckpoint, config: IoiConsistencyConfig) -> None:
        self.checkpoint, self.config = checkpoint, config
        self.store = Store(config.results_dir)
        self.weights = checkpoint.weights
        self.shape = (self.weights.n_layers, self.weights.n_heads)

    def circuit(self) -> tuple[Bool[Tensor, "layer head"], str, str]:
        """Heads of the IOI circuit, whether there is one, and where it is from."""
        if self.config.circuit.heads == "all":
            return torch.ones(self.shape, dtype=torch.bool), FOUND, ALL_HEADS
        if self._is_stored("graphs", "ioi"):
            name, step = self.checkpoint.name, self.checkpoint.step
            circuit = Circuit.from_tensors(self.store.read_tensors("graphs", name, "ioi", step))
            baselines = self.store.read_table("baselines", name, "ioi", step)
            if (circuit.graph.n_layers, circuit.graph.n_heads) != self.shape:
                path = self.store.path("graphs", name, step, "ioi", ".pt")
                raise UserError(f"{path} is a circuit of another architecture; {self._again('graphs', 'ioi')}")
            return _heads_of(circuit), str(baselines["status"][0]), STORED
        config = self.config
        report = find_circuit(
            self.weights,
            self.checkpoint.tokenizer,
            CircuitsConfig(
                model=config.model,
                device=config.device,
                dtype=config.dtype,
                batch_size=config.batch_size,
                seed=config.seed,
                memory_budget_gb=config.memory_budget_gb,
                task="ioi",
                n_prompts=config.circuit.n_prompts,
                prepend_bos=config.prepend_bos,
                ioi_corruption=config.ioi_corruption,
                eap=config.circuit.eap,
                search=config.circuit.search,
                evaluate_on=config.circuit.evaluate_on,
            ),
            "ioi",
        )
        return _heads_of(report.circuit), str(report.baselines["status"][0]), COMPUTED

    def components(self) -> tuple[dict[str, OfHeads], str]:
        """Copy, induction and duplicate-token scores."""
        if self._is_stored("components"):
            table = self._read("components")
            wanted = ("copy", "induction", "duplicate_token")
            return {
                name: self._by_head(table[table["score"] == name], "components", "value") for name in wanted
            }, STORED
        asked, weights = self.config.components, self.weights
        tokenizer = self.checkpoint.tokenizer
        blocks = repeated_blocks(
            ordinary_tokens(tokenizer, weights.d_vocab), asked.n_sequences, asked.seq_len, self.config.seed
        )
        prompts = build_prompts("ioi", tokenizer, asked.n_prompts, self.config.seed)
        positions = torch.stack([prompts.positions[name] for name in ("io", "s1", "s2")], dim=1)
        scores = attention_scores(weights, blocks, self.config.batch_size)
        return (
            scores | copy_scores(weights, prompts.clean, prompts.lengths, positions, self.config.batch_size),
            COMPUTED,
        )

    def cspa(self) -> tuple[OfHeads, str]:
        """CSPA scores."""
        if self._is_stored("cspa"):
            return self._by_head(self._read("cspa"), "cspa", "score", some=True), STORED
        tokenizer = self.checkpoint.tokenizer
        tokens, n_sequences = cspa_text(self.config, tokenizer)
        require_fit(self.checkpoint.name, self.weights, tokens.shape[1], 0)
        scored, others = tokens.tensor_split([n_sequences])
        means = mean_outputs(self.weights, others, batch_size=self.config.batch_size)
        words = function_tokens(tokenizer)
        table = cspa_scores(self.weights, scored, means, words, Cspa(), self.config.batch_size)
        return self._by_head(table, "cspa", "score"), COMPUTED

    def _is_stored(self, kind: str, task: str | None = None) -> bool:
        """Whether a kind lies in the store, measured on these weights.

        Raises:
            UserError: if it does not and must, or was measured on other weights.
        """
        name, step = self.checkpoint.name, self.checkpoint.step
        path = self.store.path(kind, name, step, task)
        if not self.store.has(kind, name, step, task):
            if self.config.require_stored:
                raise UserError(f"{path} is missing; run: {how_to_make(kind, name, task)}")
            return False
        measured = self.store.read_run(kind, name, task)["checkpoints"].get(str(step), {})
        if measured.get("sha256") != self.checkpoint.provenance["sha256"]:
            raise UserError(f"{path} was measured on other weights; {self._again(kind, task)}")
        return True

    def _again(self, kind: str, task: str | None = None) -> str:
        return f"run: {how_to_make(kind, self.checkpoint.name, task)} overwrite=true"

    def _read(self, kind: str) -> pd.DataFrame:
        return self.store.read_table(kind, self.checkpoint.name, None, self.checkpoint.step)

    def _by_head(self, table: pd.DataFrame, kind: str, column: str, *, some: bool = False) -> OfHeads:
        """A column as [layer, head]; with `some`, heads may be left out."""
        scores = torch.full(self.shape, torch.nan)
        inside = (table["layer"] < self.shape[0]) & (table["head"] < self.shape[1])
        if not inside.all() or not (some or len(table) == scores.numel()):
            path = self.store.path(kind, self.checkpoint.name, self.checkpoint.step)
            raise UserError(f"{path} holds other heads than the model; {self._again(kind)}")
        layers, heads = (torch.tensor(table[name].to_numpy()) for name in ("layer", "head"))
        scores[layers, heads] = torch.tensor(table[column].to_numpy(dtype="float32"))
        return scores


def _heads_of(circuit: Circuit) -> Bool[Tensor, "layer head"]:
    graph = circuit.graph
    nodes = nodes_in(circuit.in_circuit[None], graph)[0]
    return torch.stack([nodes[graph.head(layer) : graph.mlp(layer)] for layer in range(graph.n_layers)])
