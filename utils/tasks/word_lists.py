"""Words that tasks share, and the toy family learns: those of the standard prompts and of the published study's.

`standard.toml` and `study.toml` list them, by task.
"""

import tomllib
from pathlib import Path
from typing import Any


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


STANDARD, STUDY = (
    dict[str, dict[str, Any]](tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8")))
    for name in ("standard.toml", "study.toml")
)
NAMES_BY_GENDER: dict[str, tuple[str, ...]] = {gender: words(names) for gender, names in STANDARD["names"].items()}

NUMBER_WORDS, ORDINALS, DAYS, MONTHS, ROMAN_NUMERALS = map(words, STANDARD["successions"].values())
SHORT_DAYS: tuple[str, ...] = tuple(day[:3] for day in DAYS)
SHORT_MONTHS: tuple[str, ...] = tuple(month[:3] for month in MONTHS)
LETTERS: tuple[str, ...] = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
