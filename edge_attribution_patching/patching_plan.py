"""What each edge mask makes of each node, before anything is computed.

A node none of whose edges carries a difference keeps its base value; a node that reads everything from nodes at their
source value has its source value; the others are computed, if their difference can reach the logits at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int8
from torch import Tensor

from edge_attribution_patching.graph import Graph

BASE, SOURCE, COMPUTED = 0, 1, 2
"""The state of a node or input: as in the base run, as in the source run, or neither."""


@dataclass(frozen=True)
class Plan:
    """The states of all nodes and inputs under some masks, on the CPU.

    Attributes:
        masks: edges that carry the source run.
        nodes: BASE, SOURCE or COMPUTED for each forward node.
        inputs: the same for each backward node.
        needed: forward nodes whose difference reaches the logits through computed inputs.
    """

    graph: Graph
    masks: Bool[Tensor, "mask n_forward n_backward"]
    nodes: Int8[Tensor, "mask n_forward"]
    inputs: Int8[Tensor, "mask n_backward"]
    needed: Bool[Tensor, "mask n_forward"]

    @classmethod
    def of(cls, graph: Graph, masks: Bool[Tensor, "mask n_forward n_backward"], *, shortcuts: bool = True) -> Plan:
        """Work out every state; without shortcuts no input is taken to have its source value."""
        masks = masks.cpu() & graph.edge_mask
        nodes, inputs = _states(graph, masks, shortcuts)
        return cls(graph, masks, nodes, inputs, _needed(graph, masks, nodes, inputs))

    def __len__(self) -> int:
        return len(self.masks)

    def select(self, part: slice) -> Plan:
        """Some of the masks."""
        return Plan(self.graph, self.masks[part], self.nodes[part], self.inputs[part], self.needed[part])

    def heads(self, layer: int) -> slice:
        """Forward indices of a layer's heads."""
        return slice(self.graph.head(layer), self.graph.mlp(layer))

    def qkv(self, layer: int) -> Int8[Tensor, "mask 3 head"]:
        """States of the inputs of a layer's heads."""
        return self.inputs[:, self.graph.qkv_inputs(layer)].view(len(self), 3, self.graph.n_heads)

    def stacks(self, memory_budget: float, token_bytes: int) -> Iterator[slice]:
        """Split the masks into stacks whose differences stay within a budget, one mask at least.

        Args:
            memory_budget: bytes.
            token_bytes: bytes of one node's difference.
        """
        layer_inputs = 3 * self.graph.n_heads + 1
        start = 0
        while start < len(self):
            union = self.needed[start].clone()
            stop = start + 1
            while stop < len(self):
                grown = union | self.needed[stop]
                widest = int(grown.sum()) + 1 + layer_inputs
                if (stop + 1 - start) * widest * token_bytes > memory_budget:
                    break
                union, stop = grown, stop + 1
            yield slice(start, stop)
            start = stop


def _states(graph: Graph, masks: Tensor, shortcuts: bool) -> tuple[Tensor, Tensor]:
    """States of the forward nodes and of the inputs, from the first layer to the logits."""
    n_masks = len(masks)
    nodes = torch.full((n_masks, graph.n_forward), BASE, dtype=torch.int8)
    inputs = torch.full((n_masks, graph.n_backward), BASE, dtype=torch.int8)
    nodes[:, 0] = SOURCE

    def read(columns: slice | int, n_before: int) -> Tensor:
        """States of some inputs [mask, input] from the states of the nodes that they read."""
        edges = masks[:, :n_before, columns].reshape(n_masks, n_before, -1)
        before = nodes[:, :n_before, None]
        touched = (edges & (before != BASE)).any(1)
        whole = (edges & (before == SOURCE)).all(1) & shortcuts
        return torch.where(whole, SOURCE, torch.where(touched, COMPUTED, BASE)).to(torch.int8)

    for layer in range(graph.n_layers):
        heads = read(graph.qkv_inputs(layer), graph.n_before_heads(layer))
        inputs[:, graph.qkv_inputs(layer)] = heads
        heads = heads.view(n_masks, 3, graph.n_heads)
        joint = torch.where((heads == SOURCE).all(1), SOURCE, torch.where((heads == BASE).all(1), BASE, COMPUTED))
        nodes[:, graph.head(layer) : graph.mlp(layer)] = joint.to(torch.int8)
        mlp = read(graph.mlp_input(layer), graph.n_before_mlp(layer))[:, 0]
        inputs[:, graph.mlp_input(layer)] = mlp
        nodes[:, graph.mlp(layer)] = mlp
    inputs[:, graph.logits] = read(graph.logits, graph.n_forward)[:, 0]
    return nodes, inputs


def _needed(graph: Graph, masks: Tensor, nodes: Tensor, inputs: Tensor) -> Tensor:
    """Which forward nodes' differences reach the logits, from the logits back to the first layer."""
    needed = torch.zeros_like(nodes, dtype=torch.bool)
    computed = inputs == COMPUTED
    read = torch.zeros_like(computed)  # computed inputs of computed nodes that are needed themselves
    read[:, graph.logits] = computed[:, graph.logits]
    for u in range(graph.n_forward - 1, -1, -1):
        needed[:, u] = (nodes[:, u] != BASE) & (masks[:, u] & read).any(1)
        if u > 0:
            mine = (graph.forward_of_backward == u).nonzero()[:, 0]
            read[:, mine] = computed[:, mine] & (needed[:, u] & (nodes[:, u] == COMPUTED))[:, None]
    return needed
