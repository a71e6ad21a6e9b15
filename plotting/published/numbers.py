"""The numbers of the published study, read from `circuits_over_time.csv`.

The file has a row per number of "LLM Circuit Analyses Are Consistent Across Training and Scale" (Tigges et al. 2024,
arXiv 2407.10827), as a range: "about 2e9" is what rounds to it. Quantities:

    parameters         a model's parameter count: `printed`, behind the published correlations, and `true`
    circuit_nodes      nodes of a task's circuit, mean over checkpoints from `from_step` on
    size_correlation   Pearson's r over the five models between these means and the parameter count
    circuit_edges      edges of the circuit at one checkpoint
    level_percent      percentage of a level of the IOI algorithm, median over checkpoints from `from_step` on
    emergence_tokens   tokens at the first checkpoint at which some head's score passes the score's threshold, there and
                       at the next checkpoint measured
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits_over_time.utils.results.kinds import find_kind

from ..parts.head_scores import SINGLE

FILE = Path(__file__).parent / "circuits_over_time.csv"
# Where the configs with the study's settings lie, from the repository's root.
CONFIGS = Path("configs", "study")


@dataclass(frozen=True)
class Number:
    """A published number, or a range of them; what does not apply is "" or None.

    Attributes:
        item: the level, the kind of head, or whose parameter count.
        step: the checkpoint, of a number about one; `from_step` the first, of a mean or median.
        low, high: ends of the range, equal for one number.
    """

    quantity: str
    model: str
    task: str
    item: str
    step: int | None
    from_step: int | None
    low: float
    high: float
    source: str

    @property
    def kind(self) -> str:
        """The kind of result that it is about."""
        if self.quantity == "emergence_tokens":
            return next((kind for kind, score in SINGLE.items() if score == self.item), "components")
        return "ioi_consistency" if self.quantity == "level_percent" else "faithfulness"

    @property
    def config(self) -> Path:
        """The config with the study's settings for that kind."""
        return CONFIGS / f"{find_kind(self.kind).config or self.task}.yml"


def published() -> list[Number]:
    """The published numbers, in the order of the file."""
    with FILE.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row |= {name: int(row[name]) if row[name] else None for name in ("step", "from_step")}
        row |= {name: float(row[name]) for name in ("low", "high")}
    return [Number(**row) for row in rows]
