"""Draw whether circuits change by more than the prompts explain (figures/comparison_<model>.html).

There is a column per task. Rows: each circuit against that of the checkpoint before and against the reference, as found
and at one size. The band around a line is the noise floor: 95% of pairs of circuits that differ in their prompts alone.
The band at the bottom reaches up to the mean of random circuits. A ring marks a change beyond noise.

figures/comparison_models.html compares models of one shape step by step, figures/comparison_methods_<model>.html the
methods by which a model's circuits were found: a thin line per pair, their median and quartiles. If heads were matched,
figures/comparison_matched_<seeds>.html has the seeds' overlap by the given names and by the matches, and what circuits
do in each other's models, and figures/head_stability.html how similar the matched heads of each layer are.

    python plotting/plot_comparison.py -r results --measure edge_jaccard --at size
"""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import Line, Panels, ring, row_of_panels, task_panels
from circuits_over_time.plotting.parts.style import Drawing, ModelLook, add_key, finish, model_looks
from circuits_over_time.plotting.parts.tables import Results, by_model, escaped
from circuits_over_time.plotting.parts.theme import paint
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.config.keys import task_and_method
from circuits_over_time.utils.results.comparison import ComparisonFolder

MEASURES = {
    "edge_jaccard": "edges, Jaccard",
    "node_jaccard": "nodes, Jaccard",
    "head_jaccard": "heads, Jaccard",
    "weighted_jaccard": "edges, score-weighted",
    "edges_added": "edges added",
    "edges_removed": "edges removed",
    "rank_correlation": "rank correlation of scores",
}
COUNTED = ("edges_added", "edges_removed")
AT = {"faithfulness": "as found", "size": "fixed size", "scores": "all scores"}
NOISE, CHANCE, CHANGED = "#777777", "#B8860B", "#D55E00"
NOISE_ENTRY, CHANCE_ENTRY = "noise floor (95%)", "chance floor"
CHANGED_ENTRY, DIFFERS_ENTRY = "changed beyond noise", "differs beyond noise"
MEDIAN_ENTRY = "median and quartiles of pairs"
NAMES = {
    "given": ("by the given names", ModelLook("#D55E00", "square", "solid")),
    "function": ("heads matched by function", ModelLook("#0072B2", "circle", "solid")),
    "attention": ("heads matched by attention", ModelLook("#009E73", "diamond", "solid")),
}
MATCHED = {
    ("edge_jaccard", "size"): "edges in common<br>fixed size",
    ("transfer", "faithfulness"): "faithfulness in<br>each other's model",
}
SHUFFLED_ENTRY, CEILING_ENTRY = "heads dealt anew (dotted, hollow)", "other prompts; own circuit"


def draw_comparison(table: pd.DataFrame, model: str, measure: str, look: ModelLook) -> Drawing:
    """The figure of one model over training, from rows of `similarity` of one measure."""
    table = table[(table["model"] == model) & table["against"].isin(["previous", "reference"])]
    there = set(zip(table["against"], table["at"], strict=True))
    rows = [key for key in itertools.product(("previous", "reference"), AT) if key in there]
    panels, tasks = task_panels(table, len(rows), 170)
    for column, task in enumerate(tasks, 1):
        for row, (against, at) in enumerate(rows, 1):
            part = table[(table["task"] == task) & (table["against"] == against) & (table["at"] == at)]
            if not part.empty:
                _draw_floors(panels, part, row, column)
                hover = ("other_step", "noise_floor", "chance_floor", "p_value", "q_value", "n_edges")
                line = Line(part.round(dict.fromkeys(hover, 4)), "value", model, look, hover=hover)
                panels.draw(line, row, column)
                _mark_changes(panels, part, model, row, column)
            _set_range(panels, table, measure, row, column)
    references = table.loc[table["against"] == "reference", "other_step"].unique()
    reference = f"step {int(references[0]):,}" if len(references) == 1 else "reference"
    others = {"previous": "checkpoint before", "reference": reference}
    panels.name_rows(f"to {others[against]}<br>{AT[at]}" for against, at in rows)
    # Also where there is no ring.
    add_key(panels.figure, CHANGED_ENTRY, legendgroup=CHANGED_ENTRY, mode="markers", marker=ring(CHANGED))
    return panels.done(
        f"Do circuits of {model} change by more than the prompts explain?",
        f"{_title(measure).format('')} Rings: more change than resampled prompts make",
    )


