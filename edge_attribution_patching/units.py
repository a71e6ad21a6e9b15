"""Circuits of nodes or of neurons instead of edges: their units, as the sources of a graph.

A node is a head or an MLP. A neuron is a hidden unit of an MLP, or an entry of z, the sum of values that a head
multiplies with W_O. `Units` has no layers, and of each unit one edge, to the logits. So whatever orders, resamples,
stores and compares edges does so with units: masks and scores are [unit, 1] in the place of [n_forward, n_backward].
What a set of units means in the model:

    node      its nodes, `input` and `logits`, with all edges between them
    neuron    all nodes read all that is written, but units outside the set hold what they do in the corrupted run, or
              ablated (`model.reference`)

Without any unit the whole model is as in the corrupted run, or every node is ablated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from .choices import Level
from .graph import Graph

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from .model.architectures import Shape
    from .model.pairs import TokenRoles


@dataclass(frozen=True, kw_only=True)
class Units(Graph):
    """The units of a model: layer by layer those of its heads, then those of its MLP."""

    model: Graph
    level: Level
    d_head: int = 1  # units of a head and of an MLP: 1 at the level of nodes
    d_mlp: int = 1

    @property
    def n_nodes(self) -> int:
        return self.model.n_layers * self.per_layer

    @property
    def n_ends(self) -> int:
        return 1

    @property
    def per_layer(self) -> int:
        """Units of a layer."""
        return self.model.n_heads * self.d_head + self.d_mlp

    @cached_property
    def node_of(self) -> Int[Tensor, " unit"]:
        """The forward index of each unit's node in the model's graph."""
        import torch

        nodes = torch.arange(1, self.model.n_forward)
        sizes = torch.tensor([self.d_head] * self.model.n_heads + [self.d_mlp]).repeat(self.model.n_layers)
        return nodes.repeat_interleave(sizes)

    @cached_property
    def forward_nodes(self) -> list[str]:
        names, numbered = self.model.forward_nodes, self.level == "neuron"
        sizes = ([self.d_head] * self.model.n_heads + [self.d_mlp]) * self.model.n_layers
        pairs = ((name, unit) for name, size in zip(names[1:], sizes, strict=True) for unit in range(size))
        return [f"{name}.{unit}" if numbered else name for name, unit in pairs]

    def nodes(self, masks: Bool[Tensor, "mask unit 1"]) -> Bool[Tensor, "mask n_forward_plus_1"]:
        """Which nodes of the model have a unit in each set; `input` and, last, `logits` where there is any."""
        held = masks.new_zeros(len(masks), self.model.n_forward + 1).int()
        held = held.index_add(1, self.node_of.to(masks.device), masks[:, :, 0].int()) > 0
        held[:, 0] = held[:, -1] = held.any(1)
        return held

    def edges(self, masks: Bool[Tensor, "mask unit 1"]) -> Bool[Tensor, "mask n_forward n_backward"]:
        """All edges of the model between the nodes that have a unit in each set."""
        nodes = self.nodes(masks)
        return self.model.edge_mask & nodes[:, :-1, None] & nodes[:, None, self.model.forward_of_backward]

    def by_node(self, values: Float[Tensor, "unit 1"]) -> Float[Tensor, " n_forward"]:
        """The sum of values over the units of each node of the model."""
        return values.new_zeros(self.model.n_forward).index_add(0, self.node_of, values[:, 0])

    def dealt(self, generator: np.random.Generator) -> np.ndarray:
        """Within a layer's heads, and within an MLP's neurons or all MLPs: every layer keeps its number of units."""
        layer, place = np.divmod(np.arange(self.n_forward), self.per_layer)
        of_mlp = place >= self.model.n_heads * self.d_head
        group = np.where(of_mlp, -1 - layer * (self.level == "neuron"), layer)
        dealt = np.arange(self.n_forward)
        for one in np.unique(group):
            dealt[group == one] = generator.permutation(dealt[group == one])
        return dealt


def of_neurons(graph: Graph | None) -> TypeGuard[Units]:
    """Whether sets of a graph's edges are sets of neurons."""
    return isinstance(graph, Units) and graph.level == "neuron"


def graph_of(shape: Shape, level: Level = "edge", roles: TokenRoles | None = None) -> Graph:
    """The graph whose edges are what is scored and chosen at a level: the model's, or that of its units.

    Raises:
        ValueError: for units with roles.
    """
    graph = Graph.of(shape, roles)
    if level == "edge":
        return graph
    if roles is not None:
        raise ValueError(f"level={level}: only edges have roles of tokens")
    d_head, d_mlp = (shape.d_head, shape.d_mlp) if level == "neuron" else (1, 1)
    return Units(0, 0, graph.parallel, model=graph, level=level, d_head=d_head, d_mlp=d_mlp)
