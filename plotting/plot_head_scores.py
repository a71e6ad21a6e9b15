"""Draw what attention heads do over training: the best head of each kind, and each model's top heads.

figures/head_scores.html has for each kind of head every model's maximum, figures/head_scores_<model>.html a model's top
heads. Kinds are the scores in results/components, succession (results/successor) and copy suppression (results/cspa).

    python plotting/plot_head_scores.py -r results --top 5
"""

import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.head_scores import SCORES, head_scores, score_label
from circuits_over_time.plotting.parts.panels import Line, Panels, grid_of_panels
from circuits_over_time.plotting.parts.style import Drawing, Looks, ModelLook, in_order, within
from circuits_over_time.plotting.parts.tables import Results, by_model, escaped
from circuits_over_time.plotting.parts.theme import SERIES
from circuits_over_time.plotting.parts.time_axis import TimeAxis
from circuits_over_time.utils.base.errors import UserError

MAX_COLUMNS = 4
# One minus a quotient: heads that do next to nothing can score far below zero, and nobody needs to see that.
CSPA_LIMITS = (-0.5, 1.0)


def top_heads(table: pd.DataFrame, n: int) -> list[tuple[int, int]]:
    """The `n` heads (layer, head) whose highest value over training is highest, best first; ties by position."""
    best = table.groupby(["layer", "head"])["value"].max().dropna().reset_index()
    best = best.sort_values(["value", "layer", "head"], ascending=[False, True, True], kind="stable")
    return [(int(layer), int(head)) for layer, head in best[["layer", "head"]].head(n).to_numpy()]


def draw_maxima(table: pd.DataFrame, looks: Looks) -> Drawing:
    """Per score a panel with every model's best head."""
    best = table.loc[table.dropna(subset="value").groupby(["model", "score", "step"])["value"].idxmax()]
    best = best.assign(best_head=best["layer"].astype(str) + "." + best["head"].astype(str))
    panels, places = _score_panels(table)
    for score, (row, column) in places.items():
        panels.draw_models(best[best["score"] == score], "value", looks, row, column, error="se", hover=("best_head",))
        # At a checkpoint without any value, the heads' reasons are mostly one.
        by_step = table[table["score"] == score].groupby(["model", "step"], as_index=False)
        highest = by_step.first().assign(value=by_step["value"].max()["value"])
        panels.missing(highest, "value", "reason", looks, row, column)
        _draw_chance(panels, table[table["score"] == score], row, column)
    _limit_cspa(panels, places, best)
    return panels.done(
        "Attention heads over training",
        "The highest score among a model's heads, for each kind of head; bands are 1.96 of its standard errors, "
        "dashed is chance",
    )


def draw_top_heads(table: pd.DataFrame, model: str, n: int) -> Drawing:
    """Per score a panel with the model's top heads, each named at the end of its line."""
    panels, places = _score_panels(table, names_at_ends=True)
    for score, (row, column) in places.items():
        part = table[table["score"] == score]
        heads = top_heads(part, n)
        ends = []
        for rank, (layer, head) in enumerate(heads):
            rows = part[(part["layer"] == layer) & (part["head"] == head)].sort_values("step")
            colour = SERIES[rank % len(SERIES)]
            look = ModelLook(colour, "circle", "solid")
            panels.draw(Line(rows, "value", f"{layer}.{head}", look, error="se"), row, column)
            ends.append((float(rows["value"].iloc[-1]), f"{layer}.{head}", colour))
        panels.name_ends(ends, row, column)
        _draw_chance(panels, part, row, column)
    _limit_cspa(panels, places, table)
    return panels.done(
        f"Top heads of {model}",
        "The heads with the highest score anywhere, as layer.head; bands are 1.96 standard errors, dashed is chance",
        legend=False,
    )


def _score_panels(table: pd.DataFrame, *, names_at_ends: bool = False) -> tuple[Panels, dict[str, tuple[int, int]]]:
    """A grid with one panel per score and the place of each."""
    scores = in_order(table["score"], SCORES)
    titles, units = zip(*map(score_label, scores), strict=True)
    columns = -(-len(scores) // -(-len(scores) // MAX_COLUMNS))
    panels, places = grid_of_panels(titles, columns, TimeAxis.of(table), names_at_ends=names_at_ends)
    for unit, (row, column) in zip(units, places, strict=True):
        panels.figure.update_yaxes(title_text=unit, rangemode="tozero", row=row, col=column)
    return panels, dict(zip(scores, places, strict=True))


def _draw_chance(panels: Panels, of_score: pd.DataFrame, row: int, column: int) -> None:
    for chance in of_score["chance"].dropna().unique():
        panels.level(chance, row, column)


def _limit_cspa(panels: Panels, places: dict[str, tuple[int, int]], table: pd.DataFrame) -> None:
    if "cspa" in places:
        row, column = places["cspa"]
        limits, _ = within(table.loc[table["score"] == "cspa", "value"], *CSPA_LIMITS)
        panels.figure.update_yaxes(range=limits, row=row, col=column)


def draw(results: Results) -> dict[str, Drawing]:
    if (top := results.arguments.top) < 1:
        raise UserError(f"--top: {top} heads asked for; ask for at least 1")
    table = escaped(head_scores(results))
    drawn = {"head_scores": draw_maxima(table, looks=results.looks())}
    return drawn | {f"head_scores_{model}": draw_top_heads(rows, model=model, n=top) for model, rows in by_model(table)}


FIGURE = Figure(
    draw,
    order=90,
    options={"--top": {"type": int, "default": 5, "metavar": "N", "help": "heads drawn of each kind (5)"}},
)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
