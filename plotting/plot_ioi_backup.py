"""Draw what brings back the logit difference of IOI without the name movers (figures/ioi_backup.html).

With all name movers ablated at the last token, what they wrote is lost, and parts after them write more or less than
before (Wang et al. 2022; McGrath et al. 2023). The figure has the share of the loss that comes back in all, by the
other heads, by the MLPs, and by the final norm, whose scale changes.

    python plotting/plot_ioi_backup.py -r results
"""

import pandas as pd

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import Panels
from circuits_over_time.plotting.parts.style import Drawing, Looks
from circuits_over_time.plotting.parts.tables import Results, escaped
from circuits_over_time.plotting.parts.time_axis import TimeAxis

# In percent. Where next to nothing is lost, a share of it says nothing, and would flatten all others.
LARGEST = 200
TITLES = {"all": "All parts together", "heads": "Other heads", "mlps": "MLPs", "final_norm": "Scale of the final norm"}


def without_shares_of_little(table: pd.DataFrame) -> pd.DataFrame:
    """The table without shares that are beyond LARGEST, or whose intervals are, and with the reason instead."""
    shares = table[["came_back", "came_back_low", "came_back_high"]].astype(float)
    beyond = shares.abs().max(axis=1) > LARGEST
    text = "too little is lost to take a share of: {:,.0f}% (95% interval {:,.0f}% to {:,.0f}%)"
    reasons = table["reason"].astype(object)
    reasons[beyond] = [text.format(*row) for row in shares[beyond].itertuples(index=False)]
    return table.assign(came_back=shares["came_back"].mask(beyond), reason=reasons)


def draw_backup(table: pd.DataFrame, looks: Looks) -> Drawing:
    """The figure, from rows of `ioi_backup`."""
    parts = [part for part in TITLES if (table["part"] == part).any()]
    table = without_shares_of_little(table)
    panels = Panels(1, len(parts), TimeAxis.of(table), [TITLES[part] for part in parts], panel_height=260)
    ends = ("came_back_low", "came_back_high")
    for column, part in enumerate(parts, 1):
        rows = table[table["part"] == part]
        hover = ("change", "n_ablated")
        panels.draw_models(rows, "came_back", looks, 1, column, reason="reason", interval=ends, hover=hover)
        panels.level(0, 1, column)
    panels.name_rows(["of the lost logit difference (%)"])
    return panels.done(
        "What brings the logit difference back without the name movers",
        "Share of what the ablated name movers wrote; negative: more is lost",
    )


def draw(results: Results) -> dict[str, Drawing]:
    table = escaped(results.table("ioi_backup"))
    table = table[table["ablated"].fillna("name_mover") == "name_mover"]  # Older results have no others.
    return {"ioi_backup": draw_backup(table, looks=results.looks())}


FIGURE = Figure(draw, order=150)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
