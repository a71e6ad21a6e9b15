"""What the circuit notebooks add to the library: maps of heads, what heads and MLPs write, the circuit's drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.forward import LayerActivations, embed, forward
from circuits_over_time.edge_attribution_patching.model.norms import normalise
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.patching.forward import evaluate_metric
from circuits_over_time.edge_attribution_patching.patching.paths import Head, path_masks
from circuits_over_time.edge_attribution_patching.patching.runs import prepare_runs, run_metric
from circuits_over_time.plotting.plot_circuit import draw_circuit
from circuits_over_time.utils.circuits.handle import Model
from circuits_over_time.utils.circuits.measured import MeasuredCircuit
from circuits_over_time.utils.tasks.prompts import Prompts

from .support import Show

MOST_EDGES = 100
"""Edges that the drawing of a circuit shows."""


def map_of(table: pd.DataFrame, model: Model) -> Float[Tensor, "layer head"]:
    """A table of the library with a row for each head, layer by layer, as a map: its `value`, or its `effect`."""
    values = table["value" if "value" in table else "effect"]
    return torch.tensor(values.to_numpy(), dtype=torch.float32).view(model.n_layers, model.weights.n_heads)


def head_table(heads: Sequence[Head], columns: Mapping[str, Float[Tensor, "layer head"]]) -> pd.DataFrame:
    """A row for each of some heads, with what was measured of it."""
    rows = [
        {"head": f"a{layer}.h{head}"} | {name: float(values[layer, head]) for name, values in columns.items()}
        for layer, head in heads
    ]
    return pd.DataFrame(rows, columns=["head", *columns])


def effects_through_mlps(weights: ModelWeights, prompts: Prompts, metric: str) -> Float[Tensor, "layer head"]:
    """Mean change of a metric if only the paths head -> logits, direct or through MLPs, carry the corrupted run."""
    graph, of_prompts = Graph.of(weights), prompts.metric(metric)
    (batch,) = prompts.pairs.batches(len(prompts))
    runs = prepare_runs(weights, batch, base="clean")
    clean, rows = run_metric(weights, runs, of_prompts)[1], []
    for layer in range(graph.n_layers):  # One layer's masks at a time: those of a large model are large.
        masks = path_masks(graph, [(layer, head) for head in range(graph.n_heads)], through_mlps=True)
        rows.append((evaluate_metric(weights, runs, masks, of_prompts) - clean).mean(dim=1).cpu())
    return torch.stack(rows)


def written_at_end(
    weights: ModelWeights, prompts: Prompts, heads: Sequence[Head] = (), mlps: Sequence[int] = ()
) -> dict[str, Float[Tensor, "prompt d_model"]]:
    """What heads (`a3.h1`) and MLPs (`m3`) write at END, the prompt's last token, in the clean run.

    It is divided by the scale of the run's final norm.

    Args:
        prompts: on the model's device.
        mlps: their layers.
    """
    packed = PackedTokens.whole(prompts.lengths)
    written = {}

    def watch(activations: LayerActivations) -> None:
        at = activations.layer
        for layer, head in heads:
            if layer == at:
                written[f"a{layer}.h{head}"] = activations.z[packed.last, head] @ weights.layers[layer].W_O[head]
        if at in mlps:
            written[f"m{at}"] = activations.mlp_out[packed.last]

    with torch.no_grad():
        final = forward(weights, packed, embed(weights, packed, packed.pack(prompts.clean)), visit=watch)
        _, inverse_scale = normalise(weights.final_norm, final[packed.last])
    return {name: value * inverse_scale for name, value in written.items()}


def heads_of(circuit: MeasuredCircuit) -> list[Head]:
    """The heads of a circuit."""
    names = circuit.nodes["node"].str.extract(r"^a(\d+)\.h(\d+)$").dropna().astype(int)
    return list(names.itertuples(index=False, name=None))


def show_circuit(show: Show, circuit: MeasuredCircuit, label: str) -> None:
    """Draw a circuit's strongest edges, or say why there is none."""
    edges, about = circuit.edges, circuit.about
    if edges.empty:
        print(f"No circuit to draw: {circuit.status}.")
        return
    title = f"{label} circuit of {about['model']} at step {about['step']:,}"
    parts = f"{len(edges)} of {circuit.circuit.graph.n_edges:,} edges, {circuit.circuit.n_nodes} nodes"
    show(draw_circuit(edges.head(MOST_EDGES), title, f"{parts}; width grows with |score|"))
