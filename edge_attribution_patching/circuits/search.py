"""From edge scores to circuits: one order of edges, of which every circuit is a pruned prefix.

Greedy (Hanna et al. 2024): start at `logits`, and again and again add the edge of highest |score| whose destination is
in the circuit, together with its source. `top_n` orders all edges by |score|. Either way the circuit of n edges is the
first n edges of the order, minus nodes without a path from `input` or to `logits`.

Signed selection (Nikankin et al. 2025, arXiv 2510.25786) prefers edges whose sign does not depend on the prompts drawn,
and keeps up a share of edges that raise the metric: an edge of unstable sign comes only when no other is within reach,
and the next edge is the strongest positive one whenever fewer than that share are.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..choices import Order
from ..graph import Graph

# Circuits grown backwards from the logits, edge by edge (Hanna et al. 2024), for many sets of scores of one graph.


class Grower:
    """Grows circuits in a graph.

    Args:
        graph: the graph.
        edges: flat indices of the edges that may join, ascending; all edges by default.

    Attributes:
        edges: these candidates.
    """

    def __init__(self, graph: Graph, edges: Int[Tensor, " candidate"] | None = None) -> None:
        self.graph = graph
        self.edges = graph.edge_mask.flatten().nonzero()[:, 0] if edges is None else edges
        flat = self.edges.numpy()
        into = graph.forward_of_backward.numpy()[flat % graph.n_backward]
        by_node = into.argsort(kind="stable")
        bounds = np.searchsorted(into[by_node], np.arange(graph.n_forward + 2))
        # Of each node, and of `logits` at the end: its inputs' edges, as places among the candidates.
        self._inputs = [by_node[start:end] for start, end in itertools.pairwise(bounds)]
        self._sources = (flat // graph.n_backward).tolist()

    def grow(
        self,
        keys: Float[np.ndarray, " candidate"],
        limit: int,
        positive: Bool[np.ndarray, " candidate"] | None = None,
        positive_share: float = 0.0,
        *,
        everywhere: bool = False,
    ) -> list[int]:
        """The edges that join, in order, as places among the candidates.

        Args:
            keys: what ranks the candidates, the highest first.
            limit: stop after this many edges.
            positive: which candidates count as positive.
            positive_share: the share of positive edges to keep up, as long as some are within reach.
            everywhere: let all candidates be within reach from the start.
        """
        everything = _Frontier(keys, limit)
        frontiers = [everything] if positive is None else [everything, _Frontier(keys, limit, positive)]
        joined = np.zeros(self.graph.n_forward + 1, dtype=bool).tolist()
        taken = set[int]()
        found: list[int] = []

        def join(node: int) -> None:
            joined[node] = True
            for frontier in frontiers:
                frontier.open(self._inputs[node])

        if everywhere:
            joined = [True] * len(joined)
            for frontier in frontiers:
                frontier.open(np.arange(len(keys)))
        else:
            join(self.graph.n_forward)
        n_positive = 0
        while len(found) < limit:
            edge = None
            if positive is not None and n_positive < positive_share * (len(found) + 1):
                edge = frontiers[1].pop(taken)
            if edge is None:
                edge = everything.pop(taken)
            if edge is None:
                break
            found.append(edge)
            if positive is not None:
                taken.add(edge)
                n_positive += bool(positive[edge])
            if not joined[self._sources[edge]]:
                join(self._sources[edge])
        return found


class _Frontier:
    """The edges within reach, as sorted runs: one of each node that joined. The heap holds the first of each run."""

    def __init__(self, keys: np.ndarray, limit: int, members: np.ndarray | None = None) -> None:
        self.keys, self.limit, self.members = keys, limit, members
        self._heap: list[tuple[float, int, Iterator[tuple[float, int]]]] = []

    def open(self, edges: np.ndarray) -> None:
        """Bring a node's inputs within reach."""
        if self.members is not None:
            edges = edges[self.members[edges]]
        if len(edges) == 0:
            return
        values = self.keys[edges]
        ranked = (-values).argsort(kind="stable")[: self.limit]
        run = iter(zip((-values[ranked]).tolist(), edges[ranked].tolist(), strict=True))
        heapq.heappush(self._heap, (*next(run), run))

    def pop(self, taken: set[int]) -> int | None:
        """The best edge that is not taken yet; None if there is none."""
        while self._heap:
            _, edge, run = self._heap[0]
            following = next(run, None)
            if following is None:
                heapq.heappop(self._heap)
            else:
                heapq.heapreplace(self._heap, (*following, run))
            if edge not in taken:
                return edge
        return None


@dataclass(frozen=True)
class Signed:
    """What signed selection needs beside the scores.

    Attributes:
        stable: whether the sign of each edge's score is stable (`stability.sign_stable`).
        positive_share: the share of positive edges to keep up.
    """

    stable: Bool[Tensor, "n_forward n_backward"]
    positive_share: float


def edge_order(
    scores: Float[Tensor, "n_forward n_backward"],
    graph: Graph,
    order: Order = "greedy",
    limit: int | None = None,
    signed: Signed | None = None,
) -> Int[Tensor, "edge 2"]:
    """Edges (forward index, backward index), the best first; equal scores in index order.

    Args:
        scores: score of every edge; entries that are not edges are ignored.
        graph: the graph the scores belong to.
        order: "greedy" or "top_n".
        limit: stop after this many edges (all by default).
        signed: select by sign too; None: by |score| alone.

    Raises:
        ValueError: for an unknown order or scores of another shape.
    """
    if scores.shape != (graph.n_forward, graph.n_backward):
        raise ValueError(f"scores have shape {tuple(scores.shape)}, the graph {(graph.n_forward, graph.n_backward)}")
    limit = graph.n_edges if limit is None else min(limit, graph.n_edges)
    if order not in get_args(Order):
        raise ValueError(f"order={order}: unknown (known: {', '.join(get_args(Order))})")
    if order == "top_n" and signed is None:
        return ranked_edges(scores.abs(), graph, limit)
    grower = Grower(graph)
    stable = None if signed is None else signed.stable.flatten()[grower.edges]
    share = 0.0 if signed is None else signed.positive_share
    found = grow(grower, scores.flatten()[grower.edges], limit, order, stable, share)
    flat = grower.edges[found]
    return torch.stack((flat // graph.n_backward, flat % graph.n_backward), dim=1)


def grow(
    grower: Grower,
    scores: Float[Tensor, " candidate"],
    limit: int,
    order: Order = "greedy",
    stable: Bool[Tensor, " candidate"] | None = None,
    positive_share: float = 0.0,
) -> list[int]:
    """The edges of an order, as places among a grower's candidates.

    Args:
        grower: of the graph.
        scores: of its candidates.
        limit: stop after this many edges.
        order: "greedy" or "top_n".
        stable: for signed selection, whether the sign of each candidate is stable; None: select by |score| alone.
        positive_share: the share of positive edges that signed selection keeps up.
    """
    strength = scores.abs().double().numpy()
    everywhere = order == "top_n"
    if stable is None:
        return grower.grow(strength, limit, everywhere=everywhere)
    # Edges of unstable sign rank behind all others, among themselves by strength.
    keys = np.where(stable.numpy(), strength, strength - strength.max(initial=0.0) - 1)
    positive = ((scores > 0) & stable).numpy()
    return grower.grow(keys, limit, positive, positive_share, everywhere=everywhere)


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


def top_n_masks(
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
