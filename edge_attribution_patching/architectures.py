"""What a config says of a model: its shape, and whether every field that changes the arithmetic is one that is read.

`read_shape` needs the config alone, so a model that cannot be measured is refused before its weights are fetched. Each
field of a supported config class is classified: read, allowed at its neutral values only, or without influence on the
logits in evaluation. A field that is none of these (transformers may add one) is refused by name: nothing that could
change the result is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from transformers import PretrainedConfig

from edge_attribution_patching.activations import ACTIVATIONS


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer's dimensions, from its config alone.

    Attributes:
        architecture: transformers' `model_type`.
        n_heads: query heads; these are the graph's heads.
        n_kv_heads: key-value heads, each shared by `n_heads // n_kv_heads` query heads.
        n_positions: the context length.
        parallel: attention and MLP of a block read the same residual stream (GPT-NeoX, GPT-J); otherwise the MLP reads
            what attention has written to.
        window: the smallest sliding window, if any layer has one. It is not modelled: see `longest_prompt`.
    """

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    d_vocab: int
    n_positions: int
    parallel: bool
    window: int | None = None

    @property
    def longest_prompt(self) -> int:
        """The most tokens that a prompt may have: within the context and never cut by a sliding window."""
        return self.n_positions if self.window is None else min(self.n_positions, self.window)


@dataclass(frozen=True)
class Architecture:
    """What is particular to one architecture.

    Attributes:
        activation: the field that names the MLP's nonlinearity.
        reads: further fields of its config, beyond `SHAPE_FIELDS`, that the reader takes into account.
        mlp_width: the field that holds the MLP's width; where it is empty the width is 4 * d_model.
    """

    activation: str
    reads: frozenset[str]
    mlp_width: str = "intermediate_size"


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(
        activation="activation_function",
        reads=frozenset(
            {
                "layer_norm_epsilon",
                "scale_attn_by_inverse_layer_idx",
                "scale_attn_weights",
                "tie_word_embeddings",
            }
        ),
        mlp_width="n_inner",
    ),
    "gpt_neox": Architecture(
        activation="hidden_act",
        reads=frozenset(
            {
                "attention_bias",
                "layer_norm_eps",
                "rope_parameters",
                "tie_word_embeddings",
                "use_parallel_residual",
            }
        ),
    ),
}

# Read for every architecture (by these names or by those of the config's attribute_map).
SHAPE_FIELDS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")

# Fields that change the arithmetic and are read by no reader: allowed where they change nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
    "quantization_config": (None,),
}

# Fields that change no logit in evaluation: bookkeeping, special tokens, dropout, initialisation, other heads than the
# language model's, and numerically equivalent ways to compute the same.
IRRELEVANT = frozenset(
    {
        *("transformers_version", "architectures", "model_type", "_name_or_path", "dtype", "problem_type"),
        *("output_hidden_states", "output_attentions", "return_dict", "id2label", "label2id", "use_cache"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "is_decoder", "initializer_range"),
        *("attention_dropout", "hidden_dropout", "classifier_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
        "summary_last_dropout",
        "reorder_and_upcast_attn",
    }
)

ROPE_KEYS: Mapping[str, frozenset[str]] = {"default": frozenset({"rope_theta", "partial_rotary_factor"})}
"""Known rotary types and the keys of `rope_parameters` that each takes."""


def read_shape(config: PretrainedConfig) -> Shape:
    """A model's shape, if everything that its config says can be computed here.

    Raises:
        ValueError: in one line that names the field, its value and what is supported, for an architecture without a
            reader and for a field that changes the arithmetic and is not read.
    """
    architecture = check_config(config)
    n_heads, d_model = config.num_attention_heads, config.hidden_size
    if d_model % n_heads:
        raise ValueError(f"hidden_size={d_model}: not a multiple of num_attention_heads={n_heads}")
    return Shape(
        architecture=config.model_type,
        n_layers=config.num_hidden_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_model // n_heads,
        d_model=d_model,
        d_mlp=getattr(config, architecture.mlp_width) or 4 * d_model,
        d_vocab=config.vocab_size,
        n_positions=config.max_position_embeddings,
        parallel=getattr(config, "use_parallel_residual", False),
    )


def check_config(config: PretrainedConfig) -> Architecture:
    """The architecture's entry, if every field of the config is one that is read or changes nothing.

    Raises:
        ValueError: see `read_shape`.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise ValueError(
            f"model_type={config.model_type}: no reader for this architecture (supported: {', '.join(ARCHITECTURES)})"
        )
    read = read_fields(config, architecture)
    declared = {field.name for field in fields(type(config))}
    for name, value in config.to_dict().items():
        if name in read or name in IRRELEVANT:
            continue
        if name in NEUTRAL:
            if value not in NEUTRAL[name]:
                neutral = " or ".join(map(str, NEUTRAL[name]))
                raise ValueError(f"{name}={value}: not supported for {config.model_type} (supported: {neutral})")
        elif name in declared:  # Others are unknown to transformers too and change nothing.
            raise ValueError(f"{name}={value}: a field of {config.model_type} that no reader knows")
    activation = getattr(config, architecture.activation)
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"{architecture.activation}={activation}: unknown activation (supported: {known})")
    if "rope_parameters" in read:
        _check_rope(config.rope_parameters)
    d_head = config.hidden_size // config.num_attention_heads
    if "head_dim" not in read and getattr(config, "head_dim", None) not in (None, d_head):
        raise ValueError(f"head_dim={config.head_dim}: not supported for {config.model_type} (supported: {d_head})")
    return architecture


def read_fields(config: PretrainedConfig, architecture: Architecture) -> frozenset[str]:
    """The names, as the config class has them, of the fields that are read."""
    shape = {config.attribute_map.get(name, name) for name in SHAPE_FIELDS}
    return architecture.reads | shape | {architecture.mlp_width, architecture.activation}


def _check_rope(parameters: Mapping[str, Any]) -> None:
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_KEYS:
        raise ValueError(f"rope_type={kind}: unknown rotary embedding (supported: {', '.join(ROPE_KEYS)})")
    for name, value in parameters.items():
        if name not in {"rope_type", "type", *ROPE_KEYS[kind]}:
            raise ValueError(f"rope_parameters.{name}={value}: not supported for rope_type={kind}")
