"""A model's weights under the names of the field, read from a Hugging Face model or a TransformerBridge.

Everything in this package runs on these tensors: one explicit forward pass (`forward.py`) instead of hooks. To add an
architecture, write a reader `(config, tensors) -> ModelWeights` and enter it in `READERS`; no caller changes.

Every residual stream of a pre-LayerNorm transformer is read through a normalisation n = (x - mean(x)) / s, so the gain,
the bias and the centring are folded into the projections that follow (Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"): q = n @ W + b with W centred over d_model. RMSNorm models are the same without the centring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


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
    """One block. Shapes follow TransformerLens: W_Q maps d_model to d_head, W_O maps d_head to d_model.

    `W_qkv` and `b_qkv` are what the engine multiplies with: the three projections (q, k, v in this order) with the
    attention norm's gain and bias folded in, centred over d_model.
    """

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "head d_model d_head"]
    W_V: Float[Tensor, "head d_model d_head"]
    b_Q: Float[Tensor, "head d_head"]
    b_K: Float[Tensor, "head d_head"]
    b_V: Float[Tensor, "head d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, " d_model"]
    attn_norm: Norm
    mlp_norm: Norm
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"]
    W_qkv: Float[Tensor, "3 head d_head d_model"]
    b_qkv: Float[Tensor, "3 head d_head"]
    W_gate: Float[Tensor, "d_model d_mlp"] | None = None  # gated MLPs (Llama): act(x W_gate) * (x W_in)

    @classmethod
    def fold(cls, attn_norm: Norm, **raw: Any) -> LayerWeights:
        """Build a layer from raw weights, folding the attention norm into q, k and v (in float32 or better)."""
        dtype = raw["W_Q"].dtype
        precise = torch.promote_types(dtype, torch.float32)
        W = torch.stack([raw["W_Q"], raw["W_K"], raw["W_V"]]).to(precise)
        b = torch.stack([raw["b_Q"], raw["b_K"], raw["b_V"]]).to(precise)
        b_folded = b + torch.einsum("d,chde->che", attn_norm.bias.to(precise), W)
        W = W * attn_norm.gain.to(precise)[:, None]
        if attn_norm.center:
            W = W - W.mean(dim=2, keepdim=True)
        W_qkv = W.transpose(2, 3).contiguous().to(dtype)
        return cls(attn_norm=attn_norm, W_qkv=W_qkv, b_qkv=b_folded.to(dtype), **raw)


@dataclass(frozen=True)
class ModelWeights:
    """A decoder-only transformer as named tensors.

    `parallel`: attention and MLP read the same residual stream (GPT-NeoX, Pythia); otherwise the MLP reads the residual
    stream after the block's attention (GPT-2, Llama, OLMo).
    """

    layers: tuple[LayerWeights, ...]
    embed: Float[Tensor, "vocab d_model"]
    unembed: Float[Tensor, "vocab d_model"]
    unembed_bias: Float[Tensor, " vocab"] | None
    final_norm: Norm
    activation: Callable[[Tensor], Tensor]
    parallel: bool
    n_positions: int
    rotary: Rotary | None = None
    position_embed: Float[Tensor, "position d_model"] | None = None

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        return self.layers[0].W_O.shape[0]

    @property
    def d_head(self) -> int:
        return self.layers[0].W_O.shape[1]

    @property
    def d_model(self) -> int:
        return self.embed.shape[1]

    @property
    def d_vocab(self) -> int:
        return self.unembed.shape[0]

    @property
    def device(self) -> torch.device:
        return self.embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.dtype


@dataclass(frozen=True)
class Shape:
    """What a model's config says before any weight is read."""

    n_layers: int
    n_heads: int
    n_positions: int
    d_vocab: int
    parallel: bool


def read_shape(config: Any) -> Shape:
    """The shape of the model that a Hugging Face config describes.

    Raises:
        ValueError: if no reader is registered for the architecture.
    """
    _require_reader(config.model_type)
    return Shape(
        config.num_hidden_layers,
        config.num_attention_heads,
        config.max_position_embeddings,
        config.vocab_size,
        getattr(config, "use_parallel_residual", False),
    )


def _require_reader(architecture: str) -> None:
    if architecture not in READERS:
        raise ValueError(f"architecture {architecture} has no weight reader; known: {', '.join(sorted(READERS))}")


def read_weights(model: nn.Module) -> ModelWeights:
    """The weights of a Hugging Face causal language model or of a TransformerBridge around one.

    Raw tensors are views of the model's own memory; only the folded q, k, v projections are new.

    Raises:
        ValueError: if no reader is registered for the architecture.
    """
    source: Any = getattr(model, "original_model", model)
    _require_reader(source.config.model_type)
    reader = READERS[source.config.model_type]
    # A bridge wraps every submodule; the weights keep their names once the wrappers' names are taken out.
    tensors = {name.replace("_original_component.", ""): tensor for name, tensor in source.state_dict().items()}
    with torch.no_grad():
        return reader(source.config, tensors)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "gelu": nn.functional.gelu,
        "gelu_new": _gelu_tanh,
        "gelu_fast": _gelu_tanh,
        "gelu_pytorch_tanh": _gelu_tanh,
        "relu": nn.functional.relu,
        "silu": nn.functional.silu,
    }
    if name not in functions:
        raise ValueError(f"hidden_act={name}: unknown activation (known: {', '.join(functions)})")
    return functions[name]


