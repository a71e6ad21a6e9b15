"""Draw the numbers of the published study next to your own (figures/reproduction.html).

The study is Tigges et al. 2024 (arXiv 2407.10827). Published values are grey; measured ones have 95% intervals.
figures/reproduction.csv has every number, with its checkpoints, the settings that differ from the study's, and the
command that measures what is missing.

    python plotting/plot_reproduction.py -r results
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.head_scores import score_label
from circuits_over_time.plotting.parts.published.reproduction import VERDICTS, commands, remaining, reproduction
from circuits_over_time.plotting.parts.style import Drawing, finish, small
from circuits_over_time.plotting.parts.tables import NotMeasured, Results, logger
from circuits_over_time.plotting.parts.theme import NEGATIVE, POSITIVE, paint
from circuits_over_time.plotting.parts.time_axis import compact
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.tasks.registry import task_label

PUBLISHED_COLOUR = "#b5b5b5"
# Verdict -> colour and symbol of what was measured.
LOOKS = {"agrees": (POSITIVE, "circle"), "disagrees": (NEGATIVE, "diamond"), "open": ("#777777", "circle-open")}
SENTENCES = {"agrees": "agree", "disagrees": "disagree", "open": "are open", "not measured": "are not measured"}
QUANTITIES = {
    "circuit_nodes": "mean nodes",
    "size_correlation": "Pearson's r",
    "circuit_edges": "edges",
    "level_percent": "% of the level's effect",
    "emergence_tokens": "training tokens",
}
FORMATS = {"circuit_nodes": ".1f", "size_correlation": ".3f", "circuit_edges": ",.0f", "level_percent": ".0f"}
LEVELS = {
    "name_movers": "Level 1: name movers",
    "s_inhibition": "Level 2: S-inhibition",
    "induction": "Level 3: induction",
}
# Quantities side by side in one row of panels.
ROWS = (("circuit_nodes",), ("size_correlation", "circuit_edges"), ("level_percent",), ("emergence_tokens",))
# On narrow paper all panels are longer than a page: file name -> what is on one, and its rows.
PAGES = {"reproduction_circuits": ("circuits", ROWS[:2]), "reproduction_heads": ("heads", ROWS[2:])}
_PANEL_WIDTH, _PANEL_HEIGHT, _BETWEEN = 330, 200, 76


def panel_title(row: pd.Series) -> str:
    """The panel that a row of `reproduction` belongs to."""
    return {
        "circuit_nodes": f"Nodes: {task_label(row['task'])}",
        "size_correlation": f"r with size ({'as printed' if row['item'] == 'printed' else 'true sizes'})",
        "circuit_edges": f"{task_label(row['task'])} edges of {row['model']}",
        "level_percent": LEVELS.get(row["item"], row["item"]),
        "emergence_tokens": f"Emergence: {score_label(row['item'])[0]}",
    }[str(row["quantity"])]


def row_label(row: pd.Series) -> str:
    """What distinguishes a row from the others in its panel: the model, the task or the step."""
    if row["quantity"] == "size_correlation":
        return task_label(row["task"])
    return f"{row['step']:,}" if row["quantity"] == "circuit_edges" else str(row["model"]).removeprefix("pythia-")


def format_number(value: float, quantity: str) -> str:
    """A number with as many digits as the study prints, or a dash."""
    if np.isnan(value):
        return "–"
    return compact(value) if quantity == "emergence_tokens" else format(value, FORMATS[quantity])


def format_range(low: float, high: float, quantity: str) -> str:
    """A range whose ends are written by `format_number`, or one number if they are equal."""
    if np.isnan(low) or np.isnan(high):
        return ""
    if np.isinf(high):
        return f"after {format_number(low, quantity)}"
    return " to ".join(dict.fromkeys(format_number(end, quantity) for end in (low, high)))


def draw_reproduction(
    table: pd.DataFrame, hours: float = 0.0, of: str = "", rows: Sequence[tuple[str, ...]] = ROWS
) -> Drawing:
    """The figure, from what `reproduction` returns, or some of its rows of panels, and what they are `of`.

    `hours` of a GPU measure what is missing.
    """
    labels = table.apply(row_label, axis=1).str.rpartition(" ")[2]  # Of a task its last word: there is little room.
    table = table.assign(panel=table.apply(panel_title, axis=1), label=labels)
    grid = [list(dict.fromkeys(table.loc[table["quantity"].isin(row), "panel"])) for row in rows]
    grid = [panels for panels in grid if panels]
    columns = max(map(len, grid))
    width = 106 + max(_PANEL_WIDTH * columns, 420)
    inner = _PANEL_HEIGHT * len(grid) + _BETWEEN * (len(grid) - 1)
    figure = make_subplots(
        rows=len(grid),
        cols=columns,
        specs=[[{} if i < len(panels) else None for i in range(columns)] for panels in grid],
        subplot_titles=[panel + _lacking(table[table["panel"] == panel]) for panels in grid for panel in panels],
        horizontal_spacing=min(0.2, 78 / width) if columns > 1 else 0,
        vertical_spacing=_BETWEEN / inner if len(grid) > 1 else 0,
    )
    figure.update_annotations(font_size=14, yshift=4)
    for row, panels in enumerate(grid, 1):
        for column, panel in enumerate(panels, 1):
            _draw_panel(figure, table[table["panel"] == panel], {"row": row, "col": column})
    counts = table["verdict"].value_counts()
    verdicts = ", ".join(f"{counts[verdict]} {SENTENCES[verdict]}" for verdict in SENTENCES if verdict in counts)
    verdicts += f" (about {format_hours(hours)} of a GPU)" if hours else ""
    if others := int(table["settings"].str.contains("(study:", regex=False).sum()):
        verdicts += f"; {others} with other settings than the study's"
    drawing = finish(
        figure,
        "Published and measured" + (f": {of}" if of else ""),
        f"Of {len(table)} numbers of Tigges et al. 2024 (arXiv 2407.10827) {verdicts}. Bars are 95% intervals",
        width=width,
        height=inner + 112,
    )
    figure.update_xaxes(type="category", showgrid=False, tickfont_size=11, tickangle=0)
    return drawing


def _lacking(rows: pd.DataFrame) -> str:
    """For a panel's title: why none of its numbers is measured, if none is."""
    reasons = rows["note"][rows["note"] != ""]
    text = "not measured" if reasons.empty else reasons.iloc[0]
    return f"<br>{small(text)}" if rows["measured"].isna().all() else ""


