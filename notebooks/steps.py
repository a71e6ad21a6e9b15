"""How the circuit notebooks show what the library found: tables of heads, maps of heads, the circuit's drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuits_over_time.plotting.plot_circuit import draw_circuit

from .support import Show

MOST_EDGES = 100
"""Edges that the drawing of a circuit shows."""


def map_of(table: pd.DataFrame, model: Any) -> Float[Tensor, "layer head"]:
    """A table of the library with a row for each head, layer by layer, as a map: its `value`, or its `effect`."""
    values = table["value" if "value" in table else "effect"]
    return torch.tensor(values.to_numpy(), dtype=torch.float32).view(model.n_layers, model.weights.n_heads)


def head_table(heads: Sequence[tuple[int, int]], columns: Mapping[str, Float[Tensor, "layer head"]]) -> pd.DataFrame:
    """A row for each of some heads, with what was measured of it."""
    rows = [
        {"head": f"a{layer}.h{head}"} | {name: float(values[layer, head]) for name, values in columns.items()}
        for layer, head in heads
    ]
    return pd.DataFrame(rows, columns=["head", *columns])


def heads_of(circuit: Any) -> list[tuple[int, int]]:
    """The heads of a circuit."""
    names = circuit.nodes["node"].str.extract(r"^a(\d+)\.h(\d+)$").dropna().astype(int)
    return list(names.itertuples(index=False, name=None))


def show_circuit(show: Show, circuit: Any, label: str) -> None:
    """Draw a circuit's strongest edges, or say why there is none."""
    edges, about = circuit.edges, circuit.about
    if edges.empty:
        print(f"No circuit to draw: {circuit.status}.")
        return
    title = f"{label} circuit of {about['model']} at step {about['step']:,}"
    parts = f"{len(edges)} of {circuit.circuit.graph.n_edges:,} edges, {circuit.circuit.n_nodes} nodes"
    show(draw_circuit(edges.head(MOST_EDGES), title, f"{parts}; width grows with |score|"))
