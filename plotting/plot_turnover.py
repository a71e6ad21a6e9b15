"""Draw which edges come and go over training, and how long they live (figures/turnover_<model>.html).

There is a column per task. Bars above zero are edges that join the circuit: born if no circuit before had them, else
returned. Those below go: they left if a later circuit has them again, else died. The line is the circuit's size. Below,
every edge is a line from its first checkpoint to its last, in order of birth. Checkpoints stand at equal distances,
because lifetimes count them.

    python plotting/plot_turnover.py -r results --at size
"""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import Panels, write_in_middle
from circuits_over_time.plotting.parts.style import Drawing, write
from circuits_over_time.plotting.parts.tables import Results, escaped, models_in, tasks_in
from circuits_over_time.plotting.parts.theme import INK, WHITE, paint, translucent
from circuits_over_time.plotting.parts.time_axis import CheckpointAxis
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.tasks.registry import task_label

AT = {"faithfulness": "as found", "size": "fixed size"}
# What a checkpoint's bars count, from zero outwards: column -> legend entry, colour, direction.
PARTS = {
    "born": ("born", "#0072B2", 1),
    "returned": ("returned", "#56B4E9", 1),
    "died": ("died", "#D55E00", -1),
    "left": ("left for a while", "#E69F00", -1),
}
SIZE = "edges of the circuit"
LASTING, ENDED = "lives at the last checkpoint", "lifetime of edges that died"
LIVES = {LASTING: "#009E73", ENDED: "#9a9a9a"}
# Edges whose lines are apart by more than outlines between them would take.
MOST_OUTLINED = 150

Where = dict[str, int]
"""`row` and `col` of a panel."""


def spans(lifetimes: pd.DataFrame) -> pd.DataFrame:
    """Edges that are born and die together, in order of birth, then of death, from rows of one model, task and size.

    `n_present` is their mean, `lives` whether the last circuit has them, `below` the number of edges before them.
    """
    keys = ["birth_step", "last_step"]
    rows = lifetimes.assign(lives=lifetimes["death_step"].isna())
    first = {name: (name, "first") for name in ("lifetime", "lives")}
    table = rows.groupby(keys, sort=True).agg(n_edges=("source", "size"), n_present=("n_present", "mean"), **first)
    return table.assign(below=table["n_edges"].cumsum() - table["n_edges"]).reset_index()


def draw_turnover(turnover: pd.DataFrame, lifetimes: pd.DataFrame, model: str) -> Drawing:
    """The figure of one model, from rows of `turnover` and `lifetimes`."""
    turnover, lifetimes = (table[table["model"] == model] for table in (turnover, lifetimes))
    tasks, sizes = tasks_in(turnover), [at for at in AT if (turnover["at"] == at).any()]
    axis = CheckpointAxis.of(turnover["step"])
    panels = Panels(2 * len(sizes), len(tasks), axis, list(map(task_label, tasks)), panel_height=170)
    for column, task in enumerate(tasks, 1):
        for place, at in enumerate(sizes):
            above, below = ({"row": 2 * place + nth, "col": column} for nth in (1, 2))
            of_task = turnover[(turnover["task"] == task) & (turnover["at"] == at)]
            lived = lifetimes[(lifetimes["task"] == task) & (lifetimes["at"] == at)]
            if of_task.empty or lived.empty:
                for where in (above, below):
                    # A panel without any trace has no axes, and the text would go to another.
                    panels.figure.add_scatter(x=[0], y=[0], opacity=0, showlegend=False, hoverinfo="skip", **where)
                    write_in_middle(panels.figure, "no circuit has an edge at any checkpoint", **where)
                    panels.figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, **where)
                continue
            _draw_bars(panels.figure, of_task, axis, above)
            _draw_lives(panels.figure, lived, axis, below)
    panels.name_rows(
        title for at in sizes for title in (f"edges that come<br>and go, {AT[at]}", f"every edge<br>{AT[at]}")
    )
    panels.figure.update_layout(barmode="overlay")
    return panels.done(
        f"Which edges come and go in {model}, and how long they live",
        "Above zero edges join, below they go; under it every edge from its birth to its last checkpoint",
    )