def _draw_panel(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int]) -> None:
    quantity = rows["quantity"].iloc[0]
    low, high = rows["published_low"].astype(float), rows["published_high"].astype(float)
    middle = (low + high) / 2
    published = paint(PUBLISHED_COLOUR)
    # One number is a dash, a range a bar.
    dash = {"symbol": "line-ew", "size": np.where(low == high, 20, 0), "line": {"color": published, "width": 3}}
    bar = {"type": "data", "array": high - middle, "thickness": 9, "width": 0, "color": published}
    _add(figure, rows, "published", where, y=middle, error_y=bar, marker=dash | {"color": published})
    for verdict, (colour, symbol) in LOOKS.items():
        # What has not happened by the last checkpoint is drawn there, as a triangle that points on.
        yet = rows["measured"].isna() & np.isinf(rows["high"].astype(float))
        part = rows[(rows["verdict"] == verdict) & (rows["measured"].notna() | yet)]
        if part.empty:
            continue
        up, down = part["high"] - part["measured"], part["measured"] - part["low"]
        ends = {"type": "data", "array": up, "arrayminus": down, "symmetric": False}
        symbols = np.where(yet[part.index], "triangle-up", symbol)
        _add(
            figure,
            part,
            f"measured, {verdict}",
            where,
            y=part["measured"].fillna(part["low"]),
            error_y=ends | {"thickness": 1.5, "width": 4, "color": paint(colour)},
            marker={"color": paint(colour), "symbol": symbols, "size": 9},
        )
    figure.update_xaxes(categoryorder="array", categoryarray=rows["label"].tolist(), **where)
    figure.update_yaxes(title_text=QUANTITIES[quantity], **where)
    if quantity == "emergence_tokens":
        ticks = [factor * 10.0**power for power in range(6, 13) for factor in (1, 2, 5)]
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[compact(tick) for tick in ticks], **where)
    elif quantity == "level_percent":
        figure.update_yaxes(range=[-3, 105], **where)
    elif quantity == "size_correlation":
        figure.update_yaxes(range=[min(-0.05, rows["low"].min() - 0.05), 1.05], **where)
    else:
        figure.update_yaxes(rangemode="tozero", **where)


