"""Induction, previous-token, duplicate-token, copy and negative copy score of every head at every checkpoint.

    python get_full_model_components_over_time.py -c configs/components_160m.yml

Writes results/components/<model>/step{n}.csv with `score, layer, head, value`. `induction`, `previous_token` and
`duplicate_token` are attention probabilities in [0, 1] on random blocks of tokens repeated once; `copy` and
`negative_copy` are percentages of the names in IOI prompts. `utils/heads/attention_and_copy.py` defines them.
"""

import sys
from typing import Any

import pandas as pd
import torch
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from utils.config.keys import BaseConfig
from utils.heads.attention_and_copy import attention_scores, copy_scores, ordinary_tokens, repeated_blocks
from utils.models.family import LoadedCheckpoint
from utils.runner import Analysis, Result, main
from utils.tasks import Prompts, build_prompts

NAME_POSITIONS = ("io", "s1", "s2")


class ComponentsConfig(BaseConfig):
    """Keys of this script."""

    n_sequences: int = Field(50, gt=0)
    """Random blocks that the attention scores are averaged over."""
    seq_len: int = Field(50, gt=1)
    """Tokens of a block; the two copies together must fit the model's context."""
    n_prompts: int = Field(100, gt=0)
    """IOI prompts; the copy scores are averaged over their three name positions each."""


def name_prompts(config: ComponentsConfig, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The prompts whose names are to be copied."""
    return build_prompts("ioi", tokenizer, config.n_prompts, config.seed)


def random_sequences(config: ComponentsConfig, tokenizer: PreTrainedTokenizerBase, d_vocab: int) -> torch.Tensor:
    """Token ids [n_sequences, 2 * seq_len]."""
    return repeated_blocks(ordinary_tokens(tokenizer, d_vocab), config.n_sequences, config.seq_len, config.seed)


def check(config: ComponentsConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse what cannot be measured under this tokenizer."""
    name_prompts(config, tokenizer)
    random_sequences(config, tokenizer, len(tokenizer))


def measure(checkpoint: LoadedCheckpoint, config: ComponentsConfig, task: str | None) -> dict[str, Result]:
    """The five scores of every head."""
    weights = checkpoint.weights
    tokens = random_sequences(config, checkpoint.tokenizer, weights.d_vocab)
    prompts = name_prompts(config, checkpoint.tokenizer)
    positions = torch.stack([prompts.positions[name] for name in NAME_POSITIONS], dim=1)
    scores = attention_scores(weights, tokens, config.batch_size)
    scores |= copy_scores(weights, prompts.clean, prompts.lengths, positions, config.batch_size)
    rows: list[dict[str, Any]] = [
        {"score": name, "layer": layer, "head": head, "value": value}
        for name, by_head in scores.items()
        for layer, values in enumerate(by_head.tolist())
        for head, value in enumerate(values)
    ]
    return {"components": Result(pd.DataFrame(rows))}


ANALYSIS = Analysis("get_full_model_components_over_time", ComponentsConfig, ("components",), measure, check=check)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
