"""The names of the Pythia suite (Biderman et al. 2023, arXiv 2304.01373) and of PolyPythias (arXiv 2503.09543)."""

from __future__ import annotations

import re

PYTHIA_SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
PYTHIA_NAMES = tuple(f"pythia-{size}{variant}" for size in PYTHIA_SIZES for variant in ("", "-deduped"))

_SIZE = "|".join(re.escape(size) for size in PYTHIA_SIZES)
_PYTHIA = re.compile(rf"(?:EleutherAI/)?(pythia-(?:{_SIZE})(?:-deduped|(?:-data|-weight)?-seed\d+)?)")


def pythia_repository(model: str) -> str | None:
    """The hub repository of a Pythia name (`pythia-160m-seed3`, with or without `EleutherAI/`); None for others."""
    match = _PYTHIA.fullmatch(model)
    return None if match is None else f"EleutherAI/{match[1]}"
