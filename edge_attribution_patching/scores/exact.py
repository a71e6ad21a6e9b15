"""The exact score of an edge: what the metric loses when this edge alone carries the corrupted prompt.

Of a node: when all edges that leave it do; of a neuron: when it alone holds what it does in the corrupted run, or
ablated.

    score(u -> v) = mean over prompts of M(clean) - M(clean, with a_u(corrupted) in the place of a_u(clean) at v)

Every edge is a run of its own: that of all edges but one. Those into one layer are stacked; they share the layers below
it, which are those of the clean run and computed once. All approximations of `attribution.py` are of this number.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..choices import EXACT_AT_ONCE
from ..graph import Graph
from ..model.pairs import Metric, TokenPairs, bar
from ..model.reference import Reference
from ..model.weights import ModelWeights
from ..patching.circuits import evaluate_circuits
from ..patching.runs import prepare_runs, run_metric
from .folds import FoldScores, fold_sizes


def exact_scores(
    weights: ModelWeights,
    pairs: TokenPairs,
    metric: Metric,
    fold_of: Int[Tensor, " prompt"] | None = None,
    *,
    graph: Graph | None = None,
    edges: Int[Tensor, " edge"] | None = None,
    batch_size: int = 32,
    memory_budget_gb: float = 1.0,
    reference: Reference | None = None,
) -> FoldScores:
    """The exact score of edges, on all prompts and kept apart for each fold of them.

    Args:
        pairs, metric, fold_of: as of `attribution.attribute`.
        graph: whose edges are patched: the model's, or that of its units.
        reference: what a patched edge carries instead of the corrupted prompt.
        edges: flat indices (`Graph.flat_edges`) of those to patch; all by default. The others have 0.
    """
    graph = graph or Graph.of(weights, pairs.roles)
    fold_of, sizes = fold_sizes(fold_of, len(pairs))
    # By their targets, so that a stack begins as late in the model as it can.
    flat = graph.flat_edges if edges is None else edges
    flat = flat[(flat % graph.n_backward).argsort(stable=True)]
    sums = torch.zeros(len(sizes), graph.n_forward * graph.n_backward)
    memory: dict[str, Any] = {"weights": weights, "memory_budget_gb": memory_budget_gb}
    for batch in pairs.batches(batch_size, share_prefix=reference is None, **memory):
        runs = prepare_runs(weights, batch, reference=reference)
        whole, _ = run_metric(weights, runs, metric)
        members = torch.nn.functional.one_hot(fold_of[batch.rows], len(sizes)).float()
        for some in bar(flat.split(EXACT_AT_ONCE), "edges patched one by one"):
            masks = graph.edge_mask.repeat(len(some), 1, 1)
            masks.view(len(some), -1)[torch.arange(len(some)), some] = False
            how: dict[str, Any] = {"reference": reference, "memory_budget_gb": memory_budget_gb}
            patched = evaluate_circuits(weights, runs, graph, masks, metric, **how)
            sums[:, some] += ((whole - patched).cpu() @ members).T
    return FoldScores(graph, sums.view(-1, graph.n_forward, graph.n_backward), sizes)
