"""Every way to score edges: by gradients (`attribution.py`, `node_layers.py`), by what nodes read from each other
(`information_flow.py`), or by patching every edge (`exact.py`), which the gradients estimate.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ..choices import TOLERANCE, USUAL_STEPS, Accumulate, Level, Method, Quadrature
from ..model.pairs import Metric, TokenPairs
from ..model.reference import Reference
from ..model.weights import ModelWeights
from ..units import graph_of
from .attribution import attribute
from .exact import exact_scores
from .folds import FoldScores
from .information_flow import information_flow
from .refinement import refined


def edge_scores(
    weights: ModelWeights,
    pairs: TokenPairs,
    metric: Metric,
    fold_of: Int[Tensor, " prompt"] | None = None,
    *,
    method: Method = "eap_ig",
    level: Level = "edge",
    steps: int | Literal["auto"] | None = None,
    tolerance: float = TOLERANCE,
    quadrature: Quadrature = "left",
    n_exact: int | None = None,
    accumulate: Accumulate = "float32",
    batch_size: int = 32,
    memory_budget_gb: float = 1.0,
    reference: Reference | None = None,
) -> FoldScores:
    """Score of every edge, node or neuron, on all prompts (`.scores`) and kept apart for each fold of them.

    Args:
        level: what is scored (`units`).
        pairs, metric, fold_of, quadrature, accumulate, batch_size, memory_budget_gb, reference: as of
            `attribution.attribute`; `information_flow_routes` looks at clean prompts alone.
        steps: integration steps; `USUAL_STEPS` by default. `auto`, of `eap_ig`: as many as it takes (`refinement`).
        tolerance: of `auto`, the error of integration in standard errors of the scores.
        n_exact: of `exact`, patch only so many edges, the strongest by `eap_ig`; the others have the score 0.

    Raises:
        ValueError, FloatingPointError: as of `attribute`.
    """
    memory: dict[str, Any] = {"batch_size": batch_size, "memory_budget_gb": memory_budget_gb}
    if method == "information_flow_routes":
        if level != "edge":
            raise ValueError(f"method={method}: scores edges alone, not level={level}")
        return information_flow(weights, pairs, fold_of, **memory)
    memory["reference"] = reference
    if method == "exact":
        graph, edges = graph_of(weights, level, pairs.roles), None
        if n_exact is not None and n_exact < graph.n_edges:
            first = edge_scores(weights, pairs, metric, level=level, quadrature=quadrature, **memory).scores.abs()
            edges = first.masked_fill(~graph.edge_mask, -1).flatten().topk(n_exact).indices
        return exact_scores(weights, pairs, metric, fold_of, graph=graph, edges=edges, **memory)
    steps = USUAL_STEPS.get(method, 1) if steps is None else steps
    if steps == "auto" and (method != "eap_ig" or accumulate == "model"):
        raise ValueError(f"ig_steps=auto: eap_ig alone has it, added up in float32; give {method} a number of steps")
    with torch.inference_mode(False), torch.enable_grad():  # Callers may be in torch.no_grad().
        if steps == "auto":
            scores_at = partial(attribute, weights, pairs, metric, fold_of, level=level, kept=[], **memory)
            return refined(lambda rules: scores_at(rules=rules), tolerance)
        how: dict[str, Any] = {"method": method, "level": level, "steps": steps, "quadrature": quadrature}
        return attribute(weights, pairs, metric, fold_of, accumulate=accumulate, **how, **memory)
