"""From edge scores to circuits: one order of edges, of which every circuit is a pruned prefix.

Greedy (Hanna et al. 2024): start at `logits`, and again and again add the edge of highest |score| whose destination is
in the circuit, together with its source. `top_n` orders all edges by |score|. Either way the circuit of n edges is the
first n edges of the order, minus nodes without a path from `input` or to `logits`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edge_attribution_patching.graph import Graph

Order = Literal["greedy", "top_n"]


def edge_order(
    scores: Float[Tensor, "n_forward n_backward"], graph: Graph, order: Order = "greedy", limit: int | None = None
) -> Int[Tensor, "edge 2"]:
    """Edges (forward index, backward index), the best first; equal scores in index order.

    Args:
        scores: score of every edge; entries that are not edges are ignored.
        graph: the graph the scores belong to.
        order: "greedy" or "top_n".
        limit: stop after this many edges (all by default).

    Raises:
        ValueError: for an unknown order or scores of another shape.
    """
    if scores.shape != (graph.n_forward, graph.n_backward):
        raise ValueError(f"scores have shape {tuple(scores.shape)}, the graph {(graph.n_forward, graph.n_backward)}")
    limit = graph.n_edges if limit is None else min(limit, graph.n_edges)
    strength = scores.abs()
    if order == "top_n":
        return ranked_edges(strength, graph, limit)
    if order != "greedy":
        raise ValueError(f"order={order}: unknown (known: greedy, top_n)")

    # Every node that joins opens one run: the edges into its inputs, sorted. The heap holds the first of each run.
    opened: list[tuple[list[float], list[int]]] = []  # of each run: -|score|, flat edge index
    heap: list[tuple[float, int, int, int]] = []  # -|score|, flat edge index, run, place in the run
    joined = torch.zeros(graph.n_forward, dtype=torch.bool).tolist()

    def open_run(node: int) -> None:
        inputs = (graph.forward_of_backward == node).nonzero()[:, 0]
        if len(inputs) == 0:
            return
        n_before = int(graph.n_before[inputs[0]])
        flat = (torch.arange(n_before)[:, None] * graph.n_backward + inputs).flatten()
        values, ranked = strength[:n_before, inputs].flatten().sort(descending=True, stable=True)
        opened.append(((-values).tolist(), flat[ranked].tolist()))
        heapq.heappush(heap, (opened[-1][0][0], opened[-1][1][0], len(opened) - 1, 0))

    open_run(graph.n_forward)
    found: list[int] = []
    while heap and len(found) < limit:
        _, edge, run, place = heap[0]
        found.append(edge)
        negative, edges = opened[run]
        if place + 1 < len(edges):
            heapq.heapreplace(heap, (negative[place + 1], edges[place + 1], run, place + 1))
        else:
            heapq.heappop(heap)
        source = edge // graph.n_backward
        if not joined[source]:
            joined[source] = True
            open_run(source)
    flat = torch.tensor(found, dtype=torch.long)
    return torch.stack((flat // graph.n_backward, flat % graph.n_backward), dim=1)


def ranked_edges(
    values: Float[Tensor, "n_forward n_backward"], graph: Graph, limit: int | None = None
) -> Int[Tensor, "edge 2"]:
    """Edges wherever they are, the highest value first; equal values in index order.

    Args:
        values: one for every edge; entries that are not edges are ignored.
        graph: the graph the values belong to.
        limit: stop after this many edges (all by default).
    """
    limit = graph.n_edges if limit is None else min(limit, graph.n_edges)
    of_edges = values.masked_fill(~graph.edge_mask, -torch.inf)
    ranked = of_edges.flatten().argsort(descending=True, stable=True)[:limit]
    return torch.stack((ranked // graph.n_backward, ranked % graph.n_backward), dim=1)


def prefix_masks(
    order: Int[Tensor, "edge 2"], graph: Graph, sizes: Sequence[int]
) -> Bool[Tensor, "size n_forward n_backward"]:
    """The circuits of the first n edges of an order, pruned, for each n.

    Raises:
        ValueError: for a size below 0 or beyond the order.
    """
    masks = torch.zeros(len(sizes), graph.n_forward, graph.n_backward, dtype=torch.bool)
    for mask, size in zip(masks, sizes, strict=True):
        if not 0 <= size <= len(order):
            raise ValueError(f"size {size}: the order holds {len(order)} edges")
        mask[order[:size, 0], order[:size, 1]] = True
    return prune(masks, graph)


def _any_input(per_input: Bool[Tensor, "mask n_backward"], graph: Graph) -> Bool[Tensor, "mask n_forward_plus_1"]:
    """For each forward node, and for `logits` at the end, whether any of its inputs holds."""
    count = torch.zeros(len(per_input), graph.n_forward + 1, dtype=torch.int32)
    count.index_add_(1, graph.forward_of_backward, per_input.int())
    return count > 0


def prune(masks: Bool[Tensor, "mask n_forward n_backward"], graph: Graph) -> Bool[Tensor, "mask n_forward n_backward"]:
    """Keep the edges on a path from `input` to `logits`; a head passes on what reaches any of its q, k and v."""
    masks = masks & graph.edge_mask
    reached = torch.zeros(len(masks), graph.n_forward, dtype=torch.bool)  # from input
    reached[:, 0] = True
    leading = torch.zeros(len(masks), graph.n_backward, dtype=torch.bool)  # to logits
    leading[:, graph.logits] = True
    for layer in range(graph.n_layers):
        columns = graph.qkv_inputs(layer)
        n_before = graph.n_before_heads(layer)
        heads = (masks[:, :n_before, columns] & reached[:, :n_before, None]).any(1)
        reached[:, graph.head(layer) : graph.mlp(layer)] = heads.view(len(masks), 3, graph.n_heads).any(1)
        n_before = graph.n_before_mlp(layer)
        reached[:, graph.mlp(layer)] = (masks[:, :n_before, graph.mlp_input(layer)] & reached[:, :n_before]).any(1)
    for layer in reversed(range(graph.n_layers)):
        mlp = (masks[:, graph.mlp(layer)] & leading).any(1)
        leading[:, graph.mlp_input(layer)] = mlp
        heads = (masks[:, graph.head(layer) : graph.mlp(layer)] & leading[:, None]).any(2)
        leading[:, graph.qkv_inputs(layer)] = heads.repeat(1, 3)
    return masks & reached[:, :, None] & leading[:, None, :]


def nodes_in(masks: Bool[Tensor, "mask n_forward n_backward"], graph: Graph) -> Bool[Tensor, "mask n_forward_plus_1"]:
    """Which nodes have an edge in each circuit: `input`, heads (whatever of q, k, v is read), MLPs; last `logits`."""
    as_source = torch.nn.functional.pad(masks.any(2), (0, 1))
    return as_source | _any_input(masks.any(1), graph)


def count_nodes(masks: Bool[Tensor, "mask n_forward n_backward"], graph: Graph) -> Int[Tensor, " mask"]:
    """How many nodes have an edge in each circuit, `input` and `logits` included."""
    return nodes_in(masks, graph).sum(1)