def _draw_bars(figure: go.Figure, table: pd.DataFrame, axis: CheckpointAxis, where: Where) -> None:
    table = table.sort_values("step")
    x = [axis.place(step) for step in table["step"]]
    outwards = {1: 0 * table["born"], -1: 0 * table["born"]}
    for name, (entry, colour, sign) in PARTS.items():
        figure.add_bar(
            x=x,
            y=sign * table[name],
            base=outwards[sign],
            name=entry,
            legendgroup=entry,
            marker={"color": paint(colour), "line": {"width": 0}},
            width=0.8,
            customdata=table[["step", name, "n_edges"]].to_numpy(),
            hovertemplate=f"step %{{customdata[0]:,}}: %{{customdata[1]:,}} {entry}"
            "<br>%{customdata[2]:,} edges in the circuit<extra></extra>",
            **where,
        )
        outwards[sign] = outwards[sign] + sign * table[name]
    figure.add_scatter(
        x=x,
        y=table["n_edges"],
        mode="lines+markers",
        name=SIZE,
        legendgroup=SIZE,
        line={"color": paint(INK), "width": 1.4},
        marker={"size": 4, "color": paint(INK)},
        customdata=table["step"],
        hovertemplate="step %{customdata:,}: %{y:,} edges<extra></extra>",
        **where,
    )


def _draw_lives(figure: go.Figure, lifetimes: pd.DataFrame, axis: CheckpointAxis, where: Where) -> None:
    table = spans(lifetimes)
    outline = 0.4 if len(lifetimes) <= MOST_OUTLINED else 0
    for entry, rows in ((LASTING, table[table["lives"]]), (ENDED, table[~table["lives"]])):
        if rows.empty:
            continue
        first, last = ([axis.place(step) for step in rows[name]] for name in ("birth_step", "last_step"))
        figure.add_bar(
            orientation="h",
            base=[place - 0.5 for place in first],
            x=[end - start + 1 for start, end in zip(first, last, strict=True)],
            y=(rows["below"] + rows["n_edges"] / 2).to_numpy("float32"),
            width=rows["n_edges"],
            name=entry,
            legendgroup=entry,
            marker={"color": paint(LIVES[entry]), "line": {"width": outline, "color": paint(WHITE)}},
            # Half the bytes of the default; steps are exact up to 16 million.
            customdata=rows[["birth_step", "last_step", "n_edges", "lifetime", "n_present"]].to_numpy("float32"),
            hovertemplate="%{customdata[2]:,} edges from step %{customdata[0]:,} to %{customdata[1]:,}"
            "<br>lifetime: %{customdata[3]} checkpoints, in the circuit at %{customdata[4]:.1f} of them"
            "<extra></extra>",
            **where,
        )
    median = lifetimes["median_lifetime"].iloc[0]
    lifetime = f"median lifetime: {median:g} checkpoint{'' if median == 1 else 's'}"
    text = f"{len(lifetimes):,} edges; {'more than half live on at the end' if pd.isna(median) else lifetime}"
    corner: dict[str, Any] = {"xref": "x domain", "yref": "y domain", "xanchor": "left", "yanchor": "bottom"}
    write(figure, text, 0.01, 0.02, colour=INK, bgcolor=translucent(WHITE, 0.85), **where, **corner)
    figure.update_yaxes(range=[len(lifetimes), 0], **where)


def draw(results: Results) -> dict[str, Drawing]:
    turnover, lifetimes = (escaped(results.comparison(name)) for name in ("turnover", "lifetimes"))
    if (at := results.arguments.at) is not None:
        turnover = turnover[turnover["at"] == at]
    if turnover.empty:
        raise UserError(f"{results.store.root}/comparison/turnover.csv has no circuits at fixed {at}")
    return {f"turnover_{model}": draw_turnover(turnover, lifetimes, model) for model in models_in(turnover)}


FIGURE = Figure(
    draw, order=60, options={"--at": {"choices": tuple(AT), "help": "circuits as found, or of one size (both)"}}
)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
