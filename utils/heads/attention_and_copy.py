"""Scores of every attention head: induction, previous-token, duplicate-token, copy and negative copy score.

The attention scores come from one forward pass over random blocks of tokens that stand twice in a row (Olsson et al.
2022, arXiv 2209.11895). Each layer's attention is reduced to one number per head and score as soon as it is computed.

The copy scores ask what a head would write if it attended to a name alone (Wang et al. 2022, arXiv 2211.00593,
section 3.1): the residual stream after layer 0 at the name's position goes through the head's own input norm, V and O
(biases of norm and V included), the final norm and the unembedding. The copy score is the percentage of names that are
among the 5 highest logits, the negative copy score the same for minus the head's output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from edge_attribution_patching.architectures import Shape
from edge_attribution_patching.forward import LayerActivations, Unembedding, attention_input, clamp, embed, forward
from edge_attribution_patching.layout import Layout
from edge_attribution_patching.norms import normalise
from edge_attribution_patching.weights import LayerWeights, ModelWeights
from utils.config.keys import BaseConfig, Section
from utils.errors import UserError
from utils.models.checkpoint import LoadedCheckpoint
from utils.results.store import Result
from utils.tasks import Prompts, Task, build_prompts

TOP_K = 5
"""A name counts as copied if it is among this many highest logits (Wang et al. 2022)."""

_CANDIDATES = 512
_LOGITS_AT_ONCE = 2**25

HeadScores = Float[Tensor, "layer head"]


class ComponentsKeys(Section):
    """What the scores depend on besides the model."""

    n_sequences: int = Field(50, gt=0)
    """How many random blocks of tokens to average the attention scores over."""
    seq_len: int = Field(50, gt=1)
    """Tokens in a block. Each block comes twice in a row, so `2 * seq_len` tokens must fit the model's context."""
    n_prompts: int = Field(100, gt=0)
    """How many IOI prompts to average the copy scores over; each has three names."""


class ComponentsConfig(ComponentsKeys, BaseConfig):
    """Keys of get_full_model_components_over_time.py."""


@dataclass(frozen=True)
class ComponentsInputs:
    """What the scores are measured on.

    Attributes:
        blocks: random blocks of tokens, each repeated once.
        prompts: IOI prompts.
    """

    blocks: Int[Tensor, "sequence position"]
    prompts: Prompts


def prepare(config: ComponentsConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> ComponentsInputs:
    """Draw the random blocks and build the prompts.

    Raises:
        UserError: if blocks or prompts do not fit the model's context, or cannot be made under this tokenizer.
    """
    if 2 * config.seq_len > shape.n_positions:
        raise UserError(
            f"seq_len: two blocks of {config.seq_len} tokens need {2 * config.seq_len} positions, the model has "
            f"{shape.n_positions}; use seq_len={shape.n_positions // 2} or less"
        )
    tokens = ordinary_tokens(tokenizer, shape.d_vocab)
    blocks = repeated_blocks(tokens, config.n_sequences, config.seq_len, config.seed)
    prompts = build_prompts("ioi", tokenizer, config.n_prompts, config.seed)
    prompts.require_fit("ioi", shape.n_positions)
    return ComponentsInputs(blocks, prompts)


def measure(
    checkpoint: LoadedCheckpoint, config: ComponentsConfig, inputs: ComponentsInputs, task: Task | None
) -> dict[str, Result]:
    """The five scores of every head, as rows."""
    rows: list[dict[str, Any]] = [
        {"score": name, "layer": layer, "head": head, "value": value}
        for name, by_head in component_scores(checkpoint.weights, inputs, config.batch_size).items()
        for layer, values in enumerate(by_head.tolist())
        for head, value in enumerate(values)
    ]
    return {"components": Result(pd.DataFrame(rows))}


def component_scores(weights: ModelWeights, inputs: ComponentsInputs, batch_size: int) -> dict[str, HeadScores]:
    """The three attention scores and the two copy scores of every head."""
    prompts = inputs.prompts
    positions = torch.stack([prompts.positions[name] for name in ("io", "s1", "s2")], dim=1)
    scores = attention_scores(weights, inputs.blocks, batch_size)
    return scores | copy_scores(weights, prompts.clean, prompts.lengths, positions, batch_size)


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase, d_vocab: int) -> Int[Tensor, " token"]:
    """The ids of the tokenizer's vocabulary that the model embeds, without special tokens, in order."""
    special = set(tokenizer.all_special_ids)
    special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    known = sorted(set(tokenizer.get_vocab().values()) - special)
    return torch.tensor([token for token in known if token < d_vocab])


