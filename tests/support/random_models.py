"""Small random models of every supported architecture, for tests that compare with Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

ARCHITECTURES = ("neox-parallel", "neox-sequential", "gpt2")


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
    """A model with weights large enough that attention, norms and biases all matter; `options` go to its config."""
    torch.manual_seed(seed)
    if architecture == "gpt2":
        model: PreTrainedModel = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab,
                n_embd=d_model,
                n_layer=n_layers,
                n_head=n_heads,
                n_inner=d_mlp,
                n_positions=n_positions,
                attn_implementation="eager",
                bos_token_id=0,
                eos_token_id=0,
                **options,
            )
        )
    else:
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=vocab,
                hidden_size=d_model,
                num_hidden_layers=n_layers,
                num_attention_heads=n_heads,
                intermediate_size=d_mlp,
                max_position_embeddings=n_positions,
                rotary_pct=0.25,
                use_parallel_residual=architecture == "neox-parallel",
                attn_implementation="eager",
                bos_token_id=0,
                eos_token_id=0,
                **options,
            )
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1:
                parameter.copy_(noise * (0.5 if "emb" in name or "wte" in name else 1.5 / parameter.shape[-1] ** 0.5))
            else:
                parameter.copy_(0.3 * noise + (1.0 if "weight" in name else 0.0))
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
