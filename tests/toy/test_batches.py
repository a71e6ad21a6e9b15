"""Batches of packed documents."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from circuits_over_time.utils.toy import text as toy_text
from circuits_over_time.utils.toy.batches import Batch, TextSource
from circuits_over_time.utils.toy.keys import TextConfig


def document_texts(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    numbers = [number for number in batch.documents.unique().tolist() if number >= 0]
    return [tokenizer.decode(batch.tokens[batch.documents == number], skip_special_tokens=True) for number in numbers]


def test_a_batch_follows_from_its_seed_and_step(tokenizer: PreTrainedTokenizerBase) -> None:
    def tokens(seed: int, step: int) -> torch.Tensor:
        return TextSource(TextConfig(), tokenizer, seed).batch(step).tokens

    assert torch.equal(tokens(0, 5), tokens(0, 5))
    assert not torch.equal(tokens(0, 5), tokens(0, 6))
    assert not torch.equal(tokens(0, 5), tokens(1, 5))


def test_rows_are_filled_with_whole_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    source = TextSource(TextConfig(), tokenizer, seed=0)
    filled = []
    for step in range(10):
        batch = source.batch(step)
        filled.append((batch.documents >= 0).float().mean().item())
        for number in batch.documents.unique().tolist():
            if number >= 0:
                size = (batch.documents == number).sum().item()
                assert batch.positions[batch.documents == number].tolist() == list(range(size))
    assert sum(filled) / len(filled) > 0.95


def test_the_first_copy_of_a_random_block_is_not_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    source = TextSource(TextConfig(end_of_text=0.0), tokenizer, seed=0)
    rng = random.Random(0)
    for _ in range(50):
        document = source.draws["induction"](rng)
        period = document.unlearned - 1
        assert document.tokens[:period] == document.tokens[period : 2 * period]
        assert len(document.tokens) % period == 0
        assert len(document.tokens) <= source.config.width - 1


def test_shares_of_the_text_are_those_of_the_config(tokenizer: PreTrainedTokenizerBase) -> None:
    config = TextConfig()
    source = TextSource(config, tokenizer, seed=0)
    spent = dict.fromkeys(source.draws, 0)
    for kind, draw in source.draws.items():

        def counted(rng: random.Random, kind: str = kind, draw=draw):
            document = draw(rng)
            spent[kind] += len(document.tokens)
            return document

        source.draws[kind] = counted
    for step in range(20):
        source.batch(step)
    whole = sum(getattr(config, kind) for kind in spent)
    for kind, tokens in spent.items():
        assert tokens / sum(spent.values()) == pytest.approx(getattr(config, kind) / whole, abs=0.02)


def test_sentences_with_an_indirect_object_may_come_later(tokenizer: PreTrainedTokenizerBase) -> None:
    source = TextSource(TextConfig(ioi_from=3), tokenizer, seed=0)
    for step in range(6):
        texts = document_texts(source.batch(step), tokenizer)
        assert any(text.startswith(("When ", "Then,", "While ")) for text in texts) == (step >= 3)


def test_training_documents_hold_no_held_out_pair_of_names(tokenizer: PreTrainedTokenizerBase) -> None:
    source = TextSource(TextConfig(), tokenizer, seed=3)
    pairs = set()
    for step in range(30):
        for text in document_texts(source.batch(step), tokenizer):
            names = [word.strip(",.") for word in text.split() if word.strip(",.") in toy_text.NAMES]
            if text.startswith(("When", "After", "Then", "While", "The", "Friends")) and len(names) > 2:
                pairs.add(tuple(sorted(names[:2])))
    assert len(pairs) > 100
    assert not [pair for pair in pairs if toy_text.is_held_out("ioi", *pair)]
