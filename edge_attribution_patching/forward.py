"""The forward pass, written out over named weights.

The tokens of a batch are packed, see `layout.py`. All activations may carry a leading "stack" dimension (integration
steps, circuits) that shares one layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from edge_attribution_patching.layout import Layout, PrefixCache, Queries, prefix_of_layer
from edge_attribution_patching.weights import LayerWeights, ModelWeights, Norm


@dataclass
class LayerActivations:
    """What a layer computed at the packed tokens (in a last layer cut to the answers: q, z on at those)."""

    layer: int
    resid_pre: Float[Tensor, "*stack token d_model"]
    normalised: Float[Tensor, "*stack token d_model"]  # (resid_pre - mean) / s, without gain and bias
    inverse_scale: Float[Tensor, "*stack token 1"]  # 1 / s
    qkv: Float[Tensor, "*stack token 3 head d_head"]  # before rotary
    q: Float[Tensor, "*stack token head d_head"]  # after rotary
    k: Float[Tensor, "*stack token head d_head"]  # after rotary
    pattern: Float[
        Tensor, "*stack prompt head query key"
    ]  # padded; rows and columns beyond a prompt's tokens are meaningless
    z: Float[Tensor, "*stack token head d_head"]
    mlp_in: Float[Tensor, "*stack token d_model"]  # the residual stream that the MLP reads, before its norm
    mlp_out: Float[Tensor, "*stack token d_model"]

    @property
    def v(self) -> Float[Tensor, "*stack token head d_head"]:
        return self.qkv[..., 2, :, :]


Visitor = Callable[[LayerActivations], None]


def embed(weights: ModelWeights, layout: Layout, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    """The residual stream before layer 0 at the packed tokens."""
    x = weights.embed[tokens]
    if weights.position_embed is not None:
        x = x + weights.position_embed[layout.position]
    return x


def normalise(norm: Norm, x: Tensor) -> tuple[Tensor, Tensor]:
    """The normalised residual stream without gain and bias, and 1 / s, with s the norm's scale ([..., 1])."""
    if norm.center:
        normalised, _, inverse_scale = torch.native_layer_norm(x, (x.shape[-1],), None, None, norm.eps)
        return normalised, inverse_scale
    inverse_scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + norm.eps).to(x.dtype)
    return x * inverse_scale, inverse_scale


def centred(norm: Norm, x: Float[Tensor, "*stack d_model"]) -> Float[Tensor, "*stack d_model"]:
    """The part of a residual stream that a norm sees: without its mean over d_model, where the norm centres."""
    return x - x.mean(-1, keepdim=True) if norm.center else x


def apply_norm(norm: Norm, x: Tensor) -> Tensor:
    """LayerNorm or RMSNorm with its gain and bias."""
    if norm.center:
        return F.layer_norm(x, (x.shape[-1],), norm.gain, norm.bias, norm.eps)
    return normalise(norm, x)[0] * norm.gain + norm.bias


def rotate(x: Float[Tensor, "*stack token head d_head"], rotation: tuple[Tensor, Tensor] | None) -> Tensor:
    """Rotary position embedding of the first entries of each head."""
    if rotation is None:
        return x
    cos, sin = rotation
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, kept), dim=-1)


def with_prefix(
    x: Float[Tensor, "*stack token head d_head"], layout: Layout, prefix: Tensor | None
) -> Float[Tensor, "*stack prompt_x_width head d_head"]:
    """Keys or values of all positions: the packed tokens', and the prefix's before them (zero without one)."""
    *stack, _, n_heads, d_head = x.shape
    size = layout.n_prompts * layout.width
    before = x.new_zeros(size, n_heads, d_head) if prefix is None else prefix
    return before.expand(*stack, size, n_heads, d_head).index_copy(-3, layout.key_index, x)


def pad_keys(
    x: Float[Tensor, "*stack token head d_head"], layout: Layout, prefix: Tensor | None
) -> Float[Tensor, "*stack prompt head key d_head"]:
    """Keys or values as attention wants them, the prefix's filled in."""
    padded = with_prefix(x, layout, prefix)
    return padded.unflatten(-3, (layout.n_prompts, layout.width)).transpose(-3, -2)


def attend(
    q: Float[Tensor, "*stack query head d_head"],
    keys: Float[Tensor, "*stack prompt head key d_head"],
    values: Float[Tensor, "*stack prompt head key d_head"],
    layout: Layout,
    queries: Queries,
    scale: float,
) -> tuple[Float[Tensor, "*stack query head d_head"], Float[Tensor, "*stack prompt head width key"]]:
    """Causal attention of packed queries, with scores scale * (q . k); returns the packed z and the padded pattern."""
    *stack, _, n_heads, d_head = q.shape
    size = layout.n_prompts * queries.width
    if size == len(queries.index):  # nothing is padded
        padded = q
    else:
        padded = q.new_zeros(*stack, size, n_heads, d_head).index_copy(-3, queries.index, q)
    padded = padded.reshape(*stack, layout.n_prompts, queries.width, n_heads, d_head).transpose(-3, -2)
    scores = padded @ keys.transpose(-2, -1) * scale
    scores = scores.masked_fill(~queries.allowed, float("-inf"))
    pattern = scores.softmax(dim=-1)
    z = (pattern @ values).transpose(-3, -2).reshape(*stack, size, n_heads, d_head)
    return (z if size == len(queries.index) else z.index_select(-3, queries.index)), pattern


def write_heads(layer: LayerWeights, z: Float[Tensor, "*stack token head d_head"]) -> Tensor:
    """What all heads together write to the residual stream, output bias included, [*stack, token, d_model]."""
    return F.linear(z.flatten(-2), layer.W_O.reshape(-1, layer.W_O.shape[-1]).T, layer.b_O)


