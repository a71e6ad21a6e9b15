"""A model's weights under the names that the field uses, read from a Hugging Face model or a checkpoint's files.

Everything in this package runs on these tensors: one explicit forward pass (`forward.py`) instead of hooks. An
architecture is an entry in `architecture_table.py`, and one reader serves them all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..choices import QKVName
from .activations import FUNCTIONS, Activation, read_activation
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
    def device(self) -> torch.device:
        """Where the layer is: not always where the model's embeddings are."""
        return self.W_qkv.device

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

    @cached_property
    def row_of_input(self) -> Int[Tensor, " input"]:
        """Which of the `qkv_head` q of every query head reads, then k, then v."""
        query, served = torch.arange(self.n_heads), torch.arange(self.n_heads) // self.group
        rows = torch.cat((query, self.n_heads + served, self.n_heads + self.n_kv_heads + served))
        return rows.to(self.W_qkv.device)

    def per_head(self, x: Float[Tensor, "kv_head ..."]) -> Float[Tensor, "head ..."]:
        """What belongs to the key-value heads, once for each query head that they serve."""
        return x if self.group == 1 else x.repeat_interleave(self.group, dim=0)

    @property
    def W_O_scaled(self) -> Float[Tensor, "head d_head d_model"]:
        """W_O with the gain of `attn_post_norm`: head h writes (z_h W_O_scaled) / s, with s the scale of that norm."""
        if self.attn_post_norm is None:
            return self.W_O
        return (self.W_O * self.attn_post_norm.gain).to(self.W_O.dtype)

    @property
    def W_out_scaled(self) -> Float[Tensor, "d_mlp d_model"]:
        """W_out with the gain of `mlp_post_norm`, as `W_O_scaled`."""
        return self.W_out if self.mlp_post_norm is None else (self.W_out * self.mlp_post_norm.gain).to(self.W_out.dtype)

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

        In float32 or better. A ZeroDivisionError if a gain of the norm is 0, so that what it multiplied is lost.
        """
        # Folding took the mean out after the gain was multiplied in, so it comes back before the gain is divided out.
        unfolded = self.W_V.to(self.V_mean.dtype) + self.V_mean[..., None]
        if self.attn_norm is None:
            return unfolded
        if not bool(self.attn_norm.gain.all()):
            raise ZeroDivisionError("a gain of the norm before attention is 0, and what it multiplied is lost")
        return unfolded / self.attn_norm.gain.to(unfolded.dtype)


@dataclass(frozen=True)
class ModelWeights(Shape):
    """A decoder-only transformer as named tensors, and its dimensions."""

    layers: tuple[LayerWeights, ...]
    embed: Float[Tensor, "vocab d_model"]
    unembed: Float[Tensor, "vocab d_model"]
    unembed_bias: Float[Tensor, " vocab"] | None
    final_norm: Norm
    position_embed: Float[Tensor, "position d_model"] | None = None
    embed_scale: float = 1.0  # factor of the token embeddings
    logit_softcap: float | None = None  # logits are softcap * tanh(logit / softcap)

    @property
    def device(self) -> torch.device:
        """Of the embeddings and the unembedding. Everything is there that is not of one layer alone."""
        return self.embed.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """That, and those of layers elsewhere."""
        return tuple(dict.fromkeys((self.device, *(layer.device for layer in self.layers))))

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.dtype


def read_weights(model: PreTrainedModel, where: Callable[[str], torch.device] | None = None) -> ModelWeights:
    """The weights of a Hugging Face causal language model; errors as of `architectures.read_shape`.

    Tensors are views of the model's own memory; only the folded q, k, v projections (and `V_mean`) are new. `where`
    says to which device each tensor goes, by its name; by default they stay where they are.
    """
    state = model.state_dict()
    if where is not None:
        state = {name: tensor.to(where(name)) for name, tensor in state.items()}
    with torch.no_grad():
        return _Reader(read_shape(model.config), model.config, state).model()


def read_tensors(config: PretrainedConfig, tensors: Mapping[str, Tensor]) -> ModelWeights | None:
    """The weights from the tensors of a checkpoint's files, or None; errors as of `architectures.read_shape`.

    Nothing of transformers' model code is imported. None if names and shapes are not exactly those of such a model, or
    its activation is learned: then only transformers knows how to read them, or what is wrong.
    """
    shape, names = read_shape(config), ARCHITECTURES[config.model_type]
    if getattr(config, names.activation) not in FUNCTIONS:
        return None
    tensors = {names.old_names.get(name, name): tensor for name, tensor in tensors.items()}
    if config.tie_word_embeddings and names.embed + ".weight" in tensors:
        tensors.setdefault("lm_head.weight", tensors[names.embed + ".weight"])
    reader = _Reader(shape, config, tensors)
    try:
        with torch.no_grad():
            weights = reader.model()
    except _Unexpected:
        return None
    return weights if reader.read == tensors.keys() else None


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that no number can come from: a FloatingPointError names the first tensor with NaN or infinity."""
    real = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    # The extremes of a tensor with NaN are NaN. A device is waited for once, after all are asked for.
    extremes: dict[torch.device, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in real.items():
        extremes[tensor.device][name] = torch.stack(tensor.detach().aminmax()).isfinite().all()
    finite = {
        name: good
        for of_device in extremes.values()
        for name, good in zip(of_device, torch.stack(list(of_device.values())).tolist(), strict=True)
    }
    if not all(finite.values()):
        name, tensor = next((name, tensor) for name, tensor in real.items() if not finite[name])
        raise FloatingPointError(f"{name} holds NaN or infinity in {str(tensor.dtype).removeprefix('torch.')}")


class _Unexpected(KeyError):
    """A tensor is missing or has another shape."""


class _Reader:
    """Finds an architecture's tensors by the names in its entry of the table, in the shapes that the config says.

    Attributes:
        read: the names of those found so far.
    """

    def __init__(self, shape: Shape, config: Any, tensors: Mapping[str, Tensor]) -> None:
        self.shape, self.config, self.tensors = shape, config, tensors
        self.architecture = ARCHITECTURES[shape.architecture]
        self.biased = [getattr(config, is_) if isinstance(is_, str) else is_ for is_ in self.architecture.biases]
        self.read: set[str] = set()

    def tensor(self, name: str, *size: int) -> Tensor:
        found = self.tensors.get(name)
        if found is None or found.shape != size:
            raise _Unexpected(name)
        self.read.add(name)
        return found

    def model(self) -> ModelWeights:
        names, shape = self.architecture, self.shape
        embed = self.tensor(names.embed + ".weight", shape.d_vocab, shape.d_model)
        position_embed = None
        if names.position_embed is not None:
            n_positions = self.config.max_position_embeddings
            position_embed = self.tensor(names.position_embed + ".weight", n_positions, shape.d_model)
        # Hugging Face rounds the scale to float32 and then to the weights' dtype.
        scale = torch.tensor(shape.d_model**0.5, dtype=torch.float32).to(embed.dtype).item()
        rotaries = read_rotaries(self.config, names, shape.n_layers, shape.d_head)
        return ModelWeights(
            **vars(shape),
            layers=tuple(self.layer(index, rotary) for index, rotary in enumerate(rotaries)),
            embed=embed,
            unembed=self.tensor("lm_head.weight", shape.d_vocab, shape.d_model),
            unembed_bias=self.tensor("lm_head.bias", shape.d_vocab) if names.unembed_bias else None,
            final_norm=self.norm(names.final_norm, shape.d_model),
            position_embed=position_embed,
            embed_scale=scale if names.scaled_embedding else 1.0,
            logit_softcap=self.field("final_logit_softcapping"),
        )

    def layer(self, index: int, rotary: Rotary | None) -> LayerWeights:
        names, shape = self.architecture, self.shape
        block = names.block.format(index)
        n_q, n_kv = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
        of_qkv, of_out, of_mlp = self.biased

        def norm(name: str | None, size: int = shape.d_model) -> Norm | None:
            return None if name is None else self.norm(block + name, size, block + names.mlp_out)

        # Folding gain, bias and centring into the projections leaves of the norm its scale alone.
        attn_norm = norm(names.attn_norm)
        W, b = self.qkv(block, n_q, n_kv, of_qkv)
        W_qkv, b_qkv = fold_norm(attn_norm, W, b)
        W_O, b_O = self.linear(block + names.attn_out, n_q, shape.d_model, of_out)
        W_in, b_in = self.linear(block + names.mlp_in, shape.d_model, shape.d_mlp, of_mlp)
        W_out, b_out = self.linear(block + names.mlp_out, shape.d_mlp, shape.d_model, of_mlp)
        W_gate, b_gate = None, None
        if names.mlp_gate is not None:
            W_gate, b_gate = self.linear(block + names.mlp_gate, shape.d_model, shape.d_mlp, of_mlp)
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
            rotary=rotary,
            qkv_clamp=self.field("clip_qkv"),
            q_norm=norm(names.q_norm, n_q if names.norm_over_heads else shape.d_head),
            k_norm=norm(names.k_norm, n_kv if names.norm_over_heads else shape.d_head),
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

    def norm(self, name: str, size: int, near: str = "lm_head") -> Norm:
        """A norm by its name; one without tensors is where another tensor is."""
        kind, eps = self.architecture.norm, self.architecture.eps
        if kind == "bare layer":
            like = self.tensors.get(near + ".weight")
            if like is None:
                raise _Unexpected(near)
            gain = like.new_ones(size)
        else:
            gain = self.tensor(name + ".weight", size)
        if kind == "rms one plus":
            gain = 1 + gain.to(torch.promote_types(gain.dtype, torch.float32))
        bias = self.tensor(name + ".bias", size) if kind == "layer" else torch.zeros_like(gain)
        return Norm(gain, bias, BARE_EPS if eps is None else getattr(self.config, eps), "layer" in kind)

    def linear(self, name: str, n_in: int, n_out: int, biased: bool) -> tuple[Tensor, Tensor]:
        """W [n_in, n_out] and b [n_out], zeros without a bias."""
        if self.architecture.conv1d:
            W = self.tensor(name + ".weight", n_in, n_out)
        else:
            W = self.tensor(name + ".weight", n_out, n_in).T
        return W, self.tensor(name + ".bias", n_out) if biased else W.new_zeros(n_out)

    def qkv(
        self, block: str, n_q: int, n_kv: int, biased: bool
    ) -> tuple[Float[Tensor, "qkv_head d_head d_model"], Float[Tensor, "qkv_head d_head"]]:
        """The raw projections, in the order of `LayerWeights`."""
        names, d_head = self.architecture, self.shape.d_head
        fused = len(names.qkv) == 1
        widths = (n_q + 2 * n_kv,) if fused else (n_q, n_kv, n_kv)
        parts = [
            self.linear(block + name, self.shape.d_model, width, biased)
            for name, width in zip(names.qkv, widths, strict=True)
        ]
        # [d_model, output] with q, k and v one after the other or, in a fused projection, as `qkv_order` says.
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
