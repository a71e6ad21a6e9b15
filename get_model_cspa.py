"""Copy-suppression-preserving ablation (CSPA) score of every head at every checkpoint.

    python get_model_cspa.py -c configs/cspa_160m.yml

Writes results/cspa/<model>/step{n}.csv with `layer, head, score`, `kl_cspa, kl_ablated` (nats), `loss, loss_cspa,
loss_ablated` (nats), `n_positions`, and the `reason` where the score is empty; `.json` beside it says which text was
read. `utils/heads/cspa.py` defines the score (McDougall et al. 2023).
"""

import sys
from typing import Literal

import torch
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from utils.config.keys import BaseConfig
from utils.heads.corpus import Corpus, draw_sequences, tokens_sha256
from utils.heads.cspa import cspa_scores, mean_outputs, require_fit
from utils.heads.cspa_sources import Cspa
from utils.heads.function_words import function_tokens
from utils.models.family import LoadedCheckpoint
from utils.runner import Analysis, Result, main


class CspaConfig(BaseConfig):
    """Keys of this script."""

    corpus: str
    """A text file, a data set of the hub (NeelNanda/pile-10k), or `toy`."""
    corpus_split: str = "train"
    """Split of a data set."""
    corpus_field: str = "text"
    """Column of a data set's text."""
    n_sequences: int = Field(17, gt=0)
    """Sequences that are scored."""
    n_mean_sequences: int = Field(100, gt=0)
    """Other sequences, over which heads' outputs are averaged for the mean ablation."""
    seq_len: int = Field(61, gt=1)
    """Tokens of a sequence."""
    prepend_bos: bool = False
    """Begin every sequence with the tokenizer's start token."""
    interventions: list[Literal["ov", "qk"]] = Field(["ov", "qk"], min_length=1, max_length=2)
    """What restricts a head: the part along the source's unembedding, and the sources that are predicted."""
    k_unembeddings: float = Field(0.05, gt=0, le=1)
    """Predicted sources that are kept, as a fraction of the destination's place, rounded up."""
    keep_self_attention: bool = True
    """Whether a position's own token is one of its sources."""
    negative_only: bool = True
    """Keep components along an unembedding only where they lower its logit."""
    start_layer: int = Field(0, ge=0)
    """First layer whose heads are scored."""


def text(config: CspaConfig, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The sequences that are scored, then the others for the means."""
    corpus = Corpus(config.corpus, config.corpus_split, config.corpus_field)
    n = config.n_sequences + config.n_mean_sequences
    return draw_sequences(corpus, tokenizer, n, config.seq_len, config.seed, config.prepend_bos)


def check(config: CspaConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse text that is not to be had or too short."""
    text(config, tokenizer)


def measure(checkpoint: LoadedCheckpoint, config: CspaConfig, task: str | None) -> dict[str, Result]:
    """The score of every head, and what it was measured on."""
    weights = checkpoint.weights
    require_fit(checkpoint.name, weights, config.seq_len, config.start_layer)
    tokens, others = text(config, checkpoint.tokenizer).tensor_split([config.n_sequences])
    words = function_tokens(checkpoint.tokenizer)
    means = mean_outputs(weights, others, config.start_layer, config.batch_size)
    settings = Cspa(**config.model_dump(include=set(Cspa.__dataclass_fields__)))
    table = cspa_scores(weights, tokens, means, words, settings, config.batch_size)
    about = {"sequences_sha256": tokens_sha256(tokens), "mean_sequences_sha256": tokens_sha256(others)}
    return {"cspa": Result(table, json={**about, "n_function_words": len(words)})}


ANALYSIS = Analysis("get_model_cspa", CspaConfig, ("cspa",), measure, check=check)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
