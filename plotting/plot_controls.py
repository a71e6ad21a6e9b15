"""Draw circuits against random ones, and how sure their edges are (figures/controls_<model>.html).

There is a column per task. Rows: faithfulness of the circuit over that of random circuits of its size; the same of the
model without them; the stability of its edges (in which share of bootstrap resamples of the prompts the circuit has the
edge) and their inclusion (for which share of faithfulness thresholds from 0.6 to 0.95); the metric over prompts; and
its faithfulness on each of two or three kinds of prompts. A ring marks a circuit that does not beat every random one.

    python plotting/plot_controls.py -r results
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import Line, Panels, ring, task_panels
from circuits_over_time.plotting.parts.style import Drawing, ModelLook
from circuits_over_time.plotting.parts.tables import Results, by_model, escaped
from circuits_over_time.utils.results.kinds import WITH_CIRCUIT

STABLE = 0.9
RANDOM, BEATEN_BY = "#777777", "#D55E00"
# Panel -> title of its axis.
PANELS = {
    "circuit": "faithfulness<br>of the circuit",
    "without": "faithfulness of the<br>model without it",
    "stability": "stability of<br>its edges",
    "prompts": "metric<br>over prompts",
    "groups": "faithfulness by<br>kind of prompt",
}
_NO_RANDOM = "no random circuits are stored; measure with n_random above 0"
# Why a panel has no value although there is a circuit.
UNMEASURED = {
    "circuit": _NO_RANDOM,
    "without": _NO_RANDOM,
    "stability": "no stability is stored; measure the circuit again",
    "prompts": "nothing is stored of single prompts; measure the circuit again",
    "groups": "nothing is stored of kinds of prompts; measure the circuit again",
}
CIRCUIT, RANDOM_ENTRY = "the circuit", "random circuits: median, lowest to highest"
STABILITY, STABLE_ENTRY = "stability: median and quartiles of edges", f"share of edges of at least {STABLE:g}"
INCLUSION = "inclusion over thresholds: mean of edges"
WHOLE, ITS = "whole model over prompts: median and quartiles", "circuit over prompts: median and quartiles"
GROUP = "on {} prompts"
MOST_GROUPS = 3
# Of kinds of prompts, over all tasks; none has the colour of another line.
GROUP_LOOKS = (
    ModelLook("#56B4E9", "square", "solid"),
    ModelLook("#E69F00", "x", "solid"),
    ModelLook("#999933", "cross", "solid"),
    ModelLook("#661100", "star", "solid"),
)
RING = "does not beat every random circuit"
# The looks of lines that are the same in every model.
LOOKS = {
    RANDOM_ENTRY: ModelLook(RANDOM, "circle", "solid"),
    STABILITY: ModelLook("#0072B2", "diamond", "solid"),
    STABLE_ENTRY: ModelLook("#009E73", "square", "dot"),
    INCLUSION: ModelLook("#CC79A7", "triangle-down", "dash"),
    WHOLE: ModelLook(RANDOM, "circle", "solid"),
    ITS: ModelLook("#882255", "triangle-up", "solid"),
}


def control_points(
    baselines: pd.DataFrame, controls: pd.DataFrame | None, graphs: pd.DataFrame | None, prompts: pd.DataFrame | None
) -> pd.DataFrame:
    """What the figure draws, a row per model, task, checkpoint, panel and line, from stored tables.

    `baselines` have every checkpoint, and why one has no circuit; `prompts` are `prompt_groups`.

    Returns:
        `model, task, step, tokens, panel, line, value, low, high, n_random, n_beaten, reason`.
    """
    keys = ["model", "task", "step"]
    parts = []
    if controls is not None:
        parts += [_against_random(controls, keys)]
    if graphs is not None and graphs["stability"].notna().any():
        grouped = graphs.dropna(subset="stability").groupby(keys)["stability"]
        low, middle, high = (grouped.quantile(share) for share in (0.25, 0.5, 0.75))
        parts.append(_line("stability", STABILITY, middle, low, high))
        parts.append(_line("stability", STABLE_ENTRY, grouped.agg(lambda values: (values >= STABLE).mean())))
        parts.append(_line("stability", INCLUSION, graphs.groupby(keys)["inclusion"].mean()))
    if prompts is not None:
        everyone = prompts[prompts["group"] == "all"].set_index(keys)
        for name, entry in (("full", WHOLE), ("circuit", ITS)):
            parts.append(_line("prompts", entry, *(everyone[f"{name}_{end}"] for end in ("median", "q25", "q75"))))
        for _, of_task in prompts[prompts["group"] != "all"].groupby("task", sort=True):
            if of_task["group"].nunique() > MOST_GROUPS:
                continue  # Lines of so many would hide each other.
            for group, rows in of_task.groupby("group", sort=True):
                ends = (rows.set_index(keys)[f"faithfulness{end}"] for end in ("", "_low", "_high"))
                parts.append(_line("groups", GROUP.format(group), *ends))
    columns = [*keys, "panel", "line", "value", "low", "high", "n_random", "n_beaten"]
    measured = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    # Every line at every checkpoint, so that gaps break lines and have reasons. Kinds of prompts are a task's own.
    every, of_groups = baselines[[*keys, "tokens", "status"]], measured["panel"] == "groups"
    lines = measured.loc[~of_groups, ["panel", "line"]].drop_duplicates()
    own = measured.loc[of_groups, ["model", "task", "panel", "line"]].drop_duplicates()
    all_lines = pd.concat([every.merge(lines, how="cross"), every.merge(own, on=["model", "task"])], ignore_index=True)
    table = all_lines.merge(measured, how="left", on=[*keys, "panel", "line"])
    known = table["status"].notna() & ~table["status"].isin(WITH_CIRCUIT)
    reason = table["status"].where(known, table["panel"].map(UNMEASURED))
    return table.reindex(columns=[*columns, "tokens"]).assign(reason=reason.where(table["value"].isna()))


def _against_random(controls: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The circuit and the random circuits, in the model and removed from it."""
    parts = []
    for panel, own, others in (("circuit", "circuit", "random"), ("without", "without_circuit", "without_random")):
        random = controls[controls["control"] == others].groupby(keys)
        beaten = random["beaten"].agg(n_random="size", n_beaten=lambda flags: int(flags.astype(bool).sum()))
        faithful = random["faithfulness"]
        parts.append(_line(panel, RANDOM_ENTRY, faithful.median(), faithful.min(), faithful.max()))
        value = controls[controls["control"] == own].set_index(keys)["faithfulness"]
        parts.append(_line(panel, CIRCUIT, value).merge(beaten.reset_index(), how="left", on=keys))
    return pd.concat(parts, ignore_index=True)


