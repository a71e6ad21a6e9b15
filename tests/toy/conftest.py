"""Fixtures of the tests of the toy families."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from circuits_over_time.utils.toy.text import vocabulary_texts
from circuits_over_time.utils.toy.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The default family's. Do not change it."""
    return build_tokenizer(vocabulary_texts(), 128)
