"""Every figure that the results allow: whole for wide screens, and panel by panel for narrow ones.

Each `plot_<subject>.py` declares its figure, and this finds it. The page writes headings as text that wraps, and
legends as buttons.
"""

import importlib
import json
import pkgutil

import plotly.io as pio
from plotly.io.json import to_json_plotly

from circuits_over_time import plotting
from circuits_over_time.utils.base.errors import UserError

from ..parts.export import Figure
from ..parts.style import TEMPLATE, Drawing
from ..parts.tables import NotMeasured, Results, logger


def figures() -> list[Figure]:
    """The figures of the report, in reading order."""
    names = [module.name for module in pkgutil.iter_modules(plotting.__path__) if module.name.startswith("plot_")]
    found: list[Figure] = [importlib.import_module(f"{plotting.__name__}.{name}").FIGURE for name in names]
    return sorted((figure for figure in found if figure.order is not None), key=lambda figure: figure.order or 0)


def report_figures(results: Results) -> dict[str, Drawing]:
    """The drawings by name, in reading order. What cannot be drawn is left out, with a line in the log."""
    drawings: dict[str, Drawing] = {}
    for figure in figures():
        try:
            drawings |= figure.drawings(results)
        except UserError as error:
            # The page lists by itself what could be measured.
            if not isinstance(error, NotMeasured):
                logger.info("left out: %s", error)
    return drawings


def figures_json(drawings: dict[str, Drawing]) -> str:
    """The figures as plotly.js takes them: `{"template": ..., "figures": [{name, width, whole, parts}]}`.

    They share one template, which is there once. Arrays are in plotly's binary form.
    """
    entries = []
    for name, drawing in drawings.items():
        records = []
        for figure in (drawing.figure, *drawing.narrow()):
            record = figure.to_plotly_json()
            for key in ("template", "width", "legend"):
                record["layout"].pop(key, None)
            records.append({"data": record["data"], "layout": record["layout"]})
        entries.append({"name": name, "width": drawing.figure.layout.width, "whole": records[0], "parts": records[1:]})
    text: str = to_json_plotly({"template": pio.templates[TEMPLATE].to_plotly_json(), "figures": entries})
    json.loads(text)  # A NaN that slipped through would stop the whole page.
    return text
