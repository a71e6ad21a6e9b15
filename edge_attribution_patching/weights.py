"""A model's weights under the names of the field, read from a Hugging Face model.

Everything in this package runs on these tensors: one explicit forward pass (`forward.py`) instead of hooks. To add an
architecture, enter it in `ARCHITECTURES` and write its reader `(config, tensors) -> ModelWeights`; no caller changes.

Every residual stream of a pre-LayerNorm transformer is read through a normalisation n = (x - mean(x)) / s, so the gain,
the bias and the centring are folded into the projections that follow (Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"): q = n @ W + b with W centred over d_model. RMSNorm models are the same without the centring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from edge_attribution_patching.activations import ACTIVATIONS, Activation
from edge_attribution_patching.architectures import Shape, read_shape


@dataclass(frozen=True)
class Norm:
    """LayerNorm (`center=True`) or RMSNorm (`center=False`): (x - mean) / sqrt(var + eps) * gain + bias."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    eps: float
    center: bool = True


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of the first `dim` entries of a head's q and k (Su et al. 2021), half-split layout."""

    dim: int
    base: float

    def tables(self, n_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each float32 [n_positions, dim]."""
        inverse = 1.0 / self.base ** (torch.arange(0, self.dim, 2, dtype=torch.float32, device=device) / self.dim)
        angles = torch.outer(torch.arange(n_positions, dtype=torch.float32, device=device), inverse)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


@dataclass(frozen=True)
class LayerWeights:
    """One block. W_O maps d_head to d_model.

    `W_qkv` and `b_qkv` are what the engine multiplies with: the three projections (q, k, v in this order) with the
    attention norm's gain and bias folded in, centred over d_model.
    """

    W_qkv: Float[Tensor, "3 head d_head d_model"]
    b_qkv: Float[Tensor, "3 head d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, " d_model"]
    attn_norm: Norm
    attn_scale: float  # attention scores are attn_scale * (q . k)
    mlp_norm: Norm
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"]
    W_gate: Float[Tensor, "d_model d_mlp"] | None = None  # gated MLPs (Llama): act(x W_gate) * (x W_in)


def fold_norm(
    norm: Norm, W: Float[Tensor, "3 head d_head d_model"], b: Float[Tensor, "3 head d_head"]
) -> tuple[Float[Tensor, "3 head d_head d_model"], Float[Tensor, "3 head d_head"]]:
    """Projections and biases that read the normalised residual stream as the raw ones read the norm's output.

    Computed in float32 or better; the projections are centred over d_model where the norm centres.
    """
    precise = torch.promote_types(W.dtype, torch.float32)
    folded = W.to(precise)
    b_folded = b.to(precise) + torch.einsum("d,ched->che", norm.bias.to(precise), folded)
    folded = folded * norm.gain.to(precise)
    if norm.center:
        folded = folded - folded.mean(dim=-1, keepdim=True)
    return folded.to(W.dtype).contiguous(), b_folded.to(W.dtype).contiguous()


@dataclass(frozen=True)
class ModelWeights:
    """A decoder-only transformer as named tensors."""

    shape: Shape
    layers: tuple[LayerWeights, ...]
    embed: Float[Tensor, "vocab d_model"]
    unembed: Float[Tensor, "vocab d_model"]
    unembed_bias: Float[Tensor, " vocab"] | None
    final_norm: Norm
    activation: Activation
    rotary: Rotary | None = None
    position_embed: Float[Tensor, "position d_model"] | None = None

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        return self.shape.n_heads

    @property
    def d_head(self) -> int:
        return self.shape.d_head

    @property
    def d_model(self) -> int:
        return self.shape.d_model

    @property
    def d_vocab(self) -> int:
        return self.shape.d_vocab

    @property
    def n_positions(self) -> int:
        return self.shape.n_positions

    @property
    def parallel(self) -> bool:
        return self.shape.parallel

    @property
    def device(self) -> torch.device:
        return self.embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.dtype


def read_weights(model: PreTrainedModel) -> ModelWeights:
    """The weights of a Hugging Face causal language model.

    Tensors are views of the model's own memory; only the folded q, k, v projections are new.

    Raises:
        ValueError: if the architecture has no reader, or its config asks for arithmetic that is not supported
            (`architectures.read_shape`).
    """
    shape = read_shape(model.config)
    with torch.no_grad():
        return READERS[shape.architecture](shape, model.config, model.state_dict())


def _zeros_like_rows(weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[0])


def _read_gpt_neox(shape: Shape, config: Any, tensors: Mapping[str, Tensor]) -> ModelWeights:
    def norm(name: str) -> Norm:
        return Norm(tensors[name + ".weight"], tensors[name + ".bias"], config.layer_norm_eps)

    def linear(name: str) -> tuple[Tensor, Tensor]:
        weight = tensors[name + ".weight"]
        return weight, tensors.get(name + ".bias", _zeros_like_rows(weight))

    layers = []
    for index in range(shape.n_layers):
        block = f"gpt_neox.layers.{index}."
        attn_norm = norm(block + "input_layernorm")
        # The fused projection holds q, k, v of head 0, then of head 1, and so on.
        W, b = linear(block + "attention.query_key_value")
        W = rearrange(W, "(head qkv d_head) d_model -> qkv head d_head d_model", head=shape.n_heads, qkv=3)
        b = rearrange(b, "(head qkv d_head) -> qkv head d_head", head=shape.n_heads, qkv=3)
        W_qkv, b_qkv = fold_norm(attn_norm, W, b)
        dense, b_O = linear(block + "attention.dense")
        up, b_in = linear(block + "mlp.dense_h_to_4h")
        down, b_out = linear(block + "mlp.dense_4h_to_h")
        layers.append(
            LayerWeights(
                W_qkv=W_qkv,
                b_qkv=b_qkv,
                W_O=dense.T.view(shape.n_heads, shape.d_head, shape.d_model),
                b_O=b_O,
                attn_norm=attn_norm,
                attn_scale=shape.d_head**-0.5,
                mlp_norm=norm(block + "post_attention_layernorm"),
                W_in=up.T,
                b_in=b_in,
                W_out=down.T,
                b_out=b_out,
            )
        )
    parameters = config.rope_parameters
    return ModelWeights(
        shape=shape,
        layers=tuple(layers),
        embed=tensors["gpt_neox.embed_in.weight"],
        unembed=tensors["lm_head.weight"],
        unembed_bias=None,
        final_norm=norm("gpt_neox.final_layer_norm"),
        activation=ACTIVATIONS[config.hidden_act],
        rotary=Rotary(
            dim=int(shape.d_head * parameters.get("partial_rotary_factor", 1.0)), base=parameters["rope_theta"]
        ),
    )


def _read_gpt2(shape: Shape, config: Any, tensors: Mapping[str, Tensor]) -> ModelWeights:
    def norm(name: str) -> Norm:
        return Norm(tensors[name + ".weight"], tensors[name + ".bias"], config.layer_norm_epsilon)

    layers = []
    for index in range(shape.n_layers):
        block = f"transformer.h.{index}."
        attn_norm = norm(block + "ln_1")
        # Conv1D stores [in, out]; the fused projection holds all q, then all k, then all v.
        W = tensors[block + "attn.c_attn.weight"]
        W = rearrange(W, "d_model (qkv head d_head) -> qkv head d_head d_model", head=shape.n_heads, qkv=3)
        b = tensors[block + "attn.c_attn.bias"].view(3, shape.n_heads, shape.d_head)
        W_qkv, b_qkv = fold_norm(attn_norm, W, b)
        attn_scale = shape.d_head**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            attn_scale /= index + 1
        layers.append(
            LayerWeights(
                W_qkv=W_qkv,
                b_qkv=b_qkv,
                W_O=tensors[block + "attn.c_proj.weight"].view(shape.n_heads, shape.d_head, shape.d_model),
                b_O=tensors[block + "attn.c_proj.bias"],
                attn_norm=attn_norm,
                attn_scale=attn_scale,
                mlp_norm=norm(block + "ln_2"),
                W_in=tensors[block + "mlp.c_fc.weight"],
                b_in=tensors[block + "mlp.c_fc.bias"],
                W_out=tensors[block + "mlp.c_proj.weight"],
                b_out=tensors[block + "mlp.c_proj.bias"],
            )
        )
    return ModelWeights(
        shape=shape,
        layers=tuple(layers),
        embed=tensors["transformer.wte.weight"],
        unembed=tensors["lm_head.weight"],
        unembed_bias=None,
        final_norm=norm("transformer.ln_f"),
        activation=ACTIVATIONS[config.activation_function],
        position_embed=tensors["transformer.wpe.weight"],
    )


READERS: dict[str, Callable[[Shape, Any, Mapping[str, Tensor]], ModelWeights]] = {
    "gpt_neox": _read_gpt_neox,
    "gpt2": _read_gpt2,
}
