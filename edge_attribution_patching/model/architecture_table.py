"""Architectures as data: where each keeps its tensors, how its blocks compute, and which config fields it reads.

An architecture is one entry in `ARCHITECTURES`, and `weights.read_weights` reads any model from its entry. What a
config may change (a scale, a clamp, a rotary embedding, whether a bias exists) is a field in `reads`. All other fields
of the config class must be neutral or irrelevant (`architectures.read_shape`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

NormKind = Literal["layer", "bare layer", "rms", "rms one plus"]
"""LayerNorm, LayerNorm without gain and bias (OLMo), RMSNorm, and RMSNorm whose gain is 1 + weight (Gemma)."""

BARE_EPS = 1e-5
"""The eps of OLMo's LayerNorm, which is in its code and not in its config."""


@dataclass(frozen=True)
class Architecture:
    """What is particular to one architecture.

    Names of tensors are without `.weight` and `.bias`, and those in a block without its prefix.

    Attributes:
        block: what the names of a block's tensors begin with; `{}` is the number of the layer.
        norm: the kind of every norm.
        attn_norm, mlp_norm: norms before attention and the MLP; None if they read the residual stream as it is.
        attn_post_norm, mlp_post_norm: norms of what the heads together, and the MLP, write, before it is added.
        qkv: the projections of q, k and v, or the one that holds all three.
        qkv_order: the order of the outputs of `qkv`, and the order they are read in (einops).
        attn_out: the output projection of attention.
        biases: whether `qkv`, `attn_out` and the MLP's projections have biases, or the names of the fields that say so.
        mlp_in, mlp_gate, mlp_out: the MLP's projections, out(activation(gate(x)) * in(x)) or out(activation(in(x))).
        conv1d: weights are stored [input, output].
        q_norm, k_norm: norms of queries and keys before rotary, over each head or over all.
        norm_over_heads: whether `q_norm` and `k_norm` are over all heads together.
        scaled_embedding: embeddings are multiplied by sqrt(d_model).
        parallel: whether attention and MLP read the same residual stream, or the name of the field that says so.
        partial_rotary: whether `rope_parameters` may turn only a part of each head.
        interleaved_rotary: whether rotary turns neighbouring entries (GPT-J), instead of entries half a head apart.
        unembed_bias: whether the output layer has one.
        old_names: earlier names of tensors -> today's.
        rotary_by_layer_type: whether `rope_parameters` has one entry for each of `layer_types`.
        activation, eps, mlp_width: the fields that hold these. An empty width means 4 * d_model; no eps means BARE_EPS.
        reads: all other fields that are read.
        neutral: fields that are not read, and the values at which they change nothing.
    """

    block: str
    embed: str
    final_norm: str
    norm: NormKind
    qkv: tuple[str, ...]
    attn_out: str
    mlp_in: str
    mlp_out: str
    attn_norm: str | None = None
    mlp_norm: str | None = None
    attn_post_norm: str | None = None
    mlp_post_norm: str | None = None
    position_embed: str | None = None
    qkv_order: str = "(qkv_head d_head) -> qkv_head d_head"
    mlp_gate: str | None = None
    biases: tuple[bool | str, bool | str, bool | str] = (False, False, False)
    unembed_bias: bool = False
    old_names: Mapping[str, str] = field(default_factory=dict)
    conv1d: bool = False
    q_norm: str | None = None
    k_norm: str | None = None
    norm_over_heads: bool = False
    scaled_embedding: bool = False
    parallel: bool | str = False
    partial_rotary: bool = False
    interleaved_rotary: bool = False
    rotary_by_layer_type: bool = False
    activation: str = "hidden_act"
    eps: str | None = "rms_norm_eps"
    mlp_width: str = "intermediate_size"
    reads: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


_GPT2 = Architecture(
    block="transformer.h.{}.",
    embed="transformer.wte",
    position_embed="transformer.wpe",
    final_norm="transformer.ln_f",
    norm="layer",
    attn_norm="ln_1",
    mlp_norm="ln_2",
    qkv=("attn.c_attn",),
    qkv_order="(qkv head d_head) -> (qkv head) d_head",
    attn_out="attn.c_proj",
    mlp_in="mlp.c_fc",
    mlp_out="mlp.c_proj",
    biases=(True, True, True),
    conv1d=True,
    activation="activation_function",
    eps="layer_norm_epsilon",
    mlp_width="n_inner",
    reads=frozenset({"scale_attn_by_inverse_layer_idx", "scale_attn_weights"}),
)

