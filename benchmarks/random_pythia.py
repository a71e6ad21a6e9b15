"""Models of Pythia's shapes with random weights, which all benchmarks measure on."""

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

SHAPES = {
    "70m": (6, 8, 512),
    "160m": (12, 12, 768),
    "410m": (24, 16, 1024),
    "1b": (16, 8, 2048),
    "1.4b": (24, 16, 2048),
    "2.8b": (32, 32, 2560),
}
"""Layers, heads and d_model."""


def random_pythia(
    n_layers: int, n_heads: int, d_model: int, device: str = "cpu", *, vocabulary: int = 50304
) -> GPTNeoXForCausalLM:
    """GPT-NeoX with Pythia's proportions; the same weights on every call, none needing a gradient.

    They are drawn on the device, so each kind of device has its own.
    """
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        intermediate_size=4 * d_model,
        max_position_embeddings=2048,
        rotary_pct=0.25,
    )
    with torch.device(device):
        model = GPTNeoXForCausalLM(config)
    return model.eval().requires_grad_(False)
