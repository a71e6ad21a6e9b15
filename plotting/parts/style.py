"""What every figure shares: one look per model, names of tasks and metrics, notes, headings and margins.

Marker shapes repeat the distinction of colours for print in grey.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from circuits_over_time.utils.config.keys import task_and_method
from circuits_over_time.utils.tasks.metrics import ALL_METRICS
from circuits_over_time.utils.tasks.registry import TASKS

from .theme import paint, readable_on, theme_in_use

SIZE_LOOKS = {
    "14m": ("#777777", "x"),
    "31m": ("#999933", "cross"),
    "70m": ("#56B4E9", "square"),
    "160m": ("#E69F00", "circle"),
    "410m": ("#009E73", "diamond"),
    "1b": ("#882255", "star"),
    "1.4b": ("#D55E00", "triangle-up"),
    "2.8b": ("#0072B2", "triangle-down"),
    "6.9b": ("#CC79A7", "pentagon"),
    "12b": ("#000000", "hexagon"),
}
OTHER_LOOKS = (
    ("#332288", "circle"),
    ("#117733", "square"),
    ("#AA4499", "diamond"),
    ("#44AA99", "triangle-up"),
    ("#AA7733", "cross"),
    ("#661100", "x"),
)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class ModelLook:
    """How a model is drawn: `colour` (hex), `symbol` (plotly marker), `dash` (plotly line)."""

    colour: str
    symbol: str
    dash: str


Looks = Mapping[str, ModelLook]
"""The look of every model, by name."""


def model_looks(models: Iterable[str]) -> dict[str, ModelLook]:
    """The look of every model among `models`, which should be all the models of a results folder.

    A Pythia size has the same colour and symbol in every figure of every folder; further models of the size (other
    seeds, the deduplicated data) share them and differ in dash. Other models take the remaining looks in order of name.
    """
    looks: dict[str, ModelLook] = {}
    taken: dict[tuple[str, str], int] = {}
    others = 0
    for model in sorted(set(models), key=lambda name: (len(name), name)):
        match = re.fullmatch(r"pythia-([\d.]+[mb])(-.*)?", model)
        if match and match[1] in SIZE_LOOKS:
            look = SIZE_LOOKS[match[1]]
        else:
            look = OTHER_LOOKS[others % len(OTHER_LOOKS)]
            others += 1
        nth = taken.get(look, 0)
        taken[look] = nth + 1
        looks[model] = ModelLook(look[0], look[1], _DASHES[nth % len(_DASHES)])
    return looks


def model_order(models: Iterable[str]) -> list[str]:
    """Models by the size in their name, then by name: pythia-70m before pythia-160m before pythia-1.4b."""
    return sorted(set(models), key=lambda model: (nominal_size(model) or 0.0, model))


def nominal_size(model: str) -> float | None:
    """Number of parameters that a name such as `pythia-1.4b` states, or None where it states none."""
    match = re.search(r"(?:^|[-_])(\d+(?:\.\d+)?)([kmb])(?:$|[-_])", model.lower())
    return float(match[1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[match[2]] if match else None


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names, each once: first those that are known, in that order, then the others by name."""
    place = {name: n for n, name in enumerate(known)}
    return sorted(set(names), key=lambda name: (place.get(name, len(place)), name))


def task_order(tasks: Iterable[str]) -> list[str]:
    """Tasks in the order of the study, then the others by name; circuits by other methods follow their task's."""
    names = {name: task_and_method(name) for name in tasks}
    order = in_order([task for task, _ in names.values()], TASKS)
    return sorted(names, key=lambda name: (order.index(names[name][0]), name))


def metric_label(metric: str) -> str:
    """A metric's name as figures write it, with its unit."""
    return ALL_METRICS[metric].label if metric in ALL_METRICS else metric.replace("_", " ")


def within(values: Iterable[float], low: float, high: float) -> tuple[list[float], bool]:
    """An axis range that holds the values, but no wider than [low, high], and whether it cuts any off.

    Before a model can do a task, shares of its metric are quotients of noise and would flatten everything else.
    """
    finite = [float(value) for value in values if value == value]
    bottom, top = max(min(finite, default=0.0), low), min(max(finite, default=1.0), high)
    pad = 0.05 * max(top - bottom, 0.1)
    # What is nowhere negative begins nowhere below 0.
    return [bottom - pad if bottom < 0 else max(bottom - pad, 0.0), top + pad], any(
        not bottom <= value <= top for value in finite
    )


def small(text: str, size: float = 12) -> str:
    """Markup of a smaller, fainter text."""
    return f"<span style='font-size:{size:.4g}px;color:{paint('#555555')}'>{text}</span>"


