"""Small random models of every supported architecture, for tests that compare with Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

HOOKED = ("neox-parallel", "neox-sequential", "gpt2")
"""Those whose modules the references with hooks know."""

_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
_GROUPED = {"num_key_value_heads": 2}

# Name -> model_type and what its config says beside the sizes. Every variant of a block is somewhere here.
VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "neox-parallel": ("gpt_neox", {"rotary_pct": 0.25}),
    "neox-sequential": ("gpt_neox", {"rotary_pct": 0.25, "use_parallel_residual": False}),
    "gpt2": ("gpt2", {}),
    "gpt2-stanford": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "llama": ("llama", {"rope_parameters": _LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "llama-grouped": ("llama", {**_GROUPED, "head_dim": 12, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 48}),
    "olmo": ("olmo", {"tie_word_embeddings": True}),
    "olmo-clamped": ("olmo", {**_GROUPED, "clip_qkv": 0.5}),
    "olmo2": ("olmo2", {}),
    "olmo2-grouped": ("olmo2", dict(_GROUPED)),
    "olmo3": (
        "olmo3",
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 48,
            "rope_parameters": {"sliding_attention": _DEFAULT, "full_attention": _YARN},
        },
    ),
    "smollm3": ("smollm3", {**_GROUPED, "no_rope_layers": [1, 0, 1], "rope_parameters": _DEFAULT}),
    "qwen2": ("qwen2", {**_GROUPED, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "qwen3": ("qwen3", {**_GROUPED, "head_dim": 12}),
    "gemma2": (
        "gemma2",
        {
            **_GROUPED,
            "head_dim": 12,
            "query_pre_attn_scalar": 10,
            "sliding_window": 48,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **_GROUPED,
            "head_dim": 12,
            "query_pre_attn_scalar": 10,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 48,
            "rope_parameters": {
                "sliding_attention": _DEFAULT,
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        },
    ),
    "apertus": ("apertus", {**_GROUPED, "rope_parameters": _LLAMA3}),
}

ARCHITECTURES = tuple(VARIANTS)
GROUPED = tuple(name for name, (_, options) in VARIANTS.items() if "num_key_value_heads" in options)
"""Those whose query heads share key-value heads."""

_GPT2_NAMES = {"hidden_size": "n_embd", "intermediate_size": "n_inner"}


def random_model(
    architecture: str = "neox-parallel",
    *,
    n_layers: int = 3,
    n_heads: int = 4,
    d_model: int = 32,
    d_mlp: int = 64,
    vocab: int = 97,
    n_positions: int = 64,
    seed: int = 0,
    **options: Any,
) -> PreTrainedModel:
    """A model with weights large enough that every piece of it matters; `options` go to its config."""
    model_type, variant = VARIANTS[architecture]
    sizes = {
        "hidden_size": d_model,
        "intermediate_size": d_mlp,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "max_position_embeddings": n_positions,
    }
    # What is said layer by layer goes round.
    variant = {name: (said * n_layers)[:n_layers] if isinstance(said, list) else said for name, said in variant.items()}
    if model_type in ("gpt2", "gptj"):
        sizes = {_GPT2_NAMES.get(name, name): size for name, size in sizes.items()}
    config = CONFIG_MAPPING[model_type](
        **deepcopy({**sizes, **variant, **options}), vocab_size=vocab, bos_token_id=0, eos_token_id=0, pad_token_id=None
    )
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    if (
        model_type == "gpt2"
    ):  # Versions of transformers have drawn more or fewer numbers by now; with these, all effects are large.
        torch.manual_seed(seed + 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1:
                parameter.copy_(noise * (0.5 if "emb" in name or "wte" in name else 1.5 / parameter.shape[-1] ** 0.5))
            else:
                one = "weight" in name and not model_type.startswith("gemma")  # Gemma's gain is 1 + weight.
                parameter.copy_(0.3 * noise + (1.0 if one else 0.0))
    return model.eval().requires_grad_(False)


def value_projection(model: PreTrainedModel, layer: int, head: int) -> tuple[torch.Tensor, torch.Tensor | float]:
    """A head's raw W_V [d_model, d_head] and b_V [d_head], as the checkpoint stores them."""
    d_model = model.config.hidden_size
    n_heads = model.config.num_attention_heads
    d_head = d_model // n_heads
    if isinstance(model, GPTNeoXForCausalLM):
        fused = model.gpt_neox.layers[layer].attention.query_key_value
        rows = slice((3 * head + 2) * d_head, (3 * head + 3) * d_head)
        return fused.weight[rows].T, 0.0 if fused.bias is None else fused.bias[rows]
    fused = model.transformer.h[layer].attn.c_attn
    columns = slice(2 * d_model + head * d_head, 2 * d_model + (head + 1) * d_head)
    return fused.weight[:, columns], fused.bias[columns]


def without_biases(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with no bias in any projection; in GPT-NeoX those of attention do not even exist."""
    if isinstance(model, GPTNeoXForCausalLM):
        model.config.attention_bias = False
        bare = GPTNeoXForCausalLM(model.config).eval().requires_grad_(False)
        bare.load_state_dict(model.state_dict(), strict=False)
        assert bare.gpt_neox.layers[0].attention.query_key_value.bias is None
        model = bare
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    return model


def tiny_tokenizer(folder: Path, vocab: int = 97) -> PreTrainedTokenizerBase:
    """A tokenizer of words "1", "2", ..., end of text at 0, read back from `folder` as a bridge needs it."""
    words = {"<|endoftext|>": 0, **{str(index): index for index in range(1, vocab)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", unk_token="<|endoftext|>"
    ).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def random_pairs(
    n: int, *, vocab: int = 97, lengths: tuple[int, int] = (5, 9), shared: int = 3, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded clean and corrupted ids that share at least their first `shared` tokens, and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(lengths[0], lengths[1] + 1, (n,), generator=generator)
    clean = torch.randint(1, vocab, (n, lengths[1]), generator=generator)
    corrupted = clean.clone()
    for row in range(n):
        first = int(torch.randint(shared, int(count[row]), (1,), generator=generator))
        corrupted[row, first] = (corrupted[row, first] + 1) % vocab
        flips = torch.rand(lengths[1], generator=generator) < 0.3
        flips[:first] = False
        corrupted[row, flips] = torch.randint(1, vocab, (int(flips.sum()),), generator=generator)
    padding = torch.arange(lengths[1]) >= count[:, None]
    return clean.masked_fill(padding, 0), corrupted.masked_fill(padding, 0), count
