"""The metric under circuits of any level: sets of edges, of nodes, or of neurons (`units`)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..choices import Accumulate
from ..connected import prune
from ..graph import Graph
from ..model.forward import forward, mlp_hidden
from ..model.pairs import GB, Metric, bar
from ..model.reference import Reference
from ..model.weights import ModelWeights
from ..units import Units, of_neurons
from .forward import evaluate_metric
from .one_by_one import evaluate_one_by_one
from .runs import PreparedRuns, metric_of_finals


def evaluate_circuits(
    weights: ModelWeights,
    runs: PreparedRuns,
    graph: Graph,
    masks: Bool[Tensor, "mask n_forward n_backward"],
    metric: Metric,
    *,
    reference: Reference | None = None,
    accumulate: Accumulate = "float32",
    memory_budget_gb: float = 1.0,
) -> Float[Tensor, "mask prompt"]:
    """The metric of every prompt of the batch under each mask over the edges of a graph or its units, float32.

    With the `reference` that the base run was prepared with, that is no run of a prompt: a node that nothing of the
    source run reaches at a role then writes something else than what it would compute there.

    With `accumulate="model"` masks are of edges or nodes, and absent edges are put in `one_by_one`.
    """
    if of_neurons(graph):
        return _with_neurons(weights, runs, masks[:, :, 0], metric, memory_budget_gb, reference)
    if isinstance(graph, Units):
        masks = graph.edges(masks)
    elif reference is not None and graph.roles:
        masks = prune(masks, graph)
    if accumulate == "model":
        return evaluate_one_by_one(weights, runs, masks, metric)
    return evaluate_metric(weights, runs, masks, metric, memory_budget_gb=memory_budget_gb)


def _with_neurons(
    weights: ModelWeights,
    runs: PreparedRuns,
    masks: Bool[Tensor, "mask neuron"],
    metric: Metric,
    memory_budget_gb: float,
    reference: Reference | None,
) -> Float[Tensor, "mask prompt"]:
    """The source run, but neurons outside a mask hold what they do in the base run; without any, the base run.

    With a reference they hold what it says, and an MLP without any neuron, or all heads of a layer, write what it says.
    """
    masks = masks.to(weights.device)
    of_z, of_hidden = masks.unflatten(1, (weights.n_layers, -1)).split(
        (weights.n_heads * weights.d_head, weights.d_mlp), dim=2
    )
    token_bytes = (10 * weights.d_model + 4 * weights.d_mlp) * weights.embed.element_size()
    at_once = max(1, int(memory_budget_gb * GB // (token_bytes * runs.layout.n_tokens)))

    def values(some: Tensor) -> Float[Tensor, "mask prompt"]:
        def units_of(n: int, device: torch.device) -> Bool[Tensor, "mask 1 unit"]:
            index, is_mlp = divmod(n - 1, 2)
            return (of_hidden if is_mlp else of_z)[some, index, None].to(device)

        def referred(n: int, x: Float[Tensor, "position ..."]) -> Float[Tensor, "token ..."]:
            assert reference is not None
            return reference.at(x, runs.layout, answers=n > 2 * (weights.n_layers - 1))

        def hold(n: int, x: Tensor) -> Tensor:
            index, is_mlp = divmod(n - 1, 2)
            base, units = runs.base.layers[index], units_of(n, x.device)
            if not is_mlp:
                return torch.where(units.unflatten(-1, x.shape[-2:]), x, base.z)
            if reference is None:
                return torch.where(units, x, mlp_hidden(weights.layers[index], base.mlp_in))
            return torch.where(units, x, referred(n, reference.hidden[index]))

        def write(n: int, out: Tensor) -> Tensor:
            if reference is None:
                return out
            return torch.where(units_of(n, out.device).any(-1, keepdim=True), out, referred(n, reference.totals[n]))

        embedded = runs.source.embedded.expand(len(some), *runs.source.embedded.shape)
        how: dict[str, Any] = {"prefix": runs.prefix, "last_layer": "answers", "hold": hold, "write": write}
        final = forward(weights, runs.layout, embedded, **how)
        final = torch.where(masks[some].any(1)[:, None, None], final, runs.base.final)
        return metric_of_finals(weights, final, runs.batch.index, metric)

    with torch.no_grad():
        stacks = torch.arange(len(masks), device=masks.device).split(at_once)
        return torch.cat([values(some) for some in bar(stacks, "circuits of neurons")])
