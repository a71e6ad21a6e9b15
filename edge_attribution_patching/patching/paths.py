"""Path patching and activation patching as edge masks.

With base = clean and source = another prompt (`prepare_runs(weights, batch, "clean")`), a mask says which edges carry
what differs. The first two kinds here hold all edges below one sender head, so that the sender has its value in the
source run, and then the edges that carry that value on (Wang et al. 2022, arXiv 2211.00593, appendix B;
Goldowsky-Dill et al. 2023, arXiv 2304.05969):

    path_masks       sender -> first receivers -> next receivers -> ... -> logits, and nothing else
    swap_masks       sender -> everything that reads it, all recomputed
    recompute_mask   whatever some heads are given -> everything that reads it, all recomputed

Where a mask changes nothing but the answers' tokens, `runs.at_answers` cuts the runs down to these.

`recompute_after` is the path patching of Wang et al. 2022 to the letter: the receivers get what they would read if the
sender alone were exchanged, other heads held and MLPs free, and everything after them is recomputed. No one mask says
that where receivers lie in several layers: an MLP between two of them carries the sender's change to the upper
one, and to all else the lower one's. It takes two passes, of which the first records the receivers' inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..choices import QKV, QKVName
from ..graph import Graph
from ..model.weights import ModelWeights
from .forward import HeadAttention, Observer, plan_steps, run_steps
from .plan import ActivationOverrides
from .runs import PreparedRuns
from .steps import Steps

Head = tuple[int, int]
"""Layer and head."""
Sender = tuple[int, int | None]
"""A head, or a layer and None: the layer's MLP."""
INPUT: Sender = (-1, None)
"""The embeddings: they stand below layer 0 as the MLP of a layer -1 would."""


@dataclass(frozen=True)
class Receivers:
    """Heads that are written to at one of their inputs, `letter` one of q, k, v; or MLPs, with no letter."""

    heads: tuple[Sender, ...]
    letter: QKVName | None = None

    def above(self, layer: int) -> Receivers:
        """Those that may read what a layer's heads write: an MLP of the same layer does in a sequential block."""
        least = layer + (self.letter is not None)
        return Receivers(tuple(head for head in self.heads if head[0] >= least), self.letter)

    def inputs(self, graph: Graph) -> list[int]:
        """Backward indices of what is written to."""
        return [
            graph.mlp_input(layer)
            if head is None or self.letter is None
            else graph.head_input(layer, head, self.letter)
            for layer, head in self.heads
        ]


def path_masks(
    graph: Graph, senders: Sequence[Sender], stages: Sequence[Receivers] = (), *, through_mlps: bool = False
) -> Bool[Tensor, "sender n_forward n_backward"]:
    """For each sender the edges sender -> receivers of each stage in turn -> logits.

    Receivers in the sender's layer or below cannot read it and are left out of its mask. A head that is a receiver of
    two stages passes on what it gets in either.

    Args:
        senders: heads and MLPs, or the embeddings, that take their value in the source run.
        stages: receivers in the order of the path; without any, the path is sender -> logits.
        through_mlps: also take the paths from the sender to the first stage that lead through MLPs (through any number
            of them). Later stages are always reached directly.
    """
    masks = torch.zeros(len(senders), graph.n_forward, graph.n_backward, dtype=torch.bool)
    for mask, (layer, head) in zip(masks, senders, strict=True):
        sender = _take_source(mask, graph, layer, head)
        writers = torch.tensor([sender])
        for number, receivers in enumerate((*stages, None)):
            inputs = torch.tensor([graph.logits])
            if receivers is not None:
                inputs = torch.tensor(receivers.above(layer).inputs(graph), dtype=torch.long)
            readers = inputs
            if number == 0 and through_mlps:  # The sender and the MLPs above it write to these MLPs and the receivers.
                mlps = [m for m in range(graph.n_layers) if graph.edge_mask[sender, graph.mlp_input(m)]]
                writers = torch.tensor([sender, *map(graph.mlp, mlps)])
                readers = torch.tensor([*inputs.tolist(), *map(graph.mlp_input, mlps)], dtype=torch.long)
            mask[writers[:, None], readers] = True
            if receivers is not None:
                writers = graph.forward_of_backward[inputs]
    return masks & graph.edge_mask


def swap_masks(graph: Graph, senders: Sequence[Head]) -> Bool[Tensor, "sender n_forward n_backward"]:
    """For each sender all edges that carry its source value on, directly or through others; all else is recomputed."""
    masks = torch.zeros(len(senders), graph.n_forward, graph.n_backward, dtype=torch.bool)
    for mask, (layer, head) in zip(masks, senders, strict=True):
        sender = _take_source(mask, graph, layer, head)
        # Everything that can read the sender, and what these write to each other.
        reads = graph.edge_mask[sender]
        nodes = graph.forward_of_backward[reads].unique()
        writers = torch.cat((torch.tensor([sender]), nodes[nodes < graph.n_forward]))
        mask[writers[:, None], reads.nonzero()[:, 0]] = True
    return masks & graph.edge_mask