def _add(figure: go.Figure, rows: pd.DataFrame, name: str, where: dict[str, int], **look: object) -> None:
    figure.add_scatter(
        x=rows["label"],
        name=name,
        legendgroup=name,
        legendrank=1 + ["published", *LOOKS].index(name.removeprefix("measured, ")),
        mode="markers",
        customdata=[
            (*_texts(row, "none"), _checkpoints(row), row["settings"] or "as in the study")
            for row in rows.to_dict("records")
        ],
        hovertemplate="<b>%{x}</b><br>published: %{customdata[0]}<br>measured: %{customdata[1]}"
        "<br>95% interval: %{customdata[2]}<br>checkpoints: %{customdata[3]}"
        "<br>settings: %{customdata[4]}<extra></extra>",
        **look,
        **where,
    )


def format_hours(hours: float) -> str:
    """`40 minutes`, `3.2 hours`, `210 hours`."""
    return f"{60 * hours:.0f} minutes" if hours < 1 else f"{hours:.{int(hours < 10)}f} hours"


def reproduction_html(store: Store, table: pd.DataFrame, whole: tuple[str, float] | None) -> str:
    """What `reproduction` returns as a table, and below it what measures the missing numbers, all at once or apart."""
    rows = "".join(_row(row) for _, row in table.iterrows())
    names = ("Number", "", "Published", "Measured", "95% interval", "Checkpoints", "Verdict", "Notes")
    head = "".join(f"<th scope='col'>{name}</th>" for name in names)
    items = "".join(f"<li><code>{html.escape(command)}</code></li>" for command in commands(store, table))
    command, hours = whole or ("", 0.0)
    missing = (
        f"<p>What is missing takes about {format_hours(hours)} of a GPU, from the models' shapes, without loading "
        f"(<code>--dry-run</code> says more): <code>{html.escape(command)}</code></p><p>Or one by one:</p>"
        f"<ul>{items}</ul>"
    )
    return (
        f"<details class='reproduction'><summary>All {len(table)} numbers</summary><div class='scroll'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{missing if items else ''}</details>"
    )


def _texts(row: Mapping[Any, Any] | pd.Series, no_interval: str) -> tuple[str, str, str]:
    """What is published, what is measured, and its interval."""
    quantity = row["quantity"]
    published = format_range(row["published_low"], row["published_high"], quantity)
    interval = format_range(row["low"], row["high"], quantity) or no_interval
    return published, format_number(row["measured"], quantity), interval


def _checkpoints(row: Mapping[Any, Any] | pd.Series) -> str:
    """How many were measured and, where it is known, how many the study's mean has."""
    return f"{row['n_checkpoints']:,}" + (f" (study: {row['checkpoints']})" if row["checkpoints"] else "")


def _row(row: pd.Series) -> str:
    notes = [row["note"], f"settings: {row['settings']}" if row["settings"] else ""]
    cells = (
        panel_title(row),
        row_label(row).replace("<br>", " "),
        *_texts(row, "–"),
        _checkpoints(row),
        row["verdict"],
        "; ".join(filter(None, notes)),
    )
    state = VERDICTS.index(row["verdict"])
    return f"<tr data-verdict='{state}'>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def draw(results: Results) -> dict[str, Drawing]:
    table = reproduction(results.store, results.arguments)
    if not table["model"].any():  # Correlations alone are of no model.
        raise NotMeasured("--model, --task: the study published nothing of these; leave them out")
    if results.in_report and (table["verdict"] == "not measured").all():
        raise NotMeasured(f"{results.store.root} holds no results of the study's models")
    whole = remaining(results.store, table)
    for command, n in commands(results.store, table).items() if not results.in_report else ():
        logger.info("%d numbers are not measured, or open; run: %s", n, command)
    if whole is not None and not results.in_report:
        logger.info("or all, in about %s of a GPU without loading; run: %s", format_hours(whole[1]), whole[0])
    hours, details = whole[1] if whole else 0.0, reproduction_html(results.store, table, whole)
    there = {name: part for name, part in PAGES.items() if table["quantity"].isin(sum(part[1], ())).any()}

    def pages() -> dict[str, Drawing]:
        return {name: draw_reproduction(table, hours, *part) for name, part in there.items()}

    return {"reproduction": replace(draw_reproduction(table, hours), table=table, details=details, pages=pages)}


FIGURE = Figure(draw, order=170)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
