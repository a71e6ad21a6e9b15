"""The forward pass, written out over named weights.

The tokens of a batch are packed, see `packed_tokens.py`. All activations may carry a leading "stack" dimension
(integration steps, circuits) that shares one layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..choices import QKV, QKVName
from .norms import apply_norm, centred, inverse_rms, normalise
from .packed_tokens import KVCache, PackedTokens, Queries, Rotation
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


Visitor = Callable[[LayerActivations], None]
Writer = Callable[[int, Tensor], Tensor]
"""(n, what node layer n writes in all) -> what it writes instead. Node layer 2l + 1 is the heads of layer l, 2l + 2 its
MLP."""


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


def rotate(x: Float[Tensor, "*stack token head d_head"], rotation: Rotation | None) -> Tensor:
    """Rotary position embedding of the first entries of each head."""
    if rotation is None:
        return x
    cos, sin = rotation.cos, rotation.sin
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)  # entries half of the turned width apart are the coordinates of one plane
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, kept), dim=-1)


def clamp_norm_rotate(
    layer: LayerWeights, letter: QKVName, x: Float[Tensor, "*stack token head d_head"], rotation: Rotation | None
) -> Float[Tensor, "*stack token head d_head"]:
    """q, k or v as they attend from what was projected: clamped; q and k also normed and turned.

    All heads must be there where one norm covers them all; else any may.
    """
    x = clamp(layer, x)
    if letter == "v":
        return x
    norm = layer.norm_of(letter)
    x = apply_norm(norm, x.flatten(-2)).view_as(x) if layer.norm_spans_heads(letter) else apply_norm(norm, x)
    return rotate(x, rotation)


def clamp(layer: LayerWeights, x: Tensor) -> Tensor:
    """q, k or v within the bounds of blocks that have some (OLMo)."""
    return x if layer.qkv_clamp is None else x.clamp(-layer.qkv_clamp, layer.qkv_clamp)


def with_prefix(
    x: Float[Tensor, "*stack token head d_head"], layout: PackedTokens, prefix: Tensor | None
) -> Float[Tensor, "*stack prompt_x_width head d_head"]:
    """Keys or values of all positions: the packed tokens', and the prefix's before them (zero without one)."""
    *stack, _, n_heads, d_head = x.shape
    size = layout.n_prompts * layout.width
    before = x.new_zeros(size, n_heads, d_head) if prefix is None else prefix
    return before.expand(*stack, size, n_heads, d_head).index_copy(-3, layout.key_index, x)


def pad_keys(
    x: Float[Tensor, "*stack token head d_head"], layout: PackedTokens, prefix: Tensor | None
) -> Float[Tensor, "*stack prompt head key d_head"]:
    """Keys or values as attention wants them, the prefix's filled in."""
    padded = with_prefix(x, layout, prefix)
    return padded.unflatten(-3, (layout.n_prompts, layout.width)).transpose(-3, -2)


def pad_queries(
    x: Float[Tensor, "*stack query head d_head"], layout: PackedTokens, queries: Queries
) -> Float[Tensor, "*stack prompt head width d_head"]:
    """Queries (or z) as attention wants them; zero where a prompt has fewer than the others."""
    *stack, _, n_heads, d_head = x.shape
    size = layout.n_prompts * queries.width
    if size > len(queries.index):
        x = x.new_zeros(*stack, size, n_heads, d_head).index_copy(-3, queries.index, x)
    return x.reshape(*stack, layout.n_prompts, queries.width, n_heads, d_head).transpose(-3, -2)


