"""Draw circuit size and faithfulness over training, with the task metric beneath (figures/circuits.html).

There is a column per task. It shows the size of the smallest circuit found that reaches the threshold, the faithfulness
of that circuit, and the metric of the whole model on clean and corrupted prompts. If no size reached the threshold, the
lines have a gap.

    python plotting/plot_circuits.py -r results -o figures --format html,png
"""

import logging
import sys
from functools import partial

import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import Gaps, Line, by_panel, task_panels
from circuits_over_time.plotting.parts.style import Drawing, ModelLook, metric_label, within
from circuits_over_time.plotting.parts.tables import Results, as_text, by_model, escaped, tasks_in
from circuits_over_time.utils.tasks.registry import primary_metric

logger = logging.getLogger("plotting")

# Before a task is learned, faithfulness is a quotient of noise, so the axis goes no further.
FAITHFULNESS_LIMITS = (0.0, 2.0)
COUNTS = {"edges": "n_edges", "nodes": "n_nodes"}


def selected_circuits(faithfulness: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """One row per model, task and step: the baselines and the selected circuit, NaN if none was selected.

    `n_edges_low, n_edges_high` and the same for `n_nodes` belong to the circuits at the ends of the size's interval.
    """
    keys = ["model", "task", "step"]
    interval = [name for name in ("faithfulness_low", "faithfulness_high") if name in faithfulness]
    columns = [*keys, "n_edges", "n_nodes", "faithfulness", *interval]
    chosen = faithfulness.loc[faithfulness["selected"].astype(bool), columns]
    table = baselines.merge(chosen, on=keys, how="left", validate="one_to_one")
    for end in ("low", "high"):
        if f"size_{end}" in table:
            sizes = faithfulness[[*keys, "size", "n_edges", "n_nodes"]].astype({"size": float})
            sizes.columns = pd.Index([*keys, f"size_{end}", f"n_edges_{end}", f"n_nodes_{end}"])
            table = table.astype({f"size_{end}": float}).merge(sizes, on=[*keys, f"size_{end}"], how="left")
    for (model, task), rows in table.groupby(["model", "task"], sort=False):
        without = int(rows["n_edges"].isna().sum())
        if without:
            logger.info("%s %s: no circuit reached the threshold at %d of %d steps", model, task, without, len(rows))
    return table.sort_values(keys, ignore_index=True)


def draw_circuits(table: pd.DataFrame, looks: dict[str, ModelLook], count: str, metrics: dict[str, str]) -> Drawing:
    """The figure, from what `selected_circuits` returns; `metrics` has each task's metric, for the axis titles."""
    panels, tasks = task_panels(table, 3)
    cuts = []
    for column, task in enumerate(tasks, 1):
        gaps = []
        for model, rows in by_model(table[table["task"] == task]):
            look = looks[model]
            gaps.append(Gaps(rows, COUNTS[count], "status", model, look))
            for row, value, hover in (
                (1, COUNTS[count], ("n_edges", "n_nodes", "faithfulness")),
                (2, "faithfulness", ("n_edges", "n_nodes")),
            ):
                ends = f"{value}_low", f"{value}_high"
                panels.draw(Line(rows, value, model, look, interval=ends, hover=hover), row, column)
            panels.draw(Line(rows, "full", model, look, error="full_se", hover=("corrupted", "n_prompts")), 3, column)
            panels.draw(
                Line(rows, "corrupted", model, look, error="corrupted_se", dash="dot", markers=False), 3, column
            )
        panels.missing(gaps, 1, column)
        panels.level(1.0, 2, column)
        panels.figure.update_yaxes(title_text=metric_label(metrics[task]), row=3, col=column)
        panels.figure.update_yaxes(rangemode="tozero", row=1, col=column)
        limits, cut = within([0.0, 1.0, *table.loc[table["task"] == task, "faithfulness"]], *FAITHFULNESS_LIMITS)
        panels.figure.update_yaxes(range=limits, row=2, col=column)
        cuts.append(cut)
    panels.figure.update_yaxes(title_text=f"circuit size ({count})", row=1, col=1)
    panels.figure.update_yaxes(title_text="faithfulness (share)", row=2, col=1)
    panels.key("whole model: clean prompts", "solid")
    panels.key("corrupted prompts", "dot")
    subtitle = "Smallest circuit that reaches the faithfulness threshold; bands are 95% intervals"
    if any(cuts):
        subtitle += "; faithfulness above {1:g} is cut off".format(*FAITHFULNESS_LIMITS)
    return panels.done("Circuits over training", subtitle)


def task_metrics(results: Results, table: pd.DataFrame) -> dict[str, str]:
    """The metric that each task's circuits were found with: the task's own, or for a prompts CSV that of the run."""
    metrics = {}
    for task in tasks_in(table):
        model = table.loc[table["task"] == task, "model"].iloc[0]
        own = primary_metric(task)
        if own is None:
            own = results.store.folder("baselines", model, task).read_run().get("config", {}).get("metric")
        metrics[as_text(task)] = str(own or "task metric")
    return metrics


def draw(results: Results) -> dict[str, Drawing]:
    """One figure of all models."""
    table = selected_circuits(results.table("faithfulness"), results.table("baselines"))
    draw_rows = partial(
        draw_circuits, looks=results.looks(), count=results.arguments.count, metrics=task_metrics(results, table)
    )
    return {"circuits": by_panel(draw_rows, escaped(table))}


FIGURE = Figure(
    draw,
    order=20,
    options={"--count": {"choices": tuple(COUNTS), "default": "edges", "help": "what a circuit's size counts (edges)"}},
)


if __name__ == "__main__":
    sys.exit(figure_main(FIGURE))