def _gelu_tanh(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


def _zeros_like_rows(weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[0])


def _rotary(config: Any, d_head: int) -> Rotary:
    parameters = config.rope_parameters
    if parameters.get("rope_type", "default") != "default":
        raise ValueError(f"rope_type={parameters['rope_type']}: only the default rotary embedding is supported")
    return Rotary(dim=int(d_head * parameters.get("partial_rotary_factor", 1.0)), base=parameters["rope_theta"])


def _read_gpt_neox(config: Any, tensors: Mapping[str, Tensor]) -> ModelWeights:
    n_heads = config.num_attention_heads
    d_model = config.hidden_size
    d_head = d_model // n_heads
    layers = []
    for index in range(config.num_hidden_layers):
        block = f"gpt_neox.layers.{index}."

        def linear(name: str, block: str = block) -> tuple[Tensor, Tensor]:
            weight = tensors[block + name + ".weight"]
            return weight, tensors.get(block + name + ".bias", _zeros_like_rows(weight))

        def norm(name: str, block: str = block) -> Norm:
            return Norm(tensors[block + name + ".weight"], tensors[block + name + ".bias"], config.layer_norm_eps)

        # The fused projection holds q, k, v of head 0, then of head 1, and so on.
        qkv, qkv_bias = linear("attention.query_key_value")
        W = qkv.view(n_heads, 3, d_head, d_model).transpose(2, 3)
        b = qkv_bias.view(n_heads, 3, d_head)
        dense, b_O = linear("attention.dense")
        up, b_in = linear("mlp.dense_h_to_4h")
        down, b_out = linear("mlp.dense_4h_to_h")
        layers.append(
            LayerWeights.fold(
                norm("input_layernorm"),
                mlp_norm=norm("post_attention_layernorm"),
                W_Q=W[:, 0],
                W_K=W[:, 1],
                W_V=W[:, 2],
                b_Q=b[:, 0],
                b_K=b[:, 1],
                b_V=b[:, 2],
                W_O=dense.T.view(n_heads, d_head, d_model),
                b_O=b_O,
                W_in=up.T,
                b_in=b_in,
                W_out=down.T,
                b_out=b_out,
            )
        )
    return ModelWeights(
        layers=tuple(layers),
        embed=tensors["gpt_neox.embed_in.weight"],
        # A bridge adds an output bias of zeros that the model does not have.
        unembed=tensors["lm_head.weight"],
        unembed_bias=None,
        final_norm=Norm(
            tensors["gpt_neox.final_layer_norm.weight"],
            tensors["gpt_neox.final_layer_norm.bias"],
            config.layer_norm_eps,
        ),
        activation=_activation(config.hidden_act),
        parallel=config.use_parallel_residual,
        n_positions=config.max_position_embeddings,
        rotary=_rotary(config, d_head),
    )


def _read_gpt2(config: Any, tensors: Mapping[str, Tensor]) -> ModelWeights:
    n_heads = config.n_head
    d_model = config.n_embd
    d_head = d_model // n_heads
    layers = []
    for index in range(config.n_layer):
        block = f"transformer.h.{index}."

        def norm(name: str, block: str = block) -> Norm:
            return Norm(tensors[block + name + ".weight"], tensors[block + name + ".bias"], config.layer_norm_epsilon)

        # Conv1D stores [in, out]; the fused projection holds all q, then all k, then all v.
        W = tensors[block + "attn.c_attn.weight"].view(d_model, 3, n_heads, d_head).permute(1, 2, 0, 3)
        b = tensors[block + "attn.c_attn.bias"].view(3, n_heads, d_head)
        layers.append(
            LayerWeights.fold(
                norm("ln_1"),
                mlp_norm=norm("ln_2"),
                W_Q=W[0],
                W_K=W[1],
                W_V=W[2],
                b_Q=b[0],
                b_K=b[1],
                b_V=b[2],
                W_O=tensors[block + "attn.c_proj.weight"].view(n_heads, d_head, d_model),
                b_O=tensors[block + "attn.c_proj.bias"],
                W_in=tensors[block + "mlp.c_fc.weight"],
                b_in=tensors[block + "mlp.c_fc.bias"],
                W_out=tensors[block + "mlp.c_proj.weight"],
                b_out=tensors[block + "mlp.c_proj.bias"],
            )
        )
    return ModelWeights(
        layers=tuple(layers),
        embed=tensors["transformer.wte.weight"],
        unembed=tensors["lm_head.weight"],
        unembed_bias=None,
        final_norm=Norm(
            tensors["transformer.ln_f.weight"], tensors["transformer.ln_f.bias"], config.layer_norm_epsilon
        ),
        activation=_activation(config.activation_function),
        parallel=False,
        n_positions=config.n_positions,
        position_embed=tensors["transformer.wpe.weight"],
    )


READERS: dict[str, Callable[[Any, Mapping[str, Tensor]], ModelWeights]] = {
    "gpt_neox": _read_gpt_neox,
    "gpt2": _read_gpt2,
}
