"""Draw every task metric of the whole model over training (figures/task_performance.html).

A column per task, a row per metric; solid on clean prompts, dotted on corrupted ones; bands are 95% intervals where the
results carry standard errors.

    python plotting/plot_task_performance.py -r results --metric accuracy logit_diff
"""

import argparse
import sys

import pandas as pd

from circuits_over_time.plotting.parts.export import figure_main
from circuits_over_time.plotting.parts.panels import Line, Panels
from circuits_over_time.plotting.parts.style import METRIC_LABELS, Drawing, ModelLook, model_looks, task_label
from circuits_over_time.plotting.parts.tables import every_model, load, models_in, tasks_in
from circuits_over_time.plotting.parts.time_axis import TimeAxis
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.store import Store

DASHES = {"clean": None, "corrupted": "dot"}
# A share of prompts or a probability lies in [0, 1].
SHARES = ("accuracy", "rank_0_rate", "prob_mass")


def draw_performance(table: pd.DataFrame, metrics: list[str], looks: dict[str, ModelLook]) -> Drawing:
    """The figure.

    Args:
        table: `model, task, step, tokens, metric, value`, and where present `run` (clean or corrupted), `se`, `n`.
        metrics: rows of the figure, top to bottom.
        looks: the look of every model.
    """
    tasks = tasks_in(table)
    panels = Panels(
        len(metrics), len(tasks), TimeAxis.of(table), [task_label(task) for task in tasks], panel_height=190
    )
    there = set(table["run"]) if "run" in table else set()
    runs: list[str | None] = [run for run in DASHES if run in there] or [None]
    for row, metric in enumerate(metrics, 1):
        for column, task in enumerate(tasks, 1):
            part = table[(table["metric"] == metric) & (table["task"] == task)]
            for model in models_in(part):
                for run in runs:
                    rows = part[(part["model"] == model) & ((part["run"] == run) if run else True)]
                    if rows.empty:
                        continue
                    line = Line(
                        rows.rename(columns={"value": metric}),
                        metric,
                        model,
                        looks[model],
                        error="se",
                        dash=DASHES[run] if run else None,
                        hover=("run", "n"),
                        markers=run != "corrupted",
                    )
                    panels.draw(line, row, column)
            if metric in SHARES:
                panels.figure.update_yaxes(range=[-0.03, 1.05], row=row, col=column)
        panels.figure.update_yaxes(title_text=METRIC_LABELS.get(metric, metric), row=row, col=1)
    if len(runs) > 1:
        panels.key("clean prompts", "solid")
        panels.key("corrupted prompts", "dot")
    return panels.done("Task performance over training", "The whole model; bands are 95% intervals")


def draw(store: Store, arguments: argparse.Namespace) -> dict[str, Drawing]:
    """Figures by file name."""
    table = load(store, "task_performance", arguments)
    measured = [metric for metric in METRIC_LABELS if (table["metric"] == metric).any()]
    measured += sorted(set(table["metric"]) - set(measured))
    for metric in arguments.metric or []:
        if metric not in measured:
            raise UserError(
                f"--metric: {metric} is not in {store.root}/task_performance (there: {', '.join(measured)})"
            )
    return {"task_performance": draw_performance(table, arguments.metric or measured, model_looks(every_model(store)))}


def options(parser: argparse.ArgumentParser) -> None:
    """The script's own options."""
    parser.add_argument("--metric", nargs="+", metavar="NAME", help="metrics to draw, top to bottom (all)")


if __name__ == "__main__":
    sys.exit(figure_main(draw, __doc__, options=options))