def draw_between(table: pd.DataFrame, measure: str, of: str, title: str) -> Drawing:
    """The figure of models of one shape or of a model's methods (`of`), from rows of `similarity` of one measure.

    `model` and `other_model` name the two sides.
    """
    rows = [at for at in AT if (table["at"] == at).any()]
    panels, tasks = task_panels(table, len(rows), 200)
    pair, middle = ModelLook("#56B4E9", "circle", "solid"), ModelLook("#0072B2", "circle", "solid")
    for column, task in enumerate(tasks, 1):
        for row, at in enumerate(rows, 1):
            part = table[(table["task"] == task) & (table["at"] == at)]
            if not part.empty:
                _draw_floors(panels, _over_pairs(part), row, column)
            for (one, other), of_pair in part.groupby(["other_model", "model"], sort=True):
                name, entry = f"{one} and {other}", f"pair of {of}"
                panels.draw(Line(of_pair, "value", name, pair, markers=False, width=1, legend=entry), row, column)
                _mark_changes(panels, of_pair, name, row, column, entry=DIFFERS_ENTRY, size=6)
            if part.groupby(["other_model", "model"]).ngroups > 2:
                summary = _over_pairs(part)
                interval = ("lower_quartile", "upper_quartile")
                panels.draw(Line(summary, "value", MEDIAN_ENTRY, middle, interval=interval), row, column)
            _set_range(panels, table, measure, row, column)
    panels.name_rows(AT[at] for at in rows)
    add_key(panels.figure, DIFFERS_ENTRY, legendgroup=DIFFERS_ENTRY, mode="markers", marker=ring(CHANGED))
    return panels.done(title, f"{_title(measure).format(' at the same step')} Rings: differ beyond the prompts")


def draw_matched(table: pd.DataFrame, group: str) -> Drawing:
    """The figure of seeds whose heads were matched, from rows of `same_circuit` with `tokens`."""
    table = table.assign(task=table["task"].fillna("all tasks"))
    there = set(zip(table["measure"], table["at"], strict=True))
    rows = [key for key in MATCHED if key in there]
    panels, tasks = task_panels(table, len(rows), 200)
    grey, apart = ModelLook(NOISE, "circle", "solid"), 0.2 if table["step"].nunique() == 1 else 0.025
    for column, task in enumerate(tasks, 1):
        for row, (measure, at) in enumerate(rows, 1):
            part = table[(table["task"] == task) & (table["measure"] == measure) & (table["at"] == at)]
            for place, (names, (entry, look)) in enumerate(NAMES.items()):
                of_names = part[part["names"] == names].round(4)
                hover = ("low", "high", "shuffled_floor", "chance_floor", "n_pairs")
                # Of one step there are marks and bars, which would hide each other.
                aside = apart * (place - 1) if len(of_names) == 1 else 0
                ends = ("low", "high")
                line = Line(of_names, "value", entry, look, interval=ends, hover=hover, aside=aside)
                panels.draw(line, row, column)
                hollow = replace(look, symbol=f"{look.symbol}-open")
                floor = replace(line, value="shuffled_floor", name=SHUFFLED_ENTRY, look=hollow, interval=None, hover=())
                panels.draw(replace(floor, dash="dot", markers=len(of_names) == 1, width=1.2), row, column)
            ceiling = part.groupby(["step", "tokens"])["noise_floor"].mean().to_frame().reset_index()
            alone = len(ceiling) == 1
            panels.draw(Line(ceiling, "noise_floor", CEILING_ENTRY, grey, markers=alone, width=1), row, column)
            panels.figure.update_yaxes(range=[-0.1, 1.1], row=row, col=column)
    panels.name_rows(MATCHED[key] for key in rows)
    return panels.done(
        f"Is the circuit the same in the seeds of {group}, whatever its heads are called?",
        "Means over pairs of seeds, with 95% intervals over seeds; dotted, hollow: heads dealt anew",
    )


