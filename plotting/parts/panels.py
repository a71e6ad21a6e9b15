"""Grids of small panels over training: one line per model, with intervals as bands."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits_over_time.utils.tasks.registry import task_label

from .style import Drawing, Looks, ModelLook, add_key, finish, write
from .tables import by_model, tasks_in
from .theme import WHITE, paint, translucent
from .time_axis import CheckpointAxis, TimeAxis

_PANEL_WIDTH = 345
_PANEL_HEIGHT = 215
# Pixels that the axes' labels and the panels' titles take.
_FRAME_WIDTH, _FRAME_HEIGHT = 106, 112
# Pixels between columns: for an axis, and for names of lines before it. Screens may squeeze them by a quarter.
_BETWEEN_COLUMNS, _END_NAMES = 78, 42
# Half a 95% interval in standard errors.
INTERVAL = 1.96
# What fits into a panel without values: reasons, and characters in a line, on a phone too.
MOST_REASONS, _LINE = 4, 42


@dataclass(frozen=True)
class Line:
    """One curve over training.

    Attributes:
        table: rows with `step`, `tokens` and the columns below. NaN breaks the line.
        name: legend entry unless `legend` gives one that several lines share, and first line of the hover text.
        error: column of standard errors, drawn as a 95% band, or None.
        interval: columns with the ends of a 95% interval, drawn as a band. The band closes where an end is missing.
        hover: more columns to show on hover.
        aside: by which share of the axis to draw it to the right, where marks would hide each other.
    """

    table: pd.DataFrame
    value: str
    name: str
    look: ModelLook
    error: str | None = None
    interval: tuple[str, str] | None = None
    dash: str | None = None
    hover: tuple[str, ...] = ()
    markers: bool = True
    legend: str | None = None
    width: float = 2
    opacity: float = 1
    aside: float = 0


def _reasons(rows: pd.DataFrame) -> list[str]:
    """A line for each reason (`why`) and the models that have it: from which step to which."""
    spans: dict[tuple[str, int, int], list[str]] = {}
    for model, of_model in by_model(rows):
        for why, at in of_model.groupby("why", sort=False)["step"]:
            spans.setdefault((str(why), int(at.min()), int(at.max())), []).append(model)
    lines = []
    # The last checkpoints first: they are what a reader looks for.
    for (why, first, last), models in sorted(spans.items(), key=lambda item: -item[0][2]):
        steps = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
        lines.append(f"{', '.join(models)}, {steps}: {why}")
    return lines[:MOST_REASONS] + ([f"and {len(lines) - MOST_REASONS} more"] if len(lines) > MOST_REASONS else [])


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width` characters; names longer than that stay whole."""
    return "<br>".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))


def write_in_middle(figure: go.Figure, text: str, **options: str | int) -> None:
    """Write in the middle of the panel at `row=`, `col=`; further options are those of plotly's annotations."""
    write(figure, text, 0.5, 0.5, size=12, colour="#555555", xref="x domain", yref="y domain", **options)


def ring(colour: str, size: int = 12) -> dict[str, Any]:
    """The marker of a ring around a value."""
    colour = paint(colour)
    return {"symbol": "circle-open", "size": size, "color": colour, "line": {"width": 1.8, "color": colour}}


