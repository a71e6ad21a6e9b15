"""The page: template, style, scripts and data in one file that needs no network."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.commands import how_to_make
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.tasks.registry import task_label

from ..parts.options import Style
from ..parts.roles import ROLES
from ..parts.style import Drawing, task_order
from ..parts.tables import Results, html_table
from ..parts.theme import COLOUR, FAINT, GRID, INK, NEGATIVE, POSITIVE, WHITE
from .advice import also_possible, unfinished
from .figures import figures_json
from .runs import RunRecord, counted, equal_weights_notes, runs_html
from .story import Sentence

ASSETS = Path(__file__).parent / "assets"
# Size of the page's text in pixels, as its style sheet has it.
_TEXT = 15
# In the order in which they stand in the page.
SCRIPTS = (
    "dom address sort_table circuit_scene history chart attention details search downloads circuit_drawing "
    "circuit overview heads figures main"
)


def page_html(
    results: Results,
    circuits: list[dict[str, Any]],
    sentences: list[Sentence],
    heads: list[dict[str, Any]],
    meanings: dict[str, str],
    figures: dict[str, Drawing],
    runs: list[RunRecord],
    notes: list[str],
    style: Style,
) -> str:
    """The whole page, from the parts that the other modules make; `notes` are lines about what is absent."""
    style.look.begin()
    sheet = COLOUR.sub(lambda found: style.look.paint(found[0]), _sheet(style))
    # The page's own colours leave a palette too few for the roles.
    look = replace(style.look)
    roles = [(label, look.paint(colour)) for label, colour in ROLES.values()]
    data = {"circuits": circuits, "heads": heads, "meanings": meanings, "roles": roles}
    there = [("circuit", "Circuit", bool(circuits)), ("heads", "Heads", bool(heads))]
    there += [("figures", "Figures", bool(figures)), ("runs", "Configs and versions", True)]
    parts = {
        "title": html.escape(_title(results)),
        "lead": html.escape(_lead(results)),
        "css": sheet,
        "navigation": "".join(f"<a href='#{anchor}'>{label}</a>" for anchor, label, content in there if content),
        "warnings": "".join(f"<p class='warning'>{html.escape(line)}.</p>" for line in equal_weights_notes(runs)),
        "story": _story_html(sentences, circuits),
        "summary": _summary(circuits),
        "role_keys": _role_keys(roles),
        "circuit_hidden": "" if circuits else "hidden",
        "heads_hidden": "" if heads else "hidden",
        "figures": "\n".join(_figure_html(i, *item) for i, item in enumerate(figures.items())),
        "figures_hidden": "" if figures else "hidden",
        "advice": _advice(results),
        "notes": "".join(f"<li>{html.escape(line)}</li>" for line in notes),
        "notes_hidden": "" if notes else "hidden",
        "runs": runs_html(runs),
        "data": script_safe(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))),
        "figure_data": script_safe(figures_json(figures, style)),
        "script": "(() => {\n'use strict';\n" + "\n".join(_asset(f"{name}.js") for name in SCRIPTS.split()) + "\n})();",
        "plotly": get_plotlyjs() if figures else "",
    }
    return Template(_asset("template.html")).substitute(parts)


def script_safe(text: str) -> str:
    """JSON that can neither end the script element around it nor be taken for markup."""
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _sheet(style: Style) -> str:
    """The style sheet, in the light theme's colours."""
    colours = {"positive": POSITIVE, "negative": NEGATIVE, "ink": INK, "faint": FAINT, "grid": GRID, "page": WHITE}
    root = "".join(f"--{name}:{value};" for name, value in colours.items()) + f"--font:{style.look.font};"
    root += "color-scheme:dark;print-color-adjust:exact;" if style.look.is_dark else "color-scheme:light;"
    sheet = _asset("report.css")
    if style.font_size:  # Text of drawings keeps its size, for which they have room.
        share = style.font_size / _TEXT
        sheet = re.sub(
            r"(?m)^(?!.*\b(?:text|title|port) \{)(.*?font(?:-size)?: (?:\d+ )?)([\d.]+)px",
            lambda found: f"{found[1]}{share * float(found[2]):.4g}px",
            sheet,
        )
    return f":root{{{root}}}\n{sheet}"


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _title(results: Results) -> str:
    models = results.every_model
    return "Circuits over training" + (f": {models[0]}" if len(models) == 1 else "")


def _lead(results: Results) -> str:
    steps, tasks = set[int](), set[str]()
    for kind in KINDS:
        for model in results.models(kind):
            of_model = results.tasks(kind, model)
            tasks.update(of_model)
            for task in (*of_model, None):
                steps.update(results.store.folder(kind, model, task).steps())
    span = f"{counted(len(steps), 'checkpoint')}, step {min(steps):,} to {max(steps):,}."
    named = ", ".join(map(task_label, task_order(tasks)))
    return f"{', '.join(results.every_model)}. {span}" + (f" Tasks: {named}." if tasks else "")


