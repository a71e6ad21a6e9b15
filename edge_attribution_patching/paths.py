"""Path patching and activation patching as edge masks.

With base = clean and source = another prompt (`prepare_runs(weights, batch, "clean")`), a mask says which edges carry
what differs. Every mask here holds all edges below one sender head, so that the sender has its value in the source
run, and then the edges that carry that value on (Wang et al. 2022, arXiv 2211.00593, appendix B; Goldowsky-Dill et al.
2023, arXiv 2304.05969):

    path_masks   sender -> first receivers -> next receivers -> ... -> logits, and nothing else
    swap_masks   sender -> everything that reads it, all recomputed

Where a mask changes nothing but the answers' tokens, `patching_runs.at_answers` cuts the runs down to these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from edge_attribution_patching.graph import QKV, Graph

Head = tuple[int, int]
"""Layer and head."""


@dataclass(frozen=True)
class Receivers:
    """Heads that are written to at one of their inputs, `letter` one of q, k, v."""

    heads: tuple[Head, ...]
    letter: str


def path_masks(
    graph: Graph, senders: Sequence[Head], stages: Sequence[Receivers] = (), *, through_mlps: bool = False
) -> Bool[Tensor, "sender n_forward n_backward"]:
    """For each sender the edges sender -> receivers of each stage in turn -> logits.

    Receivers in the sender's layer or below cannot read it and are left out of its mask. A head that is a receiver of
    two stages passes on what it gets in either.

    Args:
        graph: the graph.
        senders: heads that take their value in the source run.
        stages: receivers in the order of the path; without any, the path is sender -> logits.
        through_mlps: also take the paths from the sender to the first stage that lead through MLPs (through any number
            of them). Later stages are always reached directly.
    """
    masks = torch.zeros(len(senders), graph.n_forward, graph.n_backward, dtype=torch.bool)
    for mask, (layer, head) in zip(masks, senders, strict=True):
        _take_source(mask, graph, layer, head)
        writers = torch.tensor([graph.head(layer, head)])
        for number, receivers in enumerate((*stages, None)):
            if receivers is None:
                inputs = torch.tensor([graph.logits])
            else:
                above = [(m, h) for m, h in receivers.heads if m > layer]
                inputs = torch.tensor([graph.head_input(m, h, receivers.letter) for m, h in above], dtype=torch.long)
            if number == 0 and through_mlps:
                nodes, columns = _mlps_after(graph, layer, head)
                mask[_grid(writers, columns)] = True
                mask[_grid(nodes, columns)] = True
                mask[_grid(nodes, inputs)] = True
            mask[_grid(writers, inputs)] = True
            if receivers is not None:
                writers = graph.forward_of_backward[inputs]
    return masks & graph.edge_mask


def swap_masks(graph: Graph, senders: Sequence[Head]) -> Bool[Tensor, "sender n_forward n_backward"]:
    """For each sender all edges that carry its source value on, directly or through others; all else is recomputed."""
    masks = torch.zeros(len(senders), graph.n_forward, graph.n_backward, dtype=torch.bool)
    for mask, (layer, head) in zip(masks, senders, strict=True):
        _take_source(mask, graph, layer, head)
        sender = graph.head(layer, head)
        reads = graph.edge_mask[sender]
        nodes = graph.forward_of_backward[reads].unique()
        writers = torch.cat((torch.tensor([sender]), nodes[nodes < graph.n_forward]))
        mask[_grid(writers, reads.nonzero()[:, 0])] = True
    return masks & graph.edge_mask


def _take_source(mask: Tensor, graph: Graph, layer: int, head: int) -> None:
    """Let everything below a layer, and so this head of it, have its source value."""
    mask[:, : graph.qkv_inputs(layer).start] = True
    mask[:, [graph.head_input(layer, head, letter) for letter in QKV]] = True


def _mlps_after(graph: Graph, layer: int, head: int) -> tuple[Tensor, Tensor]:
    """Forward and backward indices of the MLPs that read a head."""
    sender = graph.head(layer, head)
    layers = [m for m in range(graph.n_layers) if graph.edge_mask[sender, graph.mlp_input(m)]]
    nodes = torch.tensor([graph.mlp(m) for m in layers], dtype=torch.long)
    return nodes, torch.tensor([graph.mlp_input(m) for m in layers], dtype=torch.long)


def _grid(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    return rows[:, None], columns[None, :]
