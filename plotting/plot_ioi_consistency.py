"""Draw whether the IOI algorithm stays the same over training (figures/ioi_consistency.html).

There are three panels, one for each level of the algorithm. Each shows the effect of the heads that play the expected
role, in percent of the effect of the circuit's heads, with a 95% interval. It exceeds 100% if heads outside the circuit
play the role too. Point at a line to see how many heads those are, and by which definitions.

    python plotting/plot_ioi_consistency.py -r results
"""

import sys

import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import Panels
from circuits_over_time.plotting.parts.roles import HINT, LEVELS, TOY, role_chip
from circuits_over_time.plotting.parts.style import Drawing, Looks
from circuits_over_time.plotting.parts.tables import Results, escaped, logger
from circuits_over_time.plotting.parts.time_axis import TimeAxis

INTERVAL = ("percent_low", "percent_high")
HOVER = ("n_heads", "n_heads_in_circuit", "circuit_effect", "definitions")


def draw_consistency(table: pd.DataFrame, looks: Looks) -> Drawing:
    """The figure, from rows of `ioi_consistency`, their levels in the order of the algorithm."""
    levels = list(dict.fromkeys(table["level"]))
    panels = Panels(1, len(levels), TimeAxis.of(table), [level_title(level) for level in levels], panel_height=290)
    hint = HINT if TOY in set(table["model"]) else ""
    for column, level in enumerate(levels, 1):
        rows, options = table[table["level"] == level], {"interval": INTERVAL, "hover": HOVER}
        panels.draw_models(rows, "percent", looks, 1, column, reason="reason", hint=hint, **options)
        highest = rows["percent"].max()
        panels.figure.update_yaxes(range=[-3, 105 if not highest > 100 else 1.05 * highest], row=1, col=column)
    panels.name_rows(["effect from identified heads (%)"])
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
    table = results.table("ioi_consistency")
    _log_empty_levels(table)
    return {"ioi_consistency": draw_consistency(escaped(table), looks=results.looks())}


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
