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
from ..connected import on_paths
from ..graph import Graph
from ..units import Units


@dataclass(frozen=True)
class Signed:
    """What signed selection needs beside the scores."""

    # Whether the sign of each edge's score is stable (`stability.sign_stable`).
    stable: Bool[Tensor, "n_forward n_backward"]
    positive_share: float  # the share of positive edges to keep up


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
        limit: stop after this many edges (all by default).
        signed: select by sign too; None: by |score| alone.

    Raises:
        ValueError: for an unknown order or scores of another shape.
    """
    if scores.shape != (graph.n_forward, graph.n_backward):
        raise ValueError(f"scores have shape {tuple(scores.shape)}, the graph {(graph.n_forward, graph.n_backward)}")
    if order not in get_args(Order):
        raise ValueError(f"order={order}: unknown (known: {', '.join(get_args(Order))})")
    if order == "top_n" and signed is None:
        return ranked_edges(scores.abs(), graph, limit)
    selector = EdgeSelector(graph)
    limit = graph.n_edges if limit is None else min(limit, graph.n_edges)
    return graph.ends(selector.edges[selector.select(scores.flatten()[selector.edges], limit, order, signed)])


def ranked_edges(
    values: Float[Tensor, "n_forward n_backward"], graph: Graph, limit: int | None = None
) -> Int[Tensor, "edge 2"]:
    """Edges wherever they are, the highest value first; equal values in index order; `limit` as in `edge_order`."""
    of_edges = values.masked_fill(~graph.edge_mask, -torch.inf)
    ranked = of_edges.flatten().argsort(descending=True, stable=True)
    return graph.ends(ranked[: graph.n_edges][:limit])


class EdgeSelector:
    """Orders the edges of a graph, for many sets of scores.

    Args:
        edges: flat indices of the edges that may join, ascending; all edges by default.
    """

    def __init__(self, graph: Graph, edges: Int[Tensor, " candidate"] | None = None) -> None:
        self.graph = graph
        self.edges = graph.flat_edges if edges is None else edges
        sources, targets = np.divmod(self.edges.numpy(), graph.n_backward)
        into, roles = graph.forward_of_backward.numpy()[targets], sources // graph.n_nodes
        # Of each node, and of `logits` at the end: its inputs' edges, as places among the candidates.
        self._inputs: list[np.ndarray] = []
        for role, follows in enumerate(graph.follows.numpy()):
            here = follows[roles, targets].nonzero()[0]
            by_node = here[into[here].argsort(kind="stable")]
            bounds = np.searchsorted(into[by_node], np.arange(graph.n_nodes + 2))
            del self._inputs[role * graph.n_nodes :]  # `logits` has inputs at the last role alone.
            self._inputs += [by_node[start:end] for start, end in itertools.pairwise(bounds)]
        self._sources = sources.tolist()

    def select(
        self,
        scores: Float[Tensor, " candidate"],
        limit: int,
        order: Order = "greedy",
        signed: Signed | None = None,
    ) -> list[int]:
        """The edges that join, the first `limit` of an order, as places among the candidates."""
        priority = strength = scores.abs().double().numpy()
        positive = None
        if signed is not None:
            stable = signed.stable.flatten()[self.edges].numpy()
            # Edges of unstable sign rank behind all others, among themselves by strength.
            priority = np.where(stable, strength, strength - strength.max(initial=0.0) - 1)
            positive = (scores.numpy() > 0) & stable
        # The positive edges within reach have a frontier of their own: they take turns with the best of all.
        frontiers = [_Frontier(priority, limit)] + [_Frontier(priority, limit, positive)] * (positive is not None)
        joined = [order == "top_n"] * (self.graph.n_forward + 1)
        reached: np.ndarray | None
        reached = np.arange(len(priority)) if order == "top_n" else self._inputs[self.graph.n_forward]
        within_reach = np.zeros(len(priority), dtype=bool)
        taken = set[int]()
        selected: list[int] = []
        n_positive = 0
        while len(selected) < limit:
            if reached is not None:
                reached = reached[~within_reach[reached]]  # With roles, heads at several tokens attend to one.
                within_reach[reached] = True
                for frontier in frontiers:
                    frontier.open(reached)
            # Whether one edge more would leave too few positive ones.
            short = signed is not None and n_positive < signed.positive_share * (len(selected) + 1)
            edge = frontiers[1].pop(taken) if short else None
            edge = frontiers[0].pop(taken) if edge is None else edge
            if edge is None:
                break
            selected.append(edge)
            if positive is not None:
                taken.add(edge)
                n_positive += bool(positive[edge])
            # Its source joins; if it is new, its own inputs come within reach.
            source = self._sources[edge]
            reached = None if joined[source] else self._inputs[source]
            joined[source] = True
        return selected


class _Frontier:
    """The edges within reach, as sorted runs: one of each node that joined. The heap holds the first of each run.

    So a node's inputs are sorted once, when it joins, and a step costs the logarithm of the number of nodes.
    """

    def __init__(self, priority: np.ndarray, limit: int, members: np.ndarray | None = None) -> None:
        self.priority, self.limit, self.members = priority, limit, members
        self._heap: list[tuple[float, int, Iterator[tuple[float, int]]]] = []

    def open(self, edges: np.ndarray) -> None:
        """Bring a node's inputs within reach."""
        if self.members is not None:
            edges = edges[self.members[edges]]
        if len(edges) == 0:
            return
        values = self.priority[edges]
        ranked = (-values).argsort(kind="stable")[: self.limit]
        run = iter(zip((-values[ranked]).tolist(), edges[ranked].tolist(), strict=True))
        heapq.heappush(self._heap, (*next(run), run))

    def pop(self, taken: set[int]) -> int | None:
        """The best edge that is not taken yet; None if there is none."""
        while self._heap:
            _, edge, run = self._heap[0]  # of the best run its first edge; its next one takes the place
            following = next(run, None)
            if following is None:
                heapq.heappop(self._heap)
            else:
                heapq.heapreplace(self._heap, (*following, run))
            if edge not in taken:
                return edge
        return None