_GPT_J = Architecture(
    block="transformer.h.{}.",
    embed="transformer.wte",
    final_norm="transformer.ln_f",
    norm="layer",
    attn_norm="ln_1",
    mlp_norm="ln_1",
    qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    attn_out="attn.out_proj",
    mlp_in="mlp.fc_in",
    mlp_out="mlp.fc_out",
    biases=(False, False, True),
    unembed_bias=True,
    parallel=True,
    interleaved_rotary=True,
    activation="activation_function",
    eps="layer_norm_epsilon",
    mlp_width="n_inner",
    reads=frozenset({"rotary_dim"}),
)

_GPT_NEOX = Architecture(
    block="gpt_neox.layers.{}.",
    embed="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    norm="layer",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    qkv=("attention.query_key_value",),
    qkv_order="(head qkv d_head) -> (qkv head) d_head",  # q, k, v of head 0, then of head 1, and so on
    attn_out="attention.dense",
    mlp_in="mlp.dense_h_to_4h",
    mlp_out="mlp.dense_4h_to_h",
    biases=("attention_bias", "attention_bias", True),
    old_names={"embed_out.weight": "lm_head.weight"},
    parallel="use_parallel_residual",
    partial_rotary=True,
    eps="layer_norm_eps",
    reads=frozenset({"attention_bias", "rope_parameters"}),
)

_GROUPED = frozenset({"head_dim", "num_key_value_heads", "rope_parameters"})

_LLAMA = Architecture(
    block="model.layers.{}.",
    embed="model.embed_tokens",
    final_norm="model.norm",
    norm="rms",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attn_out="self_attn.o_proj",
    mlp_in="mlp.up_proj",
    mlp_gate="mlp.gate_proj",
    mlp_out="mlp.down_proj",
    biases=("attention_bias", "attention_bias", "mlp_bias"),
    reads=_GROUPED | {"attention_bias", "mlp_bias"},
)

_WINDOWS = frozenset({"layer_types", "sliding_window"})

_NO_BIAS = (False, False, False)
_ATTENTION_BIAS = ("attention_bias", "attention_bias", False)

_QWEN2 = replace(_LLAMA, biases=(True, False, False), reads=_GROUPED | _WINDOWS)

# No norm before a sublayer but one after it. An output bias would be scaled along with the sum of the heads, and so
# would belong to none of them.
_OLMO2 = replace(
    _LLAMA,
    attn_norm=None,
    attn_post_norm="post_attention_layernorm",
    mlp_norm=None,
    mlp_post_norm="post_feedforward_layernorm",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    norm_over_heads=True,
    biases=_NO_BIAS,
    reads=_GROUPED,
    neutral={"attention_bias": (False,)},
)

_GEMMA2 = replace(
    _LLAMA,
    norm="rms one plus",
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    scaled_embedding=True,
    biases=_NO_BIAS,
    activation="hidden_activation",
    reads=_GROUPED | _WINDOWS | {"attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"},
    neutral={"attention_bias": (False,), "use_bidirectional_attention": (None, False)},
)

ARCHITECTURES: dict[str, Architecture] = {
    "apertus": replace(
        _LLAMA,
        attn_norm="attention_layernorm",
        mlp_norm="feedforward_layernorm",
        mlp_gate=None,
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
        biases=_ATTENTION_BIAS,
        reads=_GROUPED | {"attention_bias"},
    ),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(
        _GEMMA2,
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
        rotary_by_layer_type=True,
        reads=_GEMMA2.reads - {"attn_logit_softcapping"},
        neutral={**_GEMMA2.neutral, "attn_logit_softcapping": (None,)},
    ),
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "gptj": _GPT_J,
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, biases=_NO_BIAS, reads=_GROUPED | {"sliding_window"}),
    "olmo": replace(
        _LLAMA,
        norm="bare layer",
        biases=_ATTENTION_BIAS,
        eps=None,
        reads=_GROUPED | {"attention_bias", "clip_qkv"},
    ),
    "olmo2": _OLMO2,
    "olmo3": replace(_OLMO2, rotary_by_layer_type=True, reads=_OLMO2.reads | _WINDOWS),
    "qwen2": _QWEN2,
    "qwen3": replace(
        _QWEN2,
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
        biases=_ATTENTION_BIAS,
        reads=_QWEN2.reads | {"attention_bias"},
    ),
    "smollm3": replace(_LLAMA, reads=_LLAMA.reads | _WINDOWS | {"no_rope_layers"}),
}
