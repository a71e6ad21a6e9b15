"""How much two circuits overlap, and how a circuit changes over training.

A circuit is its table of edges, `source, target, input, score`, as in `results/graphs`. Its nodes are heads, MLPs,
`input` and `logits`. An edge is named by its ends, `<q>`, `<k>` or `<v>` being an input of a head, not another node.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np
import pandas as pd

from circuits_over_time.utils.results.edges import bare, named_sources, named_targets

COLUMNS = (
    *("step", "node_jaccard", "edge_jaccard", "weighted_edge_jaccard"),
    *("edges_added", "edges_removed", "n_edges", "n_nodes"),
)
Edge = tuple[str, str]
T = TypeVar("T")


def edges_of(circuit: pd.DataFrame) -> dict[Edge, float]:
    """Scores by (source, target); a ValueError if an edge is there twice."""
    circuit = circuit.assign(source=named_sources(circuit), target=named_targets(circuit))
    edges = {(str(s), str(t)): float(x) for s, t, x in circuit[["source", "target", "score"]].itertuples(index=False)}
    if len(edges) < len(circuit):
        twice = circuit.loc[circuit.duplicated(["source", "target"]), ["source", "target"]].iloc[0]
        raise ValueError(f"{twice['source']}->{twice['target']} is in the circuit twice")
    return edges


def nodes_of(edges: Iterable[Edge]) -> set[str]:
    """Nodes that the edges join; `a3.h2<q>` and `a3.h2@end` are node `a3.h2`."""
    return {bare(node).partition("<")[0] for edge in edges for node in edge}


def jaccard(first: set[T], second: set[T]) -> float:
    """Size of the intersection over size of the union, in [0, 1]; NaN if both are empty."""
    union = len(first | second)
    return len(first & second) / union if union else float("nan")


def weighted_jaccard(first: Mapping[Edge, float], second: Mapping[Edge, float], *, raw: bool = False) -> float:
    """Score-weighted edge overlap: sum of minima over sum of maxima of the scores (Ruzicka), in [0, 1].

    An edge outside a circuit has score 0. Each circuit's scores are first divided by the sum of their absolute values:
    the metric, and with it every score, grows as a model learns, and growth is no dissimilarity. Positive and negative
    parts are compared separately, so an edge that helps in one circuit and hurts in the other is no overlap.

    Args:
        raw: compare absolute scores as they are instead (Tigges et al. 2024).

    Returns:
        NaN if all scores of both circuits are zero.
    """
    keys = sorted(first.keys() | second.keys())
    a = np.array([first.get(key, 0.0) for key in keys])
    b = np.array([second.get(key, 0.0) for key in keys])
    if raw:
        a, b = np.abs(a), np.abs(b)
    else:
        a, b = (scores / np.abs(scores).sum() if scores.any() else scores for scores in (a, b))
    a, b = (np.concatenate([scores.clip(min=0), (-scores).clip(min=0)]) for scores in (a, b))
    total = np.maximum(a, b).sum()
    return float(np.minimum(a, b).sum() / total) if total > 0 else float("nan")


def compare(first: pd.DataFrame, second: pd.DataFrame, raw: bool = False) -> dict[str, float]:
    """Similarity of two circuits, and the edges that `second` has more and fewer than `first`."""
    a, b = edges_of(first), edges_of(second)
    return {
        "node_jaccard": jaccard(nodes_of(a), nodes_of(b)),
        "edge_jaccard": jaccard(set(a), set(b)),
        "weighted_edge_jaccard": weighted_jaccard(a, b, raw=raw),
        "edges_added": len(b.keys() - a.keys()),
        "edges_removed": len(a.keys() - b.keys()),
        "n_edges": len(b),
        "n_nodes": len(nodes_of(b)),
    }


def similarity_over_training(
    circuits: Mapping[int, pd.DataFrame], reference: int | None = None, raw: bool = False
) -> pd.DataFrame:
    """Each checkpoint's circuit against the one before it, or against that of the step `reference`.

    Returns:
        One row per step, ascending, with `COLUMNS`. The first checkpoint has none before it, and so no row.

    Raises:
        ValueError: if the reference is not among the steps.
    """
    steps = sorted(circuits)
    if reference is not None and reference not in circuits:
        raise ValueError(f"there is no circuit at step {reference}; there are circuits at {', '.join(map(str, steps))}")
    pairs = itertools.pairwise(steps) if reference is None else ((reference, step) for step in steps)
    rows = [{"step": step, **compare(circuits[before], circuits[step], raw)} for before, step in pairs]
    return pd.DataFrame(rows, columns=COLUMNS)
