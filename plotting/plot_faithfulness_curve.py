"""Draw faithfulness against circuit size, and its two summaries CPR and CMD over training.

Writes figures/faithfulness_curve_<model>.html (a column per task, a curve per checkpoint, the selected size ringed) and
figures/cpr_cmd.html: the area under the curve and the area between it and 1, as the MIB benchmark defines them
(arXiv 2504.13151), over all checkpoints. Sizes not measured are interpolated towards the whole model.

    python plotting/plot_faithfulness_curve.py -r results --curves 6
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge_attribution_patching.circuit import Circuit
from plotting.export import figure_main
from plotting.panels import Line, Panels
from plotting.style import ModelLook, finish, model_looks, task_label, within
from plotting.tables import every_model, load, models_in, tasks_in
from plotting.time_axis import TimeAxis
from utils.errors import UserError
from utils.faithfulness_area import cmd, cpr
from utils.results.store import Store

logger = logging.getLogger("plotting")

PANEL_WIDTH = 345
# Axes go no further, so that the noise of untrained models does not flatten the rest.
CURVE_LIMITS = (-0.5, 1.5)
AREA_LIMITS = (-0.5, 1.5)
CUT = "; values outside [{:g}, {:g}] are cut off"


def spread_steps(steps: list[int], n: int) -> list[int]:
    """At most `n` of the steps, evenly spread over their order, the last among them."""
    chosen = np.linspace(len(steps) - 1, 0, min(n, len(steps))).round().astype(int)
    return [steps[i] for i in sorted(set(chosen.tolist()))]


def areas(table: pd.DataFrame, totals: dict[tuple[str, str], int]) -> pd.DataFrame:
    """CPR and CMD of every checkpoint.

    Args:
        table: faithfulness results of models and tasks in `totals`.
        totals: number of edges of the whole graph, by (model, task).

    Returns:
        `model, task, step, tokens, cpr, cmd, covered`, the last being the largest share of edges measured.
    """
    rows = []
    for (*key, step), part in table.groupby(["model", "task", "step"]):
        model, task = map(str, key)
        part = part.dropna(subset="faithfulness").drop_duplicates("size")
        if part.empty:
            logger.info("%s %s step %d: no faithfulness; left out", model, task, step)
            continue
        shares = part["size"] / totals[model, task]
        values = {
            "cpr": cpr(shares, part["faithfulness"]),
            "cmd": cmd(shares, part["faithfulness"]),
            "covered": shares.max(),
        }
        rows.append({"model": model, "task": task, "step": step, "tokens": part["tokens"].iloc[0], **values})
    return pd.DataFrame(rows)


def graph_sizes(store: Store, table: pd.DataFrame) -> dict[tuple[str, str], int]:
    """Edges of each model's whole graph, by (model, task); those without a saved graph are logged and absent."""
    totals: dict[tuple[str, str], int] = {}
    for key, part in table.groupby(["model", "task"]):
        model, task = map(str, key)
        steps = [step for step in part["step"].unique() if store.folder("graphs", model, task).has(step, ".pt")]
        if not steps:
            logger.warning(
                "%s %s: no graph in %s, so no CPR and CMD", model, task, store.folder("graphs", model, task).path
            )
            continue
        totals[model, task] = Circuit.from_tensors(
            store.folder("graphs", model, task).read_tensors(steps[-1])
        ).graph.n_edges
    return totals


