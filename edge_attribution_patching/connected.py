"""Which edges are on a path from `input` to `logits`."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .graph import Graph
from .units import Units


def prune(masks: Bool[Tensor, "mask n_forward n_backward"], graph: Graph) -> Bool[Tensor, "mask n_forward n_backward"]:
    """Keep the edges on a path from `input` to `logits`; a head passes on what reaches any of its q, k and v."""
    return on_paths((~(masks & graph.edge_mask)).byte(), 1, graph) == 0


def on_paths(
    places: Int[Tensor, "mask n_forward n_backward"], never: int, graph: Graph
) -> Int[Tensor, "mask n_forward n_backward"]:
    """The smallest n at which each edge is on a path whose edges all have places of at most n; `never` if on none.

    Of units, every one is: its node reads `input`.
    """
    if isinstance(graph, Units):
        return places
    shape, follows = places.shape, graph.follows
    places = places.view(len(places), graph.n_roles, graph.n_nodes, graph.n_backward)
    reached = places[..., 0].new_full(places.shape[:3], never)  # from which n on `input` leads to a forward node
    reached[..., 0] = 0
    leading = places[:, :, 0].new_full((*places.shape[:2], graph.n_backward), never)  # a backward node to `logits`
    leading[:, -1, graph.logits] = 0
    # A path is there with its last edge (maximum), a node with its first path (minimum). Forwards:
    for layer in range(graph.n_layers):
        columns = graph.qkv_inputs(layer)
        first = graph.head(layer)  # The nodes before it are what the layer's heads read.
        inputs = torch.maximum(places[:, :, :first, columns], reached[:, :, :first, None]).amin(2)
        heads = inputs[:, None].where(follows[:, :, columns], never).amin(2)  # of the roles that a role attends to
        reached[..., first : graph.mlp(layer)] = heads.unflatten(2, (3, graph.n_heads)).amin(2)
        n_before = graph.n_before_mlp(layer)
        mlp = torch.maximum(places[:, :, :n_before, graph.mlp_input(layer)], reached[..., :n_before]).amin(2)
        reached[..., graph.mlp(layer)] = mlp
    # Backwards: a node leads on if anything that leads on reads it.
    for layer in reversed(range(graph.n_layers)):
        columns = graph.qkv_inputs(layer)
        leading[..., graph.mlp_input(layer)] = torch.maximum(places[:, :, graph.mlp(layer)], leading).amin(2)
        heads = torch.maximum(places[:, :, graph.head(layer) : graph.mlp(layer)], leading[:, :, None]).amin(3)
        leading[..., columns] = heads.repeat(1, 1, 3)[:, :, None].where(follows[:, :, columns], never).amin(1)
    return torch.maximum(torch.maximum(places, reached[..., None]), leading[:, :, None]).view(shape)
