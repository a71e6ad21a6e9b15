"""Scores of folds of the prompts: how sure every edge's score is, at no further passes of the model.

Prompts are dealt into folds, and attribution keeps a sum for each. The mean of all prompts is the score. With n_k
prompts in fold k of K, n in all, and m_k the mean score of an edge over the fold,

    score = sum_k n_k m_k / n          se^2 = sum_k n_k (m_k - score)^2 / ((K - 1) n)

because n_k (m_k - score)^2 has the expectation (1 - n_k / n) s^2, where s^2 is the variance of a prompt's score.

Few of a large graph's edges can be in a circuit. `FoldScores.keep` picks those that matter and stores them in half
precision (`KeptFolds`); bootstraps of circuits need nothing else (`stability.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from ..graph import Graph
from ..statistics import RESAMPLES, Bootstrap

KEEP_ALL = 50_000
"""Of a graph of up to so many edges, all fold scores are kept."""
KEEP_MOST = 200_000
"""Of larger ones at most so many."""
POOLED = 2_000_000
"""About so many resampled ratios of score and error are compared with."""
_HALF_RANGE = 2.0**15
"""What the largest score becomes in float16: its range is full precision from 6e-5 to 65504."""


def assign_folds(n_prompts: int, n_folds: int, seed: int) -> Int[Tensor, " prompt"]:
    """Deal prompts into folds at random: sizes differ by at most 1. With fewer prompts than folds, a prompt each.

    The order of prompts cannot show in the folds: tasks take turns between their kinds of prompts.
    """
    dealt = torch.arange(n_prompts) % min(n_folds, n_prompts)
    return dealt[torch.randperm(n_prompts, generator=torch.Generator().manual_seed(seed))]


def fold_sizes(
    fold_of: Int[Tensor, " prompt"] | None, n_prompts: int
) -> tuple[Int[Tensor, " prompt"], Int[Tensor, " fold"]]:
    """The fold of each prompt, all in one where it is None, and the sizes of the folds, on the CPU.

    A ValueError if not every prompt is in a fold, or a fold up to the last has none.
    """
    fold_of = torch.zeros(n_prompts, dtype=torch.long) if fold_of is None else fold_of.cpu()
    sizes = fold_of.bincount()
    if len(fold_of) != n_prompts or bool((sizes == 0).any()):
        raise ValueError(f"{n_prompts} prompts cannot be in folds of {sizes.tolist()} prompts")
    return fold_of, sizes


@dataclass(frozen=True)
class FoldScores:
    """Scores of every edge, by fold."""

    graph: Graph
    # Over the prompts of each fold, float32 on the CPU; 0 where there is no edge.
    sums: Float[Tensor, "fold n_forward n_backward"]
    sizes: Int[Tensor, " fold"]
    # With `ig_steps: auto`: how many points of the path had their gradients taken, and the error that is left, as
    # `refinement.integration_error` estimates it.
    points: int | None = None
    integration_error: float | None = None

    @cached_property
    def scores(self) -> Float[Tensor, "n_forward n_backward"]:
        """The mean over all prompts, float32. It is the folds' sum, rounded once."""
        total = torch.zeros(self.sums.shape[1:], dtype=torch.float64)
        for fold in self.sums:
            total += fold
        return (total / int(self.sizes.sum())).float()

    @cached_property
    def standard_error(self) -> Float[Tensor, "n_forward n_backward"]:
        """Standard error of `scores`, float32; nan with a single fold, 0 where there is no edge."""
        if len(self.sizes) == 1:
            return torch.full_like(self.scores, torch.nan).where(self.graph.edge_mask, 0)
        # Fold by fold, so that no second copy of all sums is held.
        squares = torch.zeros(self.scores.shape, dtype=torch.float64)
        mean = self.scores.double()
        for fold, size in zip(self.sums, self.sizes.tolist(), strict=True):
            squares += size * (fold.double() / size - mean).square()
        return (squares / ((len(self.sizes) - 1) * int(self.sizes.sum()))).sqrt().float()

    @cached_property
    def q_values(self) -> Float[Tensor, "n_forward n_backward"]:
        """Of the hypothesis that an edge's score is 0, float32; nan with a single fold, and where there is no edge.

        Few prompts may make all of a score, and a sample without them looks sure of a wrong one. Which edges lack
        such prompts cannot be seen, but how often that happens can: |score / standard error| is compared with that of
        resampled folds around their mean, of all edges together (bootstrap-t, Efron and Tibshirani 1993, section 16.4).
        Benjamini and Hochberg (1995) over all edges of the graph.
        """
        q_values, edges = torch.full(self.scores.shape, torch.nan), self.graph.edge_mask
        if (n_folds := len(self.sizes)) > 1:
            resamples = max(20, min(RESAMPLES, POOLED // self.graph.n_edges))
            shares = Bootstrap.of(n_folds, 0, resamples).shares * self.sizes  # [resample, fold]
            shares /= shares.sum(dim=1, keepdim=True)
            pooled = []
            for some in self.graph.flat_edges[self.standard_error.flatten()[self.graph.flat_edges] > 0].split(50_000):
                off = self.sums.flatten(1)[:, some].double() / self.sizes[:, None] - self.scores.flatten()[some]
                mean = shares @ off
                errors = ((shares @ off.square() - mean.square()).clamp(min=0) / (n_folds - 1)).sqrt()
                pooled.append((mean.abs() / errors).nan_to_num(torch.inf, torch.inf).float().flatten().numpy())
            by_chance = np.sort(np.concatenate(pooled)) if pooled else np.empty(0)
            ratio = (self.scores[edges] / self.standard_error[edges]).nan_to_num(0, torch.inf)  # 0 / 0: no effect
            n_larger = len(by_chance) - np.searchsorted(by_chance, ratio.abs().numpy())
            p_values = (1 + n_larger) / (1 + len(by_chance))
            q_values[edges] = torch.from_numpy(stats.false_discovery_control(p_values)).float()
        return q_values

    def keep(self, order: Int[Tensor, "edge 2"], largest: int) -> KeptFolds:
        """The fold scores of the edges that a circuit may hold.

        All edges of a graph of up to 50,000. Of a larger one 50,000, or four times the `largest` circuit that was tried
        if that is more, but at most 200,000: half of them the first of the order that circuits are taken from
        (`search.edge_order`), the others those that come strongest at the far end of their score's 95% interval,
        |score| + 1.96 standard errors.
        """
        graph = self.graph
        kept = graph.edge_mask.flatten().clone()
        n_kept = min(graph.n_edges, max(KEEP_ALL, min(4 * largest, KEEP_MOST)))
        if n_kept < graph.n_edges:
            # Half by their place in the order, the rest by how strong they might be.
            first = order[: n_kept // 2, 0] * graph.n_backward + order[: n_kept // 2, 1]
            reach = (self.scores.abs() + 1.96 * self.standard_error.nan_to_num()).flatten()
            reach[~kept] = -1
            reach[first] = torch.inf
            kept = torch.zeros_like(kept)
            kept[reach.topk(n_kept).indices] = True
        return self._kept(kept.nonzero()[:, 0])

    def keep_all(self) -> KeptFolds:
        """The fold scores of all edges, rounded as if they were kept."""
        return self._kept(self.graph.flat_edges)

    def _kept(self, edges: Int[Tensor, " kept"]) -> KeptFolds:
        return KeptFolds.rounded(self.graph, edges, self.sums.flatten(1)[:, edges] / self.sizes[:, None], self.sizes)


@dataclass(frozen=True)
class KeptFolds:
    """The stored fold scores."""

    graph: Graph
    edges: Int[Tensor, " kept"]  # flat index forward * n_backward + backward of each edge that is kept, ascending
    # Mean score of the edge over the prompts of each fold, float32 with the precision of float16.
    means: Float[Tensor, "fold kept"]
    sizes: Int[Tensor, " fold"]
    scale: float  # what the float16 numbers are multiplied by

    @classmethod
    def rounded(
        cls, graph: Graph, edges: Int[Tensor, " kept"], means: Float[Tensor, "fold kept"], sizes: Int[Tensor, " fold"]
    ) -> KeptFolds:
        """Round to what is stored, so that whatever is worked out now can be worked out again from the file."""
        strongest = float(means.abs().max()) if means.numel() else 0.0
        # A power of two: dividing and multiplying lose nothing.
        scale = 2.0 ** math.ceil(math.log2(strongest / _HALF_RANGE)) if strongest > 0 else 1.0
        return cls(graph, edges.long(), (means / scale).half().float() * scale, sizes, scale)

    def to_tensors(self) -> dict[str, Any]:
        """What goes into a `.pt` file: `fold_sizes`, `fold_edges`, `fold_scores` and `fold_scale`."""
        return {
            "fold_sizes": self.sizes.long(),
            "fold_edges": self.edges.int(),
            "fold_scores": (self.means / self.scale).half(),
            "fold_scale": torch.tensor([self.scale], dtype=torch.float32),
        }

    @classmethod
    def from_tensors(cls, stored: Mapping[str, Any], graph: Graph) -> KeptFolds:
        """Read back, for the file's graph, what `to_tensors` returned; a ValueError if it holds no fold scores."""
        if "fold_scores" not in stored:
            raise ValueError("no fold scores")
        scale = float(stored["fold_scale"])
        means = stored["fold_scores"].float() * scale
        return cls(graph, stored["fold_edges"].long(), means, stored["fold_sizes"].long(), scale)
