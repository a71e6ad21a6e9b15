"""A local family of small random models whose tokenizer knows every word of every task."""

from __future__ import annotations

from pathlib import Path

from tests.support.random_models import random_model
from tests.support.task_tokenizers import words


def word_model(step: int):
    """The model of a step of the family."""
    return random_model(n_layers=2, vocab=len(words()), seed=step)


def save_word_family(folder: Path, steps: tuple[int, ...]) -> Path:
    """Write the family, 10 tokens a step; contexts are 64 tokens long."""
    for step in steps:
        word_model(step).save_pretrained(folder / f"step{step}")
        words().save_pretrained(folder / f"step{step}")
    (folder / "family.json").write_text('{"tokens_per_step": 10}')
    return folder
