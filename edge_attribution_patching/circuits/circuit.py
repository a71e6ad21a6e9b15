"""A circuit with its scores: as tensors, as a table of edges, and as EAP-IG's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..graph import Graph
from .search import count_nodes, nodes_in


@dataclass(frozen=True)
class Circuit:
    """Scores of every edge and the edges of one circuit."""

    graph: Graph
    scores: Float[Tensor, "n_forward n_backward"]
    in_circuit: Bool[Tensor, "n_forward n_backward"]

    @property
    def n_edges(self) -> int:
        return int(self.in_circuit.sum())

    @property
    def n_nodes(self) -> int:
        """Nodes with an edge in the circuit, `input` and `logits` included."""
        return int(count_nodes(self.in_circuit[None], self.graph)[0])

    def to_tensors(self) -> dict[str, Any]:
        """Plain tensors and lists of names, as stored in `.pt` files."""
        return {
            "scores": self.scores,
            "in_circuit": self.in_circuit,
            "forward_nodes": self.graph.forward_nodes,
            "backward_nodes": self.graph.backward_nodes,
            "parallel": self.graph.parallel,
        }

    @classmethod
    def from_tensors(cls, stored: Mapping[str, Any]) -> Circuit:
        """Read back what `to_tensors` returned.

        Raises:
            ValueError: if the node names are not those of a transformer's graph.
        """
        names = list(stored["forward_nodes"])
        n_layers = sum(name.startswith("m") for name in names)
        n_heads = sum(name.startswith("a0.") for name in names)
        graph = Graph(n_layers, n_heads, stored["parallel"])
        if graph.forward_nodes != names or graph.backward_nodes != list(stored["backward_nodes"]):
            raise ValueError(f"the {len(names)} nodes are not those of {n_layers} layers of {n_heads} heads")
        return cls(graph, stored["scores"], stored["in_circuit"])

    def to_table(self, **columns: Float[Tensor, "n_forward n_backward"]) -> pd.DataFrame:
        """The edges of the circuit as `source, target, input, score`, the strongest first.

        `input` is q, k or v where the target is a head, and else empty.

        Args:
            columns: further columns, of every edge of the graph.
        """
        edges = self.in_circuit.nonzero()
        scores = self.scores[edges[:, 0], edges[:, 1]]
        ranked = scores.abs().argsort(descending=True, stable=True)  # equal scores in index order, on every machine
        forward, backward = self.graph.forward_nodes, self.graph.backward_nodes
        ends = [backward[v].rstrip(">").partition("<") for v in edges[ranked, 1].tolist()]
        return pd.DataFrame(
            {
                "source": [forward[u] for u in edges[ranked, 0].tolist()],
                "target": [node for node, _, _ in ends],
                "input": [letter for _, _, letter in ends],
                "score": scores[ranked].numpy(),
            }
            | {name: values[edges[ranked, 0], edges[ranked, 1]].numpy() for name, values in columns.items()}
        )

    def to_json(self, d_model: int) -> dict[str, Any]:
        """The JSON of EAP-IG's graphs: `cfg`, `nodes`, `edges`."""
        graph = self.graph
        members = nodes_in(self.in_circuit[None], graph)[0].tolist()
        names = [*graph.forward_nodes, "logits"]
        edges = {}
        for u, v in graph.edge_mask.nonzero().tolist():
            edge = {"score": float(self.scores[u, v]), "in_graph": bool(self.in_circuit[u, v])}
            edges[f"{graph.forward_nodes[u]}->{graph.backward_nodes[v]}"] = edge
        cfg = {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel}
        return {
            "cfg": cfg | {"d_model": d_model},
            "nodes": {name: {"in_graph": member} for name, member in zip(names, members, strict=True)},
            "edges": edges,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Circuit:
        """Read EAP-IG's JSON.

        Raises:
            ValueError: if an edge is not one of the graph that `cfg` describes.
        """
        cfg = stored["cfg"]
        graph = Graph(cfg["n_layers"], cfg["n_heads"], cfg["parallel_attn_mlp"])
        scores = torch.zeros(graph.n_forward, graph.n_backward)
        in_circuit = torch.zeros(graph.n_forward, graph.n_backward, dtype=torch.bool)
        for name, edge in stored["edges"].items():
            index = graph.edge_index(name)
            scores[index] = edge["score"]
            in_circuit[index] = edge["in_graph"]
        return cls(graph, scores, in_circuit)
