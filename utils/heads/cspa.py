"""Copy-suppression-preserving ablation (CSPA) of every head: its text and its table.

`utils/heads/cspa_scores.py` defines the score (McDougall et al. 2023, arXiv 2310.04625).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.model.transfer import checked_at_the_end

from ..models.checkpoint import LoadedCheckpoint
from ..results.store import Result
from ..tasks import Task
from ..tasks.vocabulary import require_embedded
from .corpus import tokens_sha256
from .cspa_scores import cspa_scores, mean_outputs
from .function_words import function_tokens
from .keys import CspaConfig
from .needs import listed_words, text


@dataclass(frozen=True)
class CspaInputs:
    """The text that scores are measured on."""

    scored: Int[Tensor, "sequence position"]
    others: Int[Tensor, "sequence position"]  # to average heads' outputs over; under `study` with the scored ones
    function_tokens: Int[Tensor, " token"]


def prepare(config: CspaConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> CspaInputs:
    """Draw the text; a UserError if there is too little, or it or `start_layer` does not fit the model."""
    tokens = torch.tensor(text(config, tokenizer, shape.n_layers, shape.n_positions))
    if config.head_scores == "study":
        scored, others = tokens[: config.n_sequences], tokens[: config.n_mean_sequences]
    else:
        scored, others = tokens.tensor_split([config.n_sequences])
    require_embedded(tokens, shape.d_vocab, "corpus", tokenizer.batch_decode(tokens))
    return CspaInputs(scored, others, function_tokens(tokenizer, listed_words(config.function_words)))


def measure(
    checkpoint: LoadedCheckpoint, config: CspaConfig, inputs: CspaInputs, task: Task | None
) -> dict[str, Result]:
    """The score of every head, and what it was measured on."""
    config = config.of_model(checkpoint.name)
    about = {
        "sequences_sha256": tokens_sha256(inputs.scored),
        "mean_sequences_sha256": tokens_sha256(inputs.others),
        "n_function_words": len(inputs.function_tokens),
    }
    weights, batch_size = checkpoint.weights, config.batch_size
    with checked_at_the_end():
        means = mean_outputs(weights, inputs.others, config.first_layer, batch_size)
        table = cspa_scores(weights, inputs.scored, means, inputs.function_tokens, config, batch_size)
    return {"cspa": Result(table, json=about)}