class Panels:
    """A grid of panels that share the training axis of a column."""

    def __init__(
        self,
        rows: int,
        columns: int,
        axis: TimeAxis | CheckpointAxis,
        titles: Sequence[str] = (),
        *,
        n_panels: int | None = None,
        panel_height: int = _PANEL_HEIGHT,
        names_at_ends: bool = False,
    ) -> None:
        """Make a grid.

        Args:
            titles: one per column, or one per panel if `n_panels` is given: how many there are, row by row.
            names_at_ends: leave room to the right of every panel for `name_ends`.
        """
        # Lines and gaps need a time axis; panels over checkpoints have bars.
        self.axis: TimeAxis = axis  # type: ignore[assignment]
        self.rows, self.columns, self.n_panels = rows, columns, n_panels or rows * columns
        # A lone panel is drawn wider than one of a row.
        self.panel_width = {1: 620, 2: 430}.get(columns, _PANEL_WIDTH)
        self._title_room = 18 * max((title.count("<br>") for title in titles), default=0)
        # Titles of single panels stand between them, and have room for a second line.
        between = 34 if n_panels is None else 62 + max(0, self._title_room - 18)
        inner = panel_height * rows + between * (rows - 1)
        aside = _END_NAMES if names_at_ends else 0
        self._margin_right = 28 + aside
        self.width = _FRAME_WIDTH + (self.panel_width + aside) * columns
        self.height = _FRAME_HEIGHT + self._title_room + inner
        self.figure = make_subplots(
            rows=rows,
            cols=columns,
            shared_xaxes=True,
            subplot_titles=[*titles, *[""] * (rows * columns - len(titles))],
            horizontal_spacing=min(0.2, (_BETWEEN_COLUMNS + aside) / self.width) if columns > 1 else 0,
            vertical_spacing=between / inner if rows > 1 else 0,
        )
        self.figure.update_annotations(font_size=15, yshift=4)
        self._has_gaps, self._empty = False, set[int]()

    def draw(self, line: Line, row: int, column: int) -> None:
        """Add a line, and its band, to the panel at `row`, `column` (from 1)."""
        table = line.table.sort_values("step")
        x = self.axis.position(table["tokens"])
        if line.aside:
            x *= 10 ** (line.aside * float(np.ptp(self.axis.range())))
        y = table[line.value].astype(float)
        entry = line.legend or line.name
        where = {"row": row, "col": column}
        if line.error is not None and line.error in table and table[line.error].notna().any():
            half = INTERVAL * table[line.error].astype(float)
            self._band(x, y - half, y + half, line.look.colour, entry, where)
        if line.interval is not None and set(line.interval) <= set(table):
            low, high = (table[end].astype(float) for end in line.interval)
            # An interval with an open end is none: a band that stops at the line would say that it ends there.
            known = low.notna() & high.notna() & y.notna()
            if known.any():
                self._band(x, low.where(known, y), high.where(known, y), line.look.colour, entry, where)
        colour = paint(line.look.colour)
        # A value between gaps has no line to be seen by.
        alone = y.notna() & y.shift().isna() & y.shift(-1).isna()
        extra = [column_name for column_name in line.hover if column_name in table]
        hover = "".join(f"<br>{name.replace('_', ' ')}: %{{customdata[{i + 2}]}}" for i, name in enumerate(extra))
        self.figure.add_scatter(
            x=x,
            y=y,
            name=entry,
            legendgroup=entry,
            mode="lines+markers" if line.markers or alone.any() else "lines",
            line={"color": colour, "dash": line.dash or line.look.dash, "width": line.width},
            marker={
                "symbol": line.look.symbol,
                "size": 6 if line.markers or not alone.any() else [6 * point for point in alone],
                "color": colour,
                # Sizes point by point would turn markers into bubbles, faint and with an outline.
                "opacity": 1,
                "line": {"width": 0},
            },
            customdata=table[["step", "tokens", *extra]].astype(object).to_numpy(),
            hovertemplate=f"<b>{line.name}</b><br>step %{{customdata[0]:,}} (%{{customdata[1]:.3s}} tokens)"
            f"<br>{line.value.replace('_', ' ')}: %{{y:.4g}}{hover}<extra></extra>",
            connectgaps=False,
            opacity=line.opacity,
            **where,
        )

    def draw_models(
        self,
        table: pd.DataFrame,
        value: str,
        looks: Looks,
        row: int,
        column: int,
        reason: str | None = None,
        hint: str = "",
        **options: Any,
    ) -> None:
        """Add the line of every model of a table; further options are those of `Line`.

        With `reason`, `missing` explains the gaps.
        """
        for model, rows in by_model(table):
            self.draw(Line(rows, value, model, looks[model], **options), row, column)
        if reason is not None:
            self.missing(table, value, reason, looks, row, column, hint)

    def missing(
        self, table: pd.DataFrame, value: str, reason: str, looks: Looks, row: int, column: int, hint: str = ""
    ) -> None:
        """Say where a panel has no values (column `value` of all its rows), and why (column `reason`, if it is there).

        A cross on the panel's zero marks each checkpoint without one, and tells the reason to the pointer. A panel
        without any value has the reasons, and the `hint` below them, written where its curves would be.
        """
        where = {"row": row, "col": column}
        without = table[table[value].isna()].sort_values("step", kind="stable")
        reasons = without[reason] if reason in without else pd.Series(pd.NA, without.index)
        without = without.assign(why=reasons.fillna("the results give no reason").astype(str))
        for model, rows in by_model(without):
            colour = paint(looks[model].colour)
            self.figure.add_scatter(
                x=self.axis.position(rows["tokens"]),
                y=[0.0] * len(rows),
                mode="markers",
                marker={"symbol": "x-thin", "size": 7, "color": colour, "line": {"width": 1.4, "color": colour}},
                opacity=0.8,
                cliponaxis=False,
                name=model,
                legendgroup=model,
                showlegend=False,
                customdata=[(int(step), wrapped(why, 48)) for step, why in rows[["step", "why"]].to_numpy()],
                hovertemplate=f"<b>{model}</b><br>step %{{customdata[0]:,}}: no value"
                "<br>%{customdata[1]}<extra></extra>",
                **where,
            )
            self._has_gaps = True
        if len(without) == len(table) > 0:
            lines = ["<b>No value at any checkpoint</b>", *_reasons(without), *(["", hint] if hint else [])]
            text = "<br>".join(wrapped(line, _LINE) for line in lines)
            write_in_middle(self.figure, text, bgcolor=translucent(WHITE, 0.85), **where)

    def key(self, name: str, dash: str, colour: str = "#555555") -> None:
        """A legend entry for a line style that all models share."""
        add_key(self.figure, name, mode="lines", line={"color": paint(colour), "dash": dash, "width": 2})

    def mark(self, name: str, symbol: str, colour: str = "#555555") -> None:
        """A legend entry for a mark that all models share."""
        look = paint(colour)
        marker = {"symbol": symbol, "size": 8, "color": look, "line": {"width": 1.2, "color": look}}
        add_key(self.figure, name, mode="markers", marker=marker)

    def rings(
        self, rows: pd.DataFrame, entry: str, ring: dict[str, Any], row: int, column: int, hover: str, cells: Iterable
    ) -> None:
        """Rings around values (`step, tokens, value`), each with a cell for the hover text. The key is apart."""
        self.figure.add_scatter(
            x=self.axis.position(rows["tokens"]),
            y=rows["value"],
            mode="markers",
            name=entry,
            legendgroup=entry,
            showlegend=False,
            marker=ring,
            customdata=[[int(step), cell] for step, cell in zip(rows["step"], cells, strict=True)],
            hovertemplate=f"{hover}<extra></extra>",
            row=row,
            col=column,
        )

    def leave_empty(self, text: str, row: int, column: int) -> None:
        """Write in the middle of a panel that has no curves at all, and so no axes."""
        self._empty.add((row - 1) * self.columns + column - 1)
        plot = self.figure.get_subplot(row, column)
        x, y = (sum(axis.domain) / 2 for axis in (plot.xaxis, plot.yaxis))
        write(self.figure, text, x, y, size=12, colour="#555555", xref="paper", yref="paper")

    def name_rows(self, titles: Iterable[str]) -> None:
        """Titles of the y axes on the left, one for each row."""
        for row, title in enumerate(titles, 1):
            self.figure.update_yaxes(title_text=title, row=row, col=1)

    def level(self, y: float, row: int, column: int) -> None:
        """A thin dashed horizontal line."""
        self.figure.add_hline(y=y, line={"dash": "dash", "width": 1, "color": paint("#777777")}, row=row, col=column)

    def name_ends(self, ends: Sequence[tuple[float, str, str]], row: int, column: int) -> None:
        """Write names to the right of the last checkpoint, moved apart if lines end close together.

        `ends` has for each line its last value, its name and its colour.
        """
        ends = sorted(end for end in ends if end[0] == end[0])
        if not ends:
            return
        traces = self.figure.select_traces(row=row, col=column)
        drawn = pd.Series([value for trace in traces if trace.y is not None for value in trace.y], dtype=float)
        # Space for a line of text, in units of the axis, which has its zero.
        span = max(drawn.max(), 0) - min(drawn.min(), 0)
        apart = 14 / (self.height - _FRAME_HEIGHT) * self.rows * max(span, 1e-12) * 1.1
        values = [value for value, _, _ in ends]
        heights = list(accumulate(values, lambda below, value: max(value, below + apart)))
        shift = sum(height - value for height, value in zip(heights, values, strict=True)) / len(ends)
        x = self.axis.range()[1]
        for height, (_, name, colour) in zip(heights, ends, strict=True):
            where = {"row": row, "col": column}
            write(self.figure, name, x, height - shift, colour=colour, xanchor="left", xshift=2, **where)

    def done(self, title: str, subtitle: str, *, legend: bool = True, most_ticks: int | None = None) -> Drawing:
        """Set the axes and titles, and return the drawing."""
        if self._has_gaps:
            self.mark("no value: point at it for the reason", "x-thin")
        figure = self.figure
        # Shares and probabilities are read from zero; an axis with a range of its own keeps it.
        figure.update_yaxes(rangemode="tozero")
        filled = {trace.yaxis or "y" for trace in figure.data if trace.y is not None and pd.notna(list(trace.y)).any()}
        for axis in figure.select_yaxes():  # Left to itself an empty one would end with a tick at its very top.
            if axis.range is None and axis.plotly_name.replace("axis", "") not in filled:
                axis.range = [0, 1.05]
        drawing = finish(figure, title, subtitle, width=self.width, height=self.height, legend=legend)
        figure.update_layout(margin={"l": 78, "r": self._margin_right, "t": figure.layout.margin.t + self._title_room})
        self.axis.apply(figure, most=most_ticks or max(4, self.panel_width // 46), title="")
        self.axis.mark_break(figure)
        for panel in range(self.rows * self.columns):
            where = {"row": 1 + panel // self.columns, "col": 1 + panel % self.columns}
            if panel >= self.n_panels:
                figure.update_xaxes(visible=False, **where)
                figure.update_yaxes(visible=False, **where)
            elif panel + self.columns >= self.n_panels or panel + self.columns in self._empty:
                figure.update_xaxes(title_text=self.axis.title, showticklabels=True, **where)
        return drawing

    def _band(
        self, x: pd.Series, low: pd.Series, high: pd.Series, colour: str, entry: str, where: dict[str, int]
    ) -> None:
        """A filled outline for each run of finite values: a gap in the line is a gap in the band.

        A single checkpoint has no width to fill, so it gets a bar.
        """
        finite = low.notna() & high.notna() & x.notna()
        runs = (finite != finite.shift()).cumsum()[finite]
        for _, run in runs.groupby(runs):
            at = run.index
            self.figure.add_scatter(
                x=[*x[at], *x[at][::-1]],
                y=[*high[at], *low[at][::-1]],
                fill="toself",
                fillcolor=translucent(colour, 0.18),
                line={"width": 0 if len(at) > 1 else 4, "color": translucent(colour, 0.4)},
                mode="lines",
                legendgroup=entry,
                showlegend=False,
                hoverinfo="skip",
                **where,
            )


def grid_of_panels(
    titles: Sequence[str], columns: int, axis: TimeAxis, **options: Any
) -> tuple[Panels, list[tuple[int, int]]]:
    """Panels row by row, at most `columns` side by side, and their places; further options are those of `Panels`."""
    columns = min(columns, len(titles))
    places = [(1 + n // columns, 1 + n % columns) for n in range(len(titles))]
    return Panels(places[-1][0], columns, axis, titles, n_panels=len(titles), **options), places


def task_panels(table: pd.DataFrame, rows: int, panel_height: int = _PANEL_HEIGHT) -> tuple[Panels, list[str]]:
    """Panels with a column for each task of a table, and the tasks."""
    tasks = tasks_in(table)
    titles = [task_label(task) for task in tasks]
    return Panels(rows, len(tasks), TimeAxis.of(table), titles, panel_height=panel_height), tasks


def row_of_panels(titles: Sequence[str], least: int) -> tuple[go.Figure, int]:
    """A row of panels whose x axis is not time, and its width in pixels, which is at least about `least`."""
    width = _FRAME_WIDTH + max(_PANEL_WIDTH * len(titles), least)
    figure = make_subplots(cols=len(titles), subplot_titles=titles, horizontal_spacing=min(0.2, 70 / width))
    return figure.update_annotations(font_size=15), width


def grid_of_matrices(titles: Sequence[str], columns: int, **spacing: float) -> tuple[go.Figure, list[dict[str, int]]]:
    """Panels for matrices, row by row, and their places, as plotly names them; `spacing` is that of its subplots."""
    places = [{"row": 1 + n // columns, "col": 1 + n % columns} for n in range(len(titles))]
    return make_subplots(places[-1]["row"], columns, subplot_titles=titles, **spacing), places


def for_both_widths(draw: Callable[..., Drawing], *what: Any) -> Drawing:
    """What a function draws that can draw for narrow pages too, with `narrow=True`."""
    return replace(draw(*what), narrow=lambda: draw(*what, narrow=True).figure)
