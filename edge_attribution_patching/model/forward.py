"""The forward pass, written out over named weights.

The tokens of a batch are packed, see `packed_tokens.py`. All activations may carry a leading "stack" dimension
(integration steps, circuits) that shares one layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..choices import QKVName
from .norms import apply_norm, centred, inverse_rms, normalise
from .packed_tokens import AttentionRows, KVCache, PackedTokens, Queries, Rotation, Rows
from .transfer import largest_of, require_finite, to_device
from .weights import LayerWeights, ModelWeights


@dataclass
class LayerActivations:
    """What a layer computed at the packed tokens (in a last layer cut to the answers: q, z on at those)."""

    layer: int
    resid_pre: Float[Tensor, "*stack token d_model"]
    # (resid_pre - mean) / s without gain and bias, and 1 / s; without a norm resid_pre itself, and None.
    normalised: Float[Tensor, "*stack token d_model"]
    inverse_scale: Float[Tensor, "*stack token 1"] | None
    qkv: Float[Tensor, "*stack token qkv_head d_head"]  # as projected: q, k, v in the order of `LayerWeights`
    laid: Float[Tensor, "*stack prompt kv_head row d_head"]  # as they attend, as `lay_out` gives them
    # As they attend: clamped, normed, turned.
    q: Float[Tensor, "*stack token head d_head"]
    k: Float[Tensor, "*stack token kv_head d_head"]
    v: Float[Tensor, "*stack token kv_head d_head"]
    # Padded; rows and columns beyond a prompt's tokens are meaningless.
    pattern: Float[Tensor, "*stack prompt head query key"]
    z: Float[Tensor, "*stack token head d_head"]
    # 1 / s of a norm of what attention writes: head h wrote gain * (z_h W_O) / s. None without one.
    post_inverse_scale: Float[Tensor, "*stack token 1"] | None
    mlp_in: Float[Tensor, "*stack token d_model"]  # the residual stream that the MLP reads, before its norm
    mlp_out: Float[Tensor, "*stack token d_model"]

    @property
    def written(self) -> Float[Tensor, "*stack token head d_head"]:
        """What each head writes, times `LayerWeights.W_O_scaled`."""
        return self.z if self.post_inverse_scale is None else self.z * self.post_inverse_scale[..., None]


class _Brought:
    """What a layer on another device computed, of which each part is copied to the model's when it is first read."""

    def __init__(self, there: LayerActivations, device: torch.device) -> None:
        self._there, self._device = there, device

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._there, name)
        value = value.to(self._device) if isinstance(value, Tensor) else value
        setattr(self, name, value)
        return value


Visitor = Callable[[LayerActivations], None]
Writer = Callable[[int, Tensor], Tensor]
"""(n, what node layer n writes in all) -> what it writes instead. Node layer 2l + 1 is the heads of layer l, 2l + 2 its
MLP. Or, before that, (n, z of all heads or the MLP's hidden units) -> what they hold instead."""


