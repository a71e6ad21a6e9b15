"""A drawing laid out for print: of a given width, with text of a given size.

Everything follows from the width in letters. Small multiples stand in as many columns as are wide enough; ticks, titles
and legend take the room that their text needs, and what is left is the panels'. Widths of text are estimated from
classes of letters, as in Helvetica.
"""

import html
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from circuits_over_time.utils.base.errors import UserError

from .options import PIXELS, Style
from .style import Drawing, small
from .style import note as annotation
from .tables import logger
from .theme import INK, drawn_in, theme_in_use

# All in letters (the size of text). Least width of a figure, of a panel, of a matrix; least height of a panel.
_LEAST, _NARROWEST, _MATRIX, _LOWEST = 18, 5.2, 8, 3.5
# Height of a line, space at the page's edges, and between things.
_LINE, _EDGE, _GAP = 1.3, 0.5, 0.6
# Heights of panels, and from how many rows on they are lower: a page has to hold them.
_LOW, _LOWER, _HIGH, _MANY_ROWS = 6, 4.6, 11, 7
_COLOUR_BAR = 5.2
# Rows with their names above them, and the shift in pixels of such a name; longest line of a matrix's names.
_DENSE, _NAME_SHIFT, _NAME = 0.75, 8, 8
# From this width on, names of rows stand beside them.
_NAMES_BESIDE = 42
# Text size on the screen, to which figures' own pixels refer.
_SCREEN = 13
# In pixels: of a legend's entry without its name, and between its rows.
_LEGEND_ENTRY, _LEGEND_ROW = 47, 4
_LABELS = ("type", "range", "tickvals", "ticktext", "categoryarray")
# What has attributes of its own, beside the axes.
_PARTS = {"colorbar", "error_x", "error_y", "font", "line", "margin", "marker", "textfont", "tickfont", "title"}
_NARROW, _WIDE = set("fijlrtI.,:;'|()[]-! /"), set("mwMW%@→")


def styled(drawing: Drawing, style: Style, *, bare: bool = False) -> go.Figure:
    """A figure drawn in the style's theme, of the size that it asks for.

    `bare` leaves out title and legend, which a page has for itself.

    Raises:
        UserError: if the style's width or height is too small for the figure, or its theme cannot be read.
    """
    with drawn_in(style.look):
        if style.sized:
            return _fitted(drawing, style, bare)
        return go.Figure(drawing.figure) if bare else drawing.titled(title=style.title)


class _Part:
    """A part of a figure, read and changed like plotly's own, which take a millisecond to check each value.

    An attribute that is None is absent.
    """

    def __init__(self, values: dict[str, Any], whole: "_Part | None" = None, name: str = "") -> None:
        vars(self).update(values=values, whole=whole, name_in_whole=name, parts={})

    def __getattr__(self, name: str) -> Any:
        return self.part(name) if name in _PARTS else self.values.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if value is None:
            self.values.pop(name, None)
        else:
            self.values[name] = value
            if self.whole is not None and not self.whole.values.get(self.name_in_whole):
                setattr(self.whole, self.name_in_whole, self.values)

    __getitem__, __setitem__ = __getattr__, __setattr__

    def part(self, name: str) -> "_Part":
        """A part of this part, as it is, or an empty one that will be in it when something in it is set."""
        if name not in self.parts:
            self.parts[name] = _Part(self.values.get(name) or {}, self, name)
        return self.parts[name]

    def update(self, **values: Any) -> None:
        """Set several attributes."""
        for name, value in values.items():
            setattr(self, name, value)


@dataclass
class _Panel:
    """A panel: its axes in the layout, its place among the others, and what is written around it."""

    x: Any
    y: Any
    names: tuple[str, str]
    row: int
    column: int
    native_row: int
    native_column: int
    domain: tuple[float, float]
    title: Any = None
    notes: list[Any] = field(default_factory=list)
    traces: list[Any] = field(default_factory=list)
    y_title: str = ""
    own_x_title: str = ""
    name: str = ""
    alone: Any = None

    @property
    def is_matrix(self) -> bool:
        maps = [trace for trace in self.traces if trace.type == "heatmap"]
        return any(len(one.z) == len(one.z[0]) or (one.y is not None and isinstance(one.y[0], str)) for one in maps)

    @property
    def has_rows(self) -> bool:
        """Whether its height counts rows of text."""
        return self.y.tickvals is not None and self.y.type != "log"


def text_width(text: str) -> float:
    """Width of a text's longest line, in letters' size; markup takes none."""
    lines = html.unescape(re.sub(r"<(?!br)[^>]*>", "", text)).split("<br>")
    widths = (
        sum(0.31 if c in _NARROW else 0.88 if c in _WIDE else 0.68 if c.isupper() else 0.565 for c in line)
        for line in lines
    )
    return max(widths)