def repeated_blocks(
    tokens: Int[Tensor, " token"], n_sequences: int, period: int, seed: int
) -> Int[Tensor, "sequence position"]:
    """Random blocks, each repeated once: position i and position i + period hold the same token.

    A block's tokens are all different, so that a token occurs nowhere but at these two places.

    Args:
        tokens: the tokens to draw from.
        n_sequences: number of blocks; the first k of n are the k of the same seed.
        period: block length in tokens.
        seed: of the draw.

    Returns:
        Token ids, 2 * period a row.

    Raises:
        UserError: if there are fewer than `period` tokens.
    """
    if period > len(tokens):
        raise UserError(f"seq_len: {period} different tokens a block asked for, the tokenizer has {len(tokens)}")
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.stack(
        [tokens[torch.randperm(len(tokens), generator=generator)[:period]] for _ in range(n_sequences)]
    )
    return torch.cat((blocks, blocks), dim=1)


@torch.inference_mode()
def attention_scores(
    weights: ModelWeights, tokens: Int[Tensor, "sequence position"], batch_size: int
) -> dict[str, HeadScores]:
    """Mean attention along three diagonals of the attention pattern (Olsson et al. 2022).

    Args:
        weights: the model.
        tokens: blocks repeated once, see `repeated_blocks`; of an even number of positions, 2 * period.
        batch_size: sequences that run at once. No more than one layer's attention of one batch is held.

    Returns:
        Attention probabilities in [0, 1], averaged over sequences and queries:
        `induction`: from every token of the second block to the token after its first occurrence (period - 1 back);
        `duplicate_token`: from every token of the second block to its first occurrence (period back);
        `previous_token`: from every token but the first to the one before it.
    """
    n_sequences, width = tokens.shape
    period = width // 2
    # Score -> (how many positions back, the first query that counts).
    places = {"induction": (period - 1, period), "previous_token": (1, 1), "duplicate_token": (period, period)}
    totals = {name: torch.zeros(weights.n_layers, weights.n_heads) for name in places}

    def reduce(layer: LayerActivations) -> None:
        for name, (back, first) in places.items():
            attention = layer.pattern.diagonal(-back, dim1=-2, dim2=-1)[..., first - back :]
            totals[name][layer.layer] += attention.float().sum(dim=(0, 2)).cpu()

    for batch in tokens.to(weights.device).split(batch_size):
        layout = Layout.whole(torch.full((len(batch),), width, device=weights.device))
        forward(weights, layout, embed(weights, layout, batch.flatten()), visit=reduce)
    return {name: totals[name] / (n_sequences * (width - first)) for name, (_, first) in places.items()}


@torch.inference_mode()
def copy_scores(
    weights: ModelWeights,
    tokens: Int[Tensor, "prompt position"],
    lengths: Int[Tensor, " prompt"],
    positions: Int[Tensor, "prompt name"],
    batch_size: int,
) -> dict[str, HeadScores]:
    """How often each head's OV circuit raises, or lowers, the very token it reads (Wang et al. 2022, section 3.1).

    Args:
        weights: the model.
        tokens: right-padded token ids.
        lengths: tokens of each prompt.
        positions: of the tokens to copy (in IOI prompts: IO, S1 and S2).
        batch_size: prompts that run through layer 0 at once.

    Returns:
        `copy`, `negative_copy`: percentages in [0, 100] of the (prompt, name) positions. A token that shares its logit
        with others counts as below them, so a head that writes nothing scores 0.
    """
    precise = torch.promote_types(weights.dtype, torch.float32)
    residual = _after_layer_0(weights, tokens, lengths, positions, batch_size).to(precise)
    own = tokens.gather(1, positions).flatten().to(weights.device)
    # The attention norm before V has the same scale whatever the layer; its gain and bias are folded into W_V.
    normalised, _ = attention_input(weights.layers[0], residual)
    ranking = _Ranking(weights, own.unique())
    copied = torch.stack(
        [ranking.in_top_k(_written(layer, normalised), own).float().mean(dim=2) for layer in weights.layers]
    )
    return {"copy": 100 * copied[:, 0].cpu(), "negative_copy": 100 * copied[:, 1].cpu()}


