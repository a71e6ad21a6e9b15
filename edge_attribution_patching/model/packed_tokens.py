"""Where the tokens of a batch are.

Tokens are packed: a batch of prompts of different lengths is one row of T real tokens, and only attention lays them out
as [prompt, position]. Padding costs nothing. Neither do the tokens of a prompt before `PackedTokens.starts`, whose keys
and values come from a `KVCache`: a clean and a corrupted prompt share everything before they first differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .rotary import Rotary
from .weights import ModelWeights


@dataclass(frozen=True)
class Queries:
    """The tokens that attend: all that run, or only each prompt's last one."""

    index: Int[Tensor, " query"]  # where each query goes in the padded [prompt * width]
    width: int
    allowed: Bool[Tensor, "prompt 1 width key"]


@dataclass(frozen=True)
class TokenPart:
    """Some of the packed tokens."""

    tokens: Int[Tensor, " part"]
    answers: Int[Tensor, " answer"]  # which of these are last tokens of their prompts: places in `tokens`
    prompts: Int[Tensor, " answer"]  # the prompts that end there


class PackedTokens:
    """Where each packed token is.

    Args:
        starts: first position of each prompt that runs; the earlier ones are in a prefix cache.
        lengths: number of tokens of each prompt; its answer is read at position lengths - 1.
    """

    def __init__(self, starts: Int[Tensor, " prompt"], lengths: Int[Tensor, " prompt"]) -> None:
        if not bool(((starts >= 0) & (starts < lengths)).all()):
            raise ValueError("every prompt needs at least one token to run: 0 <= starts < lengths")
        self.starts, self.lengths = starts, lengths
        self.n_prompts, self.width = len(lengths), int(lengths.max())  # width: positions of the longest prompt
        positions = torch.arange(self.width, device=lengths.device)
        runs = (positions >= starts[:, None]) & (positions < lengths[:, None])  # [prompt, position]
        self.prompt, self.position = runs.nonzero().unbind(dim=1)  # of each packed token
        self.n_tokens = len(self.position)
        # Where each packed token's key goes in the padded [prompt * width], and where each prompt's last token is.
        self.key_index = self.prompt * self.width + self.position
        self.last = (lengths - starts).cumsum(0) - 1

    @classmethod
    def whole(cls, lengths: Int[Tensor, " prompt"]) -> PackedTokens:
        """Every prompt runs from its first token on."""
        return cls(torch.zeros_like(lengths), lengths)

    @cached_property
    def queries(self) -> Queries:
        """All packed tokens attend, each to its own prompt up to itself."""
        width = int((self.lengths - self.starts).max())
        # A padded query attends like its prompt's last token: never to nothing, and it is dropped later.
        offsets = torch.arange(width, device=self.lengths.device)
        position = torch.minimum(self.starts[:, None] + offsets, self.lengths[:, None] - 1)
        keys = torch.arange(self.width, device=self.lengths.device)
        allowed = keys[None, None, None, :] <= position[:, None, :, None]
        return Queries(self.prompt * width + self.position - self.starts[self.prompt], width, allowed)

    @cached_property
    def answers(self) -> Queries:
        """Only each prompt's last token attends."""
        return PackedTokens(self.lengths - 1, self.lengths).queries

    def part(self, tokens: Int[Tensor, " part"]) -> TokenPart:
        """Some packed tokens."""
        prompts = torch.arange(self.n_prompts, device=self.lengths.device)
        ending = torch.full_like(self.prompt, -1).index_copy(0, self.last, prompts)[tokens]  # -1: not a last token
        answers = (ending >= 0).nonzero()[:, 0]
        return TokenPart(tokens, answers, ending[answers])

    def pack(self, padded: Tensor) -> Tensor:
        """The packed tokens' entries of a right-padded [prompt, position, ...]."""
        return padded[self.prompt, self.position]

    def rotations(self, weights: ModelWeights) -> list[Rotation | None]:
        """Every layer's cosine and sine at the packed tokens, in the model's dtype. Layers with the same ones share."""
        precise = torch.promote_types(weights.dtype, torch.float32)
        positions = torch.arange(self.width, dtype=precise, device=self.lengths.device)
        made: dict[Rotary | None, Rotation | None] = {None: None}
        for rotary in {layer.rotary for layer in weights.layers if layer.rotary is not None}:
            # Angles of both halves of a head's turned entries, which rotary pairs up, [position, dim].
            angles = torch.outer(positions, rotary.frequencies.to(positions)).repeat(1, 2)
            cos, sin = (table[self.position, None] * rotary.scale for table in (angles.cos(), angles.sin()))
            made[rotary] = Rotation(cos.to(weights.dtype), sin.to(weights.dtype))
        return [made[layer.rotary] for layer in weights.layers]


@dataclass(frozen=True)
class Rotation:
    """Rotary's cosine and sine at some packed tokens."""

    cos: Float[Tensor, "token 1 dim"]
    sin: Float[Tensor, "token 1 dim"]

    def at(self, tokens: Int[Tensor, " part"]) -> Rotation:
        """Some of these tokens."""
        return Rotation(self.cos[tokens], self.sin[tokens])


KVCache = Sequence[tuple[Tensor | None, Tensor | None]]
"""Keys (rotated) and values of every layer at the positions before `starts`, zero elsewhere, each [prompt_x_width,
kv_head, d_head]; None and None where no prompt has any."""
