"""Draw faithfulness against circuit size, and its two summaries CPR and CMD over training.

figures/faithfulness_curve_<model>.html has a column per task and a curve per checkpoint; figures/cpr_cmd.html the area
under the curve and that between it and 1 (MIB benchmark, arXiv 2504.13151; measured with `search.mib: true`).

    python plotting/plot_faithfulness_curve.py -r results --curves 6
"""

import numpy as np
import pandas as pd
from plotly.colors import sample_colorscale

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import row_of_panels, task_panels
from circuits_over_time.plotting.parts.style import Drawing, Looks, finish, within
from circuits_over_time.plotting.parts.tables import Results, by_model, escaped, logger, tasks_in
from circuits_over_time.plotting.parts.theme import WHITE, paint
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.commands import how_to_make
from circuits_over_time.utils.tasks.registry import task_label, units_of

# Axes go no further, so that the noise of untrained models does not flatten the rest.
LIMITS = (-0.5, 1.5)
CUT = "; values outside [{:g}, {:g}] are cut off"


def draw_curves(table: pd.DataFrame, model: str, n_curves: int) -> Drawing:
    """One model's curves; dark checkpoints are early, bright ones late."""
    tasks = tasks_in(table)
    figure, width = row_of_panels([task_label(task) for task in tasks], 520)
    figure.update_annotations(yshift=4)
    there = sorted(table["step"].unique().tolist())
    # Spread evenly over their order, with the last.
    places = np.linspace(len(there) - 1, 0, min(n_curves, len(there))).round().astype(int)
    steps = [there[place] for place in sorted(set(places.tolist()))]
    # Not the brightest end of the scale: yellow on white cannot be read.
    colours = sample_colorscale("Viridis", np.linspace(0, 0.88, len(steps)).tolist()) if len(steps) > 1 else ["#440154"]
    # The legend has the steps in the order of training.
    for step, colour in zip(steps, map(paint, colours), strict=True):
        for column, task in enumerate(tasks, 1):
            # A logarithmic axis has no place for the empty circuit.
            part = table[(table["task"] == task) & (table["step"] == step) & (table["size"] > 0)].sort_values("size")
            if part.empty:
                continue
            chosen = part["selected"].astype(bool)
            figure.add_scatter(
                x=part["size"],
                y=part["faithfulness"],
                name=f"step {step:,}",
                legendgroup=str(step),
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={
                    "color": [paint(WHITE) if ringed else colour for ringed in chosen],
                    "size": [11 if ringed else 4 for ringed in chosen],
                    "line": {"color": colour, "width": [2.5 if ringed else 0 for ringed in chosen]},
                },
                customdata=part[["n_edges", "n_nodes", "metric"]].to_numpy(),
                hovertemplate=f"<b>step {step:,}</b><br>%{{x:,}} {units_of([task])} asked for, "
                "%{customdata[0]:,} edges after pruning, %{customdata[1]} nodes"
                "<br>faithfulness %{y:.3f}, metric %{customdata[2]:.3g}<extra></extra>",
                row=1,
                col=column,
            )
    figure.add_hline(y=1, line={"dash": "dash", "width": 1, "color": paint("#777777")}, row=1, col="all")
    limits, cut = within([0.0, 1.0, *table.loc[table["step"].isin(steps), "faithfulness"]], *LIMITS)
    subtitle = "Rings mark the selected circuit; 1 is the whole model" + (CUT.format(*LIMITS) if cut else "")
    drawing = finish(figure, f"Faithfulness of circuits of {model}", subtitle, width=width, height=412)
    figure.update_yaxes(range=limits)
    sizes = table.loc[table["size"] > 0, "size"]
    span = [np.log10(sizes.min()) - 0.1, np.log10(sizes.max()) + 0.1]
    title = {"text": f"circuit size ({units_of(tasks)}, before pruning)", "font": {"size": 12}}
    figure.update_xaxes(type="log", title=title, tickfont_size=11, dtick=1, range=span)
    figure.update_yaxes(title_text="faithfulness (share)", row=1, col=1)
    return drawing


def draw_areas(table: pd.DataFrame, looks: Looks) -> Drawing:
    """CPR above CMD, a column per task, a line per model."""
    panels, tasks = task_panels(table, 2)
    cuts = []
    for column, task in enumerate(tasks, 1):
        part = table[table["task"] == task]
        for row, (measure, level) in enumerate((("cpr", 1.0), ("cmd", 0.0)), 1):
            panels.draw_models(part, measure, looks, row, column, hover=("status",))
            limits, cut = within([0.0, level, *part[measure]], *LIMITS)
            panels.figure.update_yaxes(range=limits, row=row, col=column)
            cuts.append(cut)
        panels.level(1, 1, column)
    panels.name_rows(["area under curve (CPR)", "area from 1 (CMD)"])
    subtitle = "CPR: higher is better, CMD: lower is better (MIB benchmark)"
    return panels.done("Faithfulness over all circuit sizes", subtitle + (CUT.format(*LIMITS) if any(cuts) else ""))


def draw(results: Results) -> dict[str, Drawing]:
    """The curves of each model, and the areas under all of them where they are measured."""
    if (n_curves := results.arguments.curves) < 1:
        raise UserError(f"--curves: {n_curves} asked for; ask for at least 1")
    table = results.table("faithfulness")
    drawn = {
        f"faithfulness_curve_{model}": draw_curves(rows, model=model, n_curves=n_curves)
        for model, rows in by_model(escaped(table))
    }
    baselines = results.table_if_any("baselines", note=True)
    areas = pd.DataFrame()
    if baselines is not None:  # Models and tasks that have CPR and CMD at some checkpoint.
        of_task = baselines.groupby(["model", "task"])
        areas = escaped(of_task.filter(lambda rows: rows[["cpr", "cmd"]].notna().any(axis=None)))
    if not areas.empty:
        drawn["cpr_cmd"] = draw_areas(areas, looks=results.looks())
    elif not results.in_report:
        model, task = table[["model", "task"]].iloc[0]
        command = how_to_make(results.store.root, "baselines", model, task, **{"search.mib": True, "overwrite": True})
        logger.info("no CPR and CMD; run: %s", command)
    return drawn


FIGURE = Figure(
    draw,
    order=80,
    options={"--curves": {"type": int, "default": 6, "metavar": "N", "help": "checkpoints, spread over training (6)"}},
)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