def draw_stability(table: pd.DataFrame) -> Drawing:
    """How similar matched heads of seeds are by layer, from rows of `same_circuit`, at each group's last step."""
    groups = by_model(table.rename(columns={"group": "model"}))
    looks = model_looks(group for group, _ in groups)
    names = [name for name in NAMES if (table["names"] == name).any()]
    figure, width = row_of_panels([f"{NAMES[name][0][0].upper()}{NAMES[name][0][1:]}" for name in names], 420)
    for column, name in enumerate(names, 1):
        for nth, (group, rows) in enumerate(groups):
            of_group = rows[(rows["names"] == name) & (rows["step"] == rows["step"].max())].round(4)
            layers = of_group["at"].str.removeprefix("layer ").astype(int)
            look, x = looks[group], layers + 0.08 * (nth - (len(groups) - 1) / 2)
            reach = (of_group["high"] - of_group["value"]).fillna(0)
            for value, entry, mark, line in (
                ("value", group, "", {"width": 2}),
                ("shuffled_floor", SHUFFLED_ENTRY, "-open", {"width": 1.2, "dash": "dot"}),
            ):
                figure.add_scatter(
                    x=x,
                    y=of_group[value],
                    error_y={"array": reach if value == "value" else None, "thickness": 1.2, "width": 3},
                    name=entry,
                    legendgroup=group,
                    mode="lines+markers",
                    line={"color": paint(look.colour), **line},
                    marker={"symbol": look.symbol + mark, "size": 7},
                    customdata=of_group[["step", "n_pairs", "low", "high"]].assign(layer=layers).to_numpy(),
                    hovertemplate=f"<b>{group}</b>, {value.replace('_', ' ')}<br>layer %{{customdata[4]}}, step "
                    "%{customdata[0]:,}: %{y:.3f}<br>95%: %{customdata[2]} to %{customdata[3]} "
                    "(%{customdata[1]} pairs)<extra></extra>",
                    row=1,
                    col=column,
                )
    drawing = finish(
        figure,
        "How similar are the matched heads of seeds, layer by layer?",
        "Mean cosine of their signatures over pairs of seeds, with 95% intervals over seeds",
        width=width,
        height=392,
    )
    figure.update_xaxes(title_text="layer", dtick=1, title_font_size=12, tickfont_size=11)
    figure.update_yaxes(range=[-0.05, 1.05])
    figure.update_yaxes(title_text="cosine", row=1, col=1)
    return drawing


def _over_pairs(part: pd.DataFrame) -> pd.DataFrame:
    """Median and quartiles over pairs of models at each step, and the medians of their floors."""
    grouped = part.groupby(["step", "tokens"])
    table = grouped[["value", "noise_floor", "noise_low", "noise_high", "chance_floor"]].median()
    quartiles = grouped["value"].quantile(np.array([0.25, 0.75])).unstack()
    return table.assign(
        measure=part["measure"].iloc[0], lower_quartile=quartiles[0.25], upper_quartile=quartiles[0.75]
    ).reset_index()


def _draw_floors(panels: Panels, part: pd.DataFrame, row: int, column: int) -> None:
    """The noise floor as a band around its mean, the chance floor as a band from zero, both below the curve."""
    noise, chance = ModelLook(NOISE, "circle", "solid"), ModelLook(CHANCE, "circle", "dot")
    # Of changes that are counted, chance makes most, so nothing is below it.
    below = None if part["measure"].isin(COUNTED).any() else ("zero", "chance_floor")
    part = part.assign(zero=0.0)
    panels.draw(Line(part, "chance_floor", CHANCE_ENTRY, chance, interval=below, markers=False, width=1.2), row, column)
    ends = ("noise_low", "noise_high")
    line = Line(part, "noise_floor", NOISE_ENTRY, noise, interval=ends, markers=False, width=1, opacity=0.7)
    panels.draw(line, row, column)


