"""Draw which of two things emerges first (figures/order_<model>.html).

Rows and columns are a model's strongest heads, its tasks and their circuits, in the order in which they emerge. A dark
cell above the diagonal says that the order is sure, two pale ones across it that both emerge between the same two
checkpoints.

    python plotting/plot_order.py -r results
"""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import for_both_widths, wrapped
from circuits_over_time.plotting.parts.style import Drawing, finish, write
from circuits_over_time.plotting.parts.tables import Results, escaped, models_in
from circuits_over_time.plotting.parts.theme import INK, painted_scale
from circuits_over_time.plotting.plot_emergence import WHOLE, label

# Pixels: a cell, the widest of all cells together, the frame, and the room for names of rows.
_CELL, _MOST, _FRAME, _NAMES, _LINE = 34, 760, 100, 330, 17
# The least width of the figure: that of its heading.
_LEAST = 900
# Values are written into cells where these are wide enough.
MOST_WITH_TEXT = 22
# What fits below a phone's matrix.
_LETTERS = 54


def ordered(order: pd.DataFrame, emergence: pd.DataFrame) -> list[str]:
    """The curves of one model's rows of `order` by their step of emergence, and where these agree by the shares."""
    mean = shares(order)[0].mean(axis=1)
    step = emergence.set_index("curve")["step"].astype(float)
    return sorted(mean.index, key=lambda curve: (step.get(curve, np.inf), -mean[curve], curve))


def shares(order: pd.DataFrame, curves: list[str] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shares of resamples in which the row emerges before the column, and with it; a curve and itself have none.

    Rows and columns are in the order of `curves`, by default that of the table.
    """
    names = curves if curves is not None else list(dict.fromkeys([*order["first"], *order["second"]]))
    before = pd.DataFrame(np.nan, index=names, columns=names)
    same = before.copy()
    for row in order.to_dict("records"):
        first, second = row["first"], row["second"]
        before.loc[first, second], before.loc[second, first] = row["share_before"], row["share_after"]
        same.loc[first, second] = same.loc[second, first] = row["share_same"]
    return before, same


def draw_order(order: pd.DataFrame, emergence: pd.DataFrame, model: str, *, narrow: bool = False) -> Drawing:
    """The figure of one model, from rows of `order` and `emergence`; `narrow` has the rows' names below the matrix."""
    order, emergence = (table[table["model"] == model] for table in (order, emergence))
    curves = ordered(order, emergence)
    before, same = shares(order, curves)
    rows = emergence.astype(dict.fromkeys(WHOLE, "Int64")).set_index("curve").to_dict("index")
    names = [label(rows[curve]) if curve in rows else curve for curve in curves]
    n = len(curves)
    numbers = [str(number) for number in range(1, n + 1)]
    cells = min(_CELL * n, _MOST)
    width = max(cells + _NAMES + _FRAME, _LEAST)
    figure = go.Figure().add_heatmap(
        z=before.to_numpy(),
        x=list(range(n)),
        y=list(range(n)),
        zmin=0,
        zmax=1,
        colorscale=painted_scale("Blues"),
        showscale=not narrow,
        colorbar={"title": {"text": "share of resamples", "side": "right", "font": {"size": 12}}, "thickness": 14},
        texttemplate="%{z:.2f}" if n <= MOST_WITH_TEXT and not narrow else None,
        textfont={"size": 10},
        customdata=[[[names[i], names[j], same.iloc[i, j]] for j in range(n)] for i in range(n)],
        hovertemplate="<b>%{customdata[0]}</b><br>before <b>%{customdata[1]}</b>: %{z:.1%} of the resamples"
        "<br>at the same checkpoint: %{customdata[2]:.1%}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )
    numbered = [f"{name}  {number}" for name, number in zip(names, numbers, strict=True)]
    lines = [wrapped(f"{number}  {name}", _LETTERS) for name, number in zip(names, numbers, strict=True)]
    below = _LINE * sum(1 + line.count("<br>") for line in lines) + 24 if narrow else 0
    drawing = finish(
        figure,
        f"In which order things emerge in {model}",
        "Share of resamples in which the row emerges at an earlier checkpoint than the column",
        width=width,
        height=max(cells, 120) + _FRAME + below,
        legend=False,
    )
    figure.update_layout(
        margin={"l": 34 if narrow else _NAMES, "r": 14 if narrow else width - _NAMES - cells, "t": 26, "b": 30 + below}
    )
    figure.update_xaxes(ticktext=numbers, side="top", tickangle=0, tickfont_size=11)
    figure.update_yaxes(ticktext=numbers if narrow else numbered, range=[n - 0.5, -0.5], zeroline=False)
    figure.update_yaxes(tickfont_size=11 if narrow else 12)
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(tickvals=list(range(n)), showgrid=False)
    if narrow:
        corner: dict[str, Any] = {"xref": "paper", "xanchor": "left", "yref": "paper", "yanchor": "top"}
        write(figure, "<br>".join(lines), 0, 0, colour=INK, align="left", xshift=-24, yshift=-14, **corner)
    return drawing


def draw(results: Results) -> dict[str, Drawing]:
    """One figure for each model. Pairs of all tasks are drawn."""
    everything = results.with_arguments(**vars(results.arguments) | {"task": None})
    order, emergence = (escaped(everything.comparison(name)) for name in ("order", "emergence"))
    return {f"order_{model}": for_both_widths(draw_order, order, emergence, model) for model in models_in(order)}


FIGURE = Figure(draw, order=110)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