def mlp(weights: ModelWeights, layer: LayerWeights, x: Float[Tensor, "*stack token d_model"]) -> Tensor:
    """The MLP's output for the residual stream `x` it reads, its norm included."""
    normalised = apply_norm(layer.mlp_norm, x)
    hidden = F.linear(normalised, layer.W_in.T, layer.b_in)
    if layer.W_gate is None:
        hidden = weights.activation(hidden)
    else:
        hidden = weights.activation(F.linear(normalised, layer.W_gate.T)) * hidden
    return F.linear(hidden, layer.W_out.T, layer.b_out)


def unembed(weights: ModelWeights, x: Float[Tensor, "*stack token d_model"]) -> Float[Tensor, "*stack token vocab"]:
    """Logits from the final residual stream."""
    return F.linear(apply_norm(weights.final_norm, x), weights.unembed, weights.unembed_bias)


class Unembedding:
    """The unembedding as the normalised final residual stream meets it, folded row by row when asked for.

    logits = normalised @ rows(tokens).T + bias(tokens), with `normalised` as `normalise` gives it: the final norm's
    gain and bias are folded in, and rows are centred over d_model where the norm centres. Everything is in float32 or
    better.

    Args:
        weights: the model.
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


def project_qkv(layer: LayerWeights, normalised: Tensor) -> Float[Tensor, "*stack token 3 head d_head"]:
    """q, k and v of every head, before rotary."""
    _, n_heads, d_head, d_model = layer.W_qkv.shape
    flat = F.linear(normalised, layer.W_qkv.view(-1, d_model), layer.b_qkv.view(-1))
    return flat.view(*normalised.shape[:-1], 3, n_heads, d_head)


def forward(
    weights: ModelWeights,
    layout: Layout,
    x: Float[Tensor, "*stack token d_model"],
    *,
    prefix: PrefixCache | None = None,
    visit: Visitor | None = None,
    last_layer: Literal["full", "answers"] = "full",
) -> Float[Tensor, "*stack token d_model"]:
    """Run every layer on embedded tokens; gradients flow if `x` requires them.

    Args:
        weights: the model.
        layout: where the packed tokens sit.
        x: residual stream before layer 0 (`embed`).
        prefix: keys and values of the positions before `layout.starts`; needed where any start is above 0.
        visit: called with each layer's activations as the layers run; keep what you need, nothing is held here.
        last_layer: with "answers", the last layer's queries, z, MLP and the result cover only each prompt's last token
            (its keys and values cover all): the only tokens that matter for the logits at the answer.

    Returns:
        The final residual stream, before the final norm, at all packed tokens or at the last ones ("answers").
    """
    if prefix is None and bool((layout.starts > 0).any()):
        raise ValueError("a layout that starts inside the prompts needs their prefix cache")
    rotation = layout.rotation(weights)
    for index, layer in enumerate(weights.layers):
        normalised, inverse_scale = normalise(layer.attn_norm, x)
        qkv = project_qkv(layer, normalised)
        q, k, v = qkv.unbind(-3)
        k = rotate(k, rotation)
        queries, q_rotation, resid = layout.queries, rotation, x
        if last_layer == "answers" and index == weights.n_layers - 1:
            queries, q, resid = layout.answers, q[..., layout.last, :, :], x[..., layout.last, :]
            q_rotation = rotation and (rotation[0][layout.last], rotation[1][layout.last])
        q = rotate(q, q_rotation)
        prefix_keys, prefix_values = prefix_of_layer(prefix, index)
        keys, values = pad_keys(k, layout, prefix_keys), pad_keys(v, layout, prefix_values)
        z, pattern = attend(q, keys, values, layout, queries, layer.attn_scale)
        attn_out = write_heads(layer, z)
        # view_as: a separate tensor to differentiate by, which only the MLP reads.
        mlp_in = resid.view_as(resid) if weights.parallel else resid + attn_out
        mlp_read = mlp_in if weights.parallel else mlp_in.view_as(mlp_in)
        mlp_out = mlp(weights, layer, mlp_read)
        if visit is not None:
            visit(LayerActivations(index, x, normalised, inverse_scale, qkv, q, k, pattern, z, mlp_read, mlp_out))
        x = (resid + attn_out if weights.parallel else mlp_in) + mlp_out
        del z, pattern  # So that no two layers' attention is held at once.
    return x


def prefix_cache(weights: ModelWeights, layout: Layout, tokens: Int[Tensor, "prompt position"]) -> PrefixCache | None:
    """Keys and values before `layout.starts`, from right-padded token ids; None where every prompt starts at 0.

    Costs one forward pass over the prefix tokens, less the last layer's attention and MLP.
    """
    some = layout.starts > 0
    if not bool(some.any()):
        return None
    rows = some.nonzero()[:, 0]
    inner = Layout.whole(layout.starts[rows])
    index = rows[inner.prompt] * layout.width + inner.position
    cache = PrefixCache([], [])

    def keep(k: Tensor, v: Tensor) -> None:
        blank = k.new_zeros(layout.n_prompts * layout.width, *k.shape[-2:])
        cache.keys.append(blank.index_copy(0, index, k))
        cache.values.append(blank.index_copy(0, index, v))

    *below, top = weights.layers
    with torch.no_grad():
        x = embed(weights, inner, inner.pack(tokens[rows]))
        x = forward(replace(weights, layers=tuple(below)), inner, x, visit=lambda layer: keep(layer.k, layer.v))
        # Of the last layer only the keys and values are wanted.
        qkv = project_qkv(top, normalise(top.attn_norm, x)[0])
        keep(rotate(qkv[..., 1, :, :], inner.rotation(weights)), qkv[..., 2, :, :])
    return cache
