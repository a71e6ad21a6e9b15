"""Draw when head scores, metrics and circuits emerge (figures/emergence_<model>.html).

There is a row for each kind of head (its strongest head), for each task's metrics and for each task's circuit. A thick
bar spans the two checkpoints between which the curve crosses half of its maximum for good. The thin line is the 95%
interval over resamples of the prompts. An arrow means that the interval goes on where nothing was measured: before the
first checkpoint, or after the last. Rows without a bar say why.

Models that differ in their seed alone are drawn together as well: figures/emergence_seeds_<group>.html has a bar per
seed over a band from the earliest to the latest, and figures/curves_seeds_<group>.html their curves as thin lines over
a band of quartiles.

With local learning coefficients, figures/learning_coefficients_<model>.html has them under the circuits on one axis.

    python plotting/plot_emergence.py -r results
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.head_scores import score_label
from circuits_over_time.plotting.parts.panels import Line, for_both_widths, grid_of_panels, ring, wrapped
from circuits_over_time.plotting.parts.style import Drawing, ModelLook, metric_label, small
from circuits_over_time.plotting.parts.tables import Results, as_text, by_model, escaped, models_in
from circuits_over_time.plotting.parts.theme import FAINT, SERIES
from circuits_over_time.plotting.parts.time_axis import TimeAxis
from circuits_over_time.plotting.parts.timeline import Timeline
from circuits_over_time.utils.comparison.seeds import without_seed
from circuits_over_time.utils.results.comparison import ComparisonFolder
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.tasks.registry import task_label

KINDS = {"head": ("heads", "#0072B2"), "metric": ("metrics of tasks", "#009E73"), "circuit": ("circuits", "#D55E00")}
CIRCUITS = {"similarity": "circuit like the reference", "found": "a faithful circuit exists"}
SEEDS_ROW = 46
"""Height of a row that holds seeds, in pixels."""
MAX_COLUMNS = 3
EMERGES = "%{customdata[1]} emerges at step %{customdata[0]:,}"
DOUBTED = "step %{customdata[0]:,}: %{customdata[1]}"
WHOLE = ("layer", "head", "after_step", "step", "low_step", "high_step")


def leading(emergence: pd.DataFrame) -> pd.DataFrame:
    """The rows of a timeline: of every model the strongest head of each score, and all curves of tasks.

    Returns:
        Rows of `emergence`, heads before metrics before circuits, each kind in order of emergence.
    """
    heads = emergence[emergence["kind"] == "head"]
    strongest = heads.sort_values("maximum", ascending=False, kind="stable").drop_duplicates(["model", "score"])
    rows = pd.concat([strongest, emergence[emergence["kind"] != "head"]])
    order = rows["kind"].map({kind: place for place, kind in enumerate(KINDS)})
    rows = rows.assign(order=order).sort_values(["order", "step"], kind="stable", na_position="last")
    return rows.drop(columns="order").astype(dict.fromkeys(WHOLE, "Int64")).reset_index(drop=True)


def label(row: Mapping[Any, Any], *, head: bool = True) -> str:
    """A row's name, with that of the head unless several models share the row."""
    score, kind = str(row["score"]), row["kind"]
    if kind == "head":
        title = score_label({"copy_suppression": "cspa"}.get(score, score))[0]
        if score.startswith("effect_"):
            role = score.removeprefix("effect_").replace("s_inhibition", "S-inhibition").replace("_", " ")
            title = f"IOI effect, {role}"
        return f"{title}: a{row['layer']}.h{row['head']}" if head else f"{title}: strongest head"
    what = metric_label(score).split(" (")[0] if kind == "metric" else CIRCUITS.get(score, score.replace("_", " "))
    return f"{task_label(str(row['task']))}: {what}"


def draw_timeline(emergence: pd.DataFrame, curves: pd.DataFrame, model: str, *, narrow: bool = False) -> Drawing:
    """The timeline of one model, from rows of `emergence` and of `curves`, which say where the checkpoints are.

    The `narrow` one has the rows' names in the figure instead of next to it.
    """
    rows, curves = leading(emergence[emergence["model"] == model]), curves[curves["model"] == model]
    checkpoints = curves[["step", "tokens"]].drop_duplicates()
    timeline = Timeline(checkpoints, [label(row) for row in rows.to_dict("records")], narrow=narrow)
    for place, row in enumerate(rows.to_dict("records")):
        name, colour = KINDS[row["kind"]]
        if pd.isna(row["step"]):
            timeline.say(place, f"does not emerge: {row['reason']}")
            continue
        steps = sorted(curves.loc[curves["curve"] == row["curve"], "step"])
        if row["uncertainty"] != "none":
            low, high = _ends(row["low_step"], row["high_step"], steps)
            timeline.bar(place, low, high, colour, name, width=2.5)
            timeline.arrows(place, pd.isna(row["low_step"]), pd.isna(row["high_step"]), low, high, colour)
        low, high = _ends(row["after_step"], row["step"], steps)
        timeline.bar(place, low, high, colour, name, width=12, text=_hover(row))
        timeline.arrows(place, pd.isna(row["after_step"]), False, low, high, colour)
    return timeline.done(
        f"When things emerge in {model}",
        "Thick: between which checkpoints its level is crossed for good; thin: 95% interval",
    )