def fold(text: str, room: float) -> str:
    """Text with markup in lines of at most `room` letters; what non-breaking spaces join stays whole."""
    lines = []
    for line in text.split("<br>"):
        current = ""
        for word in re.findall(r"(?:<[^>]*>|[^ <]|<(?![^>]*>))+", line):
            longer = f"{current} {word}" if current else word
            if current and text_width(longer) > room:
                lines.append(current)
                longer = word
            current = longer
        lines.append(current)
    return "<br>".join(lines)


def _lines(text: str) -> int:
    return 1 + text.count("<br>")


def _fitted(drawing: Drawing, style: Style, bare: bool) -> go.Figure:
    em, native = style.text_pixels, drawing.figure
    width = style.width or float(native.layout.width)
    if width < _LEAST * em:
        least = _LEAST * em / PIXELS["in"]
        raise UserError(
            f"width: {width / PIXELS['in']:.3g}in is under {_LEAST} letters; ask for {least:.2g}in, or smaller text"
        )
    names_inside = width / em < _NAMES_BESIDE < native.layout.width / em
    chosen = drawing.narrow() if drawing.narrow and names_inside else native
    page = _Page(chosen, drawing, width, em, bare=bare)
    page.lay_out(style)
    return go.Figure([part.values for part in page.traces], page.layout.values)


