"""Draw whether the IOI algorithm stays the same over training (figures/ioi_consistency.html).

There are three panels, one for each level of the algorithm. Each shows the effect of the heads that play the expected
role, in percent of the effect of the circuit's heads, with a 95% interval. It exceeds 100% if heads outside the circuit
play the role too. Point at a line to see how many heads those are, and by which definitions.

    python plotting/plot_ioi_consistency.py -r results
"""

import logging
import sys
from functools import partial

import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import Gaps, Line, Panels, by_panel
from circuits_over_time.plotting.parts.roles import HINT, LEVELS, TOY, role_chip
from circuits_over_time.plotting.parts.style import Drawing, ModelLook
from circuits_over_time.plotting.parts.tables import Results, by_model, escaped, models_in
from circuits_over_time.plotting.parts.time_axis import TimeAxis

logger = logging.getLogger("plotting")

INTERVAL = ("percent_low", "percent_high")
HOVER = ("n_heads", "n_heads_in_circuit", "circuit_effect", "definitions")


def draw_consistency(table: pd.DataFrame, looks: dict[str, ModelLook]) -> Drawing:
    """The figure, from rows of `ioi_consistency`, their levels in the order of the algorithm."""
    levels = list(dict.fromkeys(table["level"]))
    panels = Panels(1, len(levels), TimeAxis.of(table), [level_title(level) for level in levels], panel_height=290)
    for column, level in enumerate(levels, 1):
        gaps = []
        for model, rows in by_model(table[table["level"] == level]):
            panels.draw(Line(rows, "percent", model, looks[model], interval=INTERVAL, hover=HOVER), 1, column)
            gaps.append(Gaps(rows, "percent", "reason", model, looks[model]))
        panels.missing(gaps, 1, column, hint=HINT if TOY in models_in(table) else "")
        highest = table.loc[table["level"] == level, "percent"].max()
        panels.figure.update_yaxes(range=[-3, 105 if not highest > 100 else 1.05 * highest], row=1, col=column)
    panels.figure.update_yaxes(title_text="effect from identified heads (%)", row=1, col=1)
    return panels.done(
        "Is the IOI algorithm the same at every checkpoint?",
        "Share of each level's effect from the heads that play its role",
    )


def level_title(level: str) -> str:
    """A level's title: which heads act on what, and below it the roles that count, each with its colour."""
    if level not in LEVELS:
        return level
    path, roles = LEVELS[level]
    chips = [role_chip(role) for role in roles]
    # Three in a row would reach into the next panel.
    lines = ["  ".join(chips[i : i + 2]) for i in range(0, len(chips), 2)]
    return f"{path}<br><span style='font-size:12px'>{'<br>'.join(lines)}</span>"


def draw(results: Results) -> dict[str, Drawing]:
    """One figure of all models."""
    table = results.table("ioi_consistency")
    _log_empty_levels(table)
    return {"ioi_consistency": by_panel(partial(draw_consistency, looks=results.looks()), escaped(table), "level")}


def _log_empty_levels(table: pd.DataFrame) -> None:
    """Say at how many checkpoints a level has no percentage, and the reason that the results give."""
    if "reason" not in table:
        return
    for (model, level), rows in table.groupby(["model", "level"], sort=False):
        reasons = rows.loc[rows["percent"].isna(), "reason"].fillna("no reason given").value_counts(sort=False)
        for reason, n in reasons.items():
            logger.info(
                "ioi_consistency: %s %s: no percentage at %d of %d steps: %s", model, level, n, len(rows), reason
            )


FIGURE = Figure(draw, order=120)


if __name__ == "__main__":
    sys.exit(figure_main(FIGURE))
