"""Tiny random GPT-NeoX checkpoints with a word tokenizer, as real files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

WORDS = ("<|endoftext|>", "When", "Mary", "and", "John", "went", "to", "the", "store", "gave", "a", "drink")


def tiny_model(seed: int) -> GPTNeoXForCausalLM:
    """Two layers of two heads; its weights follow from the seed, whatever was drawn before."""
    config = GPTNeoXConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(config)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token=WORDS[0], bos_token=WORDS[0], eos_token=WORDS[0])


def save_checkpoint(folder: Path, seed: int) -> None:
    """Weights and tokenizer in `save_pretrained` format."""
    tiny_model(seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def save_family(folder: Path, seeds: Mapping[int, int], tokens_per_step: int = 64) -> Path:
    """A local family: step -> seed of its weights."""
    for step, seed in seeds.items():
        save_checkpoint(folder / f"step{step}", seed)
    (folder / "family.json").write_text(json.dumps({"tokens_per_step": tokens_per_step}))
    return folder
