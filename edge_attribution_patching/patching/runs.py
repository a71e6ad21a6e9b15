"""The two runs that masks are evaluated from: prepared once per batch, and kept while they fit the memory budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..choices import Base
from ..model.forward import LayerActivations, clamp, embed, forward, kv_cache, unembed, with_prefix
from ..model.norms import centred
from ..model.packed_tokens import KVCache, PackedTokens
from ..model.pairs import GB, Metric, PairBatch
from ..model.reference import Reference
from ..model.weights import ModelWeights


@dataclass(frozen=True)
class LayerRun:
    """One layer of one run at the packed tokens; in the last layer q, z and what follows are at the answers alone."""

    resid_pre: Float[Tensor, "token d_model"]  # centred
    mlp_in: Float[Tensor, "token d_model"]  # centred
    q: Float[Tensor, "token head d_head"]  # as they attend
    k: Float[Tensor, "token kv_head d_head"]
    v: Float[Tensor, "token kv_head d_head"]
    z: Float[Tensor, "token head d_head"]
    mlp_out: Float[Tensor, "token d_model"]
    # 1 / s of a norm of what attention writes, and where one norm covers q or k of all heads, each one's sum of squares
    # before it.
    post_inverse_scale: Float[Tensor, "token 1"] | None = None
    q_squares: Float[Tensor, "token head"] | None = None
    k_squares: Float[Tensor, "token kv_head"] | None = None
    ablated: Float[Tensor, "token head d_head"] | None = None  # what heads write that are ablated

    @property
    def written(self) -> Float[Tensor, "token head d_head"]:
        """What heads write, written @ W_O_scaled."""
        if self.ablated is not None:
            return self.ablated
        if self.post_inverse_scale is None:
            return self.z
        return (self.z * self.post_inverse_scale[..., None]).to(self.z.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """What is there, by name."""
        return {name: x for name, x in vars(self).items() if x is not None}

    def at(self, tokens: Int[Tensor, " part"]) -> LayerRun:
        """Some of the packed tokens."""
        tokens = tokens.to(self.z.device)
        return LayerRun(**{name: x[tokens] for name, x in self.tensors().items()})


@dataclass(frozen=True)
class RunActivations:
    """One run of a batch."""

    embedded: Float[Tensor, "token d_model"]  # the residual stream before layer 0
    layers: list[LayerRun]  # see `LayerRun`
    final: Float[Tensor, "prompt d_model"]  # the residual stream before the final norm at the answers, centred


@dataclass(frozen=True)
class PreparedRuns:
    """Both runs of one batch, shared by all masks evaluated on it."""

    batch: PairBatch
    prefix: KVCache
    base: RunActivations
    source: RunActivations

    @property
    def layout(self) -> PackedTokens:
        return self.batch.layout

    @property
    def nbytes(self) -> int:
        """Memory of the layers and the prefix."""
        tensors = [x for run in (self.base, self.source) for layer in run.layers for x in layer.tensors().values()]
        tensors += [x for x in self.prefix if x is not None]
        # Some share their memory, and count once.
        return sum({x.data_ptr(): x.numel() * x.element_size() for x in tensors}.values())


def prepare_runs(
    weights: ModelWeights, batch: PairBatch, base: Base = "corrupted", reference: Reference | None = None
) -> PreparedRuns:
    """Run both prompts of a batch once and keep what masks are evaluated from; `base` carries the edges outside.

    With a reference the base run is no prompt's: each node reads what the reference writes before it, and writes its
    own part of that, whatever it would make of what it reads. The batch must run all of its tokens then.
    """
    layout, norm = batch.layout, weights.final_norm
    prefix = kv_cache(weights, layout, batch.clean)
    tokens = (batch.corrupted, batch.clean) if base == "corrupted" else (batch.clean, batch.corrupted)
    # Both runs go through the layers as a stack of two: base first, then source.
    embedded = torch.stack([embed(weights, layout, layout.pack(padded)) for padded in tokens])
    layers: tuple[list[LayerRun], list[LayerRun]] = ([], [])
    last_layer, write = weights.n_layers - 1, None
    if reference is not None:
        ablated = reference
        embedded[0] = ablated.at(ablated.totals[0], layout)

        def write(n: int, out: Tensor) -> Tensor:
            total = ablated.at(ablated.totals[n], layout, answers=n > 2 * last_layer)
            return torch.stack((total, out[1]))

    def keep(layer: LayerActivations) -> None:
        resid_pre, v = centred(norm, layer.resid_pre), layer.v.contiguous()
        here = layout.on(resid_pre.device, weights)
        last = layer.layer == last_layer
        if not weights.parallel:
            mlp_in = centred(norm, layer.mlp_in)
        elif last:
            mlp_in = resid_pre[:, here.last]
        else:  # The MLP reads what attention reads: the same memory.
            mlp_in = resid_pre
        parts: dict[str, Tensor | None] = {"resid_pre": resid_pre, "mlp_in": mlp_in, "v": v}
        parts |= {name: getattr(layer, name) for name in ("q", "k", "z", "mlp_out", "post_inverse_scale")}
        block = weights.layers[layer.layer]
        for letter in ("q", "k"):
            if block.norm_spans_heads(letter):
                # A patched pass changes some heads only: their norm's scale is put together from these.
                projected = clamp(block, layer.qkv[..., block.rows(letter), :])
                squares = projected.to(torch.promote_types(projected.dtype, torch.float32)).square().sum(-1)
                parts[f"{letter}_squares"] = squares[:, here.last] if letter == "q" and last else squares
        for run, of_run in enumerate(layers):
            of_run.append(LayerRun(**{name: part[run] for name, part in parts.items() if part is not None}))
        if reference is not None:
            z, heads = (
                reference.at(of_layers[layer.layer], layout, answers=last)
                for of_layers in (reference.z, reference.heads)
            )
            layers[0][-1] = replace(layers[0][-1], z=z, ablated=heads)

    with torch.no_grad():
        how: dict[str, Any] = {"prefix": prefix, "visit": keep, "in_place": True, "write": write}
        finals = centred(norm, forward(weights, layout, embedded, last_layer="answers", **how))
    of_base, of_source = (RunActivations(*parts) for parts in zip(embedded, layers, finals, strict=True))
    return PreparedRuns(batch, prefix, of_base, of_source)


def run_metric(
    weights: ModelWeights, runs: PreparedRuns, metric: Metric
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, " prompt"]]:
    """The metric of every prompt of the batch in the source and in the base run, float32."""
    source, base = metric_of_finals(
        weights, torch.stack((runs.source.final, runs.base.final)), runs.batch.index, metric
    )
    return source, base


def metric_of_finals(
    weights: ModelWeights, finals: Float[Tensor, "mask prompt d_model"], index: Int[Tensor, " prompt"], metric: Metric
) -> Float[Tensor, "mask prompt"]:
    """The metric of the prompts with the final residual streams of several passes, float32."""
    logits = unembed(weights, finals.flatten(0, 1))
    return metric(logits, index.repeat(len(finals))).float().view(finals.shape[:2])


class PreparedBatches:
    """The runs of every batch, in turn: kept up to a memory budget, prepared again beyond it."""

    def __init__(
        self,
        weights: ModelWeights,
        batches: Iterable[PairBatch],
        base: Base,
        memory_budget_gb: float,
        reference: Reference | None = None,
    ) -> None:
        self.weights, self.base, self.memory_budget_gb, self.reference = weights, base, memory_budget_gb, reference
        self._batches = list(batches)
        self._kept: dict[int, PreparedRuns] = {}

    def __iter__(self) -> Iterator[PreparedRuns]:
        for number, batch in enumerate(self._batches):
            runs = self._kept.get(number)
            if runs is None:
                runs = prepare_runs(self.weights, batch, self.base, self.reference)
                if sum(kept.nbytes for kept in self._kept.values()) + runs.nbytes <= self.memory_budget_gb * GB:
                    self._kept[number] = runs
            yield runs


def at_answers(runs: PreparedRuns) -> PreparedRuns:
    """The same runs at the answers' tokens alone; the tokens before them keep the keys and values of the base run.

    This is exact for masks that leave keys and values at other tokens alone: paths that enter heads by their queries
    only, and swaps that are meant for the answers' tokens only. It is several times cheaper.
    """
    layout = runs.layout
    cut_layout = layout.at_last_tokens()
    # The keys and values of all tokens but the last ones, prompt by prompt, become the prefix.
    before = layout.keys.flatten()[cut_layout.prefix_places]
    cache = [
        with_prefix(torch.cat((layer.k, layer.v), dim=-2), prefix).index_select(0, before.to(layer.k.device))
        if len(before)
        else None
        for layer, prefix in zip(runs.base.layers, runs.prefix, strict=True)
    ]
    batch = replace(runs.batch, layout=cut_layout, tokens_of_roles=())
    cut = []
    for run in (runs.base, runs.source):
        *below, top = run.layers
        # The last layer's q, z and MLP are at the answers already.
        whole = {
            name: x[layout.last.to(x.device)]
            for name, x in top.tensors().items()
            if name in ("resid_pre", "k", "v", "k_squares")
        }
        layers = [*(layer.at(layout.last) for layer in below), replace(top, **whole)]
        cut.append(RunActivations(run.embedded[layout.last], layers, run.final))
    return PreparedRuns(batch, cache, *cut)