def attend(
    layer: LayerWeights,
    q: Float[Tensor, "*stack query head d_head"],
    keys: Float[Tensor, "*stack prompt kv_head key d_head"],
    values: Float[Tensor, "*stack prompt kv_head key d_head"],
    layout: PackedTokens,
    queries: Queries,
    *,
    frozen: bool = False,
) -> tuple[Float[Tensor, "*stack query head d_head"], Float[Tensor, "*stack prompt head width key"]]:
    """Causal attention of packed queries; returns the packed z and the padded pattern.

    With `frozen`, gradients take the pattern for a constant.

    Query heads are as many as key-value heads, or a multiple: then each key-value head serves a group of them.
    """
    *stack, _, n_heads, d_head = q.shape
    n_kv_heads = keys.shape[-3]
    size = layout.n_prompts * queries.width
    padded = pad_queries(q, layout, queries)
    # A group's queries stand one after the other, so that neither keys nor values are copied for each of its heads.
    grouped = (*stack, layout.n_prompts, n_kv_heads, -1)
    by_head = (*stack, layout.n_prompts, n_heads, queries.width)
    # [*stack, prompt, kv_head, group * query, key]
    scores = padded.reshape(*grouped, d_head) @ keys.transpose(-2, -1) * layer.attn_scale
    if layer.attn_softcap is not None:
        scores = softcap(scores, layer.attn_softcap)
    scores = scores.view(*by_head, layout.width).masked_fill(~queries.allowed, float("-inf"))
    pattern = scores.softmax(dim=-1)
    pattern = pattern.detach() if frozen else pattern
    z = pattern.view(*grouped, layout.width) @ values
    z = z.view(*by_head, d_head).transpose(-3, -2).reshape(*stack, size, n_heads, d_head)
    return (z if size == len(queries.index) else z.index_select(-3, queries.index)), pattern


def softcap(x: Tensor, cap: float) -> Tensor:
    """Keep numbers within +- cap, smoothly."""
    return cap * torch.tanh(x / cap)