def _line(
    panel: str, name: str, value: pd.Series, low: pd.Series | None = None, high: pd.Series | None = None
) -> pd.DataFrame:
    nothing = value * np.nan
    columns = {"value": value, "low": nothing if low is None else low, "high": nothing if high is None else high}
    return pd.DataFrame(columns).reset_index().assign(panel=panel, line=name)


def draw_controls(points: pd.DataFrame, model: str, look: ModelLook) -> Drawing:
    """The figure of one model, from rows of `control_points`."""
    points = points[points["model"] == model]
    rows = [panel for panel in PANELS if points.loc[points["panel"] == panel, "value"].notna().any()]
    rows = rows or list(PANELS)[:1]  # Without any value, one panel says why.
    groups = sorted(set(points.loc[points["panel"] == "groups", "line"]))
    looks = {CIRCUIT: look, **LOOKS}
    looks |= {name: GROUP_LOOKS[place % len(GROUP_LOOKS)] for place, name in enumerate(groups)}
    panels, tasks = task_panels(points, len(rows), 170)
    ringed = False
    for column, task in enumerate(tasks, 1):
        for row, panel in enumerate(rows, 1):
            part = points[(points["task"] == task) & (points["panel"] == panel)]
            for name in dict.fromkeys(sorted(part["line"], key=list(looks).index, reverse=True)):
                table = part[part["line"] == name].sort_values("step")
                if table["value"].isna().all():
                    continue
                ends, markers = ("low", "high"), name not in (RANDOM_ENTRY, WHOLE)
                line = Line(table.round(dict.fromkeys(ends, 4)), "value", name, looks[name], markers=markers)
                if name == CIRCUIT:
                    beats = [_beats(row) for row in table.to_dict("records")]
                    panels.draw(replace(line, table=line.table.assign(beats=beats), hover=("beats",)), row, column)
                    ringed |= _ring(panels, table.assign(beats=beats), row, column)
                elif name in (STABLE_ENTRY, INCLUSION):
                    panels.draw(line, row, column)
                else:
                    panels.draw(replace(line, interval=ends, hover=ends), row, column)
            # Lines of a panel are missing together, but for the metric, which the whole model always has.
            if part.empty:
                panels.leave_empty("its prompts are of one kind,<br>or of too many to draw", row, column)
            else:
                first = part[part["line"] == min(part["line"], key=list(looks).index)]
                panels.missing(first, "value", "reason", {model: look}, row, column)
            if panel == "stability":
                panels.figure.update_yaxes(range=[-0.03, 1.05], row=row, col=column)
            elif panel == "circuit":
                panels.level(0, row, column)
            elif panel == "groups":
                panels.level(1, row, column)
    panels.name_rows(PANELS[panel] for panel in rows)
    if ringed:
        panels.mark(RING, "circle-open", BEATEN_BY)
    return panels.done(
        f"Circuits of {model} against random circuits, and how sure their edges are",
        "Faithfulness: 0 does what the empty circuit does, 1 what the model does",
    )


def _beats(row: Mapping[Any, Any]) -> str:
    n = row["n_random"]
    return "" if pd.isna(n) else f"{row['n_beaten']:.0f} of {n:.0f} random circuits"


def _ring(panels: Panels, table: pd.DataFrame, row: int, column: int) -> bool:
    """A ring around every checkpoint whose circuit does not beat all random ones; whether there is one."""
    beaten = table[table["value"].notna() & (table["n_beaten"] < table["n_random"])]
    if len(beaten):
        hover = "step %{customdata[0]:,}: beats %{customdata[1]}"
        panels.rings(beaten, RING, ring(BEATEN_BY), row, column, hover, beaten["beats"])
    return not beaten.empty


def draw(results: Results) -> dict[str, Drawing]:
    controls, baselines = results.table("controls"), results.table("baselines")
    rest = (results.table_if_any(kind, note=True) for kind in ("graphs", "prompt_groups"))
    baselines = baselines[baselines["model"].isin(controls["model"])]
    points, looks = escaped(control_points(baselines, controls, *rest)), results.looks()
    return {
        f"controls_{model}": draw_controls(rows, model=model, look=looks[model]) for model, rows in by_model(points)
    }


FIGURE = Figure(draw, order=30)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
