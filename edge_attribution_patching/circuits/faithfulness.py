"""How much of the model a circuit keeps.

    faithfulness(C) = (M(C) - M(empty)) / (M(full) - M(empty))      M(empty): the corrupted run, or all nodes ablated
    faithfulness_raw(C) = M(C) / M(full)

(Hanna et al. 2024, arXiv 2403.17806; the raw share as in Tigges et al. 2024, arXiv 2407.10827.) Every value is kept per
prompt, so that an interval knows how the terms of the ratio vary together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..choices import Accumulate
from ..graph import Graph
from ..model.pairs import Metric, TokenPairs
from ..model.reference import Reference
from ..model.transfer import checked_at_the_end, to_cpu
from ..model.weights import ModelWeights
from ..patching.circuits import evaluate_circuits
from ..patching.runs import PreparedBatches, PreparedRuns, run_metric
from ..statistics import prompts_needed, quotient_interval, standard_error
from .search import top_n_masks


class CircuitEvaluator:
    """Evaluates circuits on a set of prompts, and prepares the two runs of each prompt once.

    Args:
        graph: what circuits are sets of edges of: the model's graph by default, or that of its units.
        pairs: prompt pairs, best on the CPU. With roles, circuits may be of edges and roles.
        memory_budget_gb: how much of the prepared runs to keep; the others are prepared again. Also bounds each pass.
        reference: what edges outside a circuit carry instead of the corrupted prompt; for neurons, made with them.
        accumulate: `model` puts in absent edges one by one in the weights' number format, as Tigges et al. 2024 do.

    Attributes:
        full, corrupted: the metric of every prompt in the whole model and in the empty circuit, on the CPU: in the
            corrupted run, or with every node at its reference.
    """

    def __init__(
        self,
        weights: ModelWeights,
        pairs: TokenPairs,
        metric: Metric,
        *,
        graph: Graph | None = None,
        batch_size: int = 32,
        memory_budget_gb: float = 1.0,
        reference: Reference | None = None,
        accumulate: Accumulate = "float32",
    ) -> None:
        self.weights, self.metric, self.accumulate = weights, metric, accumulate
        self.graph = graph or Graph.of(weights, pairs.roles)
        self.memory_budget_gb = memory_budget_gb
        self.n_prompts, self._reference = len(pairs), reference
        shared = reference is None and accumulate == "float32"
        batches = pairs.batches(batch_size, share_prefix=shared, weights=weights, memory_budget_gb=memory_budget_gb)
        self._batches = PreparedBatches(weights, batches, "corrupted", memory_budget_gb, reference)
        self.full, self.corrupted = self.of_runs(metric)

    def __call__(self, masks: Bool[Tensor, "mask n_forward n_backward"]) -> Float[Tensor, "mask prompt"]:
        """The metric of every prompt under circuits given by their edges, on the CPU."""

        def of_batch(runs: PreparedRuns) -> Float[Tensor, "mask batch"]:
            how: dict[str, Any] = {"accumulate": self.accumulate, "memory_budget_gb": self.memory_budget_gb}
            how["reference"] = self._reference
            return evaluate_circuits(self.weights, runs, self.graph, masks, self.metric, **how)

        return self._of_all(len(masks), of_batch)

    def of_runs(self, metric: Metric) -> Float[Tensor, "run prompt"]:
        """Any metric of every prompt in the whole model and in the empty circuit, on the CPU."""
        return self._of_all(2, lambda runs: torch.stack(run_metric(self.weights, runs, metric)))

    def _of_all(
        self, n: int, of_batch: Callable[[PreparedRuns], Float[Tensor, "any batch"]]
    ) -> Float[Tensor, "any prompt"]:
        """n values of every prompt, in the order of the prompts, on the CPU: one wait for all batches."""
        values = torch.zeros(n, self.n_prompts)
        with checked_at_the_end():
            rows, parts = zip(*((runs.batch.rows, of_batch(runs)) for runs in self._batches), strict=True)
            values[:, np.concatenate(rows)] = to_cpu(torch.cat(parts, dim=1))
        return values

    def prefixes_of(self, order: Int[Tensor, "edge 2"]) -> Callable[[Sequence[int]], Float[Tensor, "size prompt"]]:
        """sizes n -> the same for the circuits of the first n edges of an order, pruned."""
        return lambda sizes: self(top_n_masks(order, self.graph, sizes))


@dataclass(frozen=True)
class Baselines:
    """The whole model on clean and on corrupted prompts.

    Attributes:
        full_se, corrupted_se, gap_se: standard errors of the means and of their paired difference.
    """

    full: float
    corrupted: float
    full_se: float
    corrupted_se: float
    gap_se: float
    n_prompts: int

    @classmethod
    def of(cls, full: Float[Tensor, " prompt"], corrupted: Float[Tensor, " prompt"]) -> Baselines:
        return cls(
            float(full.mean()),
            float(corrupted.mean()),
            standard_error(full),
            standard_error(corrupted),
            standard_error(full - corrupted),
            len(full),
        )

    def learned(self, min_gap: float) -> bool:
        """Whether clean prompts score clearly higher: by more than `min_gap`, and by 3 standard errors of the gap.

        A single prompt has no error, and its gap alone decides.
        """
        gap = self.full - self.corrupted
        return gap > min_gap and (self.n_prompts == 1 or gap > 3 * self.gap_se)


def too_few_prompts(full: Float[Tensor, " prompt"], corrupted: Float[Tensor, " prompt"]) -> str:
    """Why faithfulness on these prompts has no interval; empty if it has one."""
    gap, n = full.double() - corrupted.double(), len(full)
    needed = prompts_needed(gap)
    if needed is None:
        return "the metric is the same on clean and on corrupted prompts"
    return f"too few prompts ({n}), {needed} needed" if n < needed else ""


@dataclass
class FaithfulnessCurve:
    """Per-prompt metrics of the circuits evaluated so far, by size."""

    full: Float[Tensor, " prompt"]
    corrupted: Float[Tensor, " prompt"]
    values: dict[int, Float[Tensor, " prompt"]] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        return sorted(self.values)

    def metric(self, size: int) -> float:
        return float(self.values[size].double().mean())

    def faithfulness(self, size: int) -> float:
        """Normalised by the corrupted run; nan if that does what the model does."""
        return self.normalised(self.metric(size))

    def normalised(self, metric: float) -> float:
        """The faithfulness of whatever has this mean metric."""
        corrupted, full = float(self.corrupted.double().mean()), float(self.full.double().mean())
        return (metric - corrupted) / (full - corrupted) if full != corrupted else math.nan

    def raw(self, size: int) -> float:
        """The share of the model's metric; nan if that is zero."""
        full = float(self.full.double().mean())
        return self.metric(size) / full if full != 0 else math.nan

    def intervals(self, *, raw: bool = False) -> tuple[Float[Tensor, " size"], Float[Tensor, " size"]]:
        """The ends of the 95% interval of the faithfulness at every size (`statistics.quotient_interval`)."""
        corrupted = torch.zeros_like(self.corrupted) if raw else self.corrupted
        values = [self.values[size] - corrupted for size in self.sizes]
        return quotient_interval(torch.stack(values), self.full - corrupted)
