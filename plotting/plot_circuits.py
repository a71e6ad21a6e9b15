"""Draw circuit size and faithfulness over training, with the task metric beneath (figures/circuits.html).

There is a column per task: the smallest circuit found that reaches the threshold (a gap where none does), its
faithfulness, and the metric of the whole model on clean and corrupted prompts.

    python plotting/plot_circuits.py -r results -o figures --format html,png
"""

import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import task_panels
from circuits_over_time.plotting.parts.style import Drawing, Looks, metric_label, within
from circuits_over_time.plotting.parts.tables import Results, as_text, escaped, logger, tasks_in
from circuits_over_time.utils.results.kinds import STATUSES, WITH_CIRCUIT
from circuits_over_time.utils.tasks.registry import primary_metric

# Before a task is learned, faithfulness is a quotient of noise, so the axis goes no further.
FAITHFULNESS_LIMITS = (0.0, 2.0)
COUNTS = {"edges": "n_edges", "nodes": "n_nodes"}


def selected_circuits(faithfulness: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """One row per model, task and step: the baselines and the selected circuit, NaN if none was selected.

    `n_edges_low, n_edges_high` and the same for `n_nodes` belong to the circuits at the ends of the size's interval.
    """
    keys = ["model", "task", "step"]
    chosen = faithfulness.loc[faithfulness["selected"].astype(bool)]
    columns = [*keys, "n_edges", "n_nodes", "faithfulness", "faithfulness_low", "faithfulness_high"]
    chosen = chosen[[name for name in columns if name in chosen]]
    table = baselines.merge(chosen, on=keys, how="left", validate="one_to_one")
    for end in ("low", "high"):
        if f"size_{end}" in table:
            sizes = faithfulness[[*keys, "size", "n_edges", "n_nodes"]].astype({"size": float})
            sizes.columns = pd.Index([*keys, f"size_{end}", f"n_edges_{end}", f"n_nodes_{end}"])
            table = table.astype({f"size_{end}": float}).merge(sizes, on=[*keys, f"size_{end}"], how="left")
    return table.sort_values(keys, ignore_index=True)


def draw_circuits(table: pd.DataFrame, looks: Looks, count: str, metrics: dict[str, str]) -> Drawing:
    """The figure, from what `selected_circuits` returns; `metrics` has each task's metric, for the axis titles."""
    panels, tasks = task_panels(table, 3)
    cuts = []
    for column, task in enumerate(tasks, 1):
        part, size, hover = table[table["task"] == task], COUNTS[count], ("n_edges", "n_nodes", "faithfulness")
        for row, (value, shown) in enumerate(((size, hover), ("faithfulness", hover[:2])), 1):
            ends = (f"{value}_low", f"{value}_high")
            panels.draw_models(part, value, looks, row, column, interval=ends, hover=shown)
        panels.missing(part, size, "status", looks, 1, column)
        panels.draw_models(part, "full", looks, 3, column, error="full_se", hover=("corrupted", "n_prompts"))
        panels.draw_models(part, "corrupted", looks, 3, column, error="corrupted_se", dash="dot", markers=False)
        panels.level(1.0, 2, column)
        panels.figure.update_yaxes(title_text=metric_label(metrics[task]), row=3, col=column)
        panels.figure.update_yaxes(rangemode="tozero", row=1, col=column)
        limits, cut = within([0.0, 1.0, *part["faithfulness"]], *FAITHFULNESS_LIMITS)
        panels.figure.update_yaxes(range=limits, row=2, col=column)
        cuts.append(cut)
    panels.name_rows([f"circuit size ({count})", "faithfulness (share)"])
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
        if own is None and (told := table.loc[table["task"] == task, "metric"].dropna()).size:
            own = told.iloc[0]
        elif own is None:  # Tables of earlier versions do not say.
            run = results.store.folder("baselines", model, task).read_run()
            own = run.get("settings", run.get("config", {})).get("metric")
        metrics[as_text(task)] = str(own or "task metric")
    return metrics


def draw(results: Results) -> dict[str, Drawing]:
    table = selected_circuits(results.table("faithfulness"), results.table("baselines"))
    for (model, task), rows in table.groupby(["model", "task"], sort=False):
        without = rows.loc[~rows["status"].isin(WITH_CIRCUIT), "status"].value_counts()
        told = ", ".join(f"{status} at {without[status]}" for status in STATUSES if status in without)
        if told:
            logger.info("%s %s: %s of %d steps", model, task, told, len(rows))
    options = {"count": results.arguments.count, "metrics": task_metrics(results, table)}
    return {"circuits": draw_circuits(escaped(table), looks=results.looks(), **options)}


FIGURE = Figure(
    draw,
    order=20,
    options={"--count": {"choices": tuple(COUNTS), "default": "edges", "help": "what a circuit's size counts (edges)"}},
)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
