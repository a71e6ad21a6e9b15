"""What a patched pass does in every layer: index tensors, worked out on the CPU and sent to the device at once.

A `Plan` says what each mask does to each node. Here that becomes which rows are taken, projected, chosen and added up:
nothing in the pass itself looks at a value, so the processor never waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from ..choices import QKV
from ..model.transfer import Movable, sent_ahead, to_device
from ..model.weights import LayerWeights, ModelWeights
from .differences import Reading
from .plan import COMPUTED, SOURCE, Plan


@dataclass(frozen=True)
class Choice(Movable):
    """Which of three candidates heads have under every mask: the base run's, the source run's, or the computed one.

    Attributes:
        source: where it is the source run's.
        computed: where it is the computed one, of the heads at `places` alone; None if none is computed.
        places: None if all heads are computed under some mask.
    """

    source: Bool[Tensor, "mask 1 head 1"]
    computed: Bool[Tensor, "mask 1 place 1"] | None
    places: Int[Tensor, " place"] | None

    @classmethod
    def of(cls, states: Int8[Tensor, "mask head"], computed: Int[Tensor, " place"]) -> Choice:
        """From the heads' states and which of them are computed."""
        at = (states == COMPUTED)[:, None, computed, None] if len(computed) else None
        places = computed if len(computed) < states.shape[1] else None
        return cls((states == SOURCE)[:, None, :, None], at, places)

    def __call__(
        self,
        base: Float[Tensor, "token head size"],
        source: Float[Tensor, "token head size"],
        fresh: Float[Tensor, "mask token place size"] | None,
    ) -> Float[Tensor, "mask token head size"]:
        """What the heads have."""
        x = torch.where(self.source, source, base)
        if self.computed is None:
            return x
        assert fresh is not None
        if self.places is None:
            return torch.where(self.computed, fresh, x)
        return x.index_copy_(2, self.places, torch.where(self.computed, fresh, x[:, :, self.places]))


@dataclass(frozen=True)
class HeadInputs(Movable):
    """q, k or v of the heads of a layer that attend.

    Attributes:
        heads: the heads that are projected under some mask, `on_cpu` too.
        rows: their rows of W_qkv, and among those of the letter alone (`kv`).
        of_runs: the rows of the heads that attend in the two runs.
        reading: what is projected; one input alone where all heads read the same under every mask.
        kept: which of the projected heads attend; None if all.
        choice: which value the heads that attend have.
        spanning: the same of all heads of the layer, where one norm covers them.
    """

    heads: Int[Tensor, " head"]
    rows: Int[Tensor, " head"]
    kv: Int[Tensor, " head"]
    of_runs: Int[Tensor, " attending"]
    reading: list[Reading] | None
    kept: Int[Tensor, " kept"] | None
    choice: Choice
    spanning: Choice | None


@dataclass(frozen=True)
class LayerSteps(Movable):
    """One layer of a stack of masks.

    Attributes:
        heads: those that any mask needs: they are written for all masks. `on_cpu` are the same.
        attending: those that attend; behind a norm of what all heads write more than are needed.
        kept: which of these are needed; None if all.
        choice: what the needed heads write; `all_heads`: what all do, where a norm follows.
        prefix: the rows of the prefix's keys and values of the heads that attend.
        mlp: what the MLP reads; None where it is computed under no mask.
        mlp_source, mlp_computed: where it has the source run's value, or its own; None where no mask needs it.
    """

    on_cpu: tuple[list[int], list[int]]
    heads: Int[Tensor, " head"]
    attending: Int[Tensor, " attending"]
    kept: Int[Tensor, " kept"] | None
    choice: Choice
    all_heads: Choice | None
    qkv: tuple[HeadInputs, ...]
    prefix: Int[Tensor, " two_attending"]
    mlp: list[Reading] | None
    mlp_source: Bool[Tensor, "mask 1 1"] | None
    mlp_computed: Bool[Tensor, "mask 1 1"]


