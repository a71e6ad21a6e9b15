"""What each edge mask does to each node, worked out before anything is computed.

A node whose edges carry no difference keeps its base value. A node that reads everything from nodes at their source
value has its source value. The others are computed, if their difference can reach the logits at all. Inputs that are
given count as computed; what a head is given to write is as it is. With roles of tokens a state is one of all tokens:
an input has its source value if it has at every role, and its base value likewise.

In some blocks one norm spans all heads of a layer (`SpanningNorms`). A head that is at its base or source value stays
there. One that is computed is normalised with all the others as they are under the mask, so they are computed too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from ..graph import Graph
from ..model.weights import ModelWeights

BASE, SOURCE, COMPUTED, OVERRIDDEN = 0, 1, 2, 3
"""The state of a node or input: as in the base run, as in the source run, or neither; of a node also: overridden."""


@dataclass(frozen=True)
class ActivationOverrides:
    """What some heads are given in place of what they would compute, under every mask alike or one value a mask.

    Tokens are the packed ones of the runs; in the last layer q and what heads write are at the answers alone.

    Attributes:
        inputs: backward index of a q, k or v -> its value as it attends.
        outputs: forward index of a head -> what it writes, before W_O_scaled.
    """

    inputs: Mapping[int, Float[Tensor, "#mask token d_head"]] = field(default_factory=dict)
    outputs: Mapping[int, Float[Tensor, "#mask token d_head"]] = field(default_factory=dict)

    @property
    def nodes(self) -> Given:
        """Which they are."""
        return tuple(self.inputs), tuple(self.outputs)

    def select(self, part: slice) -> ActivationOverrides:
        """What is given under some of the masks."""
        inputs, outputs = (
            {node: value if len(value) == 1 else value[part] for node, value in of_kind.items()}
            for of_kind in (self.inputs, self.outputs)
        )
        return ActivationOverrides(inputs, outputs)


NO_OVERRIDES = ActivationOverrides()

Given = tuple[Sequence[int], Sequence[int]]
"""Backward indices of the inputs and forward indices of the heads that are given something (`ActivationOverrides`)."""

SpanningNorms = tuple[bool, bool, bool]
"""What one norm covers of all heads of a layer together: their queries, their keys, what they write."""


def spanning_norms(weights: ModelWeights) -> list[SpanningNorms]:
    """Those of every layer."""
    return [
        (layer.norm_spans_heads("q"), layer.norm_spans_heads("k"), layer.attn_post_norm is not None)
        for layer in weights.layers
    ]


@dataclass(frozen=True)
class Plan:
    """The states of all nodes and inputs under some masks, on the CPU."""

    graph: Graph
    # Edges that carry the source run; one role where they are the same at all of them.
    masks: Bool[Tensor, "mask role n_nodes n_backward"]
    nodes: Int8[Tensor, "mask n_forward"]  # BASE, SOURCE, COMPUTED or OVERRIDDEN for each forward node
    inputs: Int8[Tensor, "mask n_backward"]  # BASE, SOURCE or COMPUTED for each backward node
    needed: Bool[Tensor, "mask n_forward"]  # forward nodes whose difference reaches the logits through computed inputs
    attending: Bool[Tensor, "mask n_forward"]  # heads whose z is computed
    read: Bool[Tensor, "mask n_backward"]  # inputs whose residual stream is computed

    @classmethod
    def of(
        cls,
        graph: Graph,
        masks: Bool[Tensor, "mask n_forward n_backward"],
        spanning: Sequence[SpanningNorms] | None = None,
        *,
        given: Given = ((), ()),
        shortcuts: bool = True,
    ) -> Plan:
        """Work out every state under masks on any device, whose entries that are no edges are ignored.

        `graph` has no roles; the masks may have.

        Without shortcuts no input is taken to have its source value. By default no norm spans the heads of a layer.
        """
        masks = masks.cpu().unflatten(1, (-1, graph.n_nodes)) & graph.edge_mask
        # What is read at the answers alone is as it is there.
        masks[:, :-1, :, graph.read_at_answer] = masks[:, -1:, :, graph.read_at_answer]
        if masks.shape[1] > 1 and bool((masks == masks[:, :1]).all()):
            masks = masks[:, :1]
        nodes, inputs = _states(graph, masks, given, shortcuts)
        reaching = _reaching(graph, masks.any(1), nodes, inputs, spanning or [(False, False, False)] * graph.n_layers)
        return cls(graph, masks, nodes, inputs, *reaching)

    def __len__(self) -> int:
        return len(self.masks)

    def select(self, part: slice) -> Plan:
        """Some of the masks."""
        tensors = (self.masks, self.nodes, self.inputs, self.needed, self.attending, self.read)
        return Plan(self.graph, *(tensor[part] for tensor in tensors))

    def stacks(self, memory_budget: float, token_bytes: int, spare: float = math.inf) -> Iterator[slice]:
        """Split the masks into stacks whose differences stay within a budget of bytes, one mask at least.

        A stack computes for all of its masks what any of them needs, so it grows with the union. A node's difference
        takes `token_bytes`. A mask by which more than `spare` bytes are computed that nobody needs begins a new stack.
        """
        layer_inputs = 3 * self.graph.n_heads + 1
        # Greedy: masks join the stack in their order as long as the union of what they need fits.
        start = 0
        while start < len(self):
            union = self.needed[start].clone()
            stop = start + 1
            while stop < len(self):
                grown = union | self.needed[stop]
                widest = int(grown.sum()) + 1 + layer_inputs  # differences kept, the base row, and a layer's inputs
                n, own = stop - start, self.needed[stop]
                for_nobody = (n + 1) * int(grown.sum()) - n * int(union.sum()) - int(own.sum())
                if (n + 1) * widest * token_bytes > memory_budget or for_nobody * token_bytes > spare:
                    break
                union, stop = grown, stop + 1
            yield slice(start, stop)
            start = stop


def _states(graph: Graph, masks: Tensor, given: Given, shortcuts: bool) -> tuple[Tensor, Tensor]:
    """States of the forward nodes and of the inputs, from the first layer to the logits."""
    given_inputs, given_outputs = (torch.tensor(part, dtype=torch.long) for part in given)
    n_masks = len(masks)
    nodes = torch.full((n_masks, graph.n_forward), BASE, dtype=torch.int8)
    inputs = torch.full((n_masks, graph.n_backward), BASE, dtype=torch.int8)
    nodes[:, 0] = SOURCE
    somewhere, everywhere = masks.any(1), masks.all(1)  # of the roles

    # Whether what is COMPUTED reaches the logits, and so is computed at all, is worked out afterwards (`_reaching`).
    def read(columns: slice | int, n_before: int) -> Tensor:
        """States of some inputs [mask, input] from the states of the nodes that they read."""
        some, all_ = (edges[:, :n_before, columns].reshape(n_masks, n_before, -1) for edges in (somewhere, everywhere))
        before = nodes[:, :n_before, None]
        touched = (some & (before != BASE)).any(1)
        # All that it reads is at its source value, along edges that carry it: then so is its residual stream.
        whole = (all_ & (before == SOURCE)).all(1) & shortcuts
        return torch.where(whole, SOURCE, torch.where(touched, COMPUTED, BASE)).to(torch.int8)

    for layer in range(graph.n_layers):
        inputs[:, graph.qkv_inputs(layer)] = read(graph.qkv_inputs(layer), graph.head(layer))
        inputs[:, given_inputs] = COMPUTED  # In every layer again: what is read has just overwritten its own.
        heads = inputs[:, graph.qkv_inputs(layer)].view(n_masks, 3, graph.n_heads)
        # A head has a run's value if its q, k and v all have.
        joint = torch.where((heads == SOURCE).all(1), SOURCE, torch.where((heads == BASE).all(1), BASE, COMPUTED))
        nodes[:, graph.head(layer) : graph.mlp(layer)] = joint.to(torch.int8)
        nodes[:, given_outputs] = OVERRIDDEN
        mlp = read(graph.mlp_input(layer), graph.n_before_mlp(layer))[:, 0]
        inputs[:, graph.mlp_input(layer)] = mlp
        nodes[:, graph.mlp(layer)] = mlp
    inputs[:, graph.logits] = read(graph.logits, graph.n_forward)[:, 0]
    return nodes, inputs


def _reaching(
    graph: Graph, masks: Tensor, nodes: Tensor, inputs: Tensor, spanning: Sequence[SpanningNorms]
) -> tuple[Tensor, Tensor, Tensor]:
    """`needed`, `attending` and `read`, from the logits back to the first layer."""
    # A node is needed if an input that is computed reads it; an input is read if its own node is needed and computed.
    computed = inputs == COMPUTED
    needed, attending = (torch.zeros_like(nodes, dtype=torch.bool) for _ in range(2))
    read = torch.zeros_like(computed)
    read[:, graph.logits] = computed[:, graph.logits]

    def mark_needed(which: slice) -> None:
        reaches = (masks[:, which] & read[:, None]).any(2)
        needed[:, which] = (nodes[:, which] != BASE) & reaches

    for layer, (of_q, of_k, of_written) in reversed(list(enumerate(spanning))):
        mlp, mlp_input = graph.mlp(layer), graph.mlp_input(layer)
        mark_needed(slice(mlp, mlp + 1))
        read[:, mlp_input] = computed[:, mlp_input] & needed[:, mlp] & (nodes[:, mlp] == COMPUTED)
        heads = slice(graph.head(layer), mlp)
        mark_needed(heads)
        runs = needed[:, heads] & (nodes[:, heads] == COMPUTED)
        # Where a norm spans the heads, the scale needs all those that are computed as soon as one of them is needed.
        if of_written:
            runs = (nodes[:, heads] == COMPUTED) & runs.any(1, keepdim=True)
        attending[:, heads] = runs
        columns = graph.qkv_inputs(layer)
        # Of the q and k that one norm covers, all that are computed are wanted as soon as one is.
        projects = computed[:, columns].view(len(masks), 3, graph.n_heads)
        wanted = projects & runs[:, None]
        for number, spans in enumerate((of_q, of_k)):
            if spans:
                wanted[:, number] = projects[:, number] & wanted[:, number].any(1, keepdim=True)
        read[:, columns] = wanted.flatten(1)
    mark_needed(slice(0, 1))
    return needed, attending, read