def recompute_mask(graph: Graph) -> Bool[Tensor, "n_forward n_backward"]:
    """All edges but the input's: what heads are given reaches all that reads it, nothing else comes from the source."""
    mask = graph.edge_mask.clone()
    mask[0] = False
    return mask


def recompute_after(
    weights: ModelWeights,
    runs: PreparedRuns,
    senders: Sequence[Sender],
    receivers: Receivers,
    *,
    through_mlps: bool = True,
    memory_budget_gb: float = 1.0,
    observe: Observer | None = None,
) -> Float[Tensor, "sender prompt d_model"]:
    """The final residual stream where receivers read each sender as in the source run, and what follows is recomputed.

    Args:
        runs: with base = clean. With `at_answers` the receivers' inputs change at the answers alone.
        senders: heads and MLPs that take their value in the source run, one at a time.
        receivers: heads, and which of their inputs carries the sender's value. Those that do not read a sender are
            left alone.
        through_mlps: whether the inputs carry it through MLPs too, and not only directly.
        memory_budget_gb: as of `evaluate_masks_final`.
        observe: told of the heads that are recomputed after the receivers; its masks are the senders.
    """
    graph = Graph.of(weights)
    # Senders of one layer share their receivers, and so their passes.
    rows_of = {
        layer: [row for row, (of, _) in enumerate(senders) if of == layer]
        for layer in sorted({layer for layer, _ in senders})
        if receivers.above(layer).heads
    }

    def passes() -> Iterator[list[Steps]]:
        """Of every layer's senders two: to record what receivers read, and with what they are given then."""
        for layer, rows in rows_of.items():
            reading = receivers.above(layer)
            masks = path_masks(graph, [senders[row] for row in rows], [reading], through_mlps=through_mlps)
            yield plan_steps(weights, runs, masks, ((), ()), memory_budget_gb)
            again, given = recompute_mask(graph).expand_as(masks), (reading.inputs(graph), ())
            yield plan_steps(weights, runs, again, given, memory_budget_gb)

    planned = Steps.sent(passes(), weights)
    finals = [runs.base.final[None]]
    for layer, rows in rows_of.items():
        inputs: dict[int, Tensor] = {}  # backward index -> what the receiver reads there, for every sender
        record = partial(_record, graph, receivers.above(layer), inputs, len(rows))
        run_steps(weights, runs, next(planned), observe=record)

        def observe_rows(attended: HeadAttention, rows: Sequence[int] = rows) -> None:
            assert observe is not None
            observe(replace(attended, masks=torch.tensor(rows)[attended.masks]))

        given = ActivationOverrides(inputs=inputs)
        finals.append(run_steps(weights, runs, next(planned), given, observe and observe_rows))
    every = torch.cat(finals)
    place_of = {row: place for place, row in enumerate(chain.from_iterable(rows_of.values()), start=1)}
    return torch.stack([every[place_of.get(row, 0)] for row in range(len(senders))])


def _record(
    graph: Graph, receivers: Receivers, inputs: dict[int, Tensor], n_masks: int, attended: HeadAttention
) -> None:
    """An observer that keeps what receivers read. It is told of some masks at a time, one after the other."""
    assert receivers.letter is not None
    read = getattr(attended, receivers.letter)  # [mask, token, head, d_head]
    for place, head in enumerate(attended.heads):
        if (attended.layer, head) in receivers.heads:
            index = graph.head_input(attended.layer, head, receivers.letter)
            kept = inputs.setdefault(index, read.new_empty(n_masks, read.shape[1], read.shape[-1]))
            first = int(attended.masks[0])
            kept[first : first + len(read)] = read[:, :, place]


def at_the_difference(runs: PreparedRuns) -> PreparedRuns:
    """The same runs, where senders below the last layer have their source value only where the prompts begin to differ.

    Elsewhere what they write in the source run is what they write in the base run.
    """
    layout = runs.layout
    first = layout.position == layout.starts[layout.prompt]
    base, source = runs.base, runs.source

    def mixed(of_source: Tensor, of_base: Tensor) -> Tensor:
        return torch.where(first.to(of_base.device).view(-1, *[1] * (of_base.ndim - 1)), of_source, of_base)

    layers = [
        replace(below, **{name: mixed(getattr(other, name), x) for name, x in below.tensors().items()})
        for other, below in zip(source.layers[:-1], base.layers[:-1], strict=True)
    ]
    mixed_source = replace(source, embedded=mixed(source.embedded, base.embedded), layers=[*layers, source.layers[-1]])
    return replace(runs, source=mixed_source)


def _take_source(mask: Tensor, graph: Graph, layer: int, head: int | None) -> int:
    """Let everything below a sender, and so the sender, have its source value; returns its forward index."""
    if head is None:
        mask[:, : graph.mlp_input(layer) + 1] = True
        return graph.mlp(layer)
    mask[:, : graph.qkv_inputs(layer).start] = True
    mask[:, [graph.head_input(layer, head, letter) for letter in QKV]] = True
    return graph.head(layer, head)