def mlp(
    layer: LayerWeights, x: Float[Tensor, "*stack token d_model"], *, frozen: bool = False
) -> Float[Tensor, "*stack token d_model"]:
    """What the MLP writes for the residual stream `x` that it reads, its norms included.

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
    return apply_norm(layer.mlp_post_norm, F.linear(activated, layer.W_out.T, layer.b_out), frozen=frozen)


def unembed(
    weights: ModelWeights, x: Float[Tensor, "*stack token d_model"], *, frozen: bool = False
) -> Float[Tensor, "*stack token vocab"]:
    """Logits from the final residual stream; `frozen` as in `normalise`."""
    logits = F.linear(apply_norm(weights.final_norm, x, frozen=frozen), weights.unembed, weights.unembed_bias)
    require_finite({"the unembedding": logits.detach().isfinite().all()}, weights)
    return logits if weights.logit_softcap is None else softcap(logits, weights.logit_softcap)


def require_finite(finite: Mapping[str, Bool[Tensor, ""]], weights: ModelWeights) -> None:
    """Refuse what no number can come from: float16 overflows in some models.

    `finite` says of places in the model, in order, whether what they give is finite. The FloatingPointError names the
    first that gives NaN or infinity, and the number format.
    """
    good = torch.stack(list(finite.values())).tolist()  # One wait for all.
    if not all(good):
        where = list(finite)[good.index(False)]
        raise FloatingPointError(f"{where} gives NaN or infinity in {str(weights.dtype).removeprefix('torch.')}")


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
    last_layer: Literal["full", "answers"] = "full",
    frozen: bool = False,
    write: Writer | None = None,
) -> Float[Tensor, "*stack token d_model"]:
    """Run every layer on embedded tokens; gradients flow if `x` requires them.

    Args:
        x: residual stream before layer 0 (`embed`).
        prefix: keys and values of the positions before `layout.starts`; needed where any start is above 0.
        visit: called with each layer's activations as the layers run; keep what you need, nothing is held here.
        last_layer: with "answers", the last layer's queries, z, MLP and the result cover only each prompt's last token
            (its keys and values cover all): the only tokens that matter for the logits at the answer.
        frozen: let gradients follow the rules of RelP (Jafari et al. 2025, arXiv 2508.21258), which are those of a
            linear model: norms' scales and attention patterns are constants, an activation is a multiplication with
            the ratio of its output to its input, and each factor of a gate gets half of their product.
        write: may replace what the nodes of a layer write.

    Returns:
        The final residual stream, before the final norm, at all packed tokens or at the last ones ("answers").

    Raises:
        FloatingPointError: if activations are not finite, naming the layer.
    """
    if prefix is None and bool((layout.starts > 0).any()):
        raise ValueError("a layout that starts inside the prompts needs their prefix cache")
    if layout.width > weights.n_positions:
        raise ValueError(f"a prompt has {layout.width} tokens; the model takes at most {weights.n_positions}")
    finite = {"the embedding": x.detach().isfinite().all()}
    prefix = prefix or [(None, None)] * weights.n_layers
    for index, (layer, rotation) in enumerate(zip(weights.layers, layout.rotations(weights), strict=True)):
        normalised, inverse_scale = (
            (x, None) if layer.attn_norm is None else normalise(layer.attn_norm, x, frozen=frozen)
        )
        # One product projects q, k and v of all heads: [*stack, token, qkv_head, d_head].
        qkv = F.linear(normalised, layer.W_qkv.flatten(0, 1), layer.b_qkv.flatten()).unflatten(-1, layer.b_qkv.shape)
        q, k, v = (qkv[..., layer.rows(letter), :] for letter in QKV)
        k, v = clamp_norm_rotate(layer, "k", k, rotation), clamp_norm_rotate(layer, "v", v, rotation)
        queries, resid = layout.queries, x
        if last_layer == "answers" and index == weights.n_layers - 1:
            queries, q, resid = layout.answers, q[..., layout.last, :, :], x[..., layout.last, :]
            rotation = rotation and rotation.at(layout.last)
        q = clamp_norm_rotate(layer, "q", q, rotation)
        keys, values = (pad_keys(x, layout, before) for x, before in zip((k, v), prefix[index], strict=True))
        z, pattern = attend(layer, q, keys, values, layout, queries, frozen=frozen)
        # What all heads together write, and 1 / s of a norm of it.
        attn_out = F.linear(z.flatten(-2), layer.W_O.reshape(-1, weights.d_model).T, layer.b_O)
        post_norm, post_inverse_scale = layer.attn_post_norm, None
        if post_norm is not None:
            post_inverse_scale = inverse_rms(post_norm, attn_out)
            post_inverse_scale = post_inverse_scale.detach() if frozen else post_inverse_scale
            attn_out = (attn_out * post_inverse_scale * post_norm.gain).to(attn_out.dtype)
        attn_out = attn_out if write is None else write(2 * index + 1, attn_out)
        # view_as: a separate tensor to differentiate by, which only the MLP reads.
        attended = resid if weights.parallel else resid + attn_out
        mlp_in = attended.view_as(attended)
        mlp_out = mlp(layer, mlp_in, frozen=frozen)
        mlp_out = mlp_out if write is None else write(2 * index + 2, mlp_out)
        if visit is not None:
            read = x, normalised, inverse_scale
            # The pattern is named in the call alone: a local that held it would keep it while the next layer attends.
            visit(LayerActivations(index, *read, qkv, q, k, v, pattern, z, post_inverse_scale, mlp_in, mlp_out))
        x = (resid + attn_out if weights.parallel else attended) + mlp_out
        del z, pattern  # So that no two layers' attention is held at once.
        finite[f"layer {index}"] = x.detach().isfinite().all()
    require_finite(finite, weights)
    return x


def kv_cache(weights: ModelWeights, layout: PackedTokens, tokens: Int[Tensor, "prompt position"]) -> KVCache:
    """Keys and values before `layout.starts`, from right-padded token ids; no pass where every prompt starts at 0.

    Costs one forward pass over the prefix tokens, most of the last layer left out.
    """
    rows = (layout.starts > 0).nonzero()[:, 0]
    if len(rows) == 0:
        return [(None, None)] * weights.n_layers
    inner = PackedTokens.whole(layout.starts[rows])
    index = rows[inner.prompt] * layout.width + inner.position
    cache: list[tuple[Tensor | None, Tensor | None]] = []

    def keep(layer: LayerActivations) -> None:
        blank = layer.k.new_zeros(layout.n_prompts * layout.width, *layer.k.shape[-2:])
        cache.append((blank.index_copy(0, index, layer.k), blank.index_copy(0, index, layer.v)))

    with torch.no_grad():
        embedded = embed(weights, inner, inner.pack(tokens[rows]))
        forward(weights, inner, embedded, visit=keep, last_layer="answers")
    return cache