def _mark_changes(
    panels: Panels, part: pd.DataFrame, name: str, row: int, column: int, *, entry: str = CHANGED_ENTRY, size: int = 12
) -> None:
    """A ring around every value that is more of a change than noise."""
    flagged = part[part["changed"].astype(bool)].sort_values("step")
    if flagged.empty:
        return
    hover = f"<b>{name}</b><br>step %{{customdata[0]:,}}: {entry} (q = %{{customdata[1]:.2g}})"
    panels.rings(flagged, entry, ring(CHANGED, size), row, column, hover, flagged["q_value"])


def _set_range(panels: Panels, table: pd.DataFrame, measure: str, row: int, column: int) -> None:
    if measure in COUNTED:
        panels.figure.update_yaxes(rangemode="tozero", row=row, col=column)
        return
    low = float(np.nanmin([0.0, *table["value"], *table["noise_low"]]))
    panels.figure.update_yaxes(range=[low - 0.05, 1.05], row=row, col=column)


def _title(measure: str) -> str:
    """The measure, and what its values mean."""
    name = MEASURES[measure]
    meaning = "1 is the same order." if measure == "rank_correlation" else "1 is the same circuit."
    return f"{name[0].upper()}{name[1:]}{{}}: {'0 is no change.' if measure in COUNTED else meaning}"


def chosen(table: pd.DataFrame, measure: str, at: str | None) -> pd.DataFrame:
    """Rows of `similarity` of one measure at the size asked for; all sizes if that is None.

    Raises:
        UserError: if there are none.
    """
    rows = table[table["measure"] == measure]
    if at is not None and measure != "rank_correlation":  # All scores have no size.
        rows = rows[rows["at"] == at]
    if rows.empty:
        raise UserError(f"similarity.csv has no {measure}" + (f" at fixed {at}" if at else ""))
    return rows


def draw(results: Results) -> dict[str, Drawing]:
    """One figure for each model, one of all pairs of models, one of each model's methods, and of matched seeds."""
    measure = results.arguments.measure
    table = chosen(results.comparison("similarity"), measure, results.arguments.at)
    looks, table = results.looks(table["model"]), escaped(table)
    between, methods = (table[table["against"] == against] for against in ("model", "method"))
    drawn = {
        f"comparison_{model}": draw_comparison(rows, model=model, measure=measure, look=looks[model])
        for model, rows in by_model(table[~table["against"].isin(["model", "method"])])
    }
    if not between.empty:
        title = "Do models of one shape have one circuit?"
        drawn["comparison_models"] = draw_between(between, measure, "models", title)
    for model, rows in by_model(methods):
        names = [task_and_method(task) for task in rows["task"]]
        sides = rows.assign(task=[task for task, _ in names], model=[method for _, method in names])
        title = f"Do methods find one circuit of {model}?"
        drawn[f"comparison_methods_{model}"] = draw_between(sides, measure, "methods", title)
    if ComparisonFolder(results.store.root).has("same_circuit"):
        drawn |= _draw_same(results)
    return drawn


def _draw_same(results: Results) -> dict[str, Drawing]:
    """The figures of matched seeds; none without matches."""
    tokens = results.comparison("similarity", whole=True).groupby("step")["tokens"].first()
    rows = escaped(results.comparison("same_circuit", whole=True))
    by_layer = rows[rows["measure"] == "similarity"]
    rows = rows[pd.MultiIndex.from_frame(rows[["measure", "at"]]).isin(list(MATCHED))]
    if asked := results.arguments.task:
        rows = rows[rows["task"].isin(asked)]
    drawn = {
        f"comparison_matched_{group}": draw_matched(of_group.assign(tokens=of_group["step"].map(tokens)), str(group))
        for group, of_group in rows.groupby("group", sort=False)
    }
    return drawn if by_layer.empty else drawn | {"head_stability": draw_stability(by_layer)}


FIGURE = Figure(
    draw,
    order=50,
    options={
        "--measure": {"choices": tuple(MEASURES), "default": "edge_jaccard", "help": "what to draw (edge_jaccard)"},
        "--at": {"choices": ("faithfulness", "size"), "help": "circuits as found, or of one size (both)"},
    },
)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