def top_n_masks(
    order: Int[Tensor, "edge 2"], graph: Graph, sizes: Sequence[int]
) -> Bool[Tensor, "size n_forward n_backward"]:
    """The circuits of the first n edges of an order, pruned, for each n.

    Raises:
        ValueError: for a size below 0 or beyond the order.
    """
    for size in sizes:
        if not 0 <= size <= len(order):
            raise ValueError(f"size {size}: the order holds {len(order)} edges")
    return join_sizes(order, graph) <= torch.tensor(sizes, dtype=torch.int32)[:, None, None]


def join_sizes(order: Int[Tensor, "edge 2"], graph: Graph) -> Int[Tensor, "n_forward n_backward"]:
    """The smallest n whose circuit has an edge after pruning, int32; beyond the order for edges that none has.

    An edge joins once it, a path to it and a path from it are there. So circuits of one order are nested, and many
    sizes may have the same circuit.
    """
    never = len(order) + 1
    places = torch.full((1, graph.n_forward, graph.n_backward), never, dtype=torch.int32)
    places[0, order[:, 0], order[:, 1]] = torch.arange(1, never, dtype=torch.int32)
    return on_paths(places, never, graph)[0]


def circuit_sizes(order: Int[Tensor, "edge 2"], graph: Graph) -> list[int]:
    """The numbers of edges n at which another circuit begins, ascending."""
    joined = join_sizes(order, graph)
    return joined[joined <= len(order)].unique().tolist()


def edges_in(masks: Bool[Tensor, "mask n_forward n_backward"], graph: Graph) -> Bool[Tensor, "mask source target"]:
    """The edges of the model that each circuit has: of units, those between their nodes."""
    return graph.edges(masks) if isinstance(graph, Units) else masks


def nodes_in(masks: Bool[Tensor, "mask n_forward n_backward"], graph: Graph) -> Bool[Tensor, "mask n_nodes_plus_1"]:
    """Which nodes have an edge in each circuit, at any role: `input`, heads (whatever is read), MLPs; last `logits`."""
    if isinstance(graph, Units):
        return graph.nodes(masks)
    masks = masks.unflatten(1, (graph.n_roles, graph.n_nodes)).any(1)
    count = torch.nn.functional.pad(masks.any(2).int(), (0, 1))
    return count.index_add(1, graph.forward_of_backward, masks.any(1).int()) > 0


def count_nodes(masks: Bool[Tensor, "mask n_forward n_backward"], graph: Graph) -> Int[Tensor, " mask"]:
    """How many nodes have an edge in each circuit, `input` and `logits` included."""
    return nodes_in(masks, graph).sum(1)
