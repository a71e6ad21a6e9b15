"""Is the circuit better than chance? Random circuits of its size, and the whole model without each of them.

A random circuit is grown by the rule that found the circuit, from the same scores dealt to other edges, until it
holds at least as many edges after pruning. The edge that completes a path may bring in several at once; then surplus
edges are taken off one by one, the last first, and where that does not lead to the size the scores are dealt again. So
random circuits have as many edges as the circuit wherever the graph allows it.

Both are evaluated alone (sufficiency: the circuit should keep more of the metric than a random one) and removed from
the whole model (necessity: the model should lose more without it), so n random circuits cost 2 n + 1 evaluations. Shi
et al. 2024 (arXiv 2410.13032) call these comparisons sufficiency and partial necessity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..choices import Order
from ..connected import prune
from ..graph import Graph
from .circuit import Circuit
from .faithfulness import CircuitEvaluator
from .search import Signed, edge_order, join_sizes

STACK = 4
"""Circuits that are pruned together."""
DEALS = 20
"""So often are the scores dealt for a random circuit of the right size."""


def random_circuits(
    circuit: Circuit, n: int, seed: int, order: Order = "greedy", signed: Signed | None = None
) -> Bool[Tensor, "circuit n_forward n_backward"]:
    """n circuits of as many edges as a circuit, from its scores dealt to the edges at random.

    Args:
        order, signed: the rule that found the circuit. Whether the sign of a score is stable goes with the score.
    """
    graph, edges = circuit.graph, circuit.graph.edge_mask
    generator = np.random.default_rng(seed)
    masks = torch.zeros(n, graph.n_forward, graph.n_backward, dtype=torch.bool)
    for mask in masks:
        for _ in range(DEALS):
            deal = torch.from_numpy(graph.dealt(generator))
            dealt = torch.zeros_like(circuit.scores).masked_scatter(edges, circuit.scores[edges][deal])
            dealt_signed = signed
            if signed is not None:
                dealt_signed = replace(signed, stable=edges.masked_scatter(edges, signed.stable[edges][deal]))
            mask[:] = _of_size(dealt, graph, circuit.n_edges, order, dealt_signed)
            if int(mask.sum()) == circuit.n_edges:
                break
    return masks


def _of_size(
    scores: Float[Tensor, "n_forward n_backward"], graph: Graph, n_edges: int, order: Order, signed: Signed | None
) -> Bool[Tensor, "n_forward n_backward"]:
    """The first circuit of an order that has at least n edges after pruning, without its surplus edges."""
    # Pruning takes edges away again, so an order of n edges is seldom enough.
    limit = n_edges
    while True:
        limit = min(2 * limit + 8, graph.n_edges)
        ranked = edge_order(scores, graph, order, limit, signed)
        joined = join_sizes(ranked, graph)
        if int((joined <= len(ranked)).sum()) >= n_edges or limit == graph.n_edges:
            break
    mask = joined <= joined.flatten().sort().values[max(n_edges - 1, 0)]
    last_first = ranked.flip(0)
    while int(mask.sum()) > n_edges:
        for edges in last_first[mask[*last_first.T]].split(STACK):
            masks = mask.repeat(len(edges), 1, 1)
            masks[torch.arange(len(edges)), *edges.T] = False
            masks = prune(masks, graph)
            enough = masks.flatten(1).sum(1) >= n_edges
            if bool(enough.any()):
                mask = masks[int(enough.int().argmax())]
                break
        else:
            break
    return mask


@dataclass(frozen=True)
class Controls:
    """A circuit beside random ones, all on the same prompts."""

    masks: Bool[Tensor, "random n_forward n_backward"]
    random: Float[Tensor, "random prompt"]  # the metric of each of them alone
    without: Float[Tensor, " prompt"]  # the metric of the model without the circuit
    without_random: Float[Tensor, "random prompt"]  # the metric of the model without each random circuit

    @classmethod
    def of(
        cls, evaluator: CircuitEvaluator, circuit: Circuit, masks: Bool[Tensor, "random n_forward n_backward"]
    ) -> Controls:
        """Evaluate random circuits, and the model without the circuit and without each of them (`random_circuits`)."""
        # The small circuits first, then the large ones: a head that one circuit of a stack reads is computed for all.
        random = evaluator(masks)
        edges = circuit.graph.edge_mask
        without = evaluator(edges & ~torch.cat((circuit.in_circuit[None], masks)))
        return cls(masks, random, without[0], without[1:])
