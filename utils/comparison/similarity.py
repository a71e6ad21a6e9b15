"""How much two circuits overlap, for many pairs of circuits of one graph at once.

Circuits are rows of a boolean matrix over the same candidate edges, with the scores that they were grown from.

    node_jaccard       shared nodes / all nodes of either; `input` and `logits` are in every circuit
    head_jaccard       the same for attention heads alone
    edge_jaccard       the same for edges
    weighted_jaccard   sum of minima / sum of maxima of the edges' scores, as shares of the circuit's sum of |score|;
                       an edge outside a circuit has 0, and positive and negative parts are compared apart (Ruzicka);
                       `raw`: of |score| itself, as Tigges et al. 2024 (arXiv 2407.10827) have it
    rank_correlation   Spearman's correlation of the scores of all edges, whatever the circuits hold
    edges_added        edges of the second circuit that the first lacks
    edges_removed      edges of the first that the second lacks

A Jaccard similarity of two empty sets is nan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from circuits_over_time.edge_attribution_patching.graph import Graph

OF_CIRCUITS = ("node_jaccard", "head_jaccard", "edge_jaccard", "weighted_jaccard", "edges_added", "edges_removed")
"""Measures that depend on the circuits."""
OF_SCORES = ("rank_correlation",)
"""Measures of the scores alone."""
MEASURES = (*OF_CIRCUITS, *OF_SCORES)
COUNTS = ("edges_added", "edges_removed")
"""Measures that grow where circuits differ; all others fall."""


@dataclass(frozen=True)
class Edges:
    """Candidate edges of a graph."""

    graph: Graph
    flat: Int[Tensor, " edge"]  # forward * n_backward + backward of each, ascending

    @classmethod
    def all_of(cls, graph: Graph) -> Edges:
        """Every edge of a graph."""
        return cls(graph, graph.flat_edges)

    @cached_property
    def heads(self) -> Bool[Tensor, " node"]:
        """Which nodes (`logits` last) are attention heads."""
        return torch.tensor([name.startswith("a") for name in [*self.graph.plain.forward_nodes, "logits"]])

    def nodes(self, masks: Bool[Tensor, "circuit edge"]) -> Bool[Tensor, "circuit node"]:
        """Which nodes have an edge in each circuit, at any role; `logits` last."""
        counts = torch.zeros(len(masks), self.graph.n_nodes + 1, dtype=torch.int32)
        sources, inputs = self.graph.ends(self.flat).T
        for ends in (sources % self.graph.n_nodes, self.graph.forward_of_backward[inputs]):
            counts.index_add_(1, ends, masks.int())
        return counts > 0

    def names(self) -> list[tuple[str, str]]:
        """Source and target of each, as the tables of circuits have them."""
        forward, backward = self.graph.forward_nodes, self.graph.backward_nodes
        return [(forward[source], backward[target]) for source, target in self.graph.ends(self.flat).tolist()]


@dataclass(frozen=True)
class Circuits:
    """Circuits over the same candidate edges, and the scores that they were grown from."""

    edges: Edges
    masks: Bool[Tensor, "circuit edge"]
    scores: Float[Tensor, "circuit edge"]


def of_circuits(first: Circuits, second: Circuits, *, raw: bool = False) -> dict[str, Float[np.ndarray, " circuit"]]:
    """The measures that depend on the circuits; `raw` as of `weighted_jaccard`."""
    edges = first.edges
    nodes = [edges.nodes(side.masks) for side in (first, second)]
    measures = {
        "node_jaccard": jaccard(*nodes),
        "head_jaccard": jaccard(*(of_side[:, edges.heads] for of_side in nodes)),
        "edge_jaccard": jaccard(first.masks, second.masks),
        "weighted_jaccard": weighted_jaccard(first.scores * first.masks, second.scores * second.masks, raw),
        "edges_added": (second.masks & ~first.masks).sum(1).double(),
        "edges_removed": (first.masks & ~second.masks).sum(1).double(),
    }
    return {name: values.numpy() for name, values in measures.items()}


def jaccard(first: Bool[Tensor, "row item"], second: Bool[Tensor, "row item"]) -> Float[Tensor, " row"]:
    """Size of the intersection over size of the union, float64; nan if both are empty."""
    return (first & second).sum(1).double() / (first | second).sum(1).double()


def weighted_jaccard(
    first: Float[Tensor, "row item"], second: Float[Tensor, "row item"], raw: bool = False
) -> Float[Tensor, " row"]:
    """Sum of minima over sum of maxima of two rows of weights, each divided by its sum of absolute values; float64.

    Positive and negative parts are compared apart, so an item of opposite signs is no overlap. nan if both are all 0.
    With `raw`, absolute values are compared as they are.
    """
    a, b = first.double(), second.double()
    if raw:
        a, b = a.abs(), b.abs()
    else:
        a, b = (rows / rows.abs().sum(1, keepdim=True).clamp_min(1e-300) for rows in (a, b))
    low = torch.minimum(a.clamp_min(0), b.clamp_min(0)) + torch.minimum((-a).clamp_min(0), (-b).clamp_min(0))
    high = torch.maximum(a.clamp_min(0), b.clamp_min(0)) + torch.maximum((-a).clamp_min(0), (-b).clamp_min(0))
    return low.sum(1) / high.sum(1)


def rank_correlation(first: Float[Tensor, "row item"], second: Float[Tensor, "row item"]) -> Float[np.ndarray, " row"]:
    """Spearman's correlation of each row with that of the other, ties sharing a rank; nan if all of a row are tied."""
    ranks = [stats.rankdata(rows.numpy(), axis=1) for rows in (first, second)]
    a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        return np.asarray((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)))
