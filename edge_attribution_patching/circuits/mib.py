"""CPR and CMD, the two numbers by which the Mechanistic Interpretability Benchmark compares methods of scoring edges.

Mueller et al. 2025 (arXiv 2504.13151). A method's circuits hold shares p = .001 to 1 of all edges (`MIB_SHARES`): the
int(p * n_edges) edges of highest score wherever they are, minus those on no path from `input` to `logits`. With f(p)
the faithfulness of such a circuit, the trapezoidal rule over these ten shares gives

    CPR = integral of f(p) dp          edges ranked by score: circuit performance ratio, higher is better
    CMD = integral of |1 - f(p)| dp    edges ranked by |score|: circuit-model distance, 0 is best

Either area is a quotient of means over prompts like f itself, of weighted sums of metrics (in CMD with the sign that
1 - f(p) has over all prompts), so it has the same kind of interval (`statistics.quotient_interval`).

CPR has no upper bound: a circuit without the edges that lower the metric does better than the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..graph import Graph
from ..statistics import quotient_interval
from .faithfulness import CircuitEvaluator
from .search import ranked_edges, top_n_masks

MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Sizes at which the benchmark evaluates, as shares of all edges."""


@dataclass(frozen=True)
class MibAreas:
    """Faithfulness at each of `MIB_SHARES`, and its areas."""

    by_score: tuple[float, ...]  # of the circuits of the highest scores
    by_strength: tuple[float, ...]  # of the circuits of the highest absolute scores
    cpr_interval: tuple[float, float] = (math.nan, math.nan)  # 95%; nan if there are too few prompts
    cmd_interval: tuple[float, float] = (math.nan, math.nan)

    @property
    def cpr(self) -> float:
        """Area under the faithfulness of the highest scores."""
        return float(np.trapezoid(self.by_score, MIB_SHARES))

    @property
    def cmd(self) -> float:
        """Area between the faithfulness of the strongest edges and 1, on either side of 1."""
        return float(np.trapezoid(np.abs(1 - np.array(self.by_strength)), MIB_SHARES))


def mib_masks(
    scores: Float[Tensor, "n_forward n_backward"], graph: Graph, share: float
) -> Bool[Tensor, "2 n_forward n_backward"]:
    """The benchmark's two circuits of one share of the edges: by score, and by absolute score."""
    size = int(share * graph.n_edges)
    orders = [ranked_edges(values, graph, limit=size) for values in (scores, scores.abs())]
    return torch.cat([top_n_masks(order, graph, [size]) for order in orders])


def mib_areas(evaluator: CircuitEvaluator, scores: Float[Tensor, "n_forward n_backward"]) -> MibAreas:
    """Evaluate the benchmark's circuits: ten by score, ten by absolute score.

    Raises:
        ValueError: if the whole model's metric is the corrupted run's, so that no faithfulness is defined.
    """
    corrupted, full = (float(values.double().mean()) for values in (evaluator.corrupted, evaluator.full))
    if full == corrupted:
        raise ValueError(f"the metric is {full:g} in the full and in the corrupted run: no faithfulness is defined")
    # Circuits of one size at a time: a head that one circuit of a stack reads is computed for all of them.
    metrics = torch.stack(
        [evaluator(mib_masks(scores, evaluator.graph, share)).double() for share in MIB_SHARES], dim=1
    )
    by_score, by_strength = ((metrics.mean(dim=2) - corrupted) / (full - corrupted)).tolist()
    return MibAreas(tuple(by_score), tuple(by_strength), *area_intervals(metrics, evaluator.full, evaluator.corrupted))


def area_intervals(
    metrics: Float[Tensor, "2 share prompt"], full: Float[Tensor, " prompt"], corrupted: Float[Tensor, " prompt"]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The 95% intervals of CPR and of CMD, from the metrics of the circuits of highest score and highest |score|."""
    gap = (full - corrupted).double()
    kept_by_score, kept_by_strength = metrics - corrupted
    weights = torch.from_numpy(np.trapezoid(np.eye(len(MIB_SHARES)), MIB_SHARES))  # of each share in the area
    missing = gap - kept_by_strength
    signs = (missing.mean(dim=1) * gap.mean()).sign()
    areas = torch.stack((weights @ kept_by_score, (weights * signs) @ missing))
    (cpr_low, cmd_low), (cpr_high, cmd_high) = (ends.tolist() for ends in quotient_interval(areas, gap))
    return (cpr_low, cpr_high), (max(cmd_low, 0.0), cmd_high)
