"""What a config says about a model: its shape, and whether we read every field that changes the arithmetic.

`read_shape` needs the config alone, so a model that cannot be measured is refused before its weights are downloaded.
Every field of a supported config class is either read, or allowed at its neutral values only, or without influence on
the logits in evaluation. Any other field (transformers may add one) is refused by name, so nothing that could change a
result is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from .activations import ACTIVATIONS
from .architecture_table import ARCHITECTURES, Architecture
from .rotary import check_rotary

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer's dimensions, from its config alone."""

    architecture: str  # transformers' `model_type`
    n_layers: int
    n_heads: int  # query heads, which are the heads of the graph
    n_kv_heads: int  # key-value heads, each shared by a group of query heads (grouped-query attention)
    d_head: int
    d_model: int
    d_mlp: int
    d_vocab: int
    # The most tokens that a prompt may have: the context length, or the smallest sliding window if that is
    # shorter. Windows are not modelled, so they must never cut anything off.
    n_positions: int
    # Whether attention and MLP of a block read the same residual stream (GPT-NeoX, GPT-J). Otherwise the MLP
    # reads it after attention has written to it.
    parallel: bool


# Read for every architecture (by these names or by those of the config's attribute_map).
SHAPE_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
    "tie_word_embeddings",  # The output layer is read by its own name, tied or not.
)

# Fields that no reader reads, allowed at these values, where they change nothing.
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
        *("reorder_and_upcast_attn", "pretraining_tp"),
        # Already applied by the config classes, to no_rope_layers, layer_types and sliding_window.
        *("no_rope_layer_interval", "max_window_layers", "use_sliding_window", "_sliding_window_pattern"),
    }
)

LAYER_TYPES = ("full_attention", "sliding_attention")


def read_shape(config: PretrainedConfig) -> Shape:
    """A model's shape, if we can compute everything that its config says.

    Raises:
        ValueError: if the architecture has no reader, or a field changes the arithmetic and is not read. One line that
            names the field, its value and what is supported.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        supported = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"model_type={config.model_type}: no reader for this architecture (supported: {supported})")
    reads, neutral = read_fields(config, architecture), {**NEUTRAL, **architecture.neutral}
    declared = {field.name for field in fields(type(config))}
    for name, value in config.to_dict().items():
        if name in reads or name in IRRELEVANT:
            continue
        if name in neutral:
            _require(config, name, neutral[name])
        elif name in declared:  # Others are unknown to transformers too and change nothing.
            raise ValueError(f"{name}={value}: no reader knows this field of {config.model_type}")

    n_heads, d_model = config.num_attention_heads, config.hidden_size
    d_head = getattr(config, "head_dim", None) if "head_dim" in reads else None
    if d_head is None:
        if d_model % n_heads:
            raise ValueError(f"hidden_size={d_model}: not a multiple of num_attention_heads={n_heads}")
        d_head = d_model // n_heads
        if getattr(config, "head_dim", None) is not None:
            _require(config, "head_dim", (d_head,))
    _require(config, architecture.activation, ACTIVATIONS)
    layer_types = config.layer_types if "layer_types" in reads else ["sliding_attention"]
    for kind in layer_types:
        if kind not in LAYER_TYPES:
            raise ValueError(f"layer_types={kind}: unknown attention (supported: {', '.join(LAYER_TYPES)})")
    check_rotary(config, architecture)
    n_kv_heads = config.num_key_value_heads if "num_key_value_heads" in reads else n_heads
    if n_heads % n_kv_heads:
        raise ValueError(f"num_key_value_heads={n_kv_heads}: does not divide num_attention_heads={n_heads}")

    n_positions, parallel = config.max_position_embeddings, architecture.parallel
    if "sliding_window" in reads and config.sliding_window is not None and "sliding_attention" in layer_types:
        n_positions = min(n_positions, config.sliding_window)
    return Shape(
        architecture=config.model_type,
        n_layers=config.num_hidden_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        d_model=d_model,
        d_mlp=getattr(config, architecture.mlp_width) or 4 * d_model,
        d_vocab=config.vocab_size,
        n_positions=n_positions,
        parallel=getattr(config, parallel) if isinstance(parallel, str) else parallel,
    )


def read_fields(config: PretrainedConfig, architecture: Architecture) -> frozenset[str]:
    """The names of the fields that are read, as the config class has them."""
    names = {config.attribute_map.get(name, name) for name in SHAPE_FIELDS}
    names |= {architecture.mlp_width, architecture.activation}
    names |= {name for name in (architecture.eps, architecture.parallel) if isinstance(name, str)}
    return architecture.reads | names


def _require(config: PretrainedConfig, name: str, supported: tuple[Any, ...]) -> None:
    value = getattr(config, name)
    if value not in supported:
        known = " or ".join(map(str, supported)) if len(supported) < 3 else ", ".join(map(str, supported))
        raise ValueError(f"{name}={value}: not supported for {config.model_type} (supported: {known})")
