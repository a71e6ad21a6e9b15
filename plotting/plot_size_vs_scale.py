"""Draw mean circuit size over training against the models' parameter counts (figures/size_vs_scale.html).

There is a panel per task. r is Pearson's correlation over models between parameters and mean size, not their
logarithms, with a p-value from permutations of the models. Checkpoints without a circuit do not count.

    python plotting/plot_size_vs_scale.py -r results --count nodes --parameters my-model=25000000
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import row_of_panels
from circuits_over_time.plotting.parts.style import Drawing, Looks, finish, small
from circuits_over_time.plotting.parts.tables import NotMeasured, Results, as_text, by_model, escaped, logger, tasks_in
from circuits_over_time.plotting.parts.theme import paint
from circuits_over_time.plotting.parts.time_axis import compact
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.comparison.scale import COUNTS, correlations, mean_sizes
from circuits_over_time.utils.results.commands import how_to_make
from circuits_over_time.utils.results.record import recorded_parameters
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.tasks.registry import task_label


def size_against_scale(sizes: pd.DataFrame, parameters: Mapping[str, float]) -> pd.DataFrame:
    """Pearson's r over models between parameter count and circuit size (`model, task, size`), for every task.

    Returns:
        `task, r, p_value, exact, n_models`; r is NaN with fewer than three models or without variation.

    Raises:
        ValueError: if a model and task come twice, or a model has no parameter count.
    """
    if sizes.duplicated(["model", "task"]).any():
        raise ValueError("a model and task come twice among the sizes")
    if unknown := set(sizes["model"]) - set(parameters):
        raise ValueError(f"no parameter count of {', '.join(sorted(unknown))}")
    rows = []
    for task in tasks_in(sizes):
        part = sizes[sizes["task"] == task]
        x, y = part["model"].map(parameters).astype(float).to_numpy(), part["size"].astype(float).to_numpy()
        pearson = next(other for other in correlations(x, y) if other.statistic == "pearson")
        rows.append((task, pearson.value, pearson.p_value, pearson.exact, len(part)))
    return pd.DataFrame(rows, columns=["task", "r", "p_value", "exact", "n_models"])


def model_parameters(store: Store, table: pd.DataFrame, given: list[str] | None = None) -> dict[str, float]:
    """Parameters of the table's models: as given (`name=count`), else as recorded. Others are logged and left out.

    Raises:
        UserError: if a given count cannot be read.
    """
    counts: dict[str, float] = {}
    for text in given or []:
        name, _, number = text.partition("=")
        try:
            counts[name] = float(number)
        except ValueError:
            raise UserError(f"--parameters: '{text}' is not name=count, such as my-model=25000000") from None
    for model, rows in by_model(table):
        if model not in counts and (recorded := recorded_parameters(store, model)) is not None:
            counts[model] = float(recorded)
        if model not in counts:
            last = [int(rows["step"].max())]
            command = how_to_make(store.root, "task_performance", model, checkpoints=last, overwrite=True)
            why = f"{model}: its results do not record its number of parameters; left out."
            logger.warning("%s Give --parameters %s=COUNT, or run: %s", why, model, command)
    return counts


def draw_scale(sizes: pd.DataFrame, parameters: Mapping[str, float], looks: Looks, count: str) -> Drawing:
    """The figure: a point per model with one standard deviation over checkpoints, and r in each panel's title."""
    correlation = size_against_scale(sizes, parameters).set_index("task")
    tasks = tasks_in(sizes)
    titles = []
    for task in tasks:
        r, p, n = (float(correlation[name][task]) for name in ("r", "p_value", "n_models"))
        verdict = "r needs three models of different sizes"
        if not np.isnan(r):
            verdict = f"r = {r:.2f} ({n:.0f} models), {'exact ' if correlation['exact'][task] else ''}p = {p:.2g}"
        titles.append(f"{task_label(task)}<br>{small(verdict)}")
    figure, width = row_of_panels(titles, 420)
    for column, task in enumerate(tasks, 1):
        for model, rows in by_model(sizes[sizes["task"] == task]):
            row, look = rows.iloc[0], looks[model]
            figure.add_scatter(
                x=[parameters[model]],
                y=[row["size"]],
                error_y={"type": "data", "array": [np.nan_to_num(row["sd"])], "thickness": 1.2, "width": 3},
                mode="markers",
                name=model,
                legendgroup=model,
                marker={"color": paint(look.colour), "symbol": look.symbol, "size": 11},
                customdata=[[compact(parameters[model]), row["n_steps"]]],
                hovertemplate=f"<b>{model}</b> (%{{customdata[0]}} parameters)<br>mean size: %{{y:.1f}} {count}"
                "<br>over %{customdata[1]} checkpoints<extra></extra>",
                row=1,
                col=column,
            )
    drawing = finish(
        figure,
        "Circuit size against model size",
        f"Mean number of {count} over checkpoints; bars are one standard deviation over checkpoints",
        width=width,
        height=392,
    )
    figure.update_layout(margin_t=62)
    figure.update_xaxes(
        type="log", title_text="parameters", title_font_size=12, tickfont_size=11, **_decades(sizes, parameters)
    )
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text=f"mean circuit size ({count})", row=1, col=1)
    return drawing


def _decades(sizes: pd.DataFrame, parameters: Mapping[str, float]) -> dict[str, object]:
    """Range and ticks (1, 2, 5 times powers of ten, thinned over wide ranges) of the parameter axis."""
    values = [parameters[model] for model in set(sizes["model"])]
    low, high = min(values) / 1.6, max(values) * 1.6
    factors = (1, 2, 5) if high / low < 1e2 else (1, 3) if high / low < 1e3 else (1,)
    ticks = [factor * 10.0**power for power in range(3, 13) for factor in factors]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return {"range": [np.log10(low), np.log10(high)], "tickvals": ticks, "ticktext": [compact(tick) for tick in ticks]}


def draw(results: Results) -> dict[str, Drawing]:
    """One figure of all models. The report has it if there are two to be compared."""
    table, count = results.table("faithfulness"), results.arguments.count
    sizes = mean_sizes(table, count)
    if results.in_report and sizes["model"].nunique() < 2:
        return {}
    parameters = model_parameters(results.store, table, results.arguments.parameters)
    sizes = escaped(sizes[sizes["model"].isin(parameters.keys())])
    if sizes.empty:
        why = "no selected circuit of a model of known size; give --parameters name=count"
        raise NotMeasured(f"{results.store.root}/faithfulness: {why}")
    counts = {as_text(model): number for model, number in parameters.items()}
    return {"size_vs_scale": draw_scale(sizes, parameters=counts, looks=results.looks(), count=count)}


FIGURE = Figure(
    draw,
    order=160,
    options={
        "--count": {"choices": tuple(COUNTS), "default": "nodes", "help": "what a circuit's size counts (nodes)"},
        "--parameters": {"nargs": "+", "metavar": "NAME=COUNT", "help": "parameter counts of models"},
    },
)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
