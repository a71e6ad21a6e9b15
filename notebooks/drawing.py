"""The notebooks' own figures: maps of heads, of attention and of answers, in the look of `plotting/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from circuits_over_time.plotting.parts.style import Drawing, finish
from circuits_over_time.plotting.parts.theme import INK, NEGATIVE, POSITIVE, SERIES

SIGNED = [[0.0, NEGATIVE], [0.5, "#ffffff"], [1.0, POSITIVE]]
UNSIGNED = [[0.0, "#ffffff"], [1.0, POSITIVE]]
# Cells up to this many columns hold their number.
MOST_NUMBERED = 8


@dataclass(frozen=True)
class Axis:
    """An axis of a map: its title and its ticks' labels, in order."""

    title: str
    labels: Sequence[str | int]


def draw_head_maps(
    panels: Mapping[str, Float[Tensor, "layer head"]],
    title: str,
    subtitle: str,
    unit: str,
    *,
    signed: bool = True,
    darkest: float | None = None,
) -> Drawing:
    """One map of heads per panel, layers upwards, on one colour scale.

    Args:
        panels: values by panel title.
        title: what is shown.
        subtitle: how to read it.
        unit: of the values, written at the colour bar.
        signed: colours for values of both signs (white is 0), or from 0 up.
        darkest: value from which on the colour stays the same; by default the largest.
    """
    n_layers, n_heads = next(iter(panels.values())).shape
    heads, layers = Axis("head", range(n_heads)), Axis("layer", range(n_layers))
    return draw_maps(panels, heads, layers, title, subtitle, unit, signed=signed, darkest=darkest)


def draw_attention(
    patterns: Mapping[str, Float[Tensor, "query key"]], tokens: Sequence[str], title: str, subtitle: str
) -> Drawing:
    """Attention of heads on one prompt: each row is a token that attends, each column a token attended to.

    Args:
        patterns: attention probabilities by head.
        tokens: the prompt's tokens as text.
        title: what is shown.
        subtitle: how to read it.
    """
    # A token may come twice, but plotly wants different names.
    labels = [f"{place} {escape(token.strip())}" for place, token in enumerate(tokens)]
    return draw_maps(
        {head: pattern.flip(0) for head, pattern in patterns.items()},
        Axis("token attended to", labels),
        Axis("token that attends", labels[::-1]),
        title,
        subtitle,
        "attention",
        signed=False,
        cell=19,
        darkest=1.0,
    )


