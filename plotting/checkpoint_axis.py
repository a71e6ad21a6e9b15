"""An axis on which checkpoints stand at equal distances, for what counts checkpoints instead of tokens."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import plotly.graph_objects as go


@dataclass(frozen=True)
class CheckpointAxis:
    """Places of checkpoints: 0, 1, 2, ...

    Attributes:
        steps: of the checkpoints, ascending.
    """

    steps: tuple[int, ...]

    @classmethod
    def of(cls, steps: Iterable[int]) -> "CheckpointAxis":
        """The axis of these steps, in any order."""
        return cls(tuple(sorted({int(step) for step in steps})))

    def place(self, step: int) -> int:
        """Place of a checkpoint.

        Raises:
            ValueError: if there is no checkpoint of this step.
        """
        return self.steps.index(int(step))

    def apply(self, figure: go.Figure, most: int, **where: int) -> None:
        """Set the x axes at `row=`, `col=` (all axes by default), with at most `most` labels."""
        last = len(self.steps) - 1
        # From the last one back, at equal distances, so that no two labels touch.
        shown = range(last, -1, -math.ceil((last + 1) / most))[::-1]
        figure.update_xaxes(
            type="linear",
            range=[-0.6, last + 0.6],
            tickmode="array",
            tickvals=list(shown),
            ticktext=[short(self.steps[place]) for place in shown],
            tickangle=0,
            tickfont={"size": 11},
            showgrid=False,
            **where,
        )


def short(step: int) -> str:
    """A step in few characters: 143k."""
    return f"{step / 1000:g}k" if step >= 1000 else str(step)
