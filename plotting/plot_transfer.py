"""Draw what circuits do in the models of other checkpoints and on other tasks (figures/transfer_<model>.html).

There is a matrix per task: its rows are the checkpoints whose circuit is taken, its columns those whose model it is put
into. The last matrix puts every task's circuit to every task, at one checkpoint (--step).

    python plotting/plot_transfer.py -r results -m toy --step 1350
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import grid_of_matrices
from circuits_over_time.plotting.parts.style import Drawing, colour_bar, finish
from circuits_over_time.plotting.parts.tables import Results, by_model, escaped, tasks_in
from circuits_over_time.plotting.parts.theme import painted_scale
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.tasks.registry import task_label

# Values are written into cells where these are wide enough.
MOST_WITH_TEXT = 14
CELLS = 330
"""Width and height of a matrix, in pixels."""


def over_tasks(table: pd.DataFrame, step: int) -> pd.DataFrame:
    """Faithfulness at one step: rows the tasks of the circuits, columns the tasks they are evaluated on."""
    rows = table[(table["step"] == step) & (table["from_step"] == step)]
    matrix = rows.pivot_table(index="from_task", columns="task", values="faithfulness")
    names = tasks_in(rows.assign(task=rows["from_task"])) if len(rows) else []
    columns = [name for name in names if name in matrix.columns]
    return matrix.reindex(index=names, columns=columns)


@dataclass(frozen=True)
class Matrix:
    """One panel: faithfulness with a row per circuit and a column per model or task, and what these are."""

    title: str
    values: pd.DataFrame
    down: str
    along: str


def matrices(table: pd.DataFrame, model: str, step: int | None) -> list[Matrix]:
    """The panels of one model, from rows of `transfer`: each task's steps, then all tasks at one step if several.

    That step is by default the last at which most tasks have a circuit.

    Raises:
        UserError: if no circuit was put into a model of that step.
    """
    table = table[table["model"] == model]
    tasks = tasks_in(table)
    if step is None:
        own = table[(table["from_step"] == table["step"]) & (table["from_task"] == table["task"])]
        step = int(own["step"].mode().max() if len(own) else table["step"].max())
    elif step not in set(table["step"]):
        there = ", ".join(map(str, sorted(table["step"].unique())))
        raise UserError(f"--step {step}: nothing was transferred to that step of {model} (there: {there})")
    panels = []
    for task in tasks:
        rows = table[(table["task"] == task) & (table["from_task"] == task)]
        values = rows.pivot_table(index="from_step", columns="step", values="faithfulness", sort=True)
        if values.size:
            panels.append(Matrix(task_label(task), values, "circuit of step", "model of step"))
    across = over_tasks(table, step)
    if len(tasks) > 1 and across.size:
        across = across.rename(index=task_label, columns=task_label)
        panels.append(Matrix(f"Across tasks at step {step:,}", across, "circuit of", "task"))
    return panels


def draw_transfer(panels: Sequence[Matrix], model: str) -> Drawing:
    """The figure of one model, or of some of its panels."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    titles = [panel.title for panel in panels]
    figure, places = grid_of_matrices(titles, columns, horizontal_spacing=0.13, vertical_spacing=0.24 / rows)
    for panel, where in zip(panels, places, strict=True):
        _draw_matrix(figure, panel, where, scale=where is places[0])
    figure.update_annotations(font_size=14)
    drawing = finish(
        figure,
        f"Transfer of circuits in {model}",
        "Faithfulness of a circuit in another checkpoint's model, or on another task; colours end at 0 and 1",
        width=130 + columns * (CELLS + 95),
        height=90 + rows * (CELLS + 95),
        legend=False,
    )
    figure.update_layout(margin={"l": 96, "r": 96})
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    return drawing


def _draw_matrix(figure: go.Figure, panel: Matrix, where: dict[str, int], *, scale: bool) -> None:
    matrix = panel.values
    by_step = not isinstance(matrix.index[0], str)
    named = [[f"{name:,}" if by_step else str(name) for name in axis] for axis in (matrix.columns, matrix.index)]
    figure.add_heatmap(
        z=matrix.to_numpy(),
        x=named[0],
        y=named[1],
        zmin=0,
        zmax=1,
        colorscale=painted_scale("Blues"),
        showscale=scale,
        colorbar=colour_bar(CELLS, text="faithfulness"),
        texttemplate="%{z:.2f}" if max(matrix.shape) <= MOST_WITH_TEXT else None,
        textfont={"size": 9 if by_step else 12},
        hovertemplate=f"{panel.down} %{{y}}<br>{panel.along} %{{x}}<br>faithfulness %{{z:.3f}}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        **where,
    )
    title = {"text": panel.along, "font": {"size": 12}}
    figure.update_xaxes(title=title, type="category", tickangle=-45, tickfont_size=11, **where)
    figure.update_yaxes(title_text=panel.down, type="category", autorange="reversed", **where)


def draw(results: Results) -> dict[str, Drawing]:
    return {
        f"transfer_{model}": draw_transfer(panels, model)
        for model, rows in by_model(escaped(results.table("transfer")))
        if (panels := matrices(rows, model, results.arguments.step))
    }


FIGURE = Figure(
    draw,
    order=70,
    options={"--step": {"type": int, "metavar": "N", "help": "checkpoint of the matrix over tasks (the last)"}},
)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
