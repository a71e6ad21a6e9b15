"""A local family of small random models whose tokenizer knows every word of every task, and the trained toy family."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import random_model
from tests.task_tokenizers import words

TOY = Path(__file__).parents[1] / "model_cache" / "toy"


def word_model(step: int):
    """The model of a step of the family."""
    return random_model(n_layers=2, vocab=len(words()), seed=step)


def save_word_family(folder: Path, steps: tuple[int, ...] = (0, 5)) -> Path:
    """Write the family, 10 tokens a step; contexts are 64 tokens long."""
    for step in steps:
        word_model(step).save_pretrained(folder / f"step{step}")
        words().save_pretrained(folder / f"step{step}")
    (folder / "family.json").write_text('{"tokens_per_step": 10}')
    return folder


def trained_toy() -> tuple[Path, int]:
    """The toy family's folder and its last step; skips the test where it has not been trained."""
    if not (TOY / "family.json").is_file():
        pytest.skip("the toy family is not there; make toy trains it")
    return TOY, max(int(folder.name.removeprefix("step")) for folder in TOY.glob("step*"))
