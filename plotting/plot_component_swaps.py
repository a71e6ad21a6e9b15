"""Draw what components of one checkpoint do in the model of another (figures/component_swaps_<model>.html).

There is a matrix per task and set of components. Its rows are the checkpoints that components are taken from, its
columns those whose model they are put into, and the colour is how far the metric moves: from that of the model itself.
A circle marks swaps that move it no further than swaps of random heads in the same layers do.

    python plotting/plot_component_swaps.py -r results -m toy
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import grid_of_matrices
from circuits_over_time.plotting.parts.style import Drawing, colour_bar, finish
from circuits_over_time.plotting.parts.tables import Results, by_model, escaped, tasks_in
from circuits_over_time.plotting.parts.theme import INK, paint, painted_scale
from circuits_over_time.utils.tasks.registry import task_label

CELLS = 250
"""Width and height of a matrix, in pixels."""
PAGE = 3
"""Matrices on a page of narrow paper."""
COLOURS = [(0.0, "#b2500f"), (0.5, "#f7f7f7"), (1.0, "#0b5a94")]


def moved(table: pd.DataFrame) -> pd.DataFrame:
    """One row per source, model and set: `change` of the metric, and `usual`, whether random heads move it as far.

    `usual` is false where no other heads could be swapped.
    """
    change = table["metric"] - table["own_metric"]
    swaps = table.assign(change=change)[table["control"] == "swap"]
    random = table.assign(reach=change.abs())[table["control"] == "random"]
    keys = ["task", "components", "from_step", "step"]
    reach = random.groupby(keys)["reach"].max().reset_index()
    joined = swaps.merge(reach, on=keys, how="left")
    return joined.assign(usual=joined["change"].abs() <= joined["reach"])


def draw_swaps(table: pd.DataFrame, model: str, sets: Sequence[tuple[str, str]]) -> Drawing:
    """The figure of one model: a matrix for each (task, components) of `sets`."""
    of_task = max(sum(task == one for task, _ in sets) for one, _ in sets)
    columns = of_task if 1 < of_task <= 4 else min(3, len(sets))  # A row a task, if there is room.
    rows = -(-len(sets) // columns)
    titles = [f"{task_label(task)}: {components}" for task, components in sets]
    figure, places = grid_of_matrices(titles, columns, horizontal_spacing=0.16 / columns, vertical_spacing=0.3 / rows)
    largest = {
        task: float(table.loc[table["task"] == task, "change"].abs().max()) or 1.0
        for task in dict.fromkeys(task for task, _ in sets)
    }  # One scale of colours a task: metrics differ.
    for (task, components), where in zip(sets, places, strict=True):
        in_task = table[table["task"] == task]  # Another task may have other checkpoints.
        steps = {axis: sorted(in_task[axis].unique()) for axis in ("from_step", "step")}
        rows_of = in_task[in_task["components"] == components]
        change, metric = (
            rows_of.pivot_table(index="from_step", columns="step", values=name).reindex(
                index=steps["from_step"], columns=steps["step"]
            )
            for name in ("change", "metric")
        )
        figure.add_heatmap(
            z=change.to_numpy() / largest[task],
            x=[f"{step:,}" for step in steps["step"]],
            y=[f"{step:,}" for step in steps["from_step"]],
            zmin=-1,
            zmax=1,
            colorscale=painted_scale(COLOURS),
            showscale=where is places[0],
            colorbar=colour_bar(CELLS, text="change, as a share of the largest", font={"size": 12}),
            customdata=np.stack([change, metric], axis=-1),
            hovertemplate="from step %{y}<br>into step %{x}<br>metric %{customdata[1]:.3g} "
            "(%{customdata[0]:+.3g})<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            **where,
        )
        usual = rows_of[rows_of["usual"]]
        figure.add_scatter(
            x=[f"{step:,}" for step in usual["step"]],
            y=[f"{step:,}" for step in usual["from_step"]],
            mode="markers",
            marker={"symbol": "circle-open", "size": 7, "color": paint(INK), "line": {"width": 1}},
            name="no further than random heads",
            showlegend=len(usual) > 0 and not any(trace.showlegend for trace in figure.data),
            hoverinfo="skip",
            **where,
        )
        title = {"text": "into step", "font": {"size": 12}}
        figure.update_xaxes(title=title, type="category", tickangle=-45, tickfont_size=10, showgrid=False, **where)
        down = {"type": "category", "autorange": "reversed", "tickfont_size": 10, "showgrid": False}
        figure.update_yaxes(title_text="from step", **down, **where)
    figure.update_annotations(font_size=13)
    drawing = finish(
        figure,
        f"Swapped components in {model}",
        "How the task's metric changes with components of another checkpoint; the largest changes: "
        + ", ".join(f"{task_label(task)} {value:.2g}" for task, value in largest.items()),
        width=130 + columns * (CELLS + 80),
        height=120 + rows * (CELLS + 95),
    )
    figure.update_layout(margin={"l": 96, "r": 96})
    return drawing


def draw(results: Results) -> dict[str, Drawing]:
    drawn = {}
    for model, rows in by_model(escaped(results.table("swaps"))):
        table = moved(rows)
        found = table.sort_values("step", ascending=False, kind="stable").groupby("task")["components"].unique()
        by_task = [[(task, str(components)) for components in found[task]] for task in tasks_in(table)]
        # No page is of two tasks.
        parts = [sets[start : start + PAGE] for sets in by_task for start in range(0, len(sets), PAGE)]
        pages = partial(_draw_pages, table, model, parts) if parts[1:] else None
        drawn[f"component_swaps_{model}"] = replace(draw_swaps(table, model, [*chain(*by_task)]), pages=pages)
    return drawn


def _draw_pages(table: pd.DataFrame, model: str, parts: list[list[tuple[str, str]]]) -> dict[str, Drawing]:
    return {f"component_swaps_{model}_{n}": draw_swaps(table, model, sets) for n, sets in enumerate(parts, 1)}


FIGURE = Figure(draw, order=75)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