def draw_curves(table: pd.DataFrame, model: str, n_curves: int) -> go.Figure:
    """One model's curves; dark checkpoints are early, bright ones late."""
    tasks = tasks_in(table)
    width = 106 + max(PANEL_WIDTH * len(tasks), 520)
    figure = make_subplots(
        cols=len(tasks), subplot_titles=[task_label(task) for task in tasks], horizontal_spacing=min(0.2, 70 / width)
    )
    figure.update_annotations(font_size=15, yshift=4)
    steps = spread_steps(sorted(table["step"].unique().tolist()), n_curves)
    # Not the brightest end of the scale: yellow on white cannot be read.
    colours = sample_colorscale("Viridis", np.linspace(0, 0.88, len(steps)).tolist()) if len(steps) > 1 else ["#440154"]
    named: set[int] = set()
    for column, task in enumerate(tasks, 1):
        for step, colour in zip(steps, colours, strict=True):
            # A logarithmic axis has no place for the empty circuit.
            part = table[(table["task"] == task) & (table["step"] == step) & (table["size"] > 0)].sort_values("size")
            if part.empty:
                continue
            chosen = part["selected"].astype(bool)
            figure.add_trace(
                go.Scatter(
                    x=part["size"],
                    y=part["faithfulness"],
                    name=f"step {step:,}",
                    legendgroup=str(step),
                    showlegend=step not in named,
                    mode="lines+markers",
                    line={"color": colour, "width": 2},
                    marker={
                        "color": ["#ffffff" if ringed else colour for ringed in chosen],
                        "size": [11 if ringed else 4 for ringed in chosen],
                        "line": {"color": colour, "width": [2.5 if ringed else 0 for ringed in chosen]},
                    },
                    customdata=part[["n_edges", "n_nodes", "metric"]].to_numpy(),
                    hovertemplate=f"<b>step {step:,}</b><br>%{{x:,}} edges asked for, "
                    "%{customdata[0]:,} after pruning, %{customdata[1]} nodes"
                    "<br>faithfulness %{y:.3f}, metric %{customdata[2]:.3g}<extra></extra>",
                ),
                row=1,
                col=column,
            )
            named.add(step)
        figure.add_hline(y=1, line={"dash": "dash", "width": 1, "color": "#777777"}, row=1, col=column)
    limits, cut = within([0.0, 1.0, *table.loc[table["step"].isin(steps), "faithfulness"]], *CURVE_LIMITS)
    subtitle = "Rings mark the selected circuit; 1 is the whole model" + (CUT.format(*CURVE_LIMITS) if cut else "")
    finish(figure, f"Faithfulness of circuits of {model}", subtitle, width=width, height=520)
    figure.update_yaxes(range=limits)
    figure.update_xaxes(
        type="log", title_text="circuit size (edges, before pruning)", title_font_size=12, tickfont_size=11
    )
    sizes = table.loc[table["size"] > 0, "size"]
    figure.update_xaxes(dtick=1, range=[np.log10(sizes.min()) - 0.1, np.log10(sizes.max()) + 0.1])
    figure.update_yaxes(title_text="faithfulness (share)", row=1, col=1)
    return figure


def draw_areas(table: pd.DataFrame, looks: dict[str, ModelLook]) -> go.Figure:
    """CPR above CMD, a column per task, a line per model."""
    tasks = tasks_in(table)
    panels = Panels(2, len(tasks), TimeAxis.of(table), [task_label(task) for task in tasks])
    cuts = []
    for column, task in enumerate(tasks, 1):
        for model in models_in(table[table["task"] == task]):
            rows = table[(table["task"] == task) & (table["model"] == model)]
            for row, measure in enumerate(("cpr", "cmd"), 1):
                panels.draw(Line(rows, measure, model, looks[model], hover=("covered",)), row, column)
        panels.level(1, 1, column)
        for row, measure in enumerate(("cpr", "cmd"), 1):
            limits, cut = within([float(2 - row), *table.loc[table["task"] == task, measure]], *AREA_LIMITS)
            panels.figure.update_yaxes(range=limits, row=row, col=column)
            cuts.append(cut)
    panels.figure.update_yaxes(title_text="CPR (area under the curve)", row=1, col=1)
    panels.figure.update_yaxes(title_text="CMD (area from 1)", row=2, col=1)
    subtitle = "CPR: higher is better, CMD: lower is better (MIB benchmark)" + (
        CUT.format(*AREA_LIMITS) if any(cuts) else ""
    )
    return panels.done("Faithfulness over all circuit sizes", subtitle)


def draw(store: Store, arguments: argparse.Namespace) -> dict[str, go.Figure]:
    """Figures by file name."""
    if arguments.curves < 1:
        raise UserError(f"--curves: {arguments.curves} asked for; at least 1")
    table = load(store, "faithfulness", arguments)
    figures = {}
    for model in models_in(table):
        figures[f"faithfulness_curve_{model}"] = draw_curves(table[table["model"] == model], model, arguments.curves)
    totals = graph_sizes(store, table)
    known = [pair in totals for pair in zip(table["model"], table["task"], strict=True)]
    if any(known):
        summary = areas(table[known], totals)
        least = summary["covered"].min()
        if least < 0.5:
            logger.info(
                "CPR and CMD: circuits were measured up to %s%% of the edges, interpolated beyond", f"{100 * least:.2g}"
            )
        figures["cpr_cmd"] = draw_areas(summary, model_looks(every_model(store)))
    return figures


def options(parser: argparse.ArgumentParser) -> None:
    """The script's own options."""
    parser.add_argument(
        "--curves", type=int, default=6, metavar="N", help="checkpoints drawn, spread over training (6)"
    )


if __name__ == "__main__":
    sys.exit(figure_main(draw, __doc__, options=options))
