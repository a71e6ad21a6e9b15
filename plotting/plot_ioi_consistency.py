"""Draw whether the algorithms of IOI and greater-than stay the same over training (figures/ioi_consistency.html).

A panel for each level of the algorithm has the effect of the heads that play the expected role, in percent of that of
the circuit's heads. It exceeds 100% if heads outside the circuit play the role too.
figures/greater_than_consistency.html does the same for the heads and MLPs of greater-than.

    python plotting/plot_ioi_consistency.py -r results
"""

import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import Line, Panels
from circuits_over_time.plotting.parts.roles import HINT, LEVELS, TOY, role_chip
from circuits_over_time.plotting.parts.style import Drawing, Looks, ModelLook
from circuits_over_time.plotting.parts.tables import Results, by_model, escaped, logger
from circuits_over_time.plotting.parts.time_axis import TimeAxis

INTERVAL = ("percent_low", "percent_high")
HOVER = ("n_heads", "n_heads_in_circuit", "n_nodes", "n_nodes_in_circuit", "circuit_effect", "definitions")
# Greater-than: level -> which nodes act on what, and who counts.
GREATER_THAN = {
    "mlps": "Heads and MLPs to logits<br>year MLPs",
    "heads": "Heads to year MLPs<br>year heads",
    "inputs": "Nodes at YY to year heads' values<br>embedding and MLP 0",
}
RANDOM = ModelLook("#999999", "circle", "dot")


def draw_consistency(table: pd.DataFrame, looks: Looks, algorithm: str = "IOI", nodes: str = "heads") -> Drawing:
    """The figure, from rows of `ioi_consistency` or its like, their levels in the order of the algorithm."""
    levels = list(dict.fromkeys(table["level"]))
    panels = Panels(1, len(levels), TimeAxis.of(table), [level_title(level) for level in levels], panel_height=290)
    hint = HINT if TOY in set(table["model"]) and nodes == "heads" else ""
    for column, level in enumerate(levels, 1):
        rows, options = table[table["level"] == level], {"interval": INTERVAL, "hover": HOVER}
        for _, of_model in by_model(rows) if "chance" in rows else ():
            ends = ("chance_low", "chance_high")
            panels.draw(Line(of_model, "chance", "random nodes", RANDOM, interval=ends, markers=False), 1, column)
        panels.draw_models(rows, "percent", looks, 1, column, reason="reason", hint=hint, **options)
        highest = rows["percent"].max()
        panels.figure.update_yaxes(range=[-3, 105 if not highest > 100 else 1.05 * highest], row=1, col=column)
    random = "; grey: 95% of random nodes of the same layers" if "chance" in table else ""
    panels.name_rows([f"effect from identified {nodes} (%)"])
    return panels.done(
        f"Is the {algorithm} algorithm the same at every checkpoint?",
        f"Share of each level's effect from the {nodes} that play its role{random}",
    )


def level_title(level: str) -> str:
    """A level's title: which heads act on what, and below it the roles that count, each with its colour."""
    if level not in LEVELS:
        return GREATER_THAN.get(level, level)
    path, roles = LEVELS[level]
    chips = [role_chip(role) for role in roles]
    # Three in a row would reach into the next panel.
    lines = ["  ".join(chips[i : i + 2]) for i in range(0, len(chips), 2)]
    return f"{path}<br><span style='font-size:12px'>{'<br>'.join(lines)}</span>"


def draw(results: Results) -> dict[str, Drawing]:
    drawings, algorithms = {}, {"ioi_consistency": ("IOI", "heads")}
    if results.table_if_any("greater_than_consistency") is not None:
        algorithms |= {"greater_than_consistency": ("greater-than", "nodes")}
    if len(algorithms) == 2 and results.table_if_any("ioi_consistency", note=True) is None:
        del algorithms["ioi_consistency"]
    for kind, words in algorithms.items():
        table = results.table(kind)
        _log_empty_levels(kind, table)
        drawings[kind] = draw_consistency(escaped(table), results.looks(), *words)
    return drawings


def _log_empty_levels(kind: str, table: pd.DataFrame) -> None:
    """Say at how many checkpoints a level has no percentage, and the reason that the results give."""
    if "reason" not in table:
        return
    for (model, level), rows in table.groupby(["model", "level"], sort=False):
        reasons = rows.loc[rows["percent"].isna(), "reason"].fillna("no reason given").value_counts(sort=False)
        for reason, n in reasons.items():
            logger.info("%s: %s %s: no percentage at %d of %d steps: %s", kind, model, level, n, len(rows), reason)


FIGURE = Figure(draw, order=120)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
