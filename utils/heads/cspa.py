"""Copy-suppression-preserving ablation (CSPA) of every head: its text and its table.

`utils/heads/cspa_scores.py` defines the score (McDougall et al. 2023, arXiv 2310.04625).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.model.architectures import Shape

from ..base.errors import UserError
from ..models.checkpoint import LoadedCheckpoint
from ..results.store import Result
from ..tasks import Task
from ..tasks.vocabulary import require_embedded
from .corpus import Corpus, draw_beginnings, draw_sequences, tokens_sha256
from .cspa_scores import cspa_scores, mean_outputs
from .function_words import function_tokens
from .keys import CspaConfig


@dataclass(frozen=True)
class CspaInputs:
    """The text that scores are measured on."""

    scored: Int[Tensor, "sequence position"]  # the sequences to score heads on
    # The sequences to average heads' outputs over; under `study` they include the scored ones.
    others: Int[Tensor, "sequence position"]
    function_tokens: Int[Tensor, " token"]


def prepare(config: CspaConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> CspaInputs:
    """Draw the text.

    Raises:
        UserError: if there is too little text, sequences are longer than the model's context, or the model has no
            layer `start_layer`.
    """
    if config.seq_len > shape.n_positions:
        raise UserError(f"seq_len: {config.seq_len} tokens; the model has {shape.n_positions} positions; lower seq_len")
    if config.start_layer >= shape.n_layers:
        raise UserError(
            f"start_layer: {config.start_layer}; the model has layers 0 to {shape.n_layers - 1}; lower start_layer"
        )
    corpus = Corpus(config.corpus, config.corpus_split, config.corpus_field)
    sizes = config.seq_len, config.seed, config.prepend_bos
    if config.head_scores == "study":
        n = max(config.n_sequences, config.n_mean_sequences)
        tokens = draw_beginnings(corpus, tokenizer, n, *sizes, config.corpus_window)
        scored, others = tokens[: config.n_sequences], tokens[: config.n_mean_sequences]
    else:
        n = config.n_sequences + config.n_mean_sequences
        tokens = draw_sequences(corpus, tokenizer, n, *sizes)
        scored, others = tokens.tensor_split([config.n_sequences])
    require_embedded(tokens, shape.d_vocab, "corpus", tokenizer.batch_decode(tokens))
    return CspaInputs(scored, others, function_tokens(tokenizer))


def measure(
    checkpoint: LoadedCheckpoint, config: CspaConfig, inputs: CspaInputs, task: Task | None
) -> dict[str, Result]:
    """The score of every head, and what it was measured on."""
    about = {
        "sequences_sha256": tokens_sha256(inputs.scored),
        "mean_sequences_sha256": tokens_sha256(inputs.others),
        "n_function_words": len(inputs.function_tokens),
    }
    weights, batch_size = checkpoint.weights, config.batch_size
    means = mean_outputs(weights, inputs.others, config.start_layer, batch_size)
    table = cspa_scores(weights, inputs.scored, means, inputs.function_tokens, config, batch_size)
    return {"cspa": Result(table, json=about)}
