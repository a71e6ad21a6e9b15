"""Succession score of every head at every checkpoint, over all words and by class of words.

    python get_new_successor_head_scores_over_time.py -c configs/successor_160m.yml

Writes results/successor/<model>/step{n}.csv with one row a head: `layer, head`; `value`, the share of all pairs of a
word and its successor that the head gets right; `pairs`, how many there are under the model's tokenizer; `class_mean`,
the mean over classes, each counting alike; and for each class `<class>` and `<class>_pairs`. A class without any pair
has an empty cell and 0 pairs. `utils/heads/succession.py` defines the score, lists the words and says where it departs
from Gould et al. 2023 (arXiv 2312.09230).
"""

import sys
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from utils.config.keys import BaseConfig
from utils.errors import UserError
from utils.heads.succession import CLASSES, succession, successor_pairs
from utils.models.family import LoadedCheckpoint
from utils.runner import Analysis, Result, main


class SuccessorConfig(BaseConfig):
    """The keys every script shares, and no others: nothing is sampled."""


def check(config: SuccessorConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that splits all words."""
    if not any(successor_pairs(tokenizer).values()):
        raise UserError(f"model: no class ({', '.join(CLASSES)}) has single-token words under this tokenizer")


def measure(checkpoint: LoadedCheckpoint, config: SuccessorConfig, task: str | None) -> dict[str, Result]:
    """The scores of every head."""
    weights = checkpoint.weights
    result = succession(weights, successor_pairs(checkpoint.tokenizer))
    layers, heads = (
        index.flatten().tolist()
        for index in torch.meshgrid(torch.arange(weights.n_layers), torch.arange(weights.n_heads), indexing="ij")
    )
    columns: dict[str, Any] = {"layer": layers, "head": heads, "value": result.overall().flatten().tolist()}
    columns["pairs"] = sum(result.pairs(name) for name in CLASSES)
    columns["class_mean"] = result.class_mean().flatten().tolist()
    for name in CLASSES:
        columns[name] = result.share(name).flatten().tolist()
        columns[f"{name}_pairs"] = result.pairs(name)
    return {"successor": Result(pd.DataFrame(columns))}


ANALYSIS = Analysis("get_new_successor_head_scores_over_time", SuccessorConfig, ("successor",), measure, check=check)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
