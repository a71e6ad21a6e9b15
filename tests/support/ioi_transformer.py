"""A transformer that solves IOI the way Wang et al. 2022 describe, its weights written by hand.

A GPT-2 without MLPs and without trained parts, four layers of three heads; its residual stream is cut into named parts.

    0.0  previous-token head    writes the token before to PREVIOUS
    0.1  duplicate-token head   looks for its own token, writes where it stands to DUPLICATE
    1.0  induction head         looks for its own token in PREVIOUS, writes where that one stands to INDUCED
    2.0  S-inhibition head      looks for a name that is a duplicate (S2), writes half of DUPLICATE and half of INDUCED,
                                which is the position of S1, to INHIBITED
    3.0  name mover             looks for names that are no duplicates and do not stand at INHIBITED, writes them to OUT
    3.1  copy-suppression head  attends like the name mover, writes minus half of the name to OUT

All other heads attend uniformly and write nothing. In a corrupted prompt whose S2 is the indirect object the duplicate
is IO, so the position of IO is inhibited and S is moved. Every head writes the same amount in both, so that no
LayerNorm carries anything around the paths.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from circuits_over_time.utils.tasks import ioi
from tests.support.task_tokenizers import word_level

POSITIONS = 26
"""Tokens of the longest prompt, and one to spare."""

N_LAYERS, N_HEADS = 4, 3
NAMES, PLACES, OBJECTS = ioi.NAMES[:8], ioi.PLACES[:2], ioi.OBJECTS[:2]
SHARP = 30.0
"""Score by which a head prefers a full match; the softmax leaves e^-30 to each other key."""

ROLES = {
    "name_mover": {(3, 0)},
    "copy_suppression": {(3, 1)},
    "s_inhibition": {(2, 0)},
    "induction": {(1, 0)},
    "duplicate_token": {(0, 1)},
}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Knows the words of IOI's templates, eight names, two places and two objects."""
    return word_level(ioi.TEMPLATES + NAMES + PLACES + OBJECTS)


class Parts:
    """The residual stream's parts, as slices."""

    def __init__(self, vocab: int) -> None:
        sizes = {"token": vocab, "position": POSITIONS, "previous": vocab, "duplicate": POSITIONS}
        sizes |= {"induced": POSITIONS, "inhibited": POSITIONS, "out": vocab}
        start = 0
        for name, size in sizes.items():
            setattr(self, name, slice(start, start + size))
            start += size
        self.width = start


class Head:
    """One head's weights as views to write into: `q`, `k`, `v` [d_model, d_head], `q_bias`, `o` [d_head, d_model]."""

    def __init__(self, model: GPT2LMHeadModel, layer: int, head: int) -> None:
        attention, width = model.transformer.h[layer].attn, model.config.n_embd
        self.d_head = width // model.config.n_head
        columns = slice(head * self.d_head, (head + 1) * self.d_head)
        self.q, self.k, self.v = (part[:, columns] for part in attention.c_attn.weight.split(width, dim=1))
        self.q_bias = attention.c_attn.bias.split(width)[0][columns]
        self.o = attention.c_proj.weight[columns]

    def sharpen(self) -> None:
        self.q *= SHARP * self.d_head**0.5
        self.q_bias *= SHARP * self.d_head**0.5

    def moves(self, source: slice, target: slice, matrix: Tensor | float = 1.0) -> None:
        """Add the attended position's `source` part, times a matrix or number, to `target`."""
        size = source.stop - source.start
        change = matrix * torch.eye(size) if isinstance(matrix, float) else matrix
        self.v[source, :size] += torch.eye(size)
        self.o[:size, target] = change

    def rests_at_the_first_token(self, position: slice, row: int) -> None:
        """Prefer position 0, whose value is nothing, to any key that matches by less than a half."""
        self.q_bias[row] = 0.5
        self.k[position.start, row] = 1.0


