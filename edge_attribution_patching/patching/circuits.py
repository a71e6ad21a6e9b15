"""The metric under circuits of any level: sets of edges, of nodes, or of neurons (`units`)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..choices import Accumulate
from ..connected import prune
from ..graph import Graph
from ..model.forward import forward, mlp_hidden
from ..model.pairs import GB, Metric, bar
from ..model.weights import ModelWeights
from ..units import Units
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
    ablated: bool = False,
    accumulate: Accumulate = "float32",
    memory_budget_gb: float = 1.0,
) -> Float[Tensor, "mask prompt"]:
    """The metric of every prompt of the batch under each mask over the edges of a graph or its units, float32.

    `ablated` says that the base run is no run of a prompt: a node that nothing of the source run reaches at a role then
    writes something else than what it would compute there.

    With `accumulate="model"` masks are of edges or nodes, and absent edges are put in `one_by_one`.
    """
    if isinstance(graph, Units) and graph.level == "neuron":
        return _with_neurons(weights, runs, masks[:, :, 0], metric, memory_budget_gb)
    if isinstance(graph, Units):
        masks = graph.edges(masks)
    elif ablated and graph.roles:
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
) -> Float[Tensor, "mask prompt"]:
    """The source run, but neurons outside a mask hold what they do in the base run; without any, the base run."""
    masks = masks.to(weights.device)
    of_z, of_hidden = masks.unflatten(1, (weights.n_layers, -1)).split(
        (weights.n_heads * weights.d_head, weights.d_mlp), dim=2
    )
    token_bytes = (10 * weights.d_model + 4 * weights.d_mlp) * weights.embed.element_size()
    at_once = max(1, int(memory_budget_gb * GB // (token_bytes * runs.layout.n_tokens)))

    def values(some: Tensor) -> Float[Tensor, "mask prompt"]:
        def hold(n: int, x: Tensor) -> Tensor:
            index, is_mlp = divmod(n - 1, 2)
            base, units = runs.base.layers[index], (of_hidden if is_mlp else of_z)[some, index, None].to(x.device)
            if is_mlp:
                return torch.where(units, x, mlp_hidden(weights.layers[index], base.mlp_in))
            return torch.where(units.unflatten(-1, x.shape[-2:]), x, base.z)

        any_unit = masks[some].any(1)[:, None, None]
        embedded = torch.where(any_unit, runs.source.embedded, runs.base.embedded)
        final = forward(weights, runs.layout, embedded, prefix=runs.prefix, last_layer="answers", hold=hold)
        return metric_of_finals(weights, final, runs.batch.index, metric)

    with torch.no_grad():
        stacks = torch.arange(len(masks), device=masks.device).split(at_once)
        return torch.cat([values(some) for some in bar(stacks, "circuits of neurons")])
