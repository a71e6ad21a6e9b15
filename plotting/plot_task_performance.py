"""Draw every task metric of the whole model over training (figures/task_performance.html).

A column per task, a row per metric; solid on clean prompts, dotted on corrupted ones; bands are 95% intervals where the
results carry standard errors.

    python plotting/plot_task_performance.py -r results --metric accuracy logit_diff
"""

import sys

import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import by_panel, task_panels
from circuits_over_time.plotting.parts.style import Drawing, Looks, in_order, metric_label
from circuits_over_time.plotting.parts.tables import Results, escaped
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.tasks.metrics import METRICS

DASHES = {"clean": None, "corrupted": "dot"}
# A share of prompts or a probability lies in [0, 1].
SHARES = ("accuracy", "rank_0_rate", "prob_mass")


def draw_performance(table: pd.DataFrame, metrics: list[str], looks: Looks) -> Drawing:
    """The figure, from rows of `task_performance`: of the metrics, top to bottom, those that the table has."""
    metrics = [metric for metric in metrics if (table["metric"] == metric).any()]
    panels, tasks = task_panels(table, len(metrics), 190)
    there = set(table["run"]) if "run" in table else set()
    runs: list[str | None] = [run for run in DASHES if run in there] or [None]
    for row, metric in enumerate(metrics, 1):
        for column, task in enumerate(tasks, 1):
            part = table[(table["metric"] == metric) & (table["task"] == task)]
            for run in runs:
                rows = part[part["run"] == run] if run else part
                panels.draw_models(
                    rows.rename(columns={"value": metric}),
                    metric,
                    looks,
                    row,
                    column,
                    error="se",
                    dash=DASHES[run] if run else None,
                    hover=("run", "n"),
                    markers=run != "corrupted",
                )
            if metric in SHARES:
                panels.figure.update_yaxes(range=[-0.03, 1.05], row=row, col=column)
    panels.name_rows(map(metric_label, metrics))
    if len(runs) > 1:
        panels.key("clean prompts", "solid")
        panels.key("corrupted prompts", "dot")
    return panels.done("Task performance over training", "The whole model; bands are 95% intervals")


def draw(results: Results) -> dict[str, Drawing]:
    table = escaped(results.table("task_performance"))
    measured, asked = in_order(table["metric"], METRICS), results.arguments.metric
    for metric in asked or []:
        if metric not in measured:
            there = f"{results.store.root}/task_performance (there: {', '.join(measured)})"
            raise UserError(f"--metric: {metric} is not in {there}")
    return {"task_performance": by_panel(draw_performance, table, metrics=asked or measured, looks=results.looks())}


FIGURE = Figure(
    draw,
    order=10,
    options={"--metric": {"nargs": "+", "metavar": "NAME", "help": "metrics to draw, top to bottom (all)"}},
)

if __name__ == "__main__":
    sys.exit(figure_main(FIGURE))