class _Page:
    """What a figure is made of, which is laid out anew in place."""

    def __init__(self, figure: go.Figure, drawing: Drawing, width: float, em: float, *, bare: bool) -> None:
        self.drawing, self.width, self.em, self.bare = drawing, width, em, bare
        self.traces = [_Part(trace.to_plotly_json()) for trace in figure.data]
        self.layout = layout = _Part(figure.layout.to_plotly_json())
        self.notes = [_Part(note) for note in layout.annotations or ()]
        self.native_height = layout.height - (layout.margin.t or 0) - (layout.margin.b or 0)
        self.below: list[str] = []
        """Lines of text that stand below the panels."""
        self.panels = self._find_panels()
        for panel in self.panels:
            wide = max(map(text_width, _texts(panel, "y")), default=0) > _NAME
            if wide and panel.is_matrix and panel.y.ticktext is None:
                for axis, letter in ((panel.x, "x"), (panel.y, "y")):
                    names = _texts(panel, letter)
                    axis.update(tickmode="array", tickvals=names, ticktext=[fold(name, _NAME) for name in names])
        self.matrices = any(panel.is_matrix for panel in self.panels)
        # What makes the labels of two axes the same.
        labels = {tuple(str(panel.x[key]) for key in _LABELS) for panel in self.panels}
        self.shared = not self.matrices and len(labels) == 1
        ends = [text_width(note.text) for panel in self.panels for note in panel.notes if _is_end_name(note)]
        self.ends = max(ends, default=0) + 0.2 * bool(ends)

    def lay_out(self, style: Style) -> None:
        """Give every part its place. Paper coordinates are those of the page, because there are no margins."""
        em = self.em
        self._set_text()
        rows, left, panel_width = self._columns_that_fit()
        heights = [self._height(panels, panel_width) for panels in rows]
        for panel in self.panels:
            if panel.title is not None:
                panel.title.text = fold(panel.title.text, panel_width / em + 1.5)
        self._fit_nodes(panel_width)
        self._fit_notes(heights, panel_width)
        heading, above = self._heading(style.title and not self.bare)
        tops = [self._above(panels, first=panels is rows[0]) for panels in rows]
        bottoms = [max(self._set_x_axis(panel, panel_width) for panel in panels) for panels in rows]
        x_title = self._one_x_title()
        for panel in self.panels if x_title else []:
            panel.x.title.text = None
        legend = self._legend()
        below = ["<br>".join(self.below)] if self.below else []
        foot = (1.4 * _LINE * em if x_title else 0) + sum(_LINE * em * _lines(text) + 0.6 * em for text in below)
        rest = above + sum(tops) + sum(bottoms) + foot + legend + _EDGE * em
        if style.height:
            heights = self._scaled(heights, style.height - rest, rest)
        height = rest + sum(heights)
        at = above
        for panels, own, top, bottom in zip(rows, heights, tops, bottoms, strict=True):
            at += top
            for panel in panels:
                x0 = sum(left[: panel.column + 1]) + panel.column * panel_width
                x, y = (x0, x0 + panel_width), (height - at - own, height - at)
                self._place(panel, [part / self.width for part in x], [part / height for part in y], own)
            at += own + bottom
        self._draw_foot(x_title, below, 1 - (at + 0.1 * em) / height, height)
        heading["y"] = 1 - (_EDGE + 0.9) * em / height
        key = {"traceorder": "grouped", "tracegroupgap": _LEGEND_ROW - 2}
        self.layout.update(width=round(self.width, 2), height=round(height, 2))
        self.layout.margin.update(l=0, r=0, t=0, b=0, pad=0, autoexpand=False)
        self.layout.title.update(**heading)
        self.layout.showlegend = bool(legend)
        key |= {"x": _EDGE * em / self.width, "y": (legend + 0.2 * em) / height}
        self.layout.part("legend").update(**key)
        self._thin_lines(panel_width)
        self._fit_cells(panel_width, heights)

    def _columns_that_fit(self) -> tuple[list[list[_Panel]], list[float], float]:
        """Rows of panels in as many columns as leave them wide enough; room left of each column; a panel's width."""
        titles = [panel.y_title for panel in self.panels]
        n_columns = max(panel.native_column for panel in self.panels) + 1
        least = _MATRIX if self.matrices and len(self.panels) > 1 else _NARROWEST
        for most in range(n_columns, 0, -1):
            for panel, title in zip(self.panels, titles, strict=True):
                panel.y_title = title
            rows = self._arrange(most)
            width = 0.0
            # Titles of axes are folded at the panels' heights, which follow from their widths.
            for again in range(2):
                columns = [[p for p in self.panels if p.column == c] for c in range(max(map(len, rows)))]
                left = [self._left(column) for column in columns]
                # To the right of the last column: half a label, names of lines, the scale of colours.
                last = max(
                    (text_width(str(panel.x.ticktext[-1])) for panel in self.panels if panel.x.ticktext), default=0
                )
                right = self.em * (max(1.5, last / 2) + self.ends + (_COLOUR_BAR if self.matrices else 0))
                width = (self.width - sum(left) - right) / len(left)
                for panel in self.panels if not again else []:
                    high = self._height(rows[panel.row], width) / self.em + 0.3
                    if text_width(panel.y_title) > high:
                        panel.y_title = fold(panel.y_title.replace("<br>", " "), high)
            if width >= least * self.em or most == 1:
                break
        for panel in self.panels:
            panel.y.title.text = panel.y_title or None
        return rows, left, width

    # What there is.

    def _find_panels(self) -> list[_Panel]:
        """The panels, row by row, with their titles, notes and traces."""
        layout = self.layout
        there = []
        for name, x in self._axes("x").items():
            if x.visible is not False:
                y_name = "yaxis" + (x.anchor or "y")[1:]
                there.append((x, layout.part(y_name), ("x" + name[5:], "y" + y_name[5:])))
        if not there:
            there = [(layout.part("xaxis"), layout.part("yaxis"), ("x", "y"))]
        lefts = sorted({round((x.domain or (0, 1))[0], 4) for x, _, _ in there})
        tops = sorted({-round((y.domain or (0, 1))[1], 4) for _, y, _ in there})
        panels = []
        for x, y, names in there:
            row, column = tops.index(-round((y.domain or (0, 1))[1], 4)), lefts.index(round((x.domain or (0, 1))[0], 4))
            traces = [trace for trace in self.traces if (trace.xaxis or "x", trace.yaxis or "y") == names]
            titles: dict[str, Any] = {"y_title": y.title.text or "", "own_x_title": x.title.text or ""}
            panels.append(
                _Panel(x, y, names, row, column, row, column, tuple(y.domain or (0, 1)), traces=traces, **titles)
            )
        panels.sort(key=lambda panel: (panel.row, panel.column))
        for note in self.notes:
            self._give(note, panels)
        return panels

    def _axes(self, letter: str) -> dict[str, _Part]:
        """The axes of a direction by name; the first is there though nothing of it is set."""
        names = [name for name in self.layout.values if re.fullmatch(rf"{letter}axis\d+", name)]
        return {name: self.layout.part(name) for name in (f"{letter}axis", *names)}

    def _give(self, note: Any, panels: list[_Panel]) -> None:
        """Give an annotation to its panel: as its title, or as a note in it."""
        if note.xref != "paper" or note.yref != "paper":
            for panel in panels:
                if panel.names[0] == (note.xref or "x").split()[0] or panel.names[1] == (note.yref or "y").split()[0]:
                    panel.notes.append(note)
                    if note.xref == "paper":  # One panel: the paper is the panel.
                        note.xref = f"{panel.names[0]} domain"
                    return
        for panel in panels:
            (x0, x1), (y0, y1) = panel.x.domain or (0, 1), panel.y.domain or (0, 1)
            if np.isclose(note.x, (x0 + x1) / 2, atol=1e-6) and np.isclose(note.y, y1, atol=1e-6):
                panel.title, panel.name = note, note.text.partition("<br>")[0]
                return
            if x0 - 1e-6 <= note.x <= x1 + 1e-6 and y0 - 1e-6 <= note.y <= y1 + 1e-6:
                if not panel.traces:  # Without axes to refer to, it is placed with its panel.
                    panel.alone = note
                elif note.yanchor == "top" and not note.y:  # A list below the panel.
                    self.below += [fold(line, self.width / self.em - 2 * _EDGE) for line in note.text.split("<br>")]
                    note.visible = False
                else:
                    panel.notes.append(note)
                    note.update(
                        xref=f"{panel.names[0]} domain",
                        yref=f"{panel.names[1]} domain",
                        x=(note.x - x0) / (x1 - x0),
                        y=(note.y - y0) / (y1 - y0),
                    )
                return

    def _set_text(self) -> None:
        """All text has one size; what is small on the screen, inside marks, keeps its share of it."""
        em = self.em
        self.layout.font.size = self.layout.part("hoverlabel").font.size = em
        for axis in (*self._axes("x").values(), *self._axes("y").values()):
            axis.tickfont.size = axis.title.font.size = em
        for axis in self._axes("x").values():
            # On a screen the first label has words for its lines, which in print would reach into the next panel.
            if axis.ticktext is not None:
                axis.ticktext = [re.sub("\xa0{2,}|tokens |steps ", "", str(text)) for text in axis.ticktext]
        for note in self.notes:
            small = (note.font.size or _SCREEN) < 11
            note.font.size = em * (0.85 if small else 1)
            note.text = re.sub(r"font-size:\d+px;?", "", note.text or "")
            for shift in ("xshift", "yshift"):
                if note[shift]:
                    note[shift] *= em / _SCREEN * (_DENSE if note[shift] > _NAME_SHIFT else 1)
        for trace in self.traces:
            if trace.type == "heatmap":
                trace.textfont.size = 0.85 * em
                trace.colorbar.tickfont.size = trace.colorbar.title.font.size = em
                trace.colorbar.update(outlinewidth=0, thickness=0.8 * em, xpad=0.4 * em, ypad=0)

    # Rows and columns.

    def _arrange(self, most: int) -> list[list[_Panel]]:
        """Rows of panels, at most so many side by side; sets their rows and columns."""
        panels, n_columns = self.panels, max(panel.native_column for panel in self.panels) + 1
        for panel in panels:
            panel.row, panel.column = panel.native_row, panel.native_column
        by_row = [[panel for panel in panels if panel.row == row] for row in sorted({panel.row for panel in panels})]
        titled = all(panel.title is not None for panel in panels)
        if len(by_row) == 1 or (titled and all(len(row) == n_columns for row in by_row[:-1])):
            by_row = [panels]
        if titled or len(by_row) == 1:  # Each row of its own.
            rows = [part for row in by_row for part in _parts(row, most)]
        else:  # Columns of panels belong together.
            first = {panel.row: panel.y_title for panel in panels if panel.column == 0}
            rows = []
            for columns in _parts(range(n_columns), most):
                for row in by_row:
                    rows.append([panel for panel in row if panel.column in columns])
                    if rows[-1]:
                        rows[-1][0].y_title = rows[-1][0].y_title or first.get(rows[-1][0].row, "")
            rows = [row for row in rows if row]
        for number, row in enumerate(rows):
            for column, panel in enumerate(row):
                panel.row, panel.column = number, column
            # A title like its left neighbour's is not said again.
            repeated = [panel for before, panel in itertools.pairwise(row) if panel.y_title == before.y_title]
            for panel in repeated:
                panel.y_title = ""
        return rows

    def _left(self, panels: list[_Panel]) -> float:
        """Room to the left of a column of panels, for labels of ticks and titles."""
        labels = max(_tick_label_width(panel) for panel in panels)
        titles = max((_lines(panel.y_title) * _LINE + 0.3 if panel.y_title else 0) for panel in panels)
        for panel in panels:
            panel.y.title.standoff = 0.25 * self.em
        names = self.ends + _GAP if panels[0].column else 0
        return self.em * (labels + titles + names + (0.7 if labels else 0.4))

    # Heights.

    def _height(self, panels: Sequence[_Panel], width: float) -> float:
        """Height of a row of panels: of its rows of text, square for matrices, else three quarters of the width."""
        em, native = self.em, self.native_height * max(y1 - y0 for y0, y1 in [panel.domain for panel in panels])
        if any(panel.is_matrix for panel in panels):
            return width
        if any(panel.has_rows for panel in panels):
            # Rows with their names above them are closer on paper than on a screen.
            bare = [panel for panel in panels if panel.y.showticklabels is False]
            dense = any((note.yshift or 0) > 5 for panel in bare for note in panel.notes)
            return native * em / _SCREEN * (_DENSE if dense else 1)
        many = max(panel.row for panel in self.panels) >= _MANY_ROWS - 1
        low = _LOWER if many and not self.bare else _LOW  # A page of the report has no end.
        return float(np.clip(0.75 * width * low / _LOW, low * em, min(native / _SCREEN, _HIGH) * em))

    def _scaled(self, heights: list[float], room: float, rest: float) -> list[float]:
        """The heights of rows of panels in the room that a given height leaves."""
        factor = room / sum(heights)
        if min(heights) * factor < _LOWEST * self.em:
            least = (rest + _LOWEST * self.em * sum(heights) / min(heights)) / PIXELS["in"]
            raise UserError(
                f"height: '{self.drawing.title}' needs {least:.2g}in at this width; ask for more, or leave it out"
            )
        return [height * factor for height in heights]

    def _heading(self, shown: bool) -> tuple[dict[str, Any], float]:
        """Title and subtitle, and the room above the panels."""
        em, room = self.em, self.width / self.em - 2 * _EDGE
        if not shown:
            return {"text": None}, _EDGE * em
        title, subtitle = fold(self.drawing.title, room / 1.3), fold(self.drawing.subtitle, room)
        faint = f"<br>{small(subtitle, em)}" if subtitle else ""
        heading: dict[str, Any] = {"font": {"size": 1.2 * em}, "text": f"<b>{title}</b>{faint}"}
        heading |= {"x": _EDGE * em / self.width, "xref": "container"}
        # Plotly sets the distance of all lines by the first one's size.
        height = em * (1.2 * 1.3 * (_lines(title) + (_lines(subtitle) if subtitle else 0)) + _EDGE)
        return heading, height + 0.8 * em

    def _above(self, panels: list[_Panel], *, first: bool) -> float:
        """Room above a row of panels, for titles."""
        titles = [_lines(panel.title.text) for panel in panels if panel.title is not None and panel.title.text]
        top_ticks = 1.4 if any(panel.x.side == "top" for panel in panels) else 0
        return self.em * (_LINE * max(titles, default=0) + 0.5 + top_ticks + (0.5 if titles and not first else 0))

    def _set_x_axis(self, panel: _Panel, width: float) -> float:
        """Thin or turn the labels of a panel's x axis; the room below it for them and for the axis's title."""
        em, axis = self.em, panel.x
        below = [other for other in self.panels if other.column == panel.column and other.row > panel.row]
        last = not any(other.traces for other in below)
        # In a block of rows, the lowest has the labels; the next row has other columns.
        lowest = last or self._of_other_columns(panel) or not self.shared
        if axis.visible is False or axis.side == "top":
            _thin_ticks(axis, width / em)
            return 0.3 * em
        axis.showticklabels = lowest
        if not lowest:
            axis.title.text = None
            return 0.35 * em
        labels = _texts(panel, "x")
        room = 0.45
        if axis.type == "category" or (axis.ticktext is None and labels):
            across = sum(text_width(label) + 0.8 for label in labels) <= width / em
            axis.tickangle, flat = 0 if across else -90, [label.replace("<br>", " ") for label in labels]
            room += _LINE * max(map(_lines, labels)) if across else max(map(text_width, flat)) + 0.2
            if not across:
                # From the last on, as many as do not touch.
                every = int(np.ceil(len(labels) * 1.15 * em / width))
                places = list(axis.tickvals) if axis.tickvals is not None else labels
                kept = range(len(labels) - 1, -1, -every)[::-1]
                axis.update(tickmode="array", tickvals=[places[i] for i in kept], ticktext=[flat[i] for i in kept])
        else:
            _thin_ticks(axis, width / em)
            room += _LINE * max((_lines(label) for label in axis.ticktext or [""]), default=1)
        if axis.title.text and not self._one_x_title():
            axis.title.update(text=fold(axis.title.text, width / em + 2), standoff=0.3 * em)
            room += _LINE * _lines(axis.title.text)
        return em * (room + 0.35)

    def _of_other_columns(self, panel: _Panel) -> bool:
        """Whether the next panel with curves in its column is of another one."""
        below = [p for p in self.panels if p.row > panel.row and p.column == panel.column and p.traces]
        following = min(below, key=lambda other: other.row, default=panel)
        several = len(self.panels) > len({p.row for p in self.panels})
        return several and following.native_column != panel.native_column

    def _one_x_title(self) -> str:
        """The title that all x axes share, which stands once below all panels."""
        titles = {panel.own_x_title for panel in self.panels} - {""}
        return titles.pop() if len(titles) == 1 and len(self.panels) > 1 else ""

    # Legend, notes and marks.

    def _legend(self) -> float:
        """Fold the legend's names to the width, and return the height of its rows."""
        if self.bare or not self.layout.showlegend:
            return 0
        room = self.width - 2 * _EDGE * self.em
        groups: dict[str, list[str]] = {}
        for trace in self.traces:
            if trace.name and trace.showlegend is not False:
                trace.legendgroup = trace.legendgroup or trace.name
                # Nobody points at paper.
                trace.name = fold(trace.name.partition(": point at it")[0], (room - _LEGEND_ENTRY) / self.em)
                groups.setdefault(trace.legendgroup, []).append(trace.name)
        rows: list[float] = []
        at = room
        for names in groups.values():
            wide = _LEGEND_ENTRY + self.em * max(map(text_width, names))
            high = sum(max(1.3 * self.em * _lines(name), 16) + 3 for name in names)
            if at + wide > room:
                rows, at = [*rows, high], 0
            rows[-1], at = max(rows[-1], high), at + wide
        return sum(rows) + _LEGEND_ROW * len(rows) + 0.4 * self.em if rows else 0

    def _fit_notes(self, heights: list[float], width: float) -> None:
        """Fold what is written in panels. What does not fit goes below them, or above if it sums a panel up."""
        em, explained = self.em, dict[str, list[str]]()
        for panel in self.panels:
            self._fit_bars(panel, width)
            for note in [note for note in panel.notes if "domain" in str(note.xref) or note.align == "left"]:
                room = width / em - 0.6
                if panel.y.showticklabels is False and (note.yshift or 0) > 5:  # The name of a row, in one line.
                    note.font.size *= min(1, room / text_width(note.text))
                    continue
                text = fold(note.text, room)
                if "domain" in str(note.yref) and note.yanchor == "bottom" and panel.title is None and _lines(text) > 1:
                    note.update(text=fold(note.text, width / em + 0.5), xanchor="center", yref="paper")
                    note.update(xref="paper", bgcolor=None)
                    panel.title = note
                    panel.notes.remove(note)
                    continue
                most = 0.9 * heights[panel.row] / (_LINE * em)
                if panel.has_rows:  # As many as its row has room for.
                    named = note.align != "left" and panel.y.showticklabels is False
                    most = max(_lines(note.text), 3) if note.yanchor == "top" else 1 if named else 2
                if _lines(text) <= most:
                    note.text = text
                    continue
                first, _, rest = note.text.partition(": " if panel.has_rows else "<br>")
                if not rest or not (panel.has_rows or first.startswith("<b>")):
                    note.text = text
                    continue
                note.text = fold(first, width / em - 0.6)
                reasons = rest.replace("<br>", " ") if panel.has_rows else _joined(rest)
                where = panel.name or _row_name(panel, note)
                if where not in explained.setdefault(reasons, []):
                    explained[reasons].append(where)
        for reasons, places in explained.items():
            self.below += [fold(f"{', '.join(filter(None, places))}: {reasons}", self.width / em - 2 * _EDGE)]

    def _fit_bars(self, panel: _Panel, width: float) -> None:
        """Names on bars: in one line or two, or none where a bar is too short."""
        bars = [trace for trace in panel.traces if trace.type == "scatter" and trace.fill == "toself"]
        notes = [note for note in panel.notes if (note.bgcolor or "rgb")[:3] != "rgb" and note.xref != "paper"]
        for note in notes if bars else ():
            for bar in bars:
                (x0, x1), (y0, y1) = (min(bar.x), max(bar.x)), (min(bar.y), max(bar.y))
                if not (x0 <= note.x <= x1 and y0 <= note.y <= y1):
                    continue
                room = (x1 - x0) / abs(panel.x.range[1] - panel.x.range[0]) * width / note.font.size
                flat = note.text.replace("<br>", ".")
                fitting = [text for text in (flat, flat.replace(".", "<br>")) if text_width(text) <= room]
                note.update(text=fitting[0] if fitting else "", visible=bool(fitting))

    def _fit_nodes(self, width: float) -> None:
        """Names of a circuit's nodes in their boxes, in two lines or smaller if they must; ports in wide boxes only."""
        boxes = [shape for shape in map(_Part, self.layout.shapes or ()) if shape.type == "rect"]
        if not boxes or len(self.panels) > 1:
            return
        panel = self.panels[0]
        box = (boxes[0].x1 - boxes[0].x0) / (panel.x.range[1] - panel.x.range[0]) * width / self.em
        names = [note for note in panel.notes if len(note.text) > 1]
        fits = max(text_width(note.text) for note in names) <= box
        for note in panel.notes:
            if len(note.text) == 1:
                note.visible, note.font.size = fits and box > 4, 0.65 * self.em
            elif not fits:
                note.update(text=note.text.replace(".", "<br>"), yshift=0)
        share = box / max(text_width(note.text) for note in names)
        if share < 0.97:
            for note in names:
                note.font.size = share * self.em
            size, wide = share * self.em / PIXELS["pt"], self.width / share / PIXELS["in"]
            advice = "names of nodes are %.1fpt to fit their boxes; ask for a width of %.2gin, or fewer edges"
            logger.warning(f"%s: {advice}", self.drawing.title, size, wide)

    def _place(self, panel: _Panel, x: list[float], y: list[float], height: float) -> None:
        panel.x.domain, panel.y.domain = x, y
        if height < _LOW * self.em and panel.y.tickvals is None and not _texts(panel, "y"):
            panel.y.nticks = _fewest_ticks(panel)
        if panel.alone is not None:
            room = (x[1] - x[0]) * self.width / self.em
            panel.alone.update(text=fold(panel.alone.text.replace("<br>", " "), room), x=sum(x) / 2, y=sum(y) / 2)
            panel.alone.update(xanchor="center", yanchor="middle")
        if panel.title is not None:
            panel.title.update(x=sum(x) / 2, y=y[1], yshift=0.15 * self.em)
        if panel.y.type == "log" and panel.y.tickvals is not None:
            _thin_powers(panel, height / self.em)
        names = [note for note in panel.notes if _is_end_name(note)]
        if names:
            low, high = _extent(panel)
            panel.y.range = [low, high]
            names.sort(key=lambda note: note.y)
            apart = _LINE * self.em / height * (high - low)
            for note, at in zip(names, _moved_apart([note.y for note in names], apart, low, high), strict=True):
                note.y = at

    def _draw_foot(self, x_title: str, below: list[str], at: float, height: float) -> None:
        em = self.em
        look: dict[str, Any] = {"colour": INK, "xref": "paper", "yref": "paper", "yanchor": "top", "borderpad": 0}
        if x_title:
            middle = [sum(panel.x.domain) / 2 for panel in self.panels]
            self._write(x_title, (min(middle) + max(middle)) / 2, at, xanchor="center", **look)
            at -= 1.3 * _LINE * em / height
        for text in below:
            at -= 0.4 * em / height
            self._write(text, _EDGE * em / self.width, at, xanchor="left", align="left", **look)

    def _write(self, text: str, x: float, y: float, **look: Any) -> None:
        written = annotation(text, x, y, size=self.em, **look)
        self.layout.annotations = [*(self.layout.annotations or ()), written]

    def _thin_lines(self, width: float) -> None:
        """Lines and marks become thinner with panels and text."""
        factor = float(np.clip(np.sqrt(width / 345), 0.55, 1)) * min(self.em / _SCREEN, 1.5)
        for trace in self.traces:
            if trace.type != "scatter":
                continue
            if trace.line.width:
                trace.line.width *= factor
            for mark, name in ((trace.marker, "size"), (trace.marker.line, "width")):
                if (value := mark[name]) is not None:
                    mark[name] = (np.asarray(value) * factor).tolist()
            for error in (trace.error_x, trace.error_y):
                if error.thickness:
                    error.update(thickness=error.thickness * factor, width=(error.width or 0) * factor)

    def _fit_cells(self, width: float, heights: list[float]) -> None:
        """Numbers in the cells of matrices where they fit; the scale of colours beside the first matrix."""
        for panel in self.panels:
            for trace in panel.traces:
                if trace.type != "heatmap" or not panel.is_matrix:
                    continue
                trace.showscale = panel is self.panels[0]
                if width / len(trace.z[0]) < 0.85 * self.em * (text_width("0.00") + 0.3):
                    trace.texttemplate = None
                if trace.showscale:
                    x, y = 1 - _COLOUR_BAR * self.em / self.width, panel.y.domain[1]
                    trace.colorbar.update(len=heights[0], lenmode="pixels", x=x, xanchor="left", y=y, yanchor="top")