def _role_keys(roles: list[tuple[str, str]]) -> str:
    chips = (
        f"<span class='chip'><i class='swatch' style='border-color:{colour}'></i>{html.escape(label)}</span>"
        for label, colour in roles
    )
    return f"<span>Roles in IOI:</span>{''.join(chips)}"


def _story_html(sentences: list[Sentence], circuits: list[dict[str, Any]]) -> str:
    """The sentences, model by model: those of the first with a circuit to be seen, the others' folded away."""
    models = list(dict.fromkeys(sentence.model for sentence in sentences))
    with_circuit = {one["model"] for one in circuits if any(step["edges"] for step in one["steps"])}
    shown = next((model for model in models if model in with_circuit), next(iter(models), None))
    parts = []
    for model in models:
        own = [sentence for sentence in sentences if sentence.model == model]
        items = "".join(
            f"<li><p><b>{html.escape(one.label)}</b>{html.escape(one.text.removeprefix(one.label))}</p>"
            + (f"<p class='quiet'>Unsure: {html.escape('; '.join(one.unsure))}.</p>" if one.unsure else "")
            + "</li>"
            for one in own
        )
        name = f"<summary><h2>{html.escape(model)}</h2></summary>"
        opened = " open" if model == shown else ""
        parts.append(
            f"<details class='fold model'{opened}>{name}<ul>{items}</ul></details>"
            if len(models) > 1
            else f"<h2>What was found</h2><ul>{items}</ul>"
        )
    return "".join(parts)


def _summary(circuits: list[dict[str, Any]]) -> str:
    """A row per model and task: the metric and the circuit at the last checkpoint, and the first with a circuit."""
    rows = []
    for record in circuits:
        if not record["steps"]:
            continue
        last = record["steps"][-1]
        first = next((step["step"] for step in record["steps"] if step["edges"]), None)
        cells = {
            "Model": record["model"],
            "Task": record["label"],
            "Step": f"{last['step']:,}",
            "First circuit at step": "–" if first is None else f"{first:,}",
            "Metric, clean": _number(last.get("full")),
            "Metric, corrupted": _number(last.get("corrupted")),
            "Circuit edges": f"{last['size']:,}" if last["edges"] else last.get("status", "none"),
            "Circuit nodes": f"{last['nodes']:,}" if last["edges"] else "–",
            "Faithfulness": _number(last.get("faithfulness")),
        }
        rows.append(cells)
    if not rows:
        return ""
    table = html_table(rows[0], map(dict.values, rows), "summary")
    return f"<details class='fold'><summary>Numbers at the last checkpoint</summary>{table}</details>"


def _number(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.3g}"


def _figure_html(index: int, name: str, drawing: Drawing) -> str:
    # Plotly's markup writes `<` and `&` as HTML does.
    title, subtitle = (html.escape(html.unescape(text)) for text in (drawing.title, drawing.subtitle))
    anchor = re.sub(r"[^\w.-]", "_", name)
    return (
        f"<details class='fold'><summary><h3>{title}</h3></summary>"
        f"<figure id='figure-{index}-{html.escape(anchor)}'><figcaption><p>{subtitle}</p></figcaption>"
        f"<div class='legend' role='group' aria-label='Legend: {title}'></div>"
        f"<div class='plot' data-figure='{index}' style='min-height:{drawing.figure.layout.height}px'></div>"
        f"{drawing.details}</figure></details>"
    )


def _advice(results: Results) -> str:
    """What is not finished, and folded away what could be measured too."""
    parts = []
    for advice, block in (
        (unfinished(results), "<h3>Not finished</h3>{}"),
        (also_possible(results), "<details><summary>Also possible</summary>{}</details>"),
    ):
        items = [f"<li>{html.escape(what)}: <code>{html.escape(command)}</code></li>" for what, command in advice]
        parts += [block.format(f"<ul class='commands'>{''.join(items)}</ul>")] if items else []
    return "".join(parts)


def refuse_empty(results: Results) -> None:
    """Raise UserError, naming the command to begin with, if no kind has results of what is asked for."""
    if results.every_model:
        return
    asked = " ".join([*(results.arguments.model or []), *(results.arguments.task or [])])
    raise UserError(
        f"{results.store.root} holds no results{' of ' if asked else ''}{asked}; run: "
        f"{how_to_make(results.store.root, 'graphs', (results.arguments.model or [None])[0])}"
    )
