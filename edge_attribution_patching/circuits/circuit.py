"""A circuit with its scores: as tensors and as a table of edges. Other programs' files are in `formats.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from ..graph import Graph
from ..units import Units
from .search import count_nodes

_UNITS = ("level", "d_head", "d_mlp")
"""What a file says of units, besides the model's graph."""


@dataclass(frozen=True)
class Circuit:
    """Scores of every edge and the edges of one circuit; or, where the graph is that of `Units`, scores and units."""

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
            "forward_nodes": self.model_graph.forward_nodes,
            "backward_nodes": self.model_graph.backward_nodes,
            "parallel": self.graph.parallel,
            **{name: getattr(self.graph, name) for name in _UNITS if isinstance(self.graph, Units)},
        } | ({"roles": list(self.graph.roles), "attends": self.graph.attends} if self.graph.roles else {})

    @property
    def model_graph(self) -> Graph:
        """The graph of the model."""
        return self.graph.model if isinstance(self.graph, Units) else self.graph

    @property
    def as_edges(self) -> Circuit:
        """A circuit of units as the edges between their nodes, each with the score of the node that it comes from."""
        if not isinstance(self.graph, Units):
            return self
        of_source = self.graph.by_node(self.scores)
        edges = self.graph.edges(self.in_circuit[None])[0]
        return Circuit(self.model_graph, of_source[:, None] * self.model_graph.edge_mask, edges)

    @property
    def over_roles(self) -> Circuit:
        """A circuit with roles of tokens as one of edges: those with some role, and the sum of their scores."""
        if not (graph := self.graph).roles:
            return self
        scores, held = (part.unflatten(0, (graph.n_roles, graph.n_nodes)) for part in (self.scores, self.in_circuit))
        return Circuit(graph.plain, scores.sum(0), held.any(0))

    @classmethod
    def from_tensors(cls, stored: Mapping[str, Any]) -> Circuit:
        """Read back what `to_tensors` returned.

        Raises:
            ValueError: if the node names are not those of a transformer's graph.
        """
        names = list(stored["forward_nodes"])
        roles = tuple(stored.get("roles", ()))
        nodes = names[: len(names) // max(len(roles), 1)]
        n_layers = sum(name.startswith("m") for name in nodes)
        n_heads = sum(name.startswith("a0.") for name in nodes)
        attends = tuple(map(tuple, stored.get("attends", ((True,),))))
        graph = Graph(n_layers, n_heads, stored["parallel"], roles, attends)
        if graph.forward_nodes != names or graph.backward_nodes != list(stored["backward_nodes"]):
            raise ValueError(f"the {len(names)} nodes are not those of {n_layers} layers of {n_heads} heads")
        if "level" in stored:
            graph = Units(0, 0, graph.parallel, model=graph, **{name: stored[name] for name in _UNITS})
        return cls(graph, stored["scores"], stored["in_circuit"])

    def to_table(self, **columns: Float[Tensor, "n_forward n_backward"]) -> pd.DataFrame:
        """The edges of the circuit as `source, target, input, score`, the strongest first.

        `input` is q, k or v where the target is a head, and else empty. With roles there is a last column `role`, that
        of the tokens where the edge is read.

        Args:
            columns: further columns, of every edge of the graph.
        """
        edges = self.in_circuit.nonzero()
        scores = self.scores[edges[:, 0], edges[:, 1]]
        ranked = scores.abs().argsort(descending=True, stable=True)  # equal scores in index order, on every machine
        sources = [self.graph.forward_nodes[u].partition("@") for u in edges[ranked, 0].tolist()]
        ends = [self.graph.backward_nodes[v].rstrip(">").partition("<") for v in edges[ranked, 1].tolist()]
        names = {
            "source": [node for node, _, _ in sources],
            "target": [node for node, _, _ in ends],
            "input": [letter for _, _, letter in ends],
        }
        roles = {"role": [role for _, _, role in sources]} if self.graph.roles else {}
        table = pd.DataFrame(
            names
            | {"score": scores[ranked].numpy()}
            | {name: values[edges[ranked, 0], edges[ranked, 1]].numpy() for name, values in columns.items()}
            | roles
        )
        return table.astype(dict.fromkeys((*names, *roles), "str"))  # Of no edges, too.
