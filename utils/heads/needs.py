"""What the scores of heads need of a tokenizer and a shape: different tokens for blocks, text, and words.

A run and its dry run refuse by it, so it imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import UserError
from ..tasks import TASKS, tasks_of
from ..tasks.prompts import PromptOptions, Work
from .corpus import Corpus, draw_beginnings, draw_sequences
from .keys import PYTHON_DOCS, TOY, ComponentsConfig, CspaConfig, Definition, SignaturesConfig, SuccessorConfig
from .successor_words import some_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..models.tokenizers import PlainShape

CSPA_PASSES = 25
"""How many forward passes over the scored sequences CSPA takes (benchmarks/bench_cspa.py)."""

STUDY_IDS = range(100, 20_000)
"""The ids from which the study draws its random blocks."""


def inputs_of_components(config: ComponentsConfig, tokenizer: Any, shape: PlainShape) -> Iterator[Work]:
    """Two random blocks in a row, and IOI prompts; errors are those of `attention_and_copy.prepare`."""
    require_context(config.seq_len, shape.n_positions)
    tokens = ordinary_ids(tokenizer.get_vocab(), tokenizer.special, shape.d_vocab)
    if config.head_scores == "study":
        tokens = [token for token in tokens if token in STUDY_IDS]
    require_tokens(tokens, config.seq_len, config.head_scores)
    pairs = TASKS["ioi"].pairs(tokenizer, config.n_prompts, config.seed, PromptOptions(prompt_set=config.head_scores))
    yield Work("ioi", pairs, 1, 2 * config.seq_len * config.n_sequences)


def inputs_of_cspa(config: CspaConfig, tokenizer: Any, shape: PlainShape) -> Iterator[Work]:
    """The text, unless a data set would have to be downloaded; errors are those of `cspa.prepare`."""
    listed_words(config.function_words)
    if config.corpus in (TOY, PYTHON_DOCS) or Path(config.corpus).exists():
        text(config, tokenizer, shape.n_layers, shape.n_positions)
    else:
        require_sizes(config, shape.n_layers, shape.n_positions)
    yield Work("", [], 0, config.seq_len * (CSPA_PASSES * config.n_sequences + config.n_mean_sequences))


def listed_words(path: str | None) -> list[str] | None:
    """The lines of a file of words; None without one. A UserError if it cannot be read, or holds none."""
    if path is None:
        return None
    try:
        words = [word for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if (word := line.strip())]
    except (OSError, UnicodeDecodeError) as error:
        why = f"cannot be read ({error}); name a text file, one word a line"
        raise UserError(f"function_words: {path}: {why}") from None
    if not words:
        raise UserError(f"function_words: {path}: holds no words; write one a line")
    return words


def inputs_of_succession(config: SuccessorConfig, tokenizer: Any, shape: PlainShape) -> Iterator[Work]:
    """Words whose successors are asked for: at most a pass over them; errors are those of `succession.prepare`."""
    pairs = some_pairs(tokenizer, config)
    yield Work("", [], 0, sum(len(of_list) for lists in pairs.values() for of_list in lists))


def inputs_of_signatures(
    config: SignaturesConfig, tokenizer: PreTrainedTokenizerBase, shape: PlainShape
) -> Iterator[Work]:
    """The prompts of each task, which run forward once; errors are those of `signatures.prepare`."""
    for task in tasks_of(config):
        pairs = task.pairs(tokenizer, config.n_prompts or task.usual, config.seed, config)
        require_folds(config, task.name, len(pairs))
        yield Work(task.name, pairs, 1)


def require_folds(config: SignaturesConfig, task: str, n_prompts: int) -> None:
    """Refuse folds without a prompt."""
    if n_prompts < config.n_folds:
        raise UserError(
            f"n_folds: {config.n_folds} folds of {n_prompts} prompts of {task}; ask for fewer, or more prompts"
        )


def require_context(seq_len: int, n_positions: int) -> None:
    """Refuse blocks that do not fit a model's context twice."""
    if 2 * seq_len > n_positions:
        raise UserError(
            f"seq_len: two blocks of {seq_len} tokens need {2 * seq_len} positions, the model has {n_positions}; use "
            f"seq_len={n_positions // 2} or less"
        )


def ordinary_ids(vocabulary: Mapping[str, int], special: Collection[int], d_vocab: int) -> list[int]:
    """The ids in a vocabulary that the model embeds, in order and without special tokens."""
    return [token for token in sorted(set(vocabulary.values()) - set(special)) if token < d_vocab]


def require_tokens(tokens: Collection[int], seq_len: int, definition: Definition) -> None:
    """Refuse too few tokens for a block: it has different ones, those of the study need one among its ids."""
    if definition == "study" and not tokens:
        raise UserError(
            f"head_scores: study draws ids from {STUDY_IDS.start} up, but the tokenizer has none; use standard"
        )
    if definition == "standard" and seq_len > len(tokens):
        raise UserError(f"seq_len: a block of {seq_len} different tokens asked for, the tokenizer has {len(tokens)}")


def require_sizes(config: CspaConfig, n_layers: int, n_positions: int) -> None:
    """Refuse sequences that are longer than the model's context, and a first layer that it does not have."""
    if config.seq_len > n_positions:
        raise UserError(f"seq_len: {config.seq_len} tokens; the model has {n_positions} positions; lower seq_len")
    if config.start_layer != "study" and config.start_layer >= n_layers:
        raise UserError(
            f"start_layer: {config.start_layer}; the model has layers 0 to {n_layers - 1}; lower start_layer"
        )


def text(config: CspaConfig, tokenizer: PreTrainedTokenizerBase, n_layers: int, n_positions: int) -> list[list[int]]:
    """The sequences to score heads on and to average over; a UserError if there are too few, or they do not fit."""
    require_sizes(config, n_layers, n_positions)
    corpus = Corpus(config.corpus, config.corpus_split, config.corpus_field)
    sizes = config.seq_len, config.seed, config.prepend_bos
    if config.head_scores == "study":
        n = max(config.n_sequences, config.n_mean_sequences)
        return draw_beginnings(corpus, tokenizer, n, *sizes, config.corpus_window)
    return draw_sequences(corpus, tokenizer, config.n_sequences + config.n_mean_sequences, *sizes)
