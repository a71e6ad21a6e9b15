"""What every notebook starts with: paths from the repository's root, quiet libraries, figures as small pictures."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

try:
    from IPython.display import Image, Markdown, display
    from PIL import Image as Pillow
except ImportError as error:
    raise ImportError(f"notebooks: {error.name} is not installed; run: pip install -r requirements-dev.txt") from None

from circuits_over_time.plotting.parts.style import Drawing

ROOT = Path(__file__).resolve().parents[1]

# Pixels of the picture per pixel of the figure, and at most so many across.
SCALE, WIDEST = 1.5, 1500
# Colours of a picture: a third of its size, and none is off by more than a few of 255 levels.
COLOURS = 256
NO_BROWSER = (
    "No Chromium or Chrome is installed here, so figures are interactive ones: Jupyter shows them, GitHub does not. "
    "For pictures install one (Debian: `apt-get install chromium`, macOS: `brew install --cask chromium`)."
)

Show = Callable[[Drawing], None]


def start(figures: Literal["png", "interactive"] = "png") -> Show:
    """Make a notebook's kernel behave like a script started at the repository's root.

    Changes the working directory (so `model_cache/toy`, `results` and `configs` are the repository's), the log levels
    of the libraries, and how pandas shows tables.

    Args:
        figures: `png`: pictures, which every viewer shows; where there is no browser to draw them, interactive ones.
            `interactive`: plotly's own, with hover and zoom, drawn in the page with plotly.js from the web.

    Returns:
        A function that shows a figure in the output of its cell.
    """
    os.chdir(ROOT)
    for noisy in ("transformers", "kaleido", "choreographer", "logistro"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    pd.options.display.float_format = "{:.3g}".format
    pd.options.display.max_colwidth = 110

    painter = _Painter() if figures == "png" else None

    def show(drawing: Drawing) -> None:
        nonlocal painter
        figure = drawing.titled()
        if painter is not None:
            png = painter.picture(figure)
            if png is not None:
                # A screen reader reads the title out.
                display(Image(data=png, format="png", width=figure.layout.width, alt=drawing.title))
                return
            painter = None
            display(Markdown(NO_BROWSER))
        figure.show(renderer="plotly_mimetype+notebook_connected")

    return show


class _Painter:
    """Figures to PNG, in one browser for all."""

    def __init__(self) -> None:
        self.running = False

    def picture(self, figure: go.Figure) -> bytes | None:
        """The figure as a small PNG, or None if no browser is installed."""
        import kaleido
        from choreographer.browsers.chromium import ChromeNotFoundError

        width, height = figure.layout.width, figure.layout.height
        options = {"format": "png", "scale": min(SCALE, WIDEST / width), "width": width, "height": height}
        # Without mathjax=False the page asks a content delivery network for it.
        browser: dict[str, Any] = {} if self.running else {"kopts": {"mathjax": False}}
        try:
            png = kaleido.calc_fig_sync(figure, opts=options, **browser)
        except ChromeNotFoundError:
            return None
        if not self.running:
            # Only now: a browser that stays would wait for ever where there is none to start.
            kaleido.start_sync_server(silence_warnings=True, mathjax=False)
            self.running = True
        small = io.BytesIO()
        flat = Pillow.open(io.BytesIO(png)).convert("RGB")
        few = flat.quantize(COLOURS, method=Pillow.Quantize.MAXCOVERAGE, dither=Pillow.Dither.NONE)
        few.save(small, "png", optimize=True)
        return small.getvalue()
