"""Every figure that the results allow: as it is for wide screens, and laid out anew for phones.

Each `plot_<subject>.py` declares its figure, and this finds it. The page writes headings as text that wraps, and
legends as buttons.
"""

import importlib
import json
import pkgutil
from typing import Any

import plotly.graph_objects as go
from plotly.io.json import to_json_plotly

from circuits_over_time import plotting
from circuits_over_time.utils.base.errors import UserError

from ..parts.export import Figure
from ..parts.options import Style
from ..parts.paper import styled
from ..parts.style import Drawing
from ..parts.tables import NotMeasured, Results, logger

# Pixels: of a phone's page, of its text, and of a whole figure whose text has another size than on the screen.
_PHONE, _PHONE_TEXT, _WIDE = 300.0, 12.0, 900.0
# The share of its width to which a whole figure may be squeezed.
_SQUEEZE = 0.72


def figures() -> list[Figure]:
    """The figures of the report, in reading order."""
    names = [module.name for module in pkgutil.iter_modules(plotting.__path__) if module.name.startswith("plot_")]
    found: list[Figure] = [importlib.import_module(f"{plotting.__name__}.{name}").FIGURE for name in names]
    return sorted((figure for figure in found if figure.order is not None), key=lambda figure: figure.order or 0)


def report_figures(results: Results) -> dict[str, Drawing]:
    """The drawings by name, in reading order. What cannot be drawn is left out, with a line in the log."""
    drawings: dict[str, Drawing] = {}
    reasons: dict[str, None] = {}  # Several figures may lack the same.
    for figure in figures():
        try:
            drawings |= figure.drawings(results)
        except NotMeasured:
            pass  # The page lists by itself what could be measured.
        except UserError as error:
            reasons[str(error)] = None
    for reason in reasons:
        logger.info("left out: %s", reason)
    return drawings


def figures_json(drawings: dict[str, Drawing], style: Style) -> str:
    """The figures as plotly.js takes them: `{"template": ..., "figures": [{name, least, legend, whole, phone}]}`.

    From `least` pixels on the whole figure is drawn. All share one template, which is there once. Arrays are in
    plotly's binary form.
    """
    text = style.font_size or _PHONE_TEXT
    phone = style.model_copy(update={"width": max(_PHONE, 20 * text), "height": None, "font_size": text})
    unsized: dict[str, Any] = {"width": None, "height": None}
    entries = []
    for name, drawing in drawings.items():
        layout, own = drawing.figure.layout, unsized
        least = _SQUEEZE * layout.width
        if style.font_size:  # Laid out for its text, it is not to be squeezed.
            least = min(layout.width, _WIDE)
            own = unsized | {"width": least}
        figures = {"whole": style.model_copy(update=own), "phone": phone}
        records = {which: _record(styled(drawing, asked, bare=True)) for which, asked in figures.items()}
        entries.append({"name": name, "least": least, "legend": layout.showlegend, **records})
    written: str = to_json_plotly({"template": style.look.template.to_plotly_json(), "figures": entries})
    json.loads(written)  # A NaN that slipped through would stop the whole page.
    return written


def _record(figure: go.Figure) -> dict[str, Any]:
    """The traces and the layout, without what the page has in common or for itself."""
    record = figure.to_plotly_json()
    for key in ("template", "width", "legend", "title"):
        record["layout"].pop(key, None)
    return {"data": record["data"], "layout": record["layout"]}
