"""Draw published benchmark results over training (figures/pythia_evals.html).

It reads the JSON files of lm-evaluation-harness below a folder, and draws a panel for each benchmark with a line for
each model, 95% bands from the harness's standard errors, and chance as a dashed line.

    python plotting/plot_pythia_evals.py -e pythia_evals --format html,png
"""

from itertools import cycle
from pathlib import Path

import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import grid_of_panels
from circuits_over_time.plotting.parts.published.eval_results import read_evaluations
from circuits_over_time.plotting.parts.style import Drawing, Looks
from circuits_over_time.plotting.parts.tables import Results, escaped, logger
from circuits_over_time.plotting.parts.time_axis import TimeAxis
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.config.schedules import tokens_at

# Benchmark -> title, metric, chance.
BENCHMARKS = {
    "lambada_openai": ("LAMBADA", "acc", None),
    "piqa": ("PIQA", "acc", 0.5),
    "winogrande": ("WinoGrande", "acc", 0.5),
    "wsc": ("WSC", "acc", 0.5),
    "arc_easy": ("ARC easy", "acc", 0.25),
    "arc_challenge": ("ARC challenge (normalised)", "acc_norm", 0.25),
    "sciq": ("SciQ", "acc", 0.25),
    "logiqa": ("LogiQA (normalised)", "acc_norm", 0.25),
    "mmlu": ("MMLU (mean of subjects)", "acc", 0.25),
}
COLUMNS = 3
DASHES = (None, "dot", "dashdot", "longdash")  # one for each filter of a metric


def choose(table: pd.DataFrame, shots: int, benchmarks: list[str] | None) -> pd.DataFrame:
    """The rows to draw: one metric per benchmark, through each of its filters, at one number of shots.

    Raises:
        UserError: if nothing is left, naming what there is.
    """
    counts = sorted(int(count) for count in table["shots"].unique())
    if shots not in counts:
        raise UserError(f"--shots: {shots} given; the results are of {', '.join(map(str, counts))} shots")
    table = table[table["shots"] == shots]
    metrics = {name: metric for name, (_, metric, _) in BENCHMARKS.items()}
    there = sorted(set(table["benchmark"]))
    for name in benchmarks or []:
        if name not in there:
            raise UserError(f"--benchmark: no results of {name} (there: {', '.join(there)})")
        # Benchmarks that the figure does not know are drawn by the first metric the file gives.
        metrics.setdefault(name, table.loc[table["benchmark"] == name, "metric"].iloc[0].partition(",")[0])
    wanted = benchmarks or [name for name in BENCHMARKS if name in there]
    if not wanted:
        raise UserError(f"none of {', '.join(BENCHMARKS)} is among the results; name others with --benchmark")
    plain = table["metric"].str.partition(",")[0]
    parts = [table[(table["benchmark"] == name) & (plain == metrics[name])] for name in wanted]
    return pd.concat(parts, ignore_index=True)


def draw_evaluations(table: pd.DataFrame, looks: Looks) -> Drawing:
    """The figure, from rows `model, step, tokens, benchmark, metric, value, stderr`."""
    benchmarks = list(dict.fromkeys(table["benchmark"]))
    titles = [BENCHMARKS[name][0] if name in BENCHMARKS else name for name in benchmarks]
    panels, places = grid_of_panels(titles, COLUMNS, TimeAxis.of(table), panel_height=200)
    for name, (row, column) in zip(benchmarks, places, strict=True):
        part = table[table["benchmark"] == name]
        filters = list(part.groupby("metric", sort=False))
        for dash, (metric, rows) in zip(cycle(DASHES), filters, strict=False):
            panels.draw_models(rows, "value", looks, row, column, error="stderr", dash=dash, hover=("stderr",))
            if len(filters) > 1:
                panels.key(str(metric).partition(",")[2], dash or "solid")
        if name in BENCHMARKS and (chance := BENCHMARKS[name][2]) is not None:
            panels.level(chance, row, column)
        metric = part["metric"].iloc[0].partition(",")[0]
        title = "accuracy" if metric.startswith("acc") else metric.replace("_", " ")
        panels.figure.update_yaxes(title_text=title, row=row, col=column)
    panels.key("chance", "dash", "#777777")
    return panels.done("Benchmarks over training", "lm-evaluation-harness; bands are 95% intervals")


def draw(results: Results) -> dict[str, Drawing]:
    folder, asked = results.arguments.evaluations, results.arguments.model
    if folder is None:
        return {}  # The report has them where it is given a folder.
    table = read_evaluations(folder)
    for model in asked or []:
        if model not in set(table["model"]):
            logger.warning("%s: no results of model %s; left out", folder, model)
    if asked:
        table = table[table["model"].isin(asked)]
        if table.empty:
            raise UserError(f"{folder}: no results of {' '.join(asked)}")
    table = choose(table, results.arguments.shots, results.arguments.benchmark)
    table = table.assign(tokens=[tokens_at(step) for step in table["step"]])
    looks = results.looks(table["model"])
    return {"pythia_evals": draw_evaluations(escaped(table), looks=looks)}


FIGURE = Figure(
    draw,
    order=180,
    options={
        "-e --evaluations": {"type": Path, "required": True, "help": "folder of lm-evaluation-harness JSON files"},
        "--shots": {"type": int, "default": 0, "help": "examples in the prompts (0)"},
        "--benchmark": {"nargs": "+", "metavar": "NAME", "help": "benchmarks to draw (the usual nine)"},
    },
)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
