"""Where the tokens of a batch are.

Tokens are packed: a batch of prompts of different lengths is one row of T real tokens, and only attention lays them out
as [prompt, position]. Padding costs nothing. Neither do the tokens of a prompt before `PackedTokens.starts`, whose keys
and values come from a `KVCache`: a clean and a corrupted prompt share everything before they first differ.
"""

from __future__ import annotations

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
    """Some of the packed tokens.

    Attributes:
        answers: which of these are last tokens of their prompts: places in `tokens`.
        prompts: the prompts that end there.
    """

    tokens: Int[Tensor, " part"]
    answers: Int[Tensor, " answer"]
    prompts: Int[Tensor, " answer"]


@dataclass(frozen=True)
class PackedTokens:
    """Where each packed token is.

    Attributes:
        starts: first position of each prompt that runs; the earlier ones are in a prefix cache.
        lengths: number of tokens of each prompt; its answer is read at position lengths - 1.
    """

    starts: Int[Tensor, " prompt"]
    lengths: Int[Tensor, " prompt"]

    def __post_init__(self) -> None:
        if not bool(((self.starts >= 0) & (self.starts < self.lengths)).all()):
            raise ValueError("every prompt needs at least one token to run: 0 <= starts < lengths")

    @classmethod
    def whole(cls, lengths: Int[Tensor, " prompt"]) -> PackedTokens:
        """Every prompt runs from its first token on."""
        return cls(torch.zeros_like(lengths), lengths)

    @property
    def n_prompts(self) -> int:
        return len(self.lengths)

    @cached_property
    def width(self) -> int:
        """Positions of the longest prompt."""
        return int(self.lengths.max())

    @cached_property
    def _grid(self) -> Bool[Tensor, "prompt position"]:
        positions = torch.arange(self.width, device=self.lengths.device)
        return (positions >= self.starts[:, None]) & (positions < self.lengths[:, None])

    @cached_property
    def prompt(self) -> Int[Tensor, " token"]:
        """The prompt of each packed token."""
        return self._grid.nonzero()[:, 0]

    @cached_property
    def position(self) -> Int[Tensor, " token"]:
        """The position in its prompt of each packed token."""
        return self._grid.nonzero()[:, 1]

    @property
    def n_tokens(self) -> int:
        return len(self.position)

    @cached_property
    def last(self) -> Int[Tensor, " prompt"]:
        """The packed index of each prompt's last token."""
        return (self.lengths - self.starts).cumsum(0) - 1

    @cached_property
    def key_index(self) -> Int[Tensor, " token"]:
        """Where each packed token's key goes in the padded [prompt * width]."""
        return self.prompt * self.width + self.position

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

    @cached_property
    def answer_of(self) -> Int[Tensor, " token"]:
        """The prompt of which each packed token is the last one, or -1."""
        prompts = torch.arange(self.n_prompts, device=self.lengths.device)
        return torch.full_like(self.prompt, -1).index_copy(0, self.last, prompts)

    def part(self, tokens: Int[Tensor, " part"]) -> TokenPart:
        """Some packed tokens."""
        prompts = self.answer_of[tokens]
        answers = (prompts >= 0).nonzero()[:, 0]
        return TokenPart(tokens, answers, prompts[answers])

    def pack(self, padded: Tensor) -> Tensor:
        """The packed tokens' entries of a right-padded [prompt, position, ...]."""
        return padded[self.prompt, self.position]

    def rotations(self, weights: ModelWeights) -> list[Rotation | None]:
        """Every layer's cosine and sine at the packed tokens, in the model's dtype. Layers with the same ones share."""
        dtype = torch.promote_types(weights.dtype, torch.float32)
        made: dict[Rotary, Rotation] = {}
        for layer in weights.layers:
            if layer.rotary is not None and layer.rotary not in made:
                cos, sin = layer.rotary.tables(self.width, self.lengths.device, dtype)
                made[layer.rotary] = Rotation(
                    cos[self.position, None].to(weights.dtype), sin[self.position, None].to(weights.dtype)
                )
        return [None if layer.rotary is None else made[layer.rotary] for layer in weights.layers]


@dataclass(frozen=True)
class Rotation:
    """Rotary's cosine and sine at some packed tokens."""

    cos: Float[Tensor, "token 1 dim"]
    sin: Float[Tensor, "token 1 dim"]

    def at(self, tokens: Int[Tensor, " part"]) -> Rotation:
        """Some of these tokens."""
        return Rotation(self.cos[tokens], self.sin[tokens])


@dataclass(frozen=True)
class KVCache:
    """Keys (rotated) and values of every layer at the positions before `starts`, zero elsewhere."""

    keys: list[Float[Tensor, "prompt_x_width head d_head"]]
    values: list[Float[Tensor, "prompt_x_width head d_head"]]


def prefix_of_layer(cache: KVCache | None, layer: int) -> tuple[Tensor | None, Tensor | None]:
    """A layer's keys and values before `starts`; None and None if no prompt has a prefix."""
    return (None, None) if cache is None else (cache.keys[layer], cache.values[layer])