def embed_tokens(weights: ModelWeights, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    """What tokens write to the residual stream, without positions."""
    x = weights.embed[tokens]
    return x if weights.embed_scale == 1.0 else x * weights.embed_scale


def embed(weights: ModelWeights, layout: PackedTokens, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    """The residual stream before layer 0 at the packed tokens."""
    x = embed_tokens(weights, tokens)
    if weights.position_embed is not None:
        x = x + weights.position_embed[layout.position]
    return x


class _Rotate(torch.autograd.Function):
    """Turns x by the angles of a rotation, and gradients back: a third of the kernels that autograd takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Rotation, n_heads: int | None) -> Tensor:
        ctx.rotation, ctx.n_heads = rotation, n_heads
        return _turn(x, rotation.cos, rotation.sin, n_heads)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _turn(gradient, ctx.rotation.cos, -ctx.rotation.sin, ctx.n_heads), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, n_heads: int | None) -> Tensor:
    turning = (..., slice(n_heads), slice(cos.shape[-1]))
    first, second = x[turning].chunk(2, dim=-1)  # entries half of the width apart are the coordinates of one plane
    turned = x.clone()
    turned[turning].mul_(cos).addcmul_(torch.cat((second, first), dim=-1), sin)
    return turned


def rotate(
    x: Float[Tensor, "*stack token head d_head"], rotation: Rotation | None, n_heads: int | None = None
) -> Tensor:
    """Rotary position embedding of the first entries of the first heads, or of every head."""
    return x if rotation is None else _Rotate.apply(x, rotation, n_heads)


def clamp_norm_rotate(
    layer: LayerWeights, letter: QKVName, x: Float[Tensor, "*stack token head d_head"], rotation: Rotation | None
) -> Float[Tensor, "*stack token head d_head"]:
    """q, k or v as they attend from what was projected: clamped; q and k also normed and turned.

    All heads must be there where one norm covers them all; else any may.
    """
    x = clamp(layer, x)
    return x if letter == "v" else rotate(_qk_norm(layer, letter, x), rotation)


def _qk_norm(layer: LayerWeights, letter: QKVName, x: Tensor) -> Tensor:
    norm = layer.norm_of(letter)
    return apply_norm(norm, x.flatten(-2)).view_as(x) if layer.norm_spans_heads(letter) else apply_norm(norm, x)


def as_they_attend(
    layer: LayerWeights, qkv: Float[Tensor, "*stack token qkv_head d_head"], rotation: Rotation | None
) -> Float[Tensor, "*stack token qkv_head d_head"]:
    """q, k and v of all heads from what was projected, as `clamp_norm_rotate` has them one by one."""
    qkv = clamp(layer, qkv)
    if layer.q_norm is not None or layer.k_norm is not None:
        q, k, v = qkv.split((layer.n_heads, layer.n_kv_heads, layer.n_kv_heads), dim=-2)
        qkv = torch.cat((_qk_norm(layer, "q", q), _qk_norm(layer, "k", k), v), dim=-2)
    return rotate(qkv, rotation, layer.n_heads + layer.n_kv_heads)


def clamp(layer: LayerWeights, x: Tensor) -> Tensor:
    """q, k or v within the bounds of blocks that have some (OLMo)."""
    return x if layer.qkv_clamp is None else x.clamp(-layer.qkv_clamp, layer.qkv_clamp)


class _TakeRows(torch.autograd.Function):
    """Rows of the prefix and then of x in another order. Gradients go back to x by its inverse: nothing is added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, prefix: Tensor | None, rows: Rows) -> Tensor:
        ctx.rows = rows
        if prefix is not None:
            x = torch.cat((prefix.expand(*x.shape[:-2], *prefix.shape), x), dim=-2)
        return x.index_select(-2, rows.index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.rows.blank:
            zero = gradient.new_zeros(*gradient.shape[:-2], 1, gradient.shape[-1])
            gradient = torch.cat((gradient, zero), dim=-2)
        return gradient.index_select(-2, ctx.rows.inverse), None, None


def take_rows(x: Float[Tensor, "*stack row size"], rows: Rows, prefix: Tensor | None = None) -> Tensor:
    """Rows of a prefix that all of the stack share and of x, in the order of `rows`."""
    taken: Tensor = _TakeRows.apply(x, prefix, rows)
    return taken


def lay_out(
    layer: LayerWeights,
    attended: Float[Tensor, "*stack token qkv_head d_head"],
    layout: PackedTokens,
    prefix: Tensor | None,
    rows: AttentionRows,
) -> Float[Tensor, "*stack prompt kv_head row d_head"]:
    """q, k and v as attention wants them: of every key-value head its queries, its keys and its values.

    Heads that share it have their queries one after the other, so that neither keys nor values are copied for each.
    """
    before = None if prefix is None else prefix.flatten(0, 1)
    laid = take_rows(attended.flatten(-3, -2), rows.qkv, before)
    return laid.unflatten(-2, (layout.n_prompts, layer.n_kv_heads, -1))


def attend(
    layer: LayerWeights,
    laid: Float[Tensor, "*stack prompt kv_head row d_head"],
    queries: Queries,
    *,
    frozen: bool = False,
) -> tuple[Float[Tensor, "*stack prompt head width d_head"], Float[Tensor, "*stack prompt head width key"]]:
    """Causal attention of what `lay_out` gives; returns z and the pattern, both padded.

    With `frozen`, gradients take the pattern for a constant.
    """
    *stack, n_prompts, n_kv_heads, n_rows, d_head = laid.shape
    n_keys = queries.hidden.shape[-1]
    n_queries = n_rows - 2 * n_keys  # of each key-value head
    n_heads = n_kv_heads * n_queries // queries.width
    q, keys, values = laid.flatten(0, -3).split((n_queries, n_keys, n_keys), dim=-2)
    scores = torch.bmm(q, keys.transpose(-2, -1)) * layer.attn_scale
    if layer.attn_softcap is not None:
        scores = softcap(scores, layer.attn_softcap)
    by_head = scores.view(*stack, n_prompts, n_heads, queries.width, n_keys)
    pattern = by_head.masked_fill(queries.hidden, float("-inf")).softmax(dim=-1)
    pattern = pattern.detach() if frozen else pattern
    z = torch.bmm(pattern.view_as(scores), values)
    return z.view(*stack, n_prompts, n_heads, queries.width, d_head), pattern


def with_prefix(
    x: Float[Tensor, "*stack token head d_head"], prefix: Float[Tensor, "prefix_token head d_head"] | None
) -> Float[Tensor, "*stack prefix_and_token head d_head"]:
    """Keys or values of the prefix and then of the packed tokens."""
    return x if prefix is None else torch.cat((prefix.expand(*x.shape[:-3], *prefix.shape), x), dim=-3)


def at_places(x: Tensor, index: Int[Tensor, "*place"]) -> Tensor:
    """x[:, index], copied row by row: five times as fast on a CPU."""
    return x.index_select(1, index.flatten()).unflatten(1, index.shape)


def softcap(x: Tensor, cap: float) -> Tensor:
    """Keep numbers within +- cap, smoothly."""
    return cap * torch.tanh(x / cap)


def mlp(layer: LayerWeights, x: Float[Tensor, "*stack token d_model"]) -> Float[Tensor, "*stack token d_model"]:
    """What the MLP writes for the residual stream `x` that it reads, its norms included."""
    return mlp_written(layer, mlp_hidden(layer, x))


def mlp_hidden(
    layer: LayerWeights, x: Float[Tensor, "*stack token d_model"], *, frozen: bool = False
) -> Float[Tensor, "*stack token d_mlp"]:
    """What the MLP's hidden units hold for the residual stream `x` that it reads, behind activation and gate.

    With `frozen`, gradients take what the activation multiplies its input with for a constant, and half of a gate's
    product for each factor (RelP, see `forward`).
    """
    normalised = apply_norm(layer.mlp_norm, x, frozen=frozen)
    hidden = F.linear(normalised, layer.W_in.T, layer.b_in)
    before = hidden if layer.W_gate is None else F.linear(normalised, layer.W_gate.T, layer.b_gate)
    activated = layer.activation(before)
    if frozen:
        activated = before * torch.where(before == 0, 0, activated / before).detach()
    if layer.W_gate is not None and frozen:
        activated = (activated * hidden.detach() + activated.detach() * hidden) / 2
    elif layer.W_gate is not None:
        activated = activated * hidden
    return activated


def mlp_shares(layer: LayerWeights, hidden: Float[Tensor, "*stack token d_mlp"]) -> Float[Tensor, "*stack token d_mlp"]:
    """What each hidden unit writes, times `LayerWeights.W_out_scaled`, from what all of them hold."""
    if layer.mlp_post_norm is None:
        return hidden
    return hidden * inverse_rms(layer.mlp_post_norm, F.linear(hidden, layer.W_out.T, layer.b_out))


def mlp_written(
    layer: LayerWeights, hidden: Float[Tensor, "*stack token d_mlp"], *, frozen: bool = False
) -> Float[Tensor, "*stack token d_model"]:
    """What the MLP writes from its hidden units."""
    return apply_norm(layer.mlp_post_norm, F.linear(hidden, layer.W_out.T, layer.b_out), frozen=frozen)


def unembed(
    weights: ModelWeights, x: Float[Tensor, "*stack token d_model"], *, frozen: bool = False
) -> Float[Tensor, "*stack token vocab"]:
    """Logits from the final residual stream; `frozen` as in `normalise`."""
    logits = F.linear(apply_norm(weights.final_norm, x, frozen=frozen), weights.unembed, weights.unembed_bias)
    require_finite({"the unembedding": largest_of(logits)}, weights.dtype)
    return logits if weights.logit_softcap is None else softcap(logits, weights.logit_softcap)


class Unembedding:
    """The unembedding as the normalised final residual stream meets it, folded row by row when asked for.

    logits = normalised @ rows(tokens).T + bias(tokens), with `normalised` as `normalise` gives it: the final norm's
    gain and bias are folded in, and rows are centred over d_model where the norm centres. Everything is in float32 or
    better.

    Args:
        centre_vocabulary: also centre rows and biases over the vocabulary. Every position's logits then lack a
            constant, which no softmax sees.
    """

    def __init__(self, weights: ModelWeights, *, centre_vocabulary: bool = False) -> None:
        self.dtype = torch.promote_types(weights.dtype, torch.float32)
        self.d_vocab = weights.d_vocab
        self.gain = weights.final_norm.gain.to(self.dtype)
        self._weights = weights
        self._norm_bias = weights.final_norm.bias.to(self.dtype)
        self._mean = self.gain.new_zeros(weights.d_model)
        self._mean_bias = self.gain.new_zeros(())
        if centre_vocabulary:
            self._mean = weights.unembed.mean(dim=0, dtype=self.dtype)
            self._mean_bias = self._mean @ self._norm_bias
            if weights.unembed_bias is not None:
                self._mean_bias = self._mean_bias + weights.unembed_bias.mean(dtype=self.dtype)

    def rows(self, index: slice | Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """Unembedding directions of some tokens."""
        rows = (self._weights.unembed[index].to(self.dtype) - self._mean) * self.gain
        return centred(self._weights.final_norm, rows)

    def bias(self, index: slice | Int[Tensor, " token"]) -> Float[Tensor, " token"]:
        """Constant part of some tokens' logits."""
        bias = self._weights.unembed[index].to(self.dtype) @ self._norm_bias - self._mean_bias
        if self._weights.unembed_bias is not None:
            bias = bias + self._weights.unembed_bias[index].to(self.dtype)
        return bias


def forward(
    weights: ModelWeights,
    layout: PackedTokens,
    x: Float[Tensor, "*stack token d_model"],
    *,
    prefix: KVCache | None = None,
    visit: Visitor | None = None,
    in_place: bool = False,
    last_layer: Literal["full", "answers"] = "full",
    frozen: bool = False,
    write: Writer | None = None,
    hold: Writer | None = None,
) -> Float[Tensor, "*stack token d_model"]:
    """Run every layer on embedded tokens; gradients flow if `x` requires them.

    Args:
        x: residual stream before layer 0 (`embed`).
        prefix: keys and values of the positions before `layout.starts`; needed where any start is above 0.
        visit: called with each layer's activations as the layers run; keep what you need, nothing is held here.
        in_place: of a model on several devices, leave them where the layer is; else what `visit` reads is brought to
            the model's device.
        last_layer: with "answers", the last layer's queries, z, MLP and the result cover only each prompt's last token
            (its keys and values cover all): the only tokens that matter for the logits at the answer.
        frozen: let gradients follow the rules of RelP (Jafari et al. 2025, arXiv 2508.21258), which are those of a
            linear model: norms' scales and attention patterns are constants, an activation is a multiplication with
            the ratio of its output to its input, and each factor of a gate gets half of their product.
        write: may replace what the nodes of a layer write, where the layer is; `hold`: what their units hold.

    Returns:
        The final residual stream, before the final norm, at all packed tokens or at the last ones ("answers").

    Raises:
        FloatingPointError: if activations are not finite, naming the layer.
    """
    if prefix is None and layout.n_prefix:
        raise ValueError("a layout that starts inside the prompts needs their prefix cache")
    if layout.width > weights.n_positions:
        raise ValueError(f"a prompt has {layout.width} tokens; the model takes at most {weights.n_positions}")
    largest = {"the embedding": largest_of(x)}
    for index, (layer, rotation) in enumerate(zip(weights.layers, layout.rotations(weights), strict=True)):
        x, here = x.to(layer.device, non_blocking=True), layout.on(layer.device, weights)
        normalised, inverse_scale = (
            (x, None) if layer.attn_norm is None else normalise(layer.attn_norm, x, frozen=frozen)
        )
        # One product projects q, k and v of all heads: [*stack, token, qkv_head, d_head].
        qkv = F.linear(normalised, layer.W_qkv.flatten(0, 1), layer.b_qkv.flatten()).unflatten(-1, layer.b_qkv.shape)
        attended = as_they_attend(layer, qkv, rotation)
        answers = last_layer == "answers" and index == weights.n_layers - 1
        rows, queries = here.rows(weights, answers=answers), here.answers if answers else here.queries
        laid = lay_out(layer, attended, here, prefix[index] if prefix else None, rows)
        z, pattern = attend(layer, laid, queries, frozen=frozen)
        z = take_rows(z.flatten(-4, -2), rows.z).unflatten(-2, (-1, layer.n_heads))
        z = z if hold is None else hold(2 * index + 1, z)
        # What all heads together write, and 1 / s of a norm of it.
        attn_out = F.linear(z.flatten(-2), layer.W_O.reshape(-1, weights.d_model).T, layer.b_O)
        post_norm, post_inverse_scale = layer.attn_post_norm, None
        if post_norm is not None:
            post_inverse_scale = inverse_rms(post_norm, attn_out)
            post_inverse_scale = post_inverse_scale.detach() if frozen else post_inverse_scale
            attn_out = (attn_out * post_inverse_scale * post_norm.gain).to(attn_out.dtype)
        attn_out = attn_out if write is None else write(2 * index + 1, attn_out)
        resid = x.index_select(-2, here.last) if answers else x
        # view_as: a separate tensor to differentiate by, which only the MLP reads.
        stream = resid if weights.parallel else resid + attn_out
        mlp_in = stream.view_as(stream)
        hidden = mlp_hidden(layer, mlp_in, frozen=frozen)
        mlp_out = mlp_written(layer, hidden if hold is None else hold(2 * index + 2, hidden), frozen=frozen)
        del hidden
        mlp_out = mlp_out if write is None else write(2 * index + 2, mlp_out)
        if visit is not None:
            q, k, v = attended.split((layer.n_heads, layer.n_kv_heads, layer.n_kv_heads), dim=-2)
            q = q[..., here.last, :, :] if answers else q
            read = x, normalised, inverse_scale
            seen = LayerActivations(index, *read, qkv, laid, q, k, v, pattern, z, post_inverse_scale, mlp_in, mlp_out)
            away = layer.device != weights.device and not in_place
            visit(cast("LayerActivations", _Brought(seen, weights.device)) if away else seen)
            del seen
        x = (resid + attn_out if weights.parallel else stream) + mlp_out
        del z, pattern  # So that no two layers' attention is held at once.
        largest[f"layer {index}"] = largest_of(x).to(weights.device)
    require_finite(largest, weights.dtype)
    return x.to(weights.device)


def kv_cache(weights: ModelWeights, layout: PackedTokens, tokens: Int[Tensor, "prompt position"]) -> KVCache:
    """Keys and values before `layout.starts`, from right-padded token ids; no pass where every prompt starts at 0.

    Costs one forward pass over the prefix tokens, most of the last layer left out.
    """
    inner = layout.prefix
    if inner is None:
        return [None] * weights.n_layers
    cache: list[Tensor | None] = []

    def keep(layer: LayerActivations) -> None:
        cache.append(torch.cat((layer.k, layer.v), dim=-2))

    with torch.no_grad():
        packed = tokens[layout.prefix_prompts[inner.prompt], inner.position]
        forward(weights, inner, embed(weights, inner, packed), visit=keep, in_place=True, last_layer="answers")
    return cache


@torch.inference_mode()
def answer_logits(
    weights: ModelWeights, tokens: Int[Tensor, "prompt position"], lengths: Int[Tensor, " prompt"]
) -> Float[Tensor, "prompt vocab"]:
    """Logits of the next token after each right-padded prompt."""
    layout, tokens = to_device((PackedTokens.whole(lengths.cpu()).made_for(weights), tokens), weights.device)
    x = embed(weights, layout, layout.pack(tokens))
    return unembed(weights, forward(weights, layout, x, last_layer="answers"))