def draw_seeds_timeline(
    emergence: pd.DataFrame, curves: pd.DataFrame, group: str, models: Sequence[str], *, narrow: bool = False
) -> Drawing:
    """That of models that differ in their seed alone: a bar each over a band from the earliest to the latest."""
    rows = leading(emergence[emergence["model"].isin(models)])
    rows = rows.assign(row=[label(row, head=False) for row in rows.to_dict("records")])
    names = list(dict.fromkeys(rows["row"]))
    checkpoints = curves.loc[curves["model"].isin(models), ["step", "tokens"]].drop_duplicates()
    every = sorted(checkpoints["step"].unique())
    timeline = Timeline(checkpoints, names, SEEDS_ROW, narrow=narrow)
    for place, name in enumerate(names):
        of_row = rows[rows["row"] == name]
        seeds = of_row.dropna(subset="step").to_dict("records")
        colour = KINDS[str(of_row["kind"].iloc[0])][1]
        if not seeds:
            timeline.say(place, "emerges in no seed")
            continue
        spans = [_ends(row["after_step"], row["step"], every) for row in seeds]
        timeline.band(place, min(low for low, _ in spans), max(high for _, high in spans), colour)
        for nth, (row, (low, high)) in enumerate(zip(seeds, spans, strict=True)):
            # Side by side within the row, so that every seed can be seen.
            at = place + (0.3 * (2 * (nth + 0.5) / len(seeds) - 1))
            timeline.bar(at, low, high, colour, "a seed", width=2.5, text=f"<b>{row['model']}</b><br>{_hover(row)}")
            timeline.arrows(at, pd.isna(row["after_step"]), False, low, high, colour)
        # A seed in which it never emerges counts as later than all others.
        later = sorted(of_row["step"].astype(float).fillna(np.inf))
        if np.isfinite(middle := later[(len(later) - 1) // 2]):
            timeline.tick(place, int(middle), f"median: step {int(middle):,}")
        if missing := len(of_row) - len(seeds):
            timeline.note(place, f"not in {missing} of {len(of_row)} seeds")
    return timeline.done(
        f"When things emerge in {len(models)} seeds of {group}",
        "A thin bar per seed; band: earliest to latest; upright line: median over seeds",
    )


def draw_seed_curves(
    curves: pd.DataFrame, seeds: pd.DataFrame, shapes: pd.Series, group: str, models: Sequence[str]
) -> Drawing:
    """The curves of models that differ in their seed alone: every seed as a thin line over a band of quartiles.

    `shapes` say by a curve's name whether it is abrupt; `group` is what the models are called together.
    """
    summary = seeds[seeds["group"] == group]
    own = curves[curves["model"].isin(models)]
    names = [name for name in dict.fromkeys(own["curve"]) if name in set(summary["curve"])]
    titles = [_curve_title(own[own["curve"] == name].iloc[0].to_dict(), shapes.get(name)) for name in names]
    panels, places = grid_of_panels(titles, MAX_COLUMNS, TimeAxis.of(own), panel_height=170)
    thin = dict.fromkeys(models, ModelLook(FAINT, "circle", "solid"))
    for name, place in zip(names, places, strict=True):
        of_curve, middle = own[own["curve"] == name], summary[summary["curve"] == name]
        strong = ModelLook(KINDS[str(of_curve["kind"].iloc[0])][1], "circle", "solid")
        panels.draw_models(of_curve, "value", thin, *place, markers=False, legend="a seed", width=1, opacity=0.7)
        quartiles = ("lower_quartile", "upper_quartile")
        line = Line(middle, "median", "median and quartiles", strong, interval=quartiles, hover=("n_seeds", "dip_q"))
        panels.draw(line, *place)
    return panels.done(
        f"{len(models)} seeds of {group} over training",
        "Thin: every seed; strong: their median, with the quartiles as a band",
    )


def draw_learning(llc: pd.DataFrame, emergence: pd.DataFrame, curves: pd.DataFrame, model: str) -> Drawing:
    """Local learning coefficients of a model under the similarity of its circuits to their references, on one axis."""
    circuits = curves[(curves["model"] == model) & (curves["score"] == "similarity")]
    whole = llc["layer"].isna()
    parts = [(llc[whole], "Whole model"), (llc[~whole], "Single heads")]
    parts = [(rows, title) for rows, title in parts if len(rows)]
    below = [f"Local learning coefficient: {title}" for _, title in parts]
    titles = ["Circuits: edges shared with the reference", *below]
    panels, places = grid_of_panels(titles, 1, TimeAxis.of(llc, *([circuits] if len(circuits) else [])))
    # No colour stands for two things as long as there are enough; symbols tell what is above from what is below.
    colours = itertools.cycle(SERIES)
    for task, rows in circuits.groupby("task", sort=False):
        look = ModelLook(next(colours), "circle", "solid")
        panels.draw(Line(rows, "value", task_label(str(task)), look), *places[0])
        onset = emergence[(emergence["model"] == model) & (emergence["curve"] == rows["curve"].iloc[0])]
        emerged = rows[rows["step"].isin(onset["step"])]
        panels.rings(emerged, "emerges", ring(look.colour), *places[0], EMERGES, [task_label(str(task))] * len(emerged))
    if circuits.empty:
        panels.leave_empty("no circuit is compared with a reference", *places[0])
    for (rows, _), place in zip(parts, places[1:], strict=True):
        names = "a" + rows["layer"].astype("Int64").astype(str) + ".h" + rows["head"].astype("Int64").astype(str)
        for name, of_name in rows.groupby(names.where(rows["layer"].notna(), "whole model"), sort=False):
            look = ModelLook(next(colours), "square", "solid")
            panels.draw(Line(of_name, "llc", str(name), look, error="llc_se", hover=("r_hat",)), *place)
            doubtful = of_name.assign(value=of_name["llc"])[of_name["reason"].notna() & of_name["llc"].notna()]
            entry = "not to be trusted"
            panels.rings(doubtful, entry, ring(look.colour), *place, DOUBTED, doubtful["reason"])
        panels.figure.update_yaxes(title_text="LLC", row=place[0], col=place[1])
    panels.figure.update_yaxes(title_text="Jaccard", rangemode="tozero", row=1, col=1)
    return panels.done(
        f"Loss geometry and circuits of {model}",
        "Rings: above, a circuit emerges; below, not to be trusted. Bands: 1.96 standard errors over chains",
    )


def _curve_title(row: Mapping[Any, Any], shape: str | None) -> str:
    title = label(row, head=False) if row["score"] != "n_edges" else f"{task_label(str(row['task']))}: circuit's edges"
    title = wrapped(title, 38)
    return f"{title}<br>{small(shape)}" if shape else title


def _ends(after: Any, step: Any, steps: Sequence[int]) -> tuple[int, int]:
    """The steps that a bar spans; a missing end is the first or the last checkpoint."""
    low = steps[0] if pd.isna(after) else int(after)
    high = steps[-1] if pd.isna(step) else int(step)
    return int(low), int(high)


def _hover(row: Mapping[Any, Any]) -> str:
    after = "at the first checkpoint" if pd.isna(row["after_step"]) else f"after step {row['after_step']:,}"
    span = f"{after}, by step {row['step']:,}"
    low = "the first checkpoint" if pd.isna(row["low_step"]) else f"step {row['low_step']:,}"
    high = "after the last checkpoint" if pd.isna(row["high_step"]) else f"step {row['high_step']:,}"
    interval = "" if row["uncertainty"] == "none" else f"<br>95%: {low} to {high}"
    share = f"<br>in {row['share_emerged']:.0%} of the resamples; level {row['level']:.3g} of {row['maximum']:.3g}"
    return f"{row['curve']}<br>{span}{interval}{share}"


def seed_groups(store: Store, models: Sequence[str]) -> dict[str, list[str]]:
    """Members of the groups of seeds that were compared: as the config named them, else by their names."""
    folder = ComparisonFolder(store.root)
    if not folder.has("seeds"):
        return {}
    named = folder.read_run().get("config", {}).get("seeds")
    groups = {}
    for group in dict.fromkeys(folder.read("seeds")["group"]):
        members = named[group] if named else [model for model in models if without_seed(model) == group]
        if len(there := [model for model in members if model in models]) > 1:
            groups[str(group)] = there
    return groups


def draw(results: Results) -> dict[str, Drawing]:
    """One figure for each model, and two for each group of seeds."""
    raw = results.comparison("emergence")
    emergence, curves = escaped(raw), escaped(results.comparison("curves"))
    drawn = {
        f"emergence_{model}": for_both_widths(draw_timeline, emergence, curves, model) for model in models_in(emergence)
    }
    llc = results.table_if_any("learning_coefficients")
    for model, rows in [] if llc is None else by_model(escaped(llc)):
        drawn[f"learning_coefficients_{model}"] = draw_learning(rows, emergence, curves, model)
    for group, members in seed_groups(results.store, models_in(raw)).items():
        name, models = as_text(group), [as_text(model) for model in members]
        drawn[f"emergence_seeds_{name}"] = for_both_widths(draw_seeds_timeline, emergence, curves, name, models)
        seeds, shapes = (escaped(results.comparison(table, whole=True)) for table in ("seeds", "seed_emergence"))
        # Too few seeds do not tell whether a curve is abrupt.
        shapes = shapes[shapes["group"] == name].dropna(subset="shape").set_index("curve")
        of_group = curves[curves["model"].isin(models) & curves["curve"].isin(seeds["curve"])]
        options: dict[str, Any] = {"seeds": seeds, "shapes": shapes["shape"], "group": name, "models": models}
        drawn[f"curves_seeds_{name}"] = draw_seed_curves(of_group, **options)
    return drawn


FIGURE = Figure(draw, order=100)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
