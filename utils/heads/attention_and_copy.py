"""Scores of every attention head: induction, previous-token, duplicate-token, copy and negative copy score.

The attention scores come from one forward pass over random blocks of tokens, each repeated once (Olsson et al. 2022,
arXiv 2209.11895). Each layer's attention is reduced to one number per head and score as soon as it is computed.
`copy_scores.py` has the copy scores.

The study (Tigges et al. 2024, arXiv 2407.10827) draws the tokens of a block with replacement from the ids 100 to
19,999, so some tokens come twice in a block, and averages whole diagonals of the attention pattern. For induction that
is one query more: the last token of the first block, which looks at the first token before anything has repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.model.forward import LayerActivations, embed, forward
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.transfer import checked_at_the_end, to_cpu, to_device
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.statistics import standard_errors

from ..models.checkpoint import LoadedCheckpoint
from ..results.store import Result
from ..tasks import Prompts, Task, build_prompts
from .copy_scores import TOP_K, copy_samples, mean_scores
from .keys import ComponentsConfig, Definition
from .needs import STUDY_IDS, ordinary_ids, require_context, require_tokens

HeadSamples = Float[Tensor, "layer head sample"]


@dataclass(frozen=True)
class ComponentsInputs:
    """What the scores are measured on: random blocks of tokens, each repeated once, and IOI prompts."""

    blocks: Int[Tensor, "sequence position"]
    prompts: Prompts
    definition: Definition


def prepare(config: ComponentsConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> ComponentsInputs:
    """Draw the blocks and build the prompts; a UserError if they do not fit the model, or the tokenizer cannot."""
    require_context(config.seq_len, shape.n_positions)
    tokens = ordinary_tokens(tokenizer, shape.d_vocab)
    draw_blocks = repeated_blocks if config.head_scores == "standard" else study_blocks
    blocks = draw_blocks(tokens, config.n_sequences, config.seq_len, config.seed)
    prompts = build_prompts("ioi", tokenizer, config.n_prompts, config.seed, prompt_set=config.head_scores)
    prompts.require_fit("ioi", shape)
    return ComponentsInputs(blocks, prompts, config.head_scores)


def measure(
    checkpoint: LoadedCheckpoint, config: ComponentsConfig, inputs: ComponentsInputs, task: Task | None
) -> dict[str, Result]:
    """The five scores of every head, their standard errors and chance levels, as rows."""
    weights, prompts = checkpoint.weights, inputs.prompts
    positions = torch.stack([prompts.positions[name] for name in ("io", "s1", "s2")], dim=1)
    how = config.batch_size, inputs.definition
    samples = attention_samples(weights, inputs.blocks, *how)
    samples |= copy_samples(weights, prompts.clean, prompts.lengths, positions, *how)
    chance = chance_levels(inputs.blocks.shape[1], weights.d_vocab, inputs.definition)
    heads = pd.DataFrame(product(range(weights.n_layers), range(weights.n_heads)), columns=["layer", "head"])
    tables = []
    for name, means in mean_scores(samples).items():
        table = heads.assign(value=means.flatten().tolist(), se=standard_errors(samples[name]).flatten().tolist())
        tables.append(table.assign(score=name, chance=chance[name])[["score", *heads, "value", "se", "chance"]])
    return {"components": Result(pd.concat(tables, ignore_index=True))}


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase, d_vocab: int) -> Int[Tensor, " token"]:
    """The ids in the tokenizer's vocabulary that the model embeds, in order and without special tokens."""
    special = set(tokenizer.all_special_ids)
    special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return torch.tensor(ordinary_ids(tokenizer.get_vocab(), special, d_vocab))


def repeated_blocks(
    tokens: Int[Tensor, " token"], n_sequences: int, period: int, seed: int
) -> Int[Tensor, "sequence position"]:
    """Random blocks, each repeated once: position i and position i + period hold the same token.

    All tokens of a block are different, so a token occurs at these two places and nowhere else. The first k of n blocks
    are the k blocks of the same seed. A UserError if there are fewer than `period` tokens.
    """
    require_tokens(tokens.tolist(), period, "standard")
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(len(tokens), generator=generator)[:period] for _ in range(n_sequences)]
    return tokens[torch.stack(drawn)].repeat(1, 2)


def study_blocks(
    tokens: Int[Tensor, " token"], n_sequences: int, period: int, seed: int
) -> Int[Tensor, "sequence position"]:
    """The same as the study draws them: with replacement, from those in `STUDY_IDS`; a UserError if none is."""
    among = tokens[(tokens >= STUDY_IDS.start) & (tokens < STUDY_IDS.stop)]
    require_tokens(among.tolist(), period, "study")
    generator = torch.Generator().manual_seed(seed)
    return among[torch.randint(len(among), (n_sequences, period), generator=generator)].repeat(1, 2)


def diagonals(width: int, definition: Definition = "standard") -> dict[str, tuple[int, int]]:
    """Attention score -> (how many positions back it looks, the first query that counts).

    `width` counts the tokens of a block and its repetition.
    """
    period = width // 2
    first = period if definition == "standard" else period - 1
    return {"induction": (period - 1, first), "previous_token": (1, 1), "duplicate_token": (period, period)}


def chance_levels(width: int, d_vocab: int, definition: Definition = "standard") -> dict[str, float]:
    """What a head scores that knows nothing: it attends to all tokens so far alike, and ranks names at random."""
    levels = {
        score: sum(1 / (query + 1) for query in range(first, width)) / (width - first)
        for score, (_, first) in diagonals(width, definition).items()
    }
    return levels | dict.fromkeys(("copy", "negative_copy"), min(100.0, 100 * TOP_K / d_vocab))


@torch.inference_mode()
def attention_samples(
    weights: ModelWeights,
    tokens: Int[Tensor, "sequence position"],
    batch_size: int,
    definition: Definition = "standard",
) -> dict[str, HeadSamples]:
    """Mean attention of each sequence along three diagonals of the attention pattern (Olsson et al. 2022).

    Args:
        tokens: blocks repeated once (see `repeated_blocks`), 2 * period tokens each.
        batch_size: sequences that run at once. Only one layer's attention of one batch is held at a time.

    Returns:
        Attention probabilities in [0, 1], averaged over queries:
        `induction`: from every token of the second block to the token after its first occurrence (period - 1 back);
        under `study` also from the last token of the first block to the first token, which is as far back;
        `duplicate_token`: from every token of the second block to its first occurrence (period back);
        `previous_token`: from every token but the first to the one before it.
    """
    width = tokens.shape[1]
    of_score = diagonals(width, definition)
    batches: list[Tensor] = []  # on the device, each [score and layer, head, sequence]
    on_cpu = [
        (PackedTokens.whole(torch.full((len(batch),), width)).made_for(weights), batch.flatten())
        for batch in tokens.cpu().split(batch_size)
    ]
    with checked_at_the_end():
        for layout, of_batch in to_device(on_cpu, weights.device):
            means: list[Tensor] = []

            def reduce(layer: LayerActivations, means: list[Tensor] = means) -> None:
                # pattern [sequence, head, query, key]; a diagonal below the main one starts at query `back`.
                for back, first in of_score.values():
                    attention = layer.pattern.diagonal(-back, dim1=-2, dim2=-1)[..., first - back :]
                    means.append(attention.float().mean(dim=2).T)

            forward(weights, layout, embed(weights, layout, of_batch), visit=reduce)
            batches.append(torch.stack(means))
        samples = to_cpu(torch.cat(batches, dim=-1)).double().unflatten(0, (weights.n_layers, len(of_score)))
    return dict(zip(of_score, samples.transpose(0, 1), strict=True))
