"""Circuits grown backwards from the logits, edge by edge (Hanna et al. 2024), for many sets of scores of one graph.

Start at `logits`, and again and again add the edge of highest key whose destination is in the circuit, together with
its source; equal keys in index order. With a share of positive edges to keep up, the next edge is the best positive one
whenever the circuit holds less than that share (Nikankin et al. 2025, arXiv 2510.25786).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edge_attribution_patching.graph import Graph


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
