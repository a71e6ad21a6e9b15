"""Draw every task metric of the whole model over training (figures/task_performance.html).

A column per task, a row per metric. With `--training`, the loss that the Trainer logged is the last row.

    python plotting/plot_task_performance.py -r results --metric accuracy logit_diff
    python plotting/plot_task_performance.py -r results --training runs/mine
"""

from pathlib import Path
from typing import Any

import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import task_panels
from circuits_over_time.plotting.parts.published.eval_results import read_training_loss
from circuits_over_time.plotting.parts.style import Drawing, Looks, in_order, metric_label
from circuits_over_time.plotting.parts.tables import Results, escaped, models_in
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.tasks.metrics import METRICS

DASHES = {"clean": None, "corrupted": "dot"}
# A share of prompts or a probability lies in [0, 1].
SHARES = ("accuracy", "rank_0_rate", "prob_mass")
LOSS = "training_loss"


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
                rows = (part[part["run"] == run] if run else part).rename(columns={"value": metric})
                look: dict[str, Any] = {"dash": DASHES[run] if run else None, "markers": run != "corrupted"}
                panels.draw_models(rows, metric, looks, row, column, error="se", hover=("run", "n"), **look)
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
    metrics = asked or measured
    for folder in results.arguments.training or []:
        table = pd.concat([table, _training_loss(folder, table)], ignore_index=True)
        metrics = [*dict.fromkeys([*metrics, LOSS])]
    return {"task_performance": draw_performance(table, metrics=metrics, looks=results.looks())}


def _training_loss(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The loss of a training as rows of `table`, once for each task: at the tokens that its steps have there."""
    losses = read_training_loss(folder)
    name = losses["model"].iloc[0]
    measured = table[table["model"] == name]
    if measured.empty:
        there = ", ".join(models_in(table))
        raise UserError(f"--training: {folder}: no results of a model '{name}' (there: {there}); rename the folder")
    steps = measured[["step", "tokens"]].drop_duplicates().sort_values("step")
    per_step = float(steps["tokens"].max()) / max(float(steps["step"].max()), 1)
    losses = losses.assign(tokens=(losses["step"] * per_step).round().astype(int), metric=LOSS, run="clean")
    return losses.merge(measured[["task"]].drop_duplicates(), how="cross")


FIGURE = Figure(
    draw,
    order=10,
    options={
        "--metric": {"nargs": "+", "metavar": "NAME", "help": "metrics to draw, top to bottom (all)"},
        "--training": {"nargs": "+", "type": Path, "metavar": "FOLDER", "help": "trainings whose loss to draw too"},
    },
)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
