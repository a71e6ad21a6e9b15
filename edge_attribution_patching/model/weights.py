"""A model's weights under the names that the field uses, read from a Hugging Face model or a checkpoint's files.

Everything in this package runs on these tensors: one explicit forward pass (`forward.py`) instead of hooks. An
architecture is an entry in `architecture_table.py`, and one reader serves them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..choices import QKVName
from .activations import Activation, read_activation
from .architecture_table import ARCHITECTURES, BARE_EPS
from .architectures import Shape, read_shape
from .norms import Norm, fold_norm, value_mean
from .rotary import Rotary, read_rotaries

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class LayerWeights:
    """One block: what attention reads, how it attends, what it writes, and the MLP. W_O maps d_head to d_model.

    Attributes:
        W_qkv, b_qkv: the projections to q of every query head, then to k of every key-value head, then to v of every
            key-value head, with the gain and the bias of `attn_norm` folded in, centred over d_model where it centres.
        V_mean: what the centring took out of the projection to v, in float32 or better: with it the stored projection
            can be told (`stored_W_V`).
        attn_norm, mlp_norm: before attention and before the MLP; None where they read the residual stream itself.
        attn_post_norm, mlp_post_norm: of what all heads together and the MLP write, before it is added.
        qkv_clamp: q, k and v are clamped to +- this.
        q_norm, k_norm: RMSNorms of q and k after the clamp, over each head by itself (gain [d_head]) or over all heads
            together (gain [head * d_head]).
        rotary: turns q and k last.
        attn_scale: attention scores are attn_scale * (q . k).
        attn_softcap: then softcap * tanh(score / softcap).
        W_gate, b_gate: of gated MLPs, activation(x W_gate + b_gate) * (x W_in + b_in).
    """

    W_qkv: Float[Tensor, "qkv_head d_head d_model"]
    b_qkv: Float[Tensor, "qkv_head d_head"]
    V_mean: Float[Tensor, "kv_head d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, " d_model"]
    attn_norm: Norm | None
    attn_scale: float
    mlp_norm: Norm | None
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"]
    activation: Activation
    W_gate: Float[Tensor, "d_model d_mlp"] | None = None
    b_gate: Float[Tensor, " d_mlp"] | None = None
    rotary: Rotary | None = None
    qkv_clamp: float | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    attn_softcap: float | None = None
    attn_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None

    @property
    def n_heads(self) -> int:
        return self.W_O.shape[0]

    @property
    def n_kv_heads(self) -> int:
        return (self.W_qkv.shape[0] - self.n_heads) // 2

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.n_heads // self.n_kv_heads

    def rows(self, letter: QKVName) -> slice:
        """Where q, k or v are among the `qkv_head` of `W_qkv`."""
        n_q, n_kv = self.n_heads, self.n_kv_heads
        start, count = {"q": (0, n_q), "k": (n_q, n_kv), "v": (n_q + n_kv, n_kv)}[letter]
        return slice(start, start + count)

    def per_head(self, x: Float[Tensor, "kv_head ..."]) -> Float[Tensor, "head ..."]:
        """What belongs to the key-value heads, once for each query head that they serve."""
        return x if self.group == 1 else x.repeat_interleave(self.group, dim=0)

    @property
    def W_O_scaled(self) -> Float[Tensor, "head d_head d_model"]:
        """W_O with the gain of `attn_post_norm`: head h writes (z_h W_O_scaled) / s, with s the scale of that norm."""
        if self.attn_post_norm is None:
            return self.W_O
        return (self.W_O * self.attn_post_norm.gain).to(self.W_O.dtype)

    def norm_of(self, letter: QKVName) -> Norm | None:
        """The norm of q or k; None without one, and of v."""
        return {"q": self.q_norm, "k": self.k_norm, "v": None}[letter]

    def norm_spans_heads(self, letter: QKVName) -> bool:
        """Whether one norm covers q (or k) of all heads together, so that one head's depends on every head's input."""
        norm = self.norm_of(letter)
        return norm is not None and len(norm.gain) > self.W_O.shape[1]

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_head d_model"]:
        """The folded projection to v."""
        return self.W_qkv[self.rows("v")]

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        """The folded bias of v."""
        return self.b_qkv[self.rows("v")]

    def stored_W_V(self) -> Float[Tensor, "kv_head d_head d_model"]:
        """The projection to v as the checkpoint stores it, without the norm: folding undone, up to rounding.

        In float32 or better.

        Raises:
            ZeroDivisionError: if a gain of the norm is 0, so that what it multiplied is lost.
        """
        unfolded = self.W_V.to(self.V_mean.dtype) + self.V_mean[..., None]
        if self.attn_norm is None:
            return unfolded
        if not bool(self.attn_norm.gain.all()):
            raise ZeroDivisionError("a gain of the norm before attention is 0, and what it multiplied is lost")
        return unfolded / self.attn_norm.gain.to(unfolded.dtype)


@dataclass(frozen=True)
class ModelWeights(Shape):
    """A decoder-only transformer as named tensors, and its dimensions.

    Attributes:
        embed_scale: factor of the token embeddings.
        logit_softcap: logits are softcap * tanh(logit / softcap).
    """

    layers: tuple[LayerWeights, ...]
    embed: Float[Tensor, "vocab d_model"]
    unembed: Float[Tensor, "vocab d_model"]
    unembed_bias: Float[Tensor, " vocab"] | None
    final_norm: Norm
    position_embed: Float[Tensor, "position d_model"] | None = None
    embed_scale: float = 1.0
    logit_softcap: float | None = None

    def lowest(self, n_layers: int) -> ModelWeights:
        """The model without the layers above."""
        return replace(self, n_layers=n_layers, layers=self.layers[:n_layers])

    @property
    def device(self) -> torch.device:
        return self.embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.dtype


def read_weights(model: PreTrainedModel) -> ModelWeights:
    """The weights of a Hugging Face causal language model.

    Tensors are views of the model's own memory; only the folded q, k, v projections (and `V_mean`) are new.

    Raises:
        ValueError: if the architecture has no reader, or its config asks for arithmetic that is not supported
            (`architectures.read_shape`).
    """
    with torch.no_grad():
        return _Reader(read_shape(model.config), model.config, model.state_dict()).model()


def read_tensors(config: PretrainedConfig, tensors: Mapping[str, Tensor]) -> ModelWeights | None:
    """The weights from the tensors of a checkpoint's files. Nothing of transformers' model code is imported.

    Returns:
        None if the names and shapes are not exactly those of `tensor_shapes`: then only transformers knows how to read
        them, or what is wrong.

    Raises:
        ValueError: as `read_weights`.
    """
    shape, names = read_shape(config), ARCHITECTURES[config.model_type]
    tensors = {names.old_names.get(name, name): tensor for name, tensor in tensors.items()}
    if config.tie_word_embeddings and "lm_head.weight" not in tensors and names.embed + ".weight" in tensors:
        tensors["lm_head.weight"] = tensors[names.embed + ".weight"]
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != tensor_shapes(config):
        return None
    with torch.no_grad():
        return _Reader(shape, config, tensors).model()


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that no number can come from.

    Raises:
        FloatingPointError: naming the first tensor that holds NaN or infinity, and its number format.
    """
    real = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    # The extremes of a tensor with NaN are NaN. All are asked for before the first is waited for.
    extremes = [torch.stack(tensor.detach().aminmax()).isfinite().all() for tensor in real.values()]
    if extremes and not bool((finite := torch.stack([one.cpu() for one in extremes])).all()):
        name, tensor = list(real.items())[int((~finite).nonzero()[0])]
        raise FloatingPointError(f"{name} holds NaN or infinity in {str(tensor.dtype).removeprefix('torch.')}")


