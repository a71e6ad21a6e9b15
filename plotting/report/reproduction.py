"""The published numbers and the measured ones as a table, below their figure."""

import html

import pandas as pd

from plotting.plot_reproduction import panel_title, row_label, shown, shown_range
from plotting.reproduction import VERDICTS, commands


def reproduction_html(table: pd.DataFrame) -> str:
    """A row per published number, what measures the missing ones below.

    Args:
        table: what `plotting.reproduction.reproduction` returns.
    """
    rows = "".join(_row(row) for _, row in table.iterrows())
    names = ("Number", "", "Published", "Measured", "95% interval", "Checkpoints", "Verdict", "Notes")
    head = "".join(f"<th scope='col'>{name}</th>" for name in names)
    items = "".join(f"<li><code>{html.escape(command)}</code></li>" for command in commands(table))
    missing = f"<p>To measure what is missing, with the study's settings:</p><ul>{items}</ul>"
    return (
        f"<details class='reproduction'><summary>All {len(table)} numbers</summary><div class='scroll'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{missing if items else ''}</details>"
    )


def _row(row: pd.Series) -> str:
    quantity = row["quantity"]
    notes = [row["note"], f"settings: {row['settings']}" if row["settings"] else ""]
    cells = (
        panel_title(row),
        row_label(row).replace("<br>", " "),
        shown_range(row["published_low"], row["published_high"], quantity),
        shown(row["measured"], quantity),
        shown_range(row["low"], row["high"], quantity) or "–",
        f"{row['n_checkpoints']:,}",
        row["verdict"],
        "; ".join(filter(None, notes)),
    )
    state = VERDICTS.index(row["verdict"])
    return f"<tr data-verdict='{state}'>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
