"""Models of Pythia's shapes with random weights, which all benchmarks measure on."""

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

SHAPES = {"70m": (6, 8, 512), "160m": (12, 12, 768)}
"""Layers, heads and d_model."""


def random_pythia(n_layers: int, n_heads: int, d_model: int) -> GPTNeoXForCausalLM:
    """GPT-NeoX with Pythia's vocabulary and proportions; the same weights on every call, none needing a gradient."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        intermediate_size=4 * d_model,
        max_position_embeddings=2048,
        rotary_pct=0.25,
    )
    return GPTNeoXForCausalLM(config).eval().requires_grad_(False)