def _after_layer_0(
    weights: ModelWeights,
    tokens: Int[Tensor, "prompt position"],
    lengths: Int[Tensor, " prompt"],
    positions: Int[Tensor, "prompt name"],
    batch_size: int,
) -> Float[Tensor, "prompt_x_name d_model"]:
    """The residual stream after layer 0 at the given positions."""
    bottom = replace(weights, layers=weights.layers[:1])
    parts = []
    for index in torch.arange(len(tokens)).split(batch_size):
        size = lengths[index].to(weights.device)
        layout = Layout.whole(size)
        x = forward(bottom, layout, embed(weights, layout, layout.pack(tokens[index].to(weights.device))))
        starts = size.cumsum(0) - size
        parts.append(x[(starts[:, None] + positions[index].to(weights.device)).flatten()])
    return torch.cat(parts)


def _written(layer: LayerWeights, normalised: Float[Tensor, "row d_model"]) -> Float[Tensor, "head row d_model"]:
    """What each head writes where it attends to one row alone, without the output bias (which is no head's)."""
    W_V, b_V, W_O = (part.to(normalised.dtype) for part in (layer.W_V, layer.b_V, layer.W_written))
    values = clamp(layer, normalised @ W_V.transpose(1, 2) + b_V[:, None])
    return layer.per_head(values) @ W_O


class _Ranking:
    """Whether tokens are among the highest logits, without computing most logits.

    A token that `TOP_K` of a few hundred candidate tokens beat is out whatever the others' logits are. Only what is
    left, few heads and names in practice, is ranked among the whole vocabulary; the answer is exact.

    Args:
        weights: the model.
        asked: the tokens that will be asked about; they join the candidates, as likely to have high logits.
    """

    def __init__(self, weights: ModelWeights, asked: Int[Tensor, " token"]) -> None:
        unembedding = Unembedding(weights)
        self.norm, self.gain = weights.final_norm, unembedding.gain
        # The gain joins what is read, not the unembedding: that one is left as it is, without a copy.
        unembed = weights.unembed.to(unembedding.dtype)
        # What the logits are without any input: the same for a head's output and its negative.
        offset = unembedding.bias(slice(None))
        everything = torch.arange(weights.d_vocab, device=weights.device)
        candidates = torch.cat((asked, everything[:: max(weights.d_vocab // _CANDIDATES, 1)])).unique()
        self.candidates = (candidates, unembed[candidates], offset[candidates])
        self.everything = (everything, unembed, offset)

    def in_top_k(
        self, written: Float[Tensor, "head row d_model"], own: Int[Tensor, " row"]
    ) -> Bool[Tensor, "2 head row"]:
        """Whether each row's own token is in the top k of what a head writes, and of minus that."""
        n_heads, n_rows, d_model = written.shape
        directions = normalise(self.norm, written.reshape(-1, d_model))[0] * self.gain
        directions = torch.cat((directions, -directions))
        own = own.repeat(2 * n_heads)
        left = _in_top_k(directions, own, *self.candidates)
        for part in left.nonzero()[:, 0].split(max(_LOGITS_AT_ONCE // len(self.everything[0]), 1)):
            left[part] = _in_top_k(directions[part], own[part], *self.everything)
        return left.view(2, n_heads, n_rows)


def _in_top_k(
    directions: Float[Tensor, "row d_model"],
    own: Int[Tensor, " row"],
    among: Int[Tensor, " token"],
    unembed: Float[Tensor, "token d_model"],
    offset: Float[Tensor, " token"],
) -> Bool[Tensor, " row"]:
    """Whether each row's own token is in the top k of some tokens (sorted, its own among them); ties count against."""
    logits = torch.addmm(offset, directions, unembed.T)
    value = logits.gather(1, torch.searchsorted(among, own)[:, None])
    return (logits >= value).sum(dim=1) <= TOP_K
