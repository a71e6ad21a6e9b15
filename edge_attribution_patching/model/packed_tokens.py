"""Where the tokens of a batch are.

Tokens are packed: a batch of prompts of different lengths is one row of T real tokens, and only attention lays them out
as [prompt, position]. Padding costs nothing. Neither do the tokens of a prompt before `PackedTokens.starts`, whose keys
and values come from a `KVCache`: a clean and a corrupted prompt share everything before they first differ.

Everything here is worked out on the CPU and sent to the model's device in one copy, so that no size is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .rotary import Rotary
from .transfer import Movable, to_device
from .weights import LayerWeights, ModelWeights


@dataclass(frozen=True)
class Queries(Movable):
    """The tokens that attend: all that run, or only each prompt's last one.

    Attributes:
        tokens: which of the packed tokens stands at each place of the padded [prompt, width]. Where a prompt has fewer
            than others, its last one stands again: it never attends to nothing, and is dropped later.
        padding: at which places it stands again; None if at none.
        places: where each query stands in [prompt * width].
        hidden: which keys come after each query.
    """

    tokens: Int[Tensor, "prompt width"]
    padding: Bool[Tensor, "prompt width"] | None
    places: Int[Tensor, " query"]
    hidden: Bool[Tensor, "prompt 1 width key"]

    @classmethod
    def of(
        cls, ends: Int[Tensor, " prompt"], counts: Int[Tensor, " prompt"], lengths: Int[Tensor, " prompt"]
    ) -> Queries:
        """The last `counts` tokens of every prompt; `ends` is where its last one is among the packed tokens."""
        back = counts[:, None] - 1 - torch.arange(int(counts.max()))  # how far each place is from the last token
        padding, back = back < 0, back.clamp(min=0)
        some = bool(padding.any())
        tokens, places = ends[:, None] - back, (~padding).flatten().nonzero()[:, 0]
        position = lengths[:, None] - 1 - back
        if bool((position == position[:1]).all()):  # All prompts alike: one mask serves them.
            position = position[:1]
        return cls(
            tokens, padding if some else None, places, torch.arange(int(lengths.max())) > position[:, None, :, None]
        )

    @property
    def width(self) -> int:
        return self.tokens.shape[1]


@dataclass(frozen=True)
class Rows(Movable):
    """Rows of a matrix taken in another order, some several times, and the way back.

    Attributes:
        index: which row stands at each place.
        inverse: at which place each row of the original stands (its own, where it also stands for padding); for rows
            that stand nowhere, one after the last place.
        blank: whether there are such rows.
    """

    index: Int[Tensor, " place"]
    inverse: Int[Tensor, " row"]
    blank: bool


@dataclass(frozen=True)
class AttentionRows(Movable):
    """How attention lays out packed tokens, as rows of d_head numbers.

    Attributes:
        qkv: from the keys and values of the prefix [token * 2 * kv_head] and then q, k and v of the packed tokens
            [token * qkv_head] to [prompt, kv_head, (group * width + key + key)]: of each key-value head its queries,
            its keys and its values. The way back is to the packed tokens alone.
        z: from [prompt, head, width] to [query, head]. On the way back nothing comes from padding.
    """

    qkv: Rows
    z: Rows

    @classmethod
    def of(cls, layout: PackedTokens, queries: Queries, n_heads: int, n_kv_heads: int) -> AttentionRows:
        """Those of a layout and queries on the CPU."""
        group, n_qkv, n_before = n_heads // n_kv_heads, n_heads + 2 * n_kv_heads, layout.n_prefix * 2 * n_kv_heads
        heads = torch.arange(n_heads).view(n_kv_heads, group, 1)
        kv = torch.arange(n_kv_heads)[:, None]
        of_queries = n_before + queries.tokens[:, None, None] * n_qkv + heads  # [prompt, kv_head, group, width]
        keys = layout.keys[:, None]
        k = torch.where(
            keys < layout.n_prefix, keys * 2 * n_kv_heads, n_before + (keys - layout.n_prefix) * n_qkv + n_heads
        )
        # A token's keys of all heads stand before its values, in the prefix too.
        index = torch.cat((of_queries.flatten(2), k + kv, k + kv + n_kv_heads), dim=2)
        n_places = index.numel()
        inverse = torch.full((n_before + layout.n_tokens * n_qkv,), n_places)
        own = torch.ones_like(index, dtype=torch.bool)
        if queries.padding is not None:
            own[..., : group * queries.width] = ~queries.padding[:, None].repeat(1, 1, group)
        own[..., group * queries.width :] = (layout.key_real[:, None]).repeat(1, 1, 2)
        inverse[index[own]] = torch.arange(n_places)[own.flatten()]
        inverse = inverse[n_before:]
        qkv = Rows(index.flatten(), inverse, bool((inverse == n_places).any()))
        z = (queries.places // queries.width)[:, None] * n_heads + torch.arange(n_heads)
        z = z * queries.width + (queries.places % queries.width)[:, None]  # [query, head]
        back = torch.full((layout.n_prompts * n_heads * queries.width,), z.numel())
        back[z.flatten()] = torch.arange(z.numel())
        return cls(qkv, Rows(z.flatten(), back, queries.padding is not None))


class PackedTokens(Movable):
    """Where each packed token is.

    Args:
        starts: first position of each prompt that runs; the earlier ones are in a prefix cache.
        lengths: number of tokens of each prompt; its answer is read at position lengths - 1.
        device: where everything goes; to that of `lengths` by default. Nobody waits if the arguments are on the CPU.

    Attributes:
        keys: where the key at each place of [prompt, width] is, among those of the prefix and then the packed tokens;
            anywhere at places without a token.
        key_places, prefix_places: the place of each packed token's key in [prompt * width], and of the prefix's.
        key_real: which of these places are tokens.
        prefix: the layout of the tokens before `starts`, of the prompts that have some (`prefix_prompts`); or None.
    """

    def __init__(
        self, starts: Int[Tensor, " prompt"], lengths: Int[Tensor, " prompt"], device: torch.device | None = None
    ) -> None:
        device = lengths.device if device is None else device
        starts, lengths = starts.cpu(), lengths.cpu()
        if not bool(((starts >= 0) & (starts < lengths)).all()):
            raise ValueError("every prompt needs at least one token to run: 0 <= starts < lengths")
        self.n_prompts, self.width = len(lengths), int(lengths.max())  # width: positions of the longest prompt
        self.n_prefix = int(starts.sum())
        positions = torch.arange(self.width)
        before = positions < starts[:, None]
        runs = ~before & (positions < lengths[:, None])  # [prompt, position]
        prompt, position = runs.nonzero().unbind(dim=1)  # of each packed token
        self.n_tokens = len(position)
        keys = torch.zeros(self.n_prompts, self.width, dtype=torch.long)
        keys[before] = torch.arange(self.n_prefix)
        keys[runs] = torch.arange(self.n_prefix, self.n_prefix + self.n_tokens)
        last = (lengths - starts).cumsum(0) - 1
        self.starts, self.lengths, self.prompt, self.position, self.last = starts, lengths, prompt, position, last
        self.keys, self.key_places = keys, prompt * self.width + position
        self.queries = Queries.of(last, lengths - starts, lengths)  # all packed tokens, each up to itself
        self.answers = Queries.of(last, torch.ones_like(lengths), lengths)  # only each prompt's last one
        self.prefix_prompts = (starts > 0).nonzero()[:, 0]
        self.prefix = PackedTokens.whole(starts[self.prefix_prompts]) if self.n_prefix else None
        self.prefix_places = before.flatten().nonzero()[:, 0]
        self.key_real = before | runs
        self.on_cpu = starts.numpy(), lengths.numpy()
        self._rows: dict[str, AttentionRows] = {}
        self._rotations: dict[tuple[Rotary, torch.dtype], Rotation] = {}
        self._at_last: PackedTokens | None = None
        self._elsewhere = SimpleNamespace(by_device={})  # In an object that `to_device` does not look into.
        if device.type != "cpu":
            vars(self).update(vars(to_device(self, device)))

    @classmethod
    def whole(cls, lengths: Int[Tensor, " prompt"], device: torch.device | None = None) -> PackedTokens:
        """Every prompt runs from its first token on."""
        return cls(torch.zeros_like(lengths), lengths, device)

    def at_last_tokens(self) -> PackedTokens:
        """Only each prompt's last token runs. What is asked for on the CPU goes along to a device."""
        if self._at_last is None:
            lengths = torch.from_numpy(self.on_cpu[1])
            last = PackedTokens(lengths - 1, lengths)
            for rotary, dtype in self._rotations:  # To be sent along.
                last._rotation(rotary, dtype)
            self._at_last = to_device(last, self.lengths.device)
        return self._at_last

    def on(self, device: torch.device, weights: ModelWeights) -> PackedTokens:
        """The same on the device of some of a model's layers, with what these ask for; sent there once."""
        if device == self.lengths.device:
            return self
        if device not in self._elsewhere.by_device:
            starts, lengths = map(torch.from_numpy, self.on_cpu)
            self._elsewhere.by_device[device] = to_device(PackedTokens(starts, lengths).made_for(weights), device)
        there: PackedTokens = self._elsewhere.by_device[device]
        return there

    def rows(self, shape: ModelWeights | LayerWeights, *, answers: bool = False) -> AttentionRows:
        """How attention lays out these tokens, of which all attend or only the answers'."""
        key = f"{shape.n_heads} {shape.n_kv_heads} {answers}"
        if key not in self._rows:
            here = self
            if self.lengths.device.type != "cpu":
                starts, lengths = map(torch.from_numpy, self.on_cpu)
                here = PackedTokens(starts, lengths)
            queries = here.answers if answers else here.queries
            made = AttentionRows.of(here, queries, shape.n_heads, shape.n_kv_heads)
            self._rows[key] = to_device(made, self.lengths.device)
        return self._rows[key]

    def made_for(self, weights: ModelWeights) -> PackedTokens:
        """Itself, on the CPU, with all that a pass of a model will ask for, to be sent along."""
        for layer in weights.layers:
            self._rotation(layer.rotary, weights.dtype)
        for answers in (False, True):
            self.rows(weights, answers=answers)
        if self.prefix is not None:
            self.prefix.made_for(weights)
        return self

    def pack(self, padded: Tensor) -> Tensor:
        """The packed tokens' entries of a right-padded [prompt, position, ...]."""
        return padded[self.prompt, self.position]

    def rotations(self, weights: ModelWeights) -> list[Rotation | None]:
        """Every layer's cosine and sine at the packed tokens, where the layer is, in the model's dtype."""
        return [self.on(layer.device, weights)._rotation(layer.rotary, weights.dtype) for layer in weights.layers]

    def _rotation(self, rotary: Rotary | None, dtype: torch.dtype) -> Rotation | None:
        """Layers with the same one share it."""
        if rotary is not None and (rotary, dtype) not in self._rotations:
            precise = torch.promote_types(dtype, torch.float32)
            angles = torch.outer(self.position.to(precise), rotary.frequencies.to(self.position.device, precise))
            cos, sin = (table[:, None] * rotary.scale for table in (angles.cos(), angles.sin()))
            turned = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
            self._rotations[rotary, dtype] = Rotation(*(table.to(dtype) for table in turned))
        return None if rotary is None else self._rotations[rotary, dtype]


@dataclass(frozen=True)
class Rotation(Movable):
    """Rotary's cosine and sine at some packed tokens; the sine of the first half of the entries is negative."""

    cos: Float[Tensor, "token 1 dim"]
    sin: Float[Tensor, "token 1 dim"]

    def at(self, tokens: Int[Tensor, " part"]) -> Rotation:
        """Some of these tokens."""
        return Rotation(self.cos[tokens], self.sin[tokens])


KVCache = Sequence[Tensor | None]
"""Of every layer keys (rotated) and values at the tokens of `PackedTokens.prefix`, [token, kv_head + kv_head, d_head];
None where no prompt has any."""
