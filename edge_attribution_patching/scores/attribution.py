"""Scores of edges from gradients: edge attribution patching with integrated gradients (EAP-IG), and its relatives.

    score(u -> v) = mean over prompts of the sum over positions of (a_u(clean) - a_u(corrupted)) . mean_k dM/dx_v(k)

Step k runs the model on embeddings e_corrupted + alpha_k (e_clean - e_corrupted). x_v is the residual stream that v
reads, and a_u is what u writes to it. A positive score means that the edge raises the metric. The methods differ in the
gradients, and one in the differences:

| method | gradients |
|---|---|
| `eap_ig` | at the points of a quadrature rule between the ends (Hanna et al. 2024, arXiv 2403.17806) |
| `eap` | of the clean run (Syed et al. 2023, arXiv 2310.10348) |
| `clean_corrupted` | the mean of both ends |
| `relp` | of the clean run, by relevance rules (`forward`; Jafari et al. 2025, arXiv 2508.21258) |
| `ceap` | of step k, each times what u's output changes by from step k to the next (arXiv 2606.16920) |
| `eap_ig_activations` | of runs in which one layer's nodes write something else, see `node_layers.py` |

What the nodes write in the two runs does not depend on the step. So, `ceap` aside, the gradients of all steps of a
batch are summed first (`gradients.py`) and multiplied with these differences once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..choices import Accumulate, Level, Method, Quadrature
from ..model.forward import embed, kv_cache
from ..model.memory import BatchSizes, Memory
from ..model.packed_tokens import KVCache, PackedTokens
from ..model.pairs import GB, Metric, PairBatch, TokenPairs, bar
from ..model.reference import Reference
from ..model.transfer import checked_at_the_end, to_cpu, to_device
from ..model.weights import ModelWeights
from ..units import graph_of
from .folds import FoldScores, fold_sizes
from .gradients import Gradients, NodeOutputs, Slots
from .node_layers import by_node_layers
from .refinement import Points


def quadrature_points(quadrature: Quadrature, steps: int) -> tuple[list[float], list[float]]:
    """Points alpha in [0, 1] and their weights, which add up to 1.

    `left`: k/m for k = 0..m-1 (the published EAP-IG); `right`: k = 1..m (one step: plain EAP); `midpoint`: (k + 1/2)/m;
    `gauss-legendre`: exact for polynomials up to degree 2m - 1.
    """
    if steps < 1:
        raise ValueError(f"ig_steps={steps}: take at least 1")
    if quadrature == "gauss-legendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return ((points + 1) / 2).tolist(), (weights / 2).tolist()
    offsets = {"left": 0.0, "right": 1.0, "midpoint": 0.5}
    if quadrature not in offsets:
        raise ValueError(f"quadrature={quadrature}: unknown (known: {', '.join(get_args(Quadrature))})")
    return [(k + offsets[quadrature]) / steps for k in range(steps)], [1 / steps] * steps


def points_of(method: Method, quadrature: Quadrature, steps: int) -> tuple[list[float], list[float]]:
    """Where on the path a method takes its gradients, and their weights."""
    if method in ("eap", "relp"):
        return [1.0], [1.0]
    if method == "clean_corrupted":
        return [0.0, 1.0], [0.5, 0.5]
    if method == "ceap":
        return quadrature_points("left", steps)[0], [1.0] * steps
    return quadrature_points(quadrature, steps)


def attribute(
    weights: ModelWeights,
    pairs: TokenPairs,
    metric: Metric,
    fold_of: Int[Tensor, " prompt"] | None = None,
    *,
    method: Method = "eap_ig",
    level: Level = "edge",
    steps: int = 20,
    quadrature: Quadrature = "left",
    accumulate: Accumulate = "float32",
    batch_size: int = 32,
    memory_budget_gb: float = 1.0,
    share_prefix: bool = True,
    reference: Reference | None = None,
    rules: Sequence[Points] = (),
    kept: list[tuple[PairBatch, list[tuple[int, Slots]], list[Tensor], _Path]] | None = None,
) -> FoldScores:
    """Score of every edge, on all prompts (`.scores`) and kept apart for each fold of them and each role of `pairs`.

    They cost no further passes: only the last product is taken fold by fold and role by role. The sums take 4 bytes per
    fold and entry of the graph on the model's device: with 10 folds 3 MB for pythia-160m, 19 MB for 1.4b, 131 MB for
    6.9b and 257 MB for 12b, and that for every role.

    Args:
        pairs: clean and corrupted prompts, best on the CPU.
        metric: per-prompt metric of the logits at the answer, differentiable.
        fold_of: the fold of each prompt; every fold from 0 to the last has prompts (`assign_folds`). One by default.
        method: one of the module's.
        level: score edges, nodes or neurons (`units`).
        steps, quadrature: how many integration steps, and where they lie (`quadrature_points`); of `ceap` the steps
            alone count, as of `eap_ig_activations`, and of the methods that look at the ends neither.
        accumulate: `model` adds up the scores of every batch and step in the weights' number format, as Tigges et al.
            2024 do (arXiv 2407.10827). A sum in bfloat16 stops growing when it is 256 times as large as what comes.
        batch_size: pairs that run at once; on a GPU more, if they fit (`pairs_at_once`), unless sums depend on it.
        memory_budget_gb: bounds what autograd keeps and what the contraction holds. Work is split up to stay below it.
        share_prefix: run only the positions from the first difference of a pair on (the others cannot contribute).
        reference: in place of what nodes write in the corrupted run, and neurons if it is made for them; then all
            positions run, the path begins at the reference's embeddings, and conductance's first change at what it has
            nodes write.
        rules: of `eap_ig`, points of the path, ascending, and their weights, instead of `steps`: the first are taken.
        kept: what later calls with the others for the same prompts need not compute again, within the memory budget.

    Raises:
        ValueError: for a method without gradients, an unknown quadrature, no steps, or a fold without prompts.
        FloatingPointError: if scores are not finite (float16 overflows in some models).
    """
    neurons = level == "neuron"
    graph = graph_of(weights, level if neurons else "edge", pairs.roles)
    fold_of, sizes = fold_sizes(fold_of, len(pairs))
    sums = torch.zeros(len(sizes), graph.n_forward, graph.n_backward, device=weights.device)
    if method in ("information_flow_routes", "exact"):
        raise ValueError(f"method={method}: takes no gradients; pass it to `edge_scores`")
    rules = rules or [points_of(method, quadrature, steps)]
    alphas, number_format = rules[0][0], torch.promote_types(weights.dtype, torch.float32)
    rules_on_cpu = [torch.tensor(rule, dtype=number_format) for rule in rules]
    memory_budget = memory_budget_gb * GB
    # In the model's format, every step of every batch of `batch_size` is a term by itself, of all prompts together.
    coarse = torch.zeros_like(sums[0], dtype=weights.dtype) if accumulate == "model" else None
    with checked_at_the_end():
        to_run: dict[str, Any] = {"weights": weights, "device": torch.device("cpu")}
        to_run |= {"memory_budget_gb": memory_budget_gb} if coarse is None else {}
        batches = pairs.batches(batch_size, share_prefix=share_prefix and reference is None, **to_run)
        for number, on_cpu in enumerate(batches):
            if kept is not None and number < len(kept):
                batch, slots, on_device, path = kept[number]
                of_points, of_weights = on_device[-len(rules)]  # All rules were sent with the first.
                path = replace(path, points=alphas, alphas=of_points, step_weights=of_weights)
            else:
                # The sum over positions is taken role by role.
                of_roles = on_cpu.tokens_of_roles or (None,)
                slots_on_cpu = [
                    (role, Slots.of(on_cpu.layout, fold_of[on_cpu.index], tokens))
                    for role, tokens in enumerate(of_roles)
                    if tokens is None or len(tokens)
                ]
                batch, slots, on_device = to_device((on_cpu, slots_on_cpu, rules_on_cpu), weights.device)
                path = _Path.of(weights, batch, reference, alphas, *on_device[0], neurons=neurons)
            new = partial(Gradients, weights, batch, metric, path.prefix, frozen=method == "relp", neurons=neurons)
            at_once, room = (path.steps_at_once(memory_budget), memory_budget) if coarse is None else (1, -1)
            if method == "eap_ig_activations":
                products = by_node_layers(new(), path.outputs(path.clean), path.start(), steps, at_once, memory_budget)
            else:
                products = path.by_steps(new) if method == "ceap" else path.summed(new(), at_once, room)
            for gradients, difference in products:
                into = sums if coarse is None else torch.zeros_like(sums)
                if neurons:
                    ((_, all_slots),) = slots
                    gradients.contract_neurons(difference, memory_budget, all_slots, into)
                else:
                    by_role = into.unflatten(1, (graph.n_roles, graph.n_nodes))
                    for role, of_role in slots:
                        gradients.contract(difference, memory_budget, of_role, by_role[:, role])
                if coarse is not None:
                    sums += into
                    coarse += into.sum(0).to(coarse.dtype)
            needed = path.nbytes + sum(one.nbytes for *_, one in kept or ())
            if kept is not None and number == len(kept) and needed <= memory_budget:
                kept.append((batch, slots, on_device, path))
        if coarse is not None:  # The folds keep their spread around what was added up so.
            sums += (coarse.float() - sums.sum(0)) * (sizes / len(pairs)).to(sums)[:, None, None]
        sums = to_cpu(sums)
    sums *= graph.edge_mask
    if not bool(sums.isfinite().all()):
        told = f"the gradient holds NaN or infinity in {str(weights.dtype).removeprefix('torch.')}"
        if 0 in alphas and reference is not None and not bool(reference.totals[0].any()):
            others = (
                "quadrature=midpoint or right" if method == "eap_ig" else "method=eap, or eap_ig with midpoint steps"
            )
            told += f" where the embeddings are zero and norms divide by sqrt(eps); use {others}, or another ablation"
        raise FloatingPointError(told)
    if level == "node":  # What a node writes reaches all its readers alike, so their gradients add up.
        graph, sums = graph_of(weights, level, pairs.roles), sums[:, 1:].sum(2, keepdim=True)
    return FoldScores(graph, sums, sizes)


@dataclass(frozen=True)
class _Path:
    """The straight path from a batch's corrupted embeddings to its clean ones."""

    weights: ModelWeights
    layout: PackedTokens
    prefix: KVCache
    corrupted: Float[Tensor, "token d_model"]
    clean: Float[Tensor, "token d_model"]
    points: Sequence[float]  # where on it gradients are taken, from 0 to 1
    alphas: Float[Tensor, " step"]  # the same on the device
    step_weights: Float[Tensor, " step"]
    neurons: bool
    ablated: NodeOutputs | None  # what nodes write in place of the run of `corrupted`
    ends: dict[str, NodeOutputs] = field(default_factory=dict)  # of `clean` and `start`, once they are there

    @classmethod
    def of(
        cls,
        weights: ModelWeights,
        batch: PairBatch,
        reference: Reference | None,
        points: Sequence[float],
        alphas: Float[Tensor, " step"],
        step_weights: Float[Tensor, " step"],
        *,
        neurons: bool,
    ) -> _Path:
        layout = batch.layout
        corrupted, clean = (embed(weights, layout, layout.pack(tokens)) for tokens in (batch.corrupted, batch.clean))
        prefix, ablated = kv_cache(weights, layout, batch.clean), None
        if reference is not None:
            ablated = NodeOutputs.of_reference(reference, layout, neurons=neurons)
            corrupted = ablated.embedded
        return cls(weights, layout, prefix, corrupted, clean, points, alphas, step_weights, neurons, ablated)

    def at(self, some: slice) -> Float[Tensor, "step token d_model"]:
        """The embeddings at some points of it."""
        alpha = self.alphas[some, None, None].to(self.weights.dtype)
        return self.corrupted + alpha * (self.clean - self.corrupted)

    def outputs(self, embedded: Float[Tensor, "token d_model"]) -> NodeOutputs:
        """What all nodes compute from some embeddings."""
        return NodeOutputs.of_run(self.weights, self.layout, embedded, self.prefix, neurons=self.neurons)

    def start(self) -> NodeOutputs:
        """What all nodes write where the path begins: in the corrupted run, or ablated."""
        return self.ablated or self.outputs(self.corrupted)

    @property
    def nbytes(self) -> int:
        """Memory of what is kept of it."""
        tensors = [x for run in self.ends.values() for x in (run.embedded, *run.z, *run.mlp_out, *run.shares)]
        return sum(
            x.numel() * x.element_size() for x in (*tensors, *self.prefix, self.clean, self.corrupted) if x is not None
        )

    def steps_at_once(self, memory_budget: float) -> int:
        """How many steps may run stacked."""
        layout = self.layout
        batch = BatchSizes(layout.n_prompts, layout.n_tokens, layout.width, layout.queries.width)
        return Memory(self.weights, batch, self.clean.element_size(), memory_budget).steps_at_once

    def summed(
        self, gradients: Gradients, at_once: int, memory_budget: float
    ) -> Iterator[tuple[Gradients, NodeOutputs]]:
        """The gradients of all steps together, and what they are multiplied with: clean minus corrupted."""
        for start in bar(range(0, len(self.points), at_once), "integrated gradients"):
            chunk = slice(start, start + at_once)
            outputs = gradients.add(self.at(chunk), self.step_weights[chunk])
            # A step at an end of the path is one of the two runs.
            if self.points[start] == 0 and self.ablated is None:
                self.ends["start"] = outputs.of_step(0)
            if self.points[chunk][-1] == 1:
                self.ends["clean"] = outputs.of_step(-1)
            # Once all steps are in, or before their gradients outgrow the memory.
            if gradients.nbytes > memory_budget or start + at_once >= len(self.points):
                clean = self.ends["clean"] = self.ends.get("clean") or self.outputs(self.clean)
                start_outputs = self.ends["start"] = self.ends.get("start") or self.start()
                yield gradients, clean.minus(start_outputs)
                gradients.clear()

    def by_steps(self, new_gradients: Callable[[], Gradients]) -> Iterator[tuple[Gradients, NodeOutputs]]:
        """The gradients of every step, and what they are multiplied with: the change from this step to the next."""
        before: tuple[Gradients, NodeOutputs] | None = None
        for step in bar(range(len(self.points)), "conductance"):
            now, chunk = new_gradients(), slice(step, step + 1)
            outputs = now.add(self.at(chunk), self.step_weights[chunk]).of_step(0)
            if step == 0 and self.ablated is not None:
                outputs = self.ablated
            if before is not None:
                yield before[0], outputs.minus(before[1])
            before = now, outputs
        if before is not None:
            yield before[0], self.outputs(self.clean).minus(before[1])
