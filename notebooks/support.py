"""What every notebook starts with: paths from the repository's root, quiet libraries, figures as small pictures."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pandas as pd
import plotly.graph_objects as go
from IPython.display import Image, Markdown, display
from PIL import Image as Pillow

from utils.progress import configure_logging

ROOT = Path(__file__).resolve().parents[1]

# Pixels of the picture per pixel of the figure, and at most so many across.
SCALE, WIDEST = 1.5, 1500
# Colours of a picture: with so many it is a quarter of its size and looks the same.
COLOURS = 128
NO_BROWSER = (
    "No Chromium or Chrome is installed here, so figures are interactive ones: Jupyter shows them, GitHub does not. "
    "For pictures install one (Debian: `apt-get install chromium`, macOS: `brew install --cask chromium`)."
)

Show = Callable[[go.Figure], None]


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
    configure_logging()
    logging.getLogger().setLevel(logging.WARNING)  # a line per measurement is for the command line
    for noisy in ("kaleido", "choreographer", "logistro"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    pd.options.display.float_format = "{:.3g}".format
    pd.options.display.max_colwidth = 110

    pictures = figures == "png"

    def show(figure: go.Figure) -> None:
        nonlocal pictures
        if pictures:
            png = _picture(figure)
            if png is not None:
                # Without its markup the title is what a screen reader reads out.
                title = (figure.layout.title.text or "").partition("</b>")[0].removeprefix("<b>")
                display(Image(data=png, format="png", width=figure.layout.width, alt=title))
                return
            pictures = False
            display(Markdown(NO_BROWSER))
        figure.show(renderer="plotly_mimetype+notebook_connected")

    return show


def _picture(figure: go.Figure) -> bytes | None:
    """The figure as PNG, or None where no browser is installed."""
    import kaleido
    from choreographer.browsers.chromium import ChromeNotFoundError

    width, height = figure.layout.width, figure.layout.height
    options = {"format": "png", "scale": min(SCALE, WIDEST / width), "width": width, "height": height}
    try:
        # Without mathjax=False the page asks a content delivery network for it.
        picture: bytes = kaleido.calc_fig_sync(figure, opts=options, kopts={"mathjax": False})
    except ChromeNotFoundError:
        return None
    small = io.BytesIO()
    flat = Pillow.open(io.BytesIO(picture)).convert("RGB")
    flat.quantize(COLOURS, dither=Pillow.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()
