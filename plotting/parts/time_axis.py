"""The training axis: tokens on a logarithmic scale, steps written below, and a place for step 0."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .theme import FAINT, paint

# Step 0 stands this share of the axis to the left of the first trained checkpoint, and at least a factor of 2.
_ZERO_GAP = 0.07


@dataclass(frozen=True)
class TimeAxis:
    """Positions and labels of checkpoints.

    Attributes:
        first: tokens of the first checkpoint after initialisation.
        last: tokens of the last checkpoint.
        zero: position of step 0 (tokens on the log axis), or None where no step 0 is drawn.
        tokens_per_step: tokens in a step, or None where the models disagree; steps are then left out of the labels. If
            it is 1, the tokens are unknown and the axis counts steps.
    """

    first: float
    last: float
    zero: float | None
    tokens_per_step: float | None
    steps: tuple[int, ...]

    @classmethod
    def of(cls, *frames: pd.DataFrame) -> "TimeAxis":
        """The axis that holds every row of the frames, each with columns `step` and `tokens`."""
        points = pd.concat([frame[["step", "tokens"]] for frame in frames], ignore_index=True).drop_duplicates()
        trained = points[points["step"] > 0]
        if trained.empty:
            return cls(1.0, 1.0, 1.0, None, ())
        first, last = float(trained["tokens"].min()), float(trained["tokens"].max())
        zero = None
        if len(trained) < len(points):
            zero = first / max(2.0, (last / first) ** (_ZERO_GAP / (1 - _ZERO_GAP)))
        ratios = trained["tokens"] / trained["step"]
        agree = np.allclose(ratios, ratios.iloc[0], rtol=1e-6)
        steps = tuple(int(step) for step in sorted(trained["step"].unique()))
        return cls(first, last, zero, float(ratios.iloc[0]) if agree else None, steps)

    def position(self, tokens: pd.Series) -> pd.Series:
        """Where checkpoints of these token counts stand on the (logarithmic) axis; step 0 gets its place."""
        return tokens.astype(float).where(tokens > 0, self.zero)

    def ticks(self, most: int = 8) -> tuple[list[float], list[str]]:
        """Positions and labels (tokens, step below) of at most about `most` ticks: 0, powers of ten, the last."""
        zero = [] if self.zero is None else [self.zero]
        zero_label = ["0<br>0" if self.tokens_per_step and not self.by_step else "0"] * len(zero)
        if not self.steps:
            return zero, zero_label
        low, high = self.range()
        kept: list[float] = []
        # From the right, so that the last checkpoint always has its label.
        for value in reversed(self._candidates()):
            if not kept or np.log10(kept[0] / value) >= (high - low) / most:
                kept.insert(0, value)
        return zero + kept, zero_label + [self._label(value) for value in kept]

    def _candidates(self) -> list[float]:
        """Tokens of the checkpoints a reader looks for: first, powers of ten of the step (or the tokens), last."""
        if self.tokens_per_step is None:
            powers = [10.0**power for power in range(16)]
            return [power for power in powers if self.first <= power <= self.last] or [self.last]
        inside = [10**power for power in range(10) if self.steps[0] < 10**power < self.steps[-1]]
        return [step * self.tokens_per_step for step in sorted({self.steps[0], *inside, self.steps[-1]})]

    def range(self) -> list[float]:
        """Ends of the axis, as log10 of tokens."""
        low, high = np.log10(self.zero or self.first), np.log10(self.last)
        pad = max(0.03 * (high - low), 0.02)
        return [low - pad, high + pad]

    @property
    def title(self) -> str:
        """Title of the axis, with its units."""
        if self.by_step:
            return "training step"
        return "training tokens (step below)" if self.tokens_per_step else "training tokens"

    @property
    def by_step(self) -> bool:
        """Whether it counts steps, because tokens are not known."""
        return self.tokens_per_step == 1

    def apply(self, figure: go.Figure, most: int = 8, title: str | None = None, **where: int) -> None:
        """Set the x axes at `row=`, `col=` (all axes by default)."""
        positions, labels = self.ticks(most)
        if self.tokens_per_step and where.get("col", 1) == 1:
            # The rows of the first say what they count; spaces of the names' widths keep its numbers below the tick.
            rows = labels[0].split("<br>")
            names = (("tokens", 12), ("steps", 10))[-len(rows) :]
            labels[0] = "<br>".join(f"{a} {text}{chr(160) * n}" for (a, n), text in zip(names, rows, strict=True))
        figure.update_xaxes(
            type="log",
            range=self.range(),
            tickmode="array",
            tickvals=positions,
            ticktext=labels,
            tickangle=0,
            tickfont={"size": 11},
            title={"text": self.title if title is None else title, "standoff": 6, "font": {"size": 12}},
            **where,
        )

    def mark_break(self, figure: go.Figure) -> None:
        """A dotted line between step 0 and the first trained checkpoint: the log axis is broken there."""
        if self.zero is not None and self.zero < self.first:
            x, line = np.sqrt(self.zero * self.first), {"dash": "dot", "width": 1, "color": paint(FAINT)}
            shape: dict[str, Any] = {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}
            drawn = {(trace.xaxis or "x", trace.yaxis or "y") for trace in figure.data}
            panels = sorted(drawn, key=lambda axes: int(axes[0][1:] or 1))
            # All at once: plotly copies what there is for each that is added.
            figure.layout.shapes += tuple(shape | {"xref": x, "yref": f"{y} domain"} for x, y in panels)

    def _label(self, tokens: float) -> str:
        if self.by_step:
            return f"{tokens:,.0f}"
        text = compact(tokens)
        return f"{text}<br>{tokens / self.tokens_per_step:,.0f}" if self.tokens_per_step else text


def compact(number: float) -> str:
    """A number in at most three digits and a unit: 2.1M, 300B, 143k, 512."""
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            scaled = number / unit
            digits = 0 if scaled >= 99.5 else 1
            return f"{scaled:.{digits}f}".removesuffix(".0") + suffix
    return f"{number:.0f}"


@dataclass(frozen=True)
class CheckpointAxis:
    """An axis on which checkpoints stand at equal distances (0, 1, 2, ...), for what counts checkpoints, not tokens."""

    steps: tuple[int, ...]
    title = "checkpoint (training step)"

    @classmethod
    def of(cls, steps: Iterable[int]) -> "CheckpointAxis":
        """The axis of these steps, in any order."""
        return cls(tuple(sorted({int(step) for step in steps})))

    def place(self, step: int) -> int:
        """Place of a checkpoint; a ValueError if there is none of this step."""
        return self.steps.index(int(step))

    def apply(self, figure: go.Figure, most: int, title: str | None = None, **where: int) -> None:
        """Set the x axes at `row=`, `col=` (all axes by default), with at most `most` labels."""
        last = len(self.steps) - 1
        # From the last one back, at equal distances, so that no two labels touch.
        named = range(last, -1, -math.ceil((last + 1) / most))[::-1]
        figure.update_xaxes(
            type="linear",
            range=[-0.6, last + 0.6],
            tickmode="array",
            tickvals=list(named),
            ticktext=[f"{self.steps[place]:,}" for place in named],
            tickangle=0,
            tickfont={"size": 11},
            showgrid=False,
            title={"text": self.title if title is None else title, "font": {"size": 12}},
            **where,
        )

    def mark_break(self, figure: go.Figure) -> None:
        """Nothing: the axis has no break."""