def ioi_transformer() -> GPT2LMHeadModel:
    """The model; see the module's docstring."""
    known = tokenizer().get_vocab()
    vocab = len(known)
    parts = Parts(vocab)
    d_model = parts.width + -parts.width % N_HEADS
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab,
            n_positions=POSITIONS,
            n_embd=d_model,
            n_layer=N_LAYERS,
            n_head=N_HEADS,
            n_inner=4,
            attn_implementation="eager",
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=1,
        )
    )
    model = model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
    model.transformer.wte.weight[:, parts.token] = torch.eye(vocab)
    model.transformer.wpe.weight[:, parts.position] = torch.eye(POSITIONS)
    model.lm_head.weight[:, parts.out] = torch.eye(vocab)
    # The norms turn a vector with n ones back into zeros and ones: 2 ones before layer 0, then a few more.
    for block, ones in zip(model.transformer.h, (2, 3, 4, 5), strict=True):
        mean = ones / d_model
        block.ln_1.weight.fill_((mean - mean**2 + block.ln_1.eps) ** 0.5)
        block.ln_1.bias.fill_(mean)

    names = torch.zeros(vocab)
    names[[known[name] for name in NAMES]] = 1.0
    positions = torch.eye(POSITIONS)
    seen = positions.clone()
    seen[0, 0] = 0.0  # nothing is said of position 0, where heads rest

    previous = Head(model, 0, 0)
    previous.q[parts.position, : POSITIONS - 1] = positions[:, 1:]  # position i looks for i - 1
    previous.k[parts.position, :POSITIONS] = positions
    previous.moves(parts.token, parts.previous)

    duplicate = Head(model, 0, 1)
    duplicate.q[parts.token, :vocab] = torch.eye(vocab)
    duplicate.k[parts.token, :vocab] = torch.eye(vocab)
    duplicate.q[parts.position, vocab : vocab + POSITIONS] = -2 * positions  # never itself
    duplicate.k[parts.position, vocab : vocab + POSITIONS] = positions
    duplicate.rests_at_the_first_token(parts.position, vocab + POSITIONS)
    duplicate.moves(parts.position, parts.duplicate, seen)

    induction = Head(model, 1, 0)
    induction.q[parts.token, :vocab] = torch.eye(vocab)
    induction.k[parts.previous, :vocab] = torch.eye(vocab)
    induction.rests_at_the_first_token(parts.position, vocab)
    before = positions.roll(1, dims=0)  # the position after a name -> the name's
    before[0] = 0.0
    induction.moves(parts.position, parts.induced, before)

    inhibition = Head(model, 2, 0)
    inhibition.q_bias[0] = 1.0
    inhibition.k[parts.token, 0] = names
    inhibition.k[parts.duplicate, 0] = 1.0
    inhibition.v[parts.duplicate, :POSITIONS] = positions
    inhibition.v[parts.induced, :POSITIONS] = positions
    inhibition.o[:POSITIONS, parts.inhibited] = 0.5 * positions

    for number, weight in ((0, 1.0), (1, -0.5)):
        mover = Head(model, 3, number)
        mover.q_bias[0] = 1.0
        mover.k[parts.token, 0] = 4 * names
        mover.k[parts.duplicate, 0] = -4.0
        mover.q[parts.inhibited, 1 : POSITIONS + 1] = -2 * positions
        mover.k[parts.position, 1 : POSITIONS + 1] = positions
        mover.moves(parts.token, parts.out, weight)
        mover.sharpen()
    for head in (previous, duplicate, induction, inhibition):
        head.sharpen()
    return model


def exchange_heads(model: GPT2LMHeadModel, layer: int, first: int, second: int) -> None:
    """Let two heads of a layer change places; the model computes the same."""
    a, b = Head(model, layer, first), Head(model, layer, second)
    for x, y in ((a.q, b.q), (a.k, b.k), (a.v, b.v), (a.q_bias, b.q_bias), (a.o, b.o)):
        kept = x.clone()
        x.copy_(y)
        y.copy_(kept)
