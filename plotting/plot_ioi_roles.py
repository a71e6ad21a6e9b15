"""Draw which heads hold each role of the IOI algorithm, from when to when (figures/ioi_roles_<model>.html).

A row is a head in one role, a column a checkpoint. Roles follow the algorithm, and heads the order in which they take
the role over. A role that no head ever holds says why.

    python plotting/plot_ioi_roles.py -r results -m pythia-160m
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import wrapped
from circuits_over_time.plotting.parts.roles import HINT, LEVELS, TOY, role_chip, role_look, why_none
from circuits_over_time.plotting.parts.style import Drawing, finish, write
from circuits_over_time.plotting.parts.tables import Results, by_model, escaped
from circuits_over_time.plotting.parts.theme import GRID, INK, paint

# Pixels: a row, the frame around them, and the widest that all columns may take together.
_ROW, _FRAME, _WIDTH = 20, 90, 900
MOST_TICKS = 12
# Characters in a line of text: what fits a phone. Rows that such a line takes.
_LINE, _LINE_ROWS = 44, 0.72


@dataclass(frozen=True)
class Holder:
    """A head in a role: `y` of its row, and whether it holds the role by step (absent: not measured)."""

    role: str
    head: str
    y: float
    effects: dict[int, float]
    held: frozenset[int]


def draw_roles(heads: pd.DataFrame, levels: pd.DataFrame, model: str) -> Drawing:
    """The figure of one model, from its rows of `ioi_consistency_heads` and `ioi_consistency`."""
    steps = sorted(int(step) for step in levels["step"].unique())
    figure = go.Figure()
    y = 0.0
    ticks: dict[float, str] = {}
    unheld: set[str] = set()
    for level, (_, roles) in LEVELS.items():
        for role in roles:
            _note(figure, role_chip(role), y, size=12, colour=INK)
            y += 1
            rows = list(_holders(heads[heads["level"] == level], role, y))
            if rows:
                _cells(figure, rows, steps)
                ticks |= {row.y: row.head for row in rows}
                y += len(rows)
            else:
                y += _explain(figure, why_none(levels[levels["level"] == level]), y)
                unheld.add(level)
            y += 0.4
    if model == TOY and {"s_inhibition", "induction"} <= unheld:
        y += _explain(figure, HINT, y)
    width = int(np.clip(120 + 22 * len(steps), 640, _WIDTH))
    drawing = finish(
        figure,
        f"Which heads hold the roles of IOI: {model}",
        "Coloured: the head holds the role; grey: measured, and does not; empty: not measured",
        width=width,
        height=int(_FRAME + _ROW * y),
        legend=False,
    )
    named = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_TICKS)).round().astype(int))
    figure.update_xaxes(
        range=[-0.5, len(steps) - 0.5],
        tickvals=named,
        ticktext=[f"{steps[i]:,}" for i in named],
        title={"text": "training step", "font": {"size": 13}},
        tickangle=0,
        tickfont_size=11,
        showgrid=False,
    )
    rows_named = {"tickvals": list(ticks), "ticktext": list(ticks.values())}
    figure.update_yaxes(range=[y, -0.6], **rows_named, showgrid=False, showline=False, zeroline=False)
    figure.update_layout(margin={"t": 12, "b": 62, "l": 66})
    return drawing


def _holders(heads: pd.DataFrame, role: str, y: float) -> Iterator[Holder]:
    """The heads that ever hold a role, in the order in which they take it over; the first has its row at `y`."""
    held = heads[(heads["role"] == role) & heads["passes"].astype(bool)]
    spans = held.groupby(["layer", "head"])["step"].agg(["min", "max"]).sort_values(["min", "max"], kind="stable")
    for i, (layer, head) in enumerate(spans.index):
        own = heads[(heads["layer"] == layer) & (heads["head"] == head)]
        effects = {int(step): float(effect) for step, effect in zip(own["step"], own["effect"], strict=True)}
        at = held.loc[(held["layer"] == layer) & (held["head"] == head), "step"]
        yield Holder(role, f"a{layer}.h{head}", y + i, effects, frozenset(int(step) for step in at))


def _cells(figure: go.Figure, rows: list[Holder], steps: list[int]) -> None:
    """The cells of a role's rows: those where the head was measured, and those where it holds the role."""
    label, colour = role_look(rows[0].role)
    for fill, state, wanted in (
        (paint(GRID), "does not hold the role", False),
        (colour, f"holds the role: {label}", True),
    ):
        z = [[1.0 if step in row.effects and (step in row.held) == wanted else None for step in steps] for row in rows]
        figure.add_heatmap(
            x=list(range(len(steps))),
            y=[row.y for row in rows],
            z=z,
            colorscale=[[0, fill], [1, fill]],
            showscale=False,
            zmin=0,
            zmax=1,
            xgap=1,
            ygap=2,
            customdata=[[[row.head, step, row.effects.get(step)] for step in steps] for row in rows],
            hovertemplate=f"<b>%{{customdata[0]}}</b> at step %{{customdata[1]:,}}<br>{state}"
            "<br>effect %{customdata[2]:.3g}<extra></extra>",
            hoverongaps=False,
            name=label,
        )


def _explain(figure: go.Figure, text: str, y: float) -> float:
    """Write a text where rows would be, and return how many rows it takes."""
    lines = wrapped(text, _LINE)
    _note(figure, lines, y)
    return _LINE_ROWS * (1 + lines.count("<br>")) + 0.2


def _note(figure: go.Figure, text: str, y: float, *, size: int = 11, colour: str = "#666666") -> None:
    where = {"xref": "paper", "xanchor": "left", "yanchor": "top", "align": "left"}
    write(figure, text, 0, y - 0.4, size=size, colour=colour, **where)


def draw(results: Results) -> dict[str, Drawing]:
    levels, heads = (escaped(results.table(kind)) for kind in ("ioi_consistency", "ioi_consistency_heads"))
    return {
        f"ioi_roles_{model}": draw_roles(rows, levels[levels["model"] == model], model)
        for model, rows in by_model(heads)
    }


FIGURE = Figure(draw, order=130)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
