"""A timeline: rows with bars over the training axis."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .panels import wrapped
from .style import Drawing, add_key, finish, write
from .theme import FAINT, INK, WHITE, paint, translucent
from .time_axis import TimeAxis

ROW, LEFT, WIDTH = 30, 280, 960
"""Pixels: height of a row, margin for the rows' names, width of the figure."""
ABOVE = 16
"""Pixels that names above the rows take."""
OPEN = "no checkpoint beyond"


class Timeline:
    """Rows over the training axis of all checkpoints (`step, tokens`); a `narrow` one has the rows' names inside."""

    def __init__(
        self, checkpoints: pd.DataFrame, rows: Sequence[str], row_height: int = ROW, *, narrow: bool = False
    ) -> None:
        self.row_height, self.narrow = row_height + ABOVE * narrow, narrow
        self.axis = TimeAxis.of(checkpoints)
        self.rows, self.figure = rows, go.Figure()
        self._tokens = dict(zip(checkpoints["step"], checkpoints["tokens"], strict=False))
        self._open, self._marks = False, checkpoints

    def bar(self, place: float, low: int, high: int, colour: str, entry: str, *, width: float, text: str = "") -> None:
        """A bar from one step to another; one step alone is a short one. Bars without a text are not in the legend."""
        colour = paint(colour)
        mark = {"symbol": "line-ns", "color": colour, "line": {"width": 2.5, "color": colour}, "size": 7}
        self.figure.add_scatter(
            x=self._x(low, high),
            y=[place, place],
            mode="lines+markers" if low == high or not text else "lines",
            name=entry,
            legendgroup=entry,
            showlegend=None if text else False,
            line={"width": width, "color": colour},
            marker=mark,
            hovertemplate=f"{text}<extra></extra>" if text else None,
            hoverinfo=None if text else "skip",
        )

    def band(self, place: int, low: int, high: int, colour: str) -> None:
        """A band as high as the row."""
        (start, end), half = self._x(low, high), 0.4
        self.figure.add_scatter(
            x=[start, end, end, start],
            y=[place - half, place - half, place + half, place + half],
            fill="toself",
            mode="lines",
            fillcolor=translucent(colour, 0.18),
            line={"width": 0, "color": paint(colour)},
            name="earliest to latest",
            legendgroup="band",
            hoverinfo="skip",
        )

    def tick(self, place: int, step: int, text: str) -> None:
        """An upright line as high as the row."""
        self.figure.add_scatter(
            x=self._x(step, step),
            y=[place - 0.4, place + 0.4],
            mode="lines",
            line={"width": 2.5, "color": paint(INK)},
            name="median over seeds",
            legendgroup="median",
            hovertemplate=f"{text}<extra></extra>",
        )

    def arrows(self, place: float, left: bool, right: bool, low: int, high: int, colour: str) -> None:
        """Arrows where an interval goes on before the first checkpoint, or after the last."""
        for step, symbol in [(low, "triangle-left")] * left + [(high, "triangle-right")] * right:
            self.figure.add_scatter(
                x=self._x(step),
                y=[place],
                mode="markers",
                name=OPEN,
                legendgroup=OPEN,
                showlegend=False,
                marker={"symbol": symbol, "size": 11, "color": paint(colour)},
                cliponaxis=False,
                hoverinfo="skip",
            )
            self._open = True

    def say(self, place: int, text: str) -> None:
        """A row without a bar: why."""
        text = wrapped(text, 46 if self.narrow else 90)
        write(self.figure, text, 0.01, place, size=12, xref="paper", xanchor="left", bgcolor=paint(WHITE))

    def note(self, place: int, text: str) -> None:
        """A remark at the row's right end."""
        write(self.figure, text, 0.995, place, xref="paper", xanchor="right")

    def done(self, title: str, subtitle: str) -> Drawing:
        """Set the axes, and return the drawing."""
        # A small tick for every checkpoint: between two of them nothing is known.
        self.figure.add_scatter(
            x=self.axis.position(self._marks["tokens"]),
            y=[len(self.rows) - 0.45] * len(self._marks),
            mode="markers",
            name="checkpoint",
            marker={"symbol": "line-ns", "size": 6, "line": {"width": 1, "color": paint(FAINT)}, "color": paint(FAINT)},
            customdata=self._marks["step"],
            hovertemplate="checkpoint: step %{customdata:,}<extra></extra>",
        )
        if self._open:
            marker = {"symbol": "triangle-left", "size": 11, "color": paint(FAINT)}
            add_key(self.figure, OPEN, legendgroup=OPEN, mode="markers", marker=marker)
        height = 110 + self.row_height * len(self.rows)
        drawing = finish(self.figure, title, subtitle, width=WIDTH, height=height)
        self.figure.update_layout(margin={"l": 18 if self.narrow else LEFT, "t": 14})
        self.axis.apply(self.figure)
        self.axis.mark_break(self.figure)
        n = len(self.rows)
        self.figure.update_yaxes(tickvals=list(range(n)), ticktext=list(self.rows), range=[n - 0.4, -0.6])
        self.figure.update_yaxes(zeroline=False, tickfont_size=12, showticklabels=not self.narrow)
        for place, name in enumerate(self.rows) if self.narrow else ():
            look: dict[str, Any] = {"xref": "paper", "xanchor": "left", "bgcolor": paint(WHITE), "borderpad": 0}
            write(self.figure, name, 0.01, place, colour=INK, yshift=0.5 * self.row_height - 4, **look)
        return drawing

    def _x(self, *steps: int) -> list[float]:
        return self.axis.position(pd.Series([self._tokens[step] for step in steps])).tolist()
