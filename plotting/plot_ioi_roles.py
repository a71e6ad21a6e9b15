"""Draw which heads hold each role of the IOI algorithm, from when to when (figures/ioi_roles_<model>.html).

A row is a head in one role, a column a checkpoint. Roles follow the algorithm, and heads the order in which they take
the role over. A role that no head ever holds says why.

    python plotting/plot_ioi_roles.py -r results -m pythia-160m
"""

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


def draw_roles(heads: pd.DataFrame, levels: pd.DataFrame, model: str) -> Drawing:
    """The figure of one model, from its rows of `ioi_consistency_heads` and `ioi_consistency`."""
    steps = sorted(int(step) for step in levels["step"].unique())
    figure = go.Figure()
    y = 0.0
    ticks: dict[float, str] = {}
    unheld: set[str] = set()
    for level, (_, roles) in LEVELS.items():
        of_level = heads[heads["level"] == level]
        for role in roles:
            _note(figure, role_chip(role), y, size=12, colour=INK)
            y += 1
            held = of_level[(of_level["role"] == role) & of_level["passes"].astype(bool)]
            names = _draw_holders(figure, of_level, held, role, y, steps)
            ticks |= {y + row: name for row, name in enumerate(names)}
            y += len(names)
            if not names:
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
    title = {"text": "training step", "font": {"size": 13}}
    figure.update_xaxes(range=[-0.5, len(steps) - 0.5], tickvals=named, ticktext=[f"{steps[i]:,}" for i in named])
    figure.update_xaxes(title=title, tickangle=0, tickfont_size=11, showgrid=False)
    rows_named = {"tickvals": list(ticks), "ticktext": list(ticks.values())}
    figure.update_yaxes(range=[y, -0.6], **rows_named, showgrid=False, showline=False, zeroline=False)
    figure.update_layout(margin={"t": 12, "b": 62, "l": 66})
    return drawing


def _draw_holders(
    figure: go.Figure, heads: pd.DataFrame, held: pd.DataFrame, role: str, y: float, steps: list[int]
) -> list[str]:
    """Rows of the heads that ever hold a role, the first at `y`; their names, in the order in which they take it."""
    spans = held.groupby(["layer", "head"])["step"].agg(["min", "max"]).sort_values(["min", "max"], kind="stable")
    rows = []
    for layer, head in spans.index:
        own, at = (table[(table["layer"] == layer) & (table["head"] == head)] for table in (heads, held))
        effects = dict(zip(map(int, own["step"]), map(float, own["effect"]), strict=True))
        rows.append((f"a{layer}.h{head}", effects, set(at["step"])))
    label, colour = role_look(role)
    states = ((paint(GRID), "does not hold the role", False), (colour, f"holds the role: {label}", True))
    for fill, state, wanted in states if rows else ():
        figure.add_heatmap(
            x=list(range(len(steps))),
            y=[y + row for row in range(len(rows))],
            z=[[1.0 if step in seen and (step in at) == wanted else None for step in steps] for _, seen, at in rows],
            colorscale=[[0, fill], [1, fill]],
            showscale=False,
            zmin=0,
            zmax=1,
            xgap=1,
            ygap=2,
            customdata=[[[name, step, effects.get(step)] for step in steps] for name, effects, _ in rows],
            hovertemplate=f"<b>%{{customdata[0]}}</b> at step %{{customdata[1]:,}}<br>{state}"
            "<br>effect %{customdata[2]:.3g}<extra></extra>",
            hoverongaps=False,
            name=label,
        )
    return [name for name, *_ in rows]


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