@dataclass(frozen=True)
class Steps(Movable):
    """All layers of a stack of masks, and what the logits read.

    Attributes:
        part: which of all masks these are.
        n_kept: nodes whose differences are kept.
        from_input: whether that of `input` is among them.
        computed: which masks need a pass; None where none does.
    """

    part: slice
    n_kept: int
    from_input: bool
    layers: list[LayerSteps]
    logits: list[Reading] | None
    source: Bool[Tensor, "mask 1 1"]
    computed: Bool[Tensor, "mask 1 1"] | None

    @classmethod
    def of(cls, weights: ModelWeights, plan: Plan, part: slice) -> Steps:
        """Those of some masks of a plan, on the CPU."""
        graph, plan = plan.graph, plan.select(part)
        state = plan.inputs[:, graph.logits, None, None]
        kept = plan.needed.any(0)
        edges = plan.masks[:, :, kept.nonzero()[:, 0]]
        if not bool((state == COMPUTED).any()):
            return cls(part, 0, False, [], None, state == SOURCE, None)
        # Nodes are written in their order, so those that an input can read are the first of those kept.
        layers = [
            _layer(
                layer, plan, index, edges, [int(kept[:n].sum()) for n in (graph.head(index), graph.n_before_mlp(index))]
            )
            for index, layer in enumerate(weights.layers)
        ]
        n_kept = edges.shape[2]
        logits = Reading.by_role(edges, n_kept, [graph.logits], weights.dtype)
        return cls(part, n_kept, bool(kept[0]), layers, logits, state == SOURCE, state == COMPUTED)

    def _on_devices(self, weights: ModelWeights) -> Steps:
        """Each layer's where the layer is, the logits' with the last one, and the rest on the model's device."""
        if not self.layers:
            return to_device(self, weights.device)
        layers: list[LayerSteps] = []
        for device, some in groupby(zip(weights.layers, self.layers, strict=True), lambda pair: pair[0].device):
            layers += to_device([steps for _, steps in some], device)
        logits = to_device(self.logits, weights.layers[-1].device)
        return replace(to_device(replace(self, layers=[], logits=None), weights.device), layers=layers, logits=logits)

    @staticmethod
    def sent(passes: Iterable[list[Steps]], weights: ModelWeights) -> Iterator[list[Steps]]:
        """Those of several passes where the model is, as many in one copy as `AHEAD` bytes hold."""
        if len(weights.devices) > 1:
            yield from ([steps._on_devices(weights) for steps in of_pass] for of_pass in passes)
        else:
            yield from sent_ahead(passes, weights.device)


def _layer(layer: LayerWeights, plan: Plan, index: int, edges: Tensor, n_written: list[int]) -> LayerSteps:
    graph = plan.graph
    of_layer = slice(graph.head(index), graph.mlp(index))
    heads, attending = (_any(of_kind[:, of_layer]) for of_kind in (plan.needed, plan.attending))
    states, column = plan.nodes[:, of_layer], graph.mlp_input(index)
    qkv = []
    for number, letter in enumerate(QKV):
        served = torch.arange(graph.n_heads) // (1 if letter == "q" else layer.group)
        projected = _any(plan.read[:, graph.qkv_inputs(index)].view(len(plan), 3, -1)[:, number])
        inputs = graph.qkv_inputs(index).start + number * graph.n_heads + projected
        reading = None
        if len(projected):
            read = plan.masks[..., inputs]
            alike = bool((read == read[..., :1]).all())  # Then all read one residual stream.
            reading = Reading.by_role(edges, n_written[0], inputs[:1] if alike else inputs, layer.W_O.dtype)
        of_letter = plan.inputs[:, graph.qkv_inputs(index)].view(len(plan), 3, -1)[:, number]
        qkv.append(
            HeadInputs(
                projected,
                layer.rows(letter).start + served[projected],
                served[projected],
                served[attending],
                reading,
                _places(projected, attending),
                Choice.of(of_letter[:, attending], _in(attending, projected)),
                Choice.of(of_letter, projected) if layer.norm_spans_heads(letter) else None,
            )
        )
    mlp_state = plan.inputs[:, column, None, None]
    computed = mlp_state == COMPUTED
    needs_mlp = bool(plan.needed[:, graph.mlp(index)].any())
    served = attending // layer.group
    return LayerSteps(
        (heads.tolist(), attending.tolist()),
        heads,
        attending,
        _places(attending, heads),
        Choice.of(states[:, heads], _in(heads, attending)),
        Choice.of(states, attending) if layer.attn_post_norm is not None else None,
        tuple(qkv),
        torch.cat((served, served + layer.n_kv_heads)),
        Reading.by_role(edges, n_written[1], [column], layer.W_O.dtype) if needs_mlp and bool(computed.any()) else None,
        mlp_state == SOURCE if needs_mlp else None,
        computed,
    )


def _any(of_masks: Bool[Tensor, "mask head"]) -> Int[Tensor, " head"]:
    """The heads of which something holds under some mask."""
    return of_masks.any(0).nonzero()[:, 0]


def _in(heads: Int[Tensor, " head"], others: Int[Tensor, " other"]) -> Int[Tensor, " place"]:
    """The places of the heads that are among others."""
    return torch.isin(heads, others).nonzero()[:, 0]


def _places(heads: Int[Tensor, " head"], others: Int[Tensor, " other"]) -> Int[Tensor, " place"] | None:
    """The same; None if all are."""
    places = _in(heads, others)
    return None if len(places) == len(heads) else places
