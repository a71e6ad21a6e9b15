"""Models whose weights are written by hand, so that every head's scores are known without training.

A GPT-2 without trained parts. Its residual stream is cut into named parts that hold one-hot vectors: TOKEN and POSITION
(the embeddings), COPY (what layer 0 copies) and OUT (what the unembedding reads). Every LayerNorm is given the gain and
bias that undo it, which is possible because all positions hold equally many ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

VOCAB = 24
PERIOD = 8
POSITIONS = 2 * PERIOD
N_HEADS = 3
D_HEAD = 48
D_MODEL = N_HEADS * D_HEAD

TOKEN = slice(0, VOCAB)
POSITION = slice(VOCAB, VOCAB + POSITIONS)
COPY = slice(POSITION.stop, POSITION.stop + VOCAB)
OUT = slice(COPY.stop, COPY.stop + VOCAB)

SHARP = 30.0
"""Logit by which an ideal head prefers the key it looks for; the softmax leaves e^-30 to each other key."""


def blank_model(n_layers: int = 2) -> GPT2LMHeadModel:
    """Embeds tokens and positions, does nothing, and unembeds OUT. Its heads attend uniformly and write nothing."""
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=POSITIONS,
        n_embd=D_MODEL,
        n_layer=n_layers,
        n_head=N_HEADS,
        n_inner=VOCAB,
        activation_function="relu",
        attn_implementation="eager",
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
    model.transformer.wte.weight[:, TOKEN] = torch.eye(VOCAB)
    model.transformer.wpe.weight[:, POSITION] = torch.eye(POSITIONS)
    model.lm_head.weight[:, OUT] = torch.eye(VOCAB)
    for layer in range(n_layers):
        undo(model.transformer.h[layer].ln_1, ones=2)
    return model


def undo(norm: nn.LayerNorm, ones: int) -> None:
    """Make a LayerNorm the identity on vectors of that many ones and zeros elsewhere."""
    mean = ones / D_MODEL
    norm.weight.fill_((mean - mean**2 + norm.eps) ** 0.5)
    norm.bias.fill_(mean)


class Head:
    """One head's weights as views to write into: `q`, `k`, `v` [d_model, d_head], biases, `o` [d_head, d_model]."""

    def __init__(self, model: GPT2LMHeadModel, layer: int, head: int) -> None:
        attention = model.transformer.h[layer].attn
        columns = slice(head * D_HEAD, (head + 1) * D_HEAD)
        self.q, self.k, self.v = (part[:, columns] for part in attention.c_attn.weight.split(D_MODEL, dim=1))
        self.q_bias, self.k_bias, self.v_bias = (part[columns] for part in attention.c_attn.bias.split(D_MODEL))
        self.o = attention.c_proj.weight[columns]

    def sharpen(self) -> None:
        """Scale the queries so that a match of one is worth `SHARP` after the division by sqrt(d_head)."""
        self.q *= SHARP * D_HEAD**0.5
        self.q_bias *= SHARP * D_HEAD**0.5

    def moves(self, source: slice, target: slice, matrix: Tensor | None = None) -> None:
        """Write the attended position's `source` part, times a matrix, to `target`."""
        self.v[source, :VOCAB] = torch.eye(VOCAB)
        self.o[:VOCAB, target] = torch.eye(VOCAB) if matrix is None else matrix


def attention_model() -> GPT2LMHeadModel:
    """0.0: previous-token head, 0.1: duplicate-token head, 1.0: induction head; the rest attend uniformly."""
    model = blank_model()

    previous = Head(model, 0, 0)
    previous.q[POSITION, : POSITIONS - 1] = torch.eye(POSITIONS)[:, 1:]  # position i looks for i - 1
    previous.k[POSITION, :POSITIONS] = torch.eye(POSITIONS)
    previous.moves(TOKEN, COPY)
    previous.sharpen()

    duplicate = Head(model, 0, 1)
    duplicate.q[TOKEN, :VOCAB] = torch.eye(VOCAB)
    duplicate.k[TOKEN, :VOCAB] = torch.eye(VOCAB)
    duplicate.q[POSITION, VOCAB : VOCAB + POSITIONS] = -2 * torch.eye(POSITIONS)  # never itself
    duplicate.k[POSITION, VOCAB : VOCAB + POSITIONS] = torch.eye(POSITIONS)
    duplicate.sharpen()

    induction = Head(model, 1, 0)
    induction.q[TOKEN, :VOCAB] = torch.eye(VOCAB)
    induction.k[COPY, :VOCAB] = torch.eye(VOCAB)
    # Position 0 has no previous token: the head of layer 0 copies its own, so nothing may match there.
    induction.q_bias[VOCAB] = -2.0
    induction.k[POSITION.start, VOCAB] = 1.0
    induction.moves(TOKEN, OUT)
    induction.sharpen()
    undo(model.transformer.h[1].ln_1, ones=3)
    return model


def copying_model() -> GPT2LMHeadModel:
    """1.0 writes the token it attends to, 1.1 writes minus it; the rest write nothing."""
    model = blank_model()
    for head, sign in ((0, 1.0), (1, -1.0)):
        Head(model, 1, head).moves(TOKEN, OUT, sign * torch.eye(VOCAB))
    return model


def successor_model() -> GPT2LMHeadModel:
    """MLP 0 copies the token to COPY; 1.0 writes the token after the one it reads there, 1.1 the token itself."""
    model = blank_model()
    mlp = model.transformer.h[0].mlp
    # A one-hot vector minus its mean is positive at one entry only, and the rest does not pass the ReLU.
    mlp.c_fc.weight[TOKEN, :VOCAB] = torch.eye(VOCAB)
    mlp.c_proj.weight[:VOCAB, COPY] = torch.eye(VOCAB)
    Head(model, 1, 0).moves(COPY, OUT, torch.eye(VOCAB).roll(1, dims=1))
    Head(model, 1, 1).moves(COPY, OUT)
    return model