def tensor_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The name and the shape of every tensor of a model, those of learned activations excepted.

    Raises:
        ValueError: as `read_weights`.
    """
    shape, names = read_shape(config), ARCHITECTURES[config.model_type]
    n_q, n_kv = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    qkv_bias, out_bias, mlp_bias = (getattr(config, has) if isinstance(has, str) else has for has in names.biases)
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, n_in: int, n_out: int, bias: bool) -> None:
        found[name + ".weight"] = (n_in, n_out) if names.conv1d else (n_out, n_in)
        if bias:
            found[name + ".bias"] = (n_out,)

    def norm(name: str, width: int) -> None:
        if names.norm != "bare layer":
            found[name + ".weight"] = (width,)
        if names.norm == "layer":
            found[name + ".bias"] = (width,)

    found[names.embed + ".weight"] = found["lm_head.weight"] = (shape.d_vocab, shape.d_model)
    if names.unembed_bias:
        found["lm_head.bias"] = (shape.d_vocab,)
    if names.position_embed is not None:
        found[names.position_embed + ".weight"] = (config.max_position_embeddings, shape.d_model)
    norm(names.final_norm, shape.d_model)
    for block in map(names.block.format, range(shape.n_layers)):
        for name in (names.attn_norm, names.mlp_norm, names.attn_post_norm, names.mlp_post_norm):
            if name is not None:
                norm(block + name, shape.d_model)
        for name, width in ((names.q_norm, n_q), (names.k_norm, n_kv)):
            if name is not None:
                norm(block + name, width if names.norm_over_heads else shape.d_head)
        widths = (n_q + 2 * n_kv,) if len(names.qkv) == 1 else (n_q, n_kv, n_kv)
        for name, width in zip(names.qkv, widths, strict=True):
            linear(block + name, shape.d_model, width, qkv_bias)
        linear(block + names.attn_out, n_q, shape.d_model, out_bias)
        for name in filter(None, (names.mlp_in, names.mlp_gate)):
            linear(block + name, shape.d_model, shape.d_mlp, mlp_bias)
        linear(block + names.mlp_out, shape.d_mlp, shape.d_model, mlp_bias)
    return found


class _Reader:
    """Finds an architecture's tensors by the names in its entry of the table."""

    def __init__(self, shape: Shape, config: Any, tensors: Mapping[str, Tensor]) -> None:
        self.shape, self.config, self.tensors = shape, config, tensors
        self.architecture = ARCHITECTURES[shape.architecture]
        self.rotaries = read_rotaries(config, self.architecture, shape.n_layers, shape.d_head)

    def model(self) -> ModelWeights:
        names, tensors = self.architecture, self.tensors
        embed = tensors[names.embed + ".weight"]
        # Hugging Face rounds the scale to float32 and then to the weights' dtype.
        scale = torch.tensor(self.shape.d_model**0.5, dtype=torch.float32).to(embed.dtype).item()
        return ModelWeights(
            **vars(self.shape),
            layers=tuple(self.layer(index) for index in range(self.shape.n_layers)),
            embed=embed,
            unembed=tensors["lm_head.weight"],
            unembed_bias=tensors.get("lm_head.bias"),
            final_norm=self.norm(names.final_norm),
            position_embed=None if names.position_embed is None else tensors[names.position_embed + ".weight"],
            embed_scale=scale if names.scaled_embedding else 1.0,
            logit_softcap=self.field("final_logit_softcapping"),
        )

    def layer(self, index: int) -> LayerWeights:
        names, shape = self.architecture, self.shape
        block = names.block.format(index)

        def norm(name: str | None) -> Norm | None:
            return None if name is None else self.norm(block + name)

        attn_norm = norm(names.attn_norm)
        W, b = self.qkv(block)
        W_qkv, b_qkv = fold_norm(attn_norm, W, b)
        W_O, b_O = self.linear(block + names.attn_out)
        W_in, b_in = self.linear(block + names.mlp_in)
        W_out, b_out = self.linear(block + names.mlp_out)
        W_gate, b_gate = (None, None) if names.mlp_gate is None else self.linear(block + names.mlp_gate)
        activation = getattr(self.config, names.activation)
        return LayerWeights(
            W_qkv=W_qkv,
            b_qkv=b_qkv,
            V_mean=value_mean(attn_norm, W[-shape.n_kv_heads :]),
            W_O=W_O.view(shape.n_heads, shape.d_head, shape.d_model),
            b_O=b_O,
            attn_norm=attn_norm,
            attn_scale=self.attn_scale(index),
            mlp_norm=norm(names.mlp_norm),
            W_in=W_in,
            b_in=b_in,
            W_out=W_out,
            b_out=b_out,
            activation=read_activation(activation, self.tensors, f"{block}mlp.act_fn."),
            W_gate=W_gate,
            b_gate=b_gate,
            rotary=self.rotaries[index],
            qkv_clamp=self.field("clip_qkv"),
            q_norm=norm(names.q_norm),
            k_norm=norm(names.k_norm),
            attn_softcap=self.field("attn_logit_softcapping"),
            attn_post_norm=norm(names.attn_post_norm),
            mlp_post_norm=norm(names.mlp_post_norm),
        )

    def field(self, name: str) -> Any:
        """A field of the config where the architecture reads it, else None."""
        return getattr(self.config, name) if name in self.architecture.reads else None

    def attn_scale(self, layer: int) -> float:
        scale = (self.field("query_pre_attn_scalar") or self.shape.d_head) ** -0.5
        if self.field("scale_attn_weights") is False:
            scale = 1.0
        return scale / (layer + 1) if self.field("scale_attn_by_inverse_layer_idx") else scale

    def norm(self, name: str) -> Norm:
        kind, eps = self.architecture.norm, self.architecture.eps
        centre = kind in ("layer", "bare layer")
        if kind == "bare layer":
            gain = self.tensors["lm_head.weight"].new_ones(self.shape.d_model)
        else:
            gain = self.tensors[name + ".weight"]
        if kind == "rms one plus":
            gain = 1 + gain.to(torch.promote_types(gain.dtype, torch.float32))
        bias = self.tensors[name + ".bias"] if kind == "layer" else torch.zeros_like(gain)
        return Norm(gain, bias, BARE_EPS if eps is None else getattr(self.config, eps), centre)

    def linear(self, name: str) -> tuple[Float[Tensor, "input output"], Float[Tensor, " output"]]:
        W = self.tensors[name + ".weight"]
        W = W if self.architecture.conv1d else W.T
        bias = self.tensors.get(name + ".bias")
        return W, W.new_zeros(W.shape[1]) if bias is None else bias

    def qkv(self, block: str) -> tuple[Float[Tensor, "qkv_head d_head d_model"], Float[Tensor, "qkv_head d_head"]]:
        """The raw projections, in the order of `LayerWeights`."""
        names, d_head = self.architecture, self.shape.d_head
        parts = [self.linear(block + name) for name in names.qkv]
        fused = len(parts) == 1
        W, b = parts[0] if fused else (torch.cat(tensors, dim=-1) for tensors in zip(*parts, strict=True))
        stored, heads = names.qkv_order.split(" -> ")
        sizes = {"d_head": d_head} | ({"qkv": 3} if fused else {})
        W = rearrange(W, f"d_model {stored} -> {heads} d_model", **sizes)
        b = rearrange(b, f"{stored} -> {heads}", **sizes)
        if names.interleaved_rotary:
            # In another order of entries, the same in q and k, rotary turns those half of its width apart.
            dim = self.config.rotary_dim
            entries = torch.arange(d_head, device=W.device)
            entries[:dim] = rearrange(entries[:dim], "(half two) -> (two half)", two=2)
            turned = slice(self.shape.n_heads + self.shape.n_kv_heads)
            W[turned], b[turned] = W[turned][:, entries], b[turned][:, entries]
        return W, b
