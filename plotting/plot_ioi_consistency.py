"""Draw whether the IOI algorithm stays the same over training (figures/ioi_consistency.html).

There are three panels, one for each level of the algorithm. Each shows the effect of the heads that play the expected
role, in percent of the effect of the circuit's heads, with a 95% interval. It exceeds 100% if heads outside the circuit
play the role too. Point at a line to see how many heads those are, and by which definitions.

    python plotting/plot_ioi_consistency.py -r results
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plotting.export import figure_main
from plotting.panels import Line, Panels
from plotting.style import Drawing, ModelLook, model_looks
from plotting.tables import every_model, load, models_in
from plotting.time_axis import TimeAxis
from utils.results.store import Store

TITLES = {
    1: "Heads to logits:<br>name movers, copy suppression",
    2: "Heads to name movers' queries:<br>S-inhibition",
    3: "Heads to S-inhibition values:<br>induction, duplicate token",
}

INTERVAL = ("percent_low", "percent_high")
HOVER = ("n_heads", "n_heads_in_circuit", "circuit_effect", "definitions")


def draw_consistency(table: pd.DataFrame, looks: dict[str, ModelLook]) -> Drawing:
    """The figure.

    Args:
        table: `model, step, tokens, level, percent, percent_low, percent_high`, and the columns of HOVER; levels in the
            order of the algorithm.
        looks: the look of every model.
    """
    levels = list(dict.fromkeys(table["level"]))
    titles = [TITLES.get(number, str(level)) for number, level in enumerate(levels, 1)]
    panels = Panels(1, len(levels), TimeAxis.of(table), titles, panel_height=290)
    for column, level in enumerate(levels, 1):
        for model in models_in(table):
            rows = table[(table["model"] == model) & (table["level"] == level)]
            if not rows.empty:
                line = Line(rows, "percent", model, looks[model], interval=INTERVAL, hover=HOVER)
                panels.draw(line, 1, column)
        highest = table.loc[table["level"] == level, "percent"].max()
        panels.figure.update_yaxes(range=[-3, 105 if not highest > 100 else 1.05 * highest], row=1, col=column)
    panels.figure.update_yaxes(title_text="effect from identified heads (%)", row=1, col=1)
    return panels.done(
        "Is the IOI algorithm the same at every checkpoint?",
        "Share of each level's effect from the heads that play its role",
    )


def draw(store: Store, arguments: argparse.Namespace) -> dict[str, Drawing]:
    """Figures by file name."""
    table = load(store, "ioi_consistency", arguments)
    return {"ioi_consistency": draw_consistency(table, model_looks(every_model(store)))}


if __name__ == "__main__":
    sys.exit(figure_main(draw, __doc__))