def draw_maps(
    panels: Mapping[str, Float[Tensor, "row column"]],
    columns: Axis,
    rows: Axis,
    title: str,
    subtitle: str,
    unit: str,
    *,
    signed: bool = True,
    cell: int | None = None,
    height_of_cell: int | None = None,
    darkest: float | None = None,
    per_row: int = 3,
    each_own_scale: bool = False,
) -> Drawing:
    """Heat maps side by side.

    Args:
        panels: values by panel title; row 0 is drawn lowest.
        columns: the horizontal axis.
        rows: the vertical axis.
        title: what is shown.
        subtitle: how to read it.
        unit: of the values, written at the colour bar.
        signed: colours for values of both signs (white is 0), or from 0 up.
        cell: pixels of a cell; by default what fits.
        height_of_cell: pixels of a cell, where not as many as it is wide.
        darkest: value from which on the colour stays the same; by default the largest.
        per_row: panels side by side.
        each_own_scale: give each panel its own strongest colour; the colour bar is left out.
    """
    values = {name: panel.detach().float().cpu().numpy() for name, panel in panels.items()}
    n_rows, n_columns = next(iter(values.values())).shape
    grid_columns = min(per_row, len(values))
    grid_rows = -(-len(values) // grid_columns)
    cell = cell or int(np.clip(260 / max(n_rows, n_columns), 7, 52))
    panel_width, panel_height = max(cell * n_columns, 130), max((height_of_cell or cell) * n_rows, 90)
    longest = max(len(str(label)) for label in rows.labels)
    margin = {"l": 50 + 7 * longest, "r": 96, "t": 40, "b": 44 + 7 * max(len(str(label)) for label in columns.labels)}
    between, above = 34, 40
    inner_width = panel_width * grid_columns + between * (grid_columns - 1)
    inner_height = panel_height * grid_rows + above * (grid_rows - 1)
    figure = make_subplots(
        rows=grid_rows,
        cols=grid_columns,
        subplot_titles=list(values),
        shared_yaxes=True,
        shared_xaxes=True,
        horizontal_spacing=between / inner_width if grid_columns > 1 else 0,
        vertical_spacing=above / inner_height if grid_rows > 1 else 0,
    )
    strongest = darkest or max(float(np.abs(panel).max()) for panel in values.values()) or 1.0
    digits = 0 if strongest >= 20 else 2
    for place, (name, panel) in enumerate(values.items()):
        most = (float(np.abs(panel).max()) or 1.0) if each_own_scale else strongest
        figure.add_trace(
            go.Heatmap(
                z=panel,
                x=[str(label) for label in columns.labels],
                y=[str(label) for label in rows.labels],
                colorscale=SIGNED if signed else UNSIGNED,
                zmin=-most if signed else 0.0,
                zmax=most,
                xgap=1 if cell > 10 else 0,
                ygap=1 if cell > 10 else 0,
                texttemplate=f"%{{z:.{digits}f}}" if n_columns <= MOST_NUMBERED else None,
                showscale=place == 0 and not each_own_scale,
                colorbar={
                    "title": {"text": unit, "side": "right", "font": {"size": 12}},
                    "tickfont": {"size": 11},
                    "thickness": 12,
                    "outlinewidth": 0,
                },
                hovertemplate=f"{name}<br>{rows.title} %{{y}}, {columns.title} %{{x}}<br>%{{z:.4g}}<extra></extra>",
            ),
            row=1 + place // grid_columns,
            col=1 + place % grid_columns,
        )
    width = max(inner_width + margin["l"] + margin["r"], 640)
    height = inner_height + margin["t"] + margin["b"]
    drawing = finish(figure, title, subtitle, width=width, height=height, legend=False)
    figure.update_layout(margin=margin)
    # What is left over of a figure that its title needs wider than its panels stays empty on the right.
    if width > inner_width + margin["l"] + margin["r"]:
        figure.update_layout(margin_r=width - inner_width - margin["l"])
    figure.update_annotations(font={"size": 13, "color": INK})
    figure.update_xaxes(type="category", showgrid=False, tickfont_size=11, title_font_size=12, ticks="")
    figure.update_yaxes(type="category", showgrid=False)
    figure.update_xaxes(title_text=columns.title, row=grid_rows)
    figure.update_yaxes(title_text=rows.title, col=1)
    if max(n_rows, n_columns) > 24:
        figure.update_xaxes(nticks=10)
        figure.update_yaxes(nticks=10)
    return drawing


def draw_scatter(
    groups: Mapping[str, tuple[Tensor, Tensor]], title: str, subtitle: str, x_title: str, y_title: str
) -> Drawing:
    """Points in groups, one colour each, on one pair of axes with a line at 0.

    Args:
        groups: x and y of each point, by group.
        title: what is shown.
        subtitle: how to read it.
        x_title: with its unit.
        y_title: with its unit.
    """
    figure = go.Figure()
    for (name, (x, y)), colour in zip(groups.items(), SERIES, strict=False):
        marker = {"color": colour, "size": 6, "opacity": 0.65}
        figure.add_trace(go.Scatter(x=x.tolist(), y=y.tolist(), name=name, mode="markers", marker=marker))
    drawing = finish(figure, title, subtitle, width=680, height=352)
    figure.update_xaxes(title_text=x_title, title_font_size=12, tickfont_size=11)
    figure.update_yaxes(title_text=y_title, zeroline=True)
    return drawing


def top_heads(values: Float[Tensor, "layer head"], n: int, share: float = 0.1) -> list[tuple[int, int]]:
    """The heads of largest |value|, strongest first: at most `n`, none below a share of the largest."""
    flat = values.abs().flatten()
    order = torch.argsort(flat, descending=True, stable=True)[:n]
    kept = [int(index) for index in order if flat[index] >= share * flat[order[0]] and flat[index] > 0]
    return [(index // values.shape[1], index % values.shape[1]) for index in kept]
