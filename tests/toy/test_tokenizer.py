"""The toy tokenizer: what it reads as one token, and that it loses nothing."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from circuits_over_time.utils.toy import text as toy_text
from circuits_over_time.utils.toy.tokenizer import END_OF_TEXT
from tests.support.paths import PYTHIA_TOKENIZER


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_is_decoded_to_itself(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_years_are_two_tokens_of_two_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    for year in range(1100, 1800):
        assert tokenizer.tokenize(f" {year}") == [f"Ġ{year // 100}", f"{year % 100:02d}"]


def test_names_are_one_token_with_a_space_and_another_without(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("Mary and Mary") == ["Mary", "Ġand", "ĠMary"]
    for name in toy_text.NAMES:
        assert len(tokenizer(name).input_ids) == len(tokenizer(f" {name}").input_ids) == 1


def test_the_end_of_text_token_is_token_zero_and_added_to_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer(END_OF_TEXT).input_ids == [0]
    assert tokenizer("").input_ids == []
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0


def test_sentences_are_cut_as_by_pythias_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if not PYTHIA_TOKENIZER.is_dir():
        pytest.skip("../shared/pythia_tokenizer is not there")
    pythia = AutoTokenizer.from_pretrained(PYTHIA_TOKENIZER)
    rng = random.Random(0)
    for skill in ("ioi", "ioi_abc", "greater_than", "gendered_pronoun", "sva"):
        for _ in range(100):
            # Without the first word, which Pythia may split as it stands at a beginning ("F", "riends"),
            # and with a year that it cuts in the middle, as all do that the task takes.
            _, _, document = toy_text.EVALUATED[skill](rng).document(rng).partition(" ")
            document = re.sub(r"\d{4}", "1732", f" {document}")
            assert tokenizer.tokenize(document) == pythia.tokenize(document)
