"""Steps that the circuit notebooks share: which heads write the answer, what is written, and the circuit's drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.search import nodes_in
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.forward import LayerActivations, embed, forward
from circuits_over_time.edge_attribution_patching.model.norms import normalise
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.patching.forward import evaluate_metric
from circuits_over_time.edge_attribution_patching.patching.paths import Head, Receivers, path_masks
from circuits_over_time.edge_attribution_patching.patching.runs import prepare_runs, run_metric
from circuits_over_time.plotting.plot_circuit import draw_circuit
from circuits_over_time.utils.circuits.measured import MeasuredCircuit
from circuits_over_time.utils.config.schedules import select_steps
from circuits_over_time.utils.models.checkpoint import LoadedCheckpoint
from circuits_over_time.utils.models.family import resolve_family
from circuits_over_time.utils.tasks.prompts import Prompts
from notebooks.support import Show

MOST_EDGES = 100
"""Edges that the drawing of a circuit shows."""


def load_checkpoint(model: str, step: int | None) -> tuple[LoadedCheckpoint, bool]:
    """A checkpoint of a model, by default the last; downloads go to `model_cache`.

    Returns:
        The checkpoint, and whether the model was trained with a start token, so that its prompts begin with one.
    """
    family = resolve_family(model, Path("model_cache"))
    [step] = select_steps([family.steps[-1] if step is None else step], family.steps, family.name)
    return family.load(step), family.prepend_bos is True


def all_heads(graph: Graph) -> list[Head]:
    """Every head, layer by layer."""
    return [(layer, head) for layer in range(graph.n_layers) for head in range(graph.n_heads)]


def head_table(heads: Sequence[Head], columns: Mapping[str, Float[Tensor, "layer head"]]) -> pd.DataFrame:
    """A row for each of some heads, with what was measured of it."""
    rows = [
        {"head": f"a{layer}.h{head}"} | {name: float(values[layer, head]) for name, values in columns.items()}
        for layer, head in heads
    ]
    return pd.DataFrame(rows, columns=["head", *columns])


class PathPatching:
    """Patches along paths: every prompt keeps its clean run, but for the edges that carry the corrupted one.

    Args:
        weights: the model.
        prompts: on the model's device.
        metric: its name; effects are changes of it.
    """

    def __init__(self, weights: ModelWeights, prompts: Prompts, metric: str) -> None:
        (batch,) = prompts.pairs.batches(len(prompts))
        self._weights = weights
        self._graph = Graph.of(weights)
        self._metric = prompts.metric(metric)
        self._runs = prepare_runs(weights, batch, base="clean")
        # The source of what is patched in is the corrupted run, the base the clean one.
        self.corrupted, self.clean = run_metric(weights, self._runs, self._metric)

    def of_heads(self, stages: Sequence[Receivers] = (), *, through_mlps: bool = False) -> Float[Tensor, "layer head"]:
        """Mean change of the metric when only the paths head -> stages -> logits carry the corrupted run.

        Args:
            stages: the heads' inputs that the paths lead through; without any, the effect is the direct one.
            through_mlps: count the paths from the head to the first stage that lead through MLPs as well.
        """
        heads, rows = all_heads(self._graph), []
        for layer in range(self._graph.n_layers):  # One layer's masks at a time: those of a large model are large.
            senders = [head for head in heads if head[0] == layer]
            rows.append(self._effects(path_masks(self._graph, senders, stages, through_mlps=through_mlps)))
        return torch.stack(rows)

    def of_mlps(self) -> Float[Tensor, " layer"]:
        """Mean direct effect of every MLP: all below it is corrupted, but only MLP -> logits carries that on."""
        graph = self._graph
        masks = torch.zeros(graph.n_layers, graph.n_forward, graph.n_backward, dtype=torch.bool)
        for layer, mask in enumerate(masks):
            mask[:, : graph.mlp_input(layer) + 1] = True
            mask[graph.mlp(layer), graph.logits] = True
        return self._effects(masks)

    def _effects(self, masks: Bool[Tensor, "mask n_forward n_backward"]) -> Float[Tensor, " mask"]:
        patched = evaluate_metric(self._weights, self._runs, masks, self._metric)
        return (patched - self.clean).mean(dim=1).cpu()


@dataclass(frozen=True)
class AtEnd:
    """What a clean run does at END, the prompt's last token."""

    written: dict[str, Float[Tensor, "prompt d_model"]]
    """What heads (`a3.h1`) and MLPs (`m3`) write there, at the scale of the run's final norm."""
    attention: Float[Tensor, "layer head prompt key"]
    """Of every head, from END."""
    first: list[Float[Tensor, "head query key"]]
    """Attention on the whole first prompt, by layer."""


def at_end(weights: ModelWeights, prompts: Prompts, heads: Sequence[Head] = (), mlps: Sequence[int] = ()) -> AtEnd:
    """One clean run, watched at its end.

    Args:
        weights: the model.
        prompts: on the model's device.
        heads: heads whose output is kept.
        mlps: layers whose MLP's output is kept.
    """
    layout = PackedTokens.whole(prompts.lengths)
    everyone = torch.arange(len(prompts))
    written, attention, first = {}, [], []

    def watch(activations: LayerActivations) -> None:
        at = activations.layer
        attention.append(activations.pattern[everyone, :, prompts.lengths - 1].transpose(0, 1))
        first.append(activations.pattern[0])
        for layer, head in heads:
            if layer == at:
                written[f"a{layer}.h{head}"] = activations.z[layout.last, head] @ weights.layers[layer].W_O[head]
        if at in mlps:
            written[f"m{at}"] = activations.mlp_out[layout.last]

    with torch.no_grad():
        final = forward(weights, layout, embed(weights, layout, layout.pack(prompts.clean)), visit=watch)
        _, inverse_scale = normalise(weights.final_norm, final[layout.last])
    return AtEnd({name: value * inverse_scale for name, value in written.items()}, torch.stack(attention), first)


def heads_of(report: MeasuredCircuit) -> list[Head]:
    """The heads of a circuit."""
    graph = report.circuit.graph
    inside = nodes_in(report.circuit.in_circuit[None], graph)[0]
    return [(layer, head) for layer, head in all_heads(graph) if inside[graph.head(layer, head)]]


def show_circuit(show: Show, report: MeasuredCircuit, checkpoint: LoadedCheckpoint, task: str) -> None:
    """Draw a circuit's strongest edges, or say why there is none."""
    circuit, edges = report.circuit, report.circuit.to_table()
    if edges.empty:
        print(f"No circuit to draw: {report.status}.")
        return
    title = f"{task} circuit of {checkpoint.name} at step {checkpoint.step:,}"
    parts = f"{len(edges)} of {circuit.graph.n_edges:,} edges, {circuit.n_nodes} nodes"
    show(draw_circuit(edges.head(MOST_EDGES), title, f"{parts}; width grows with |score|"))
