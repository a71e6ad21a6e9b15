"""A one-layer model whose three heads suppress copies, do something random, and copy."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

WORDS = 20  # token 0 only ever begins a sequence
SUPPRESSING, RANDOM, COPYING = range(3)


def copy_suppression_model() -> GPT2LMHeadModel:
    """The residual stream holds which token this is (entries 0-19) and, as its prediction, one other (entries 20-39).

    The suppressing and the copying head attend to places in the context where the predicted token stands, or else to
    the beginning, and write minus or plus that token's unembedding. Layer norms and the MLP leave everything in place.
    """
    d_head = WORDS + 1
    d_model = 3 * d_head
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS,
            n_embd=d_model,
            n_layer=1,
            n_head=3,
            n_inner=4,
            n_positions=64,
            tie_word_embeddings=False,
            attn_implementation="eager",
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    names, predictions, beginning = range(WORDS), range(WORDS, 2 * WORDS), 2 * WORDS
    predicted = torch.arange(1, WORDS).roll(1)  # token 1 predicts 19, token 2 predicts 1, ...
    block = model.transformer.h[0]
    W_qkv = torch.zeros(d_model, 3, 3, d_head)
    W_O = torch.zeros(3, d_head, d_model)
    b_qkv = torch.zeros(3, 3, d_head)
    for head, sign in ((SUPPRESSING, -1), (COPYING, 1)):
        for word in range(WORDS):
            W_qkv[predictions[word], 0, head, word] = 1.5
            W_qkv[names[word], 1, head, word] = 1.5
            W_qkv[names[word], 2, head, word] = 1.0
            W_O[head, word, predictions[word]] = 0.1 * sign
        W_qkv[beginning, 1, head, WORDS] = 3.5
        b_qkv[0, head, WORDS] = 1.0
    W_qkv[:, :, RANDOM] = 0.3 * torch.randn(d_model, 3, d_head)
    W_O[RANDOM] = 0.03 * torch.randn(d_head, d_model)
    with torch.no_grad():
        for parameter in (*block.mlp.parameters(), model.transformer.wpe.weight, model.transformer.wte.weight):
            parameter.zero_()
        embed, unembed = model.transformer.wte.weight, model.lm_head.weight.zero_()
        for word in range(1, WORDS):
            embed[word, names[word]] = 1.0
            embed[word, predictions[predicted[word - 1]]] = 1.0
            unembed[word, predictions[word]] = 1.0
        embed[0, beginning] = 2**0.5
        block.attn.c_attn.weight.copy_(W_qkv.view(d_model, -1))
        block.attn.c_attn.bias.copy_(b_qkv.view(-1))
        block.attn.c_proj.weight.copy_(W_O.view(-1, d_model))
        block.attn.c_proj.bias.zero_()
    return model.eval().requires_grad_(False)


def sequences(n: int, seq_len: int, seed: int) -> Int[Tensor, "n seq_len"]:
    """Random words after the beginning."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, WORDS, (n, seq_len), generator=generator)
    tokens[:, 0] = 0
    return tokens