def note(
    text: str, x: float, y: float, *, size: float = 11, colour: str = "#666666", on: str = "", **options: Any
) -> dict[str, Any]:
    """A text without an arrow, perhaps `on` a coloured bar; further options are those of plotly's annotations."""
    font = {"size": size, "color": readable_on(paint(on)) if on else paint(colour)}
    ground = {"bgcolor": paint(on)} if on else {}
    return {"text": text, "x": x, "y": y, "showarrow": False, "font": font, **ground, **options}


def write(figure: go.Figure, text: str, x: float, y: float, **options: Any) -> None:
    """Write a `note`."""
    figure.add_annotation(**note(text, x, y, **options))


def add_key(figure: go.Figure, name: str, **look: Any) -> None:
    """An entry of the legend for a look that no single curve stands for: `mode=`, `line=`, `marker=`."""
    figure.add_trace(go.Scatter(x=[None], y=[None], name=name, hoverinfo="skip", **look))


# Pixels above the panels: their own titles; and in a file the heading, with and without a legend below it.
_PANEL_TITLES = 34
_HEADING, _HEADING_WITH_LEGEND, _TITLE = 78, 108, 66
# Pixels of a legend's row, of an entry without its name, and of a letter of a name.
_LEGEND_ROW, _LEGEND_ENTRY, _LEGEND_LETTER = 30, 46, 6.8


@dataclass(frozen=True)
class Drawing:
    """A figure and what belongs to it. The heading is apart: files have it above the panels, the report as text.

    Attributes:
        figure: the panels, without a title and without room for one.
        title: what is shown, in plotly's markup of text.
        subtitle: one line on how to read it, alike.
        narrow: makes the same with the names of its rows inside, where a narrow page needs that.
        table: its numbers, written beside it as CSV.
        details: HTML that the report has below it.
        pages: draws the same in parts by file name, for paper on which it would be longer than a page.
    """

    figure: go.Figure
    title: str
    subtitle: str = ""
    narrow: Callable[[], go.Figure] | None = None
    table: pd.DataFrame | None = None
    details: str = ""
    pages: Callable[[], dict[str, "Drawing"]] | None = None

    def titled(self, *, title: bool = True) -> go.Figure:
        """A copy of the figure with the heading, unless without its `title`, and any legend above the panels."""
        figure = go.Figure(self.figure)
        layout = figure.layout
        room = _HEADING_WITH_LEGEND + _LEGEND_ROW * (self._legend_rows() - 1) if layout.showlegend else _HEADING
        room -= 0 if title else _TITLE
        height = layout.height + room
        faint = f"<br>{small(self.subtitle, 13)}" if self.subtitle else ""
        return figure.update_layout(
            height=height,
            margin_t=layout.margin.t + room,
            title={
                "text": f"<b>{self.title}</b>{faint}" if title else None,
                "font": {"size": 19},
                "x": 0,
                "xref": "paper",
                "y": 1 - 32 / height,
            },
            legend={"x": 0, "xref": "paper", "y": 1 - (76 - (0 if title else _TITLE)) / height, "yref": "container"},
        )

    def _legend_rows(self) -> int:
        """About how many rows the legend takes, from the lengths of its names."""
        layout = self.figure.layout
        names = [trace.name for trace in self.figure.data if trace.name and trace.showlegend is not False]
        room = layout.width - (layout.margin.l or 0) - (layout.margin.r or 0)
        rows, left = 1, room
        for name in names:
            if (width := _LEGEND_ENTRY + _LEGEND_LETTER * len(name)) > left:
                rows, left = rows + 1, room
            left -= width
        return rows


def finish(
    figure: go.Figure, title: str, subtitle: str = "", *, width: int, height: int, legend: bool = True
) -> Drawing:
    """Give a drawn figure the template of the theme in use, in place, and a heading.

    Traces of one name get one entry in the legend, however many panels they are in. Width and height are pixels in PNG
    and PDF; the HTML fills the window but keeps the height.
    """
    named: set[str] = set()
    for trace in figure.data if legend else ():
        if trace.name and trace.showlegend is None:
            trace.showlegend = trace.name not in named
            named.add(trace.name)
    margin = {"l": 72, "r": 28, "t": _PANEL_TITLES, "b": 78}
    theme = theme_in_use()
    figure.update_layout(template=theme.template, width=width, height=height, margin=margin, showlegend=legend)
    theme.begin()
    return Drawing(figure, title, subtitle)


def colour_bar(length: int, **title: Any) -> dict[str, Any]:
    """The scale of colours right of the top row of matrices that are `length` pixels high; `title` is plotly's."""
    where = {"x": 1.01, "lenmode": "pixels", "len": length, "y": 1, "yanchor": "top"}
    return {"title": {"side": "right", **title}, "thickness": 14, **where}