def _parts(items: Sequence[Any], most: int) -> list[Any]:
    """Items in as few parts of at most `most` as it takes, all about as long."""
    n = -(-len(items) // most)
    length = -(-len(items) // n)
    return [items[i : i + length] for i in range(0, len(items), length)]


def _is_end_name(note: Any) -> bool:
    """Whether a note names a line at its end."""
    return note.xanchor == "left" and note.xref != "paper" and "domain" not in str(note.xref) and bool(note.xshift)


def _moved_apart(heights: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Sorted heights moved apart, about their middle and inside the panel: what is beyond its ends is not drawn."""
    apart = min(apart, (high - low) / max(len(heights) - 1, 1))
    moved = list(itertools.accumulate(heights, lambda before, own: max(own, before + apart)))
    shift = (sum(moved) - sum(heights)) / len(moved)
    places = range(len(moved))
    moved = [min(own - shift, high - apart * (len(moved) - 1 - i)) for i, own in zip(places, moved, strict=True)]
    return [min(max(own, low + apart * i), high) for i, own in zip(places, moved, strict=True)]


def _joined(lines: str) -> str:
    """Reasons that were folded to a panel's width, one after the other: each begins with a name and its steps."""
    text = lines.replace("<br><br>", ". ").replace("<br>", " ").strip()
    return re.sub(r" (?=[^ ,:;]+, steps? [\d,]+)", "; ", text)


def _row_name(panel: _Panel, note: Any) -> str:
    """The name of the row that a note explains: its tick label, or what is written in it."""
    if panel.y.showticklabels is not False and panel.has_rows and not panel.is_matrix:
        rows = [abs(at - note.y) for at in panel.y.tickvals]
        if min(rows) < 0.5:  # Texts stand a little above or below the middle of their row.
            return str(panel.y.ticktext[int(np.argmin(rows))])
    left = [other for other in panel.notes if other is not note and other.xanchor == "left"]
    others = [other for other in left if other.bgcolor in (None, theme_in_use().page)]  # Not what is written on a bar.
    same = [other.text for other in others if other.y == note.y]
    above = sorted((other.y, other.text) for other in others if other.y < note.y)  # Rows run downwards.
    return str(same[0] if same else above[-1][1] if above else "")


def _texts(panel: _Panel, letter: str) -> list[str]:
    """Labels of an axis's ticks as far as they are texts."""
    axis = panel.x if letter == "x" else panel.y
    if axis.ticktext is not None:
        return [str(text) for text in axis.ticktext]
    if axis.categoryarray is not None:
        return [str(text) for text in axis.categoryarray]
    values = [value for trace in panel.traces if trace[letter] is not None for value in trace[letter]]
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))


def _extent(panel: _Panel) -> tuple[float, float]:
    """Ends of a panel's y axis."""
    if panel.y.range is not None:
        return float(min(panel.y.range)), float(max(panel.y.range))
    values = [trace.y for trace in panel.traces if trace.y is not None and len(trace.y)]
    finite = np.concatenate([np.asarray(value, dtype=float) for value in values]) if values else np.zeros(1)
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if panel.y.rangemode == "tozero":
        low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.06 * (high - low or 1)
    return low - pad * (low != 0 or panel.y.rangemode != "tozero"), high + pad


def _fewest_ticks(panel: _Panel) -> int:
    """About how many ticks of a low panel leave it two labels or more: one alone says nothing of the scale."""
    low, high = _extent(panel)
    for most in (3, 4, 5):
        rough = max(high - low, 1e-12) / most
        power = 10 ** np.floor(np.log10(rough))
        step = next(power * part for part in (1, 2, 5, 10) if power * part >= rough * (1 - 1e-9))
        if np.floor(high / step + 1e-9) - np.ceil(low / step - 1e-9) >= 1:
            return most
    return 5


def _tick_label_width(panel: _Panel) -> float:
    """Width of the labels of a panel's y axis, in letters."""
    axis = panel.y
    if axis.visible is False or axis.showticklabels is False:
        return 0
    if texts := _texts(panel, "y"):
        return max(map(text_width, texts))
    low, high = _extent(panel)
    step = 10 ** np.floor(np.log10(max(high - low, 1e-9) / 3))
    decimals = max(0, int(-np.log10(step) + 0.5))
    return max(text_width(f"{end:.{decimals}f}" if abs(end) < 10000 else "100k") for end in (low, high))


def _thin_powers(panel: _Panel, room: float) -> None:
    """Of ticks at 1, 2 and 5 times powers of ten, keep the powers where the others would touch."""
    values = [value for trace in panel.traces for value in np.asarray(trace.y, dtype=float) if value > 0]
    if np.log10(2) / max(np.log10(max(values) / min(values)) + 0.5, 0.5) * room < _LINE:
        kept = [i for i, value in enumerate(panel.y.tickvals) if np.isclose(np.log10(value) % 1, 0)]
        panel.y.update(**{key: [panel.y[key][i] for i in kept] for key in ("tickvals", "ticktext")})


def _thin_ticks(axis: Any, room: float) -> None:
    """Keep the ticks whose labels do not touch: the last, the first, and from the last on what fits between."""
    if axis.tickvals is None or axis.type == "category":
        return
    values, texts = np.asarray(axis.tickvals, dtype=float), list(axis.ticktext)
    low, high = axis.range or (min(values) - 0.5, max(values) + 0.5)
    at = ((np.log10(values) if axis.type == "log" else values) - low) / (high - low) * room
    kept: list[int] = []
    for i in [len(values) - 1, 0, *range(len(values) - 2, 0, -1)]:
        half = text_width(texts[i]) / 2
        if all(abs(at[i] - at[j]) >= half + text_width(texts[j]) / 2 + 0.5 for j in kept if j != i):
            kept.append(i)
    kept = sorted(set(kept))
    axis.update(tickvals=values[kept], ticktext=[texts[i] for i in kept])
