"""Every figure as it is printed, drawn in a browser, and what is wrong with its texts."""

from __future__ import annotations

import importlib
import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from circuits_over_time.plotting.parts.style import Drawing
from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.store import Store
from tests.support.browser import chromium
from tests.support.paths import ROOT
from tests.support.synthetic_comparison import write_comparison
from tests.support.synthetic_results import write_all

SCRIPTS = sorted(path.stem for path in (ROOT / "plotting").glob("plot_*.py"))
# Texts that leave the figure, or cover another by more than a hair; boxes have some air above and below the letters.
_FAULTS = """() => {
  const root = document.getElementById('figure').getBoundingClientRect(), faults = [];
  const shown = text => text.textContent.trim() && text.getBoundingClientRect().width > 0;
  const lines = [...document.querySelectorAll('#figure text')].filter(shown).flatMap(text => {
    const parts = [...text.querySelectorAll('tspan.line')];
    return (parts.length ? parts : [text]).map(
      part => ({text, said: part.textContent, box: part.getBoundingClientRect()}));
  });
  for (const {said, box} of lines)
    if (box.left < root.left - 1 || box.top < root.top - 1 ||
        box.right > root.right + 1 || box.bottom > root.bottom + 1)
      faults.push(`"${said}" leaves the page`);
  lines.forEach((one, i) => lines.slice(i + 1).forEach(other => {
    const width = Math.min(one.box.right, other.box.right) - Math.max(one.box.left, other.box.left);
    const height = Math.min(one.box.bottom, other.box.bottom) - Math.max(one.box.top, other.box.top);
    if (one.text !== other.text && width > 1.5 && height > 3) faults.push(`"${one.said}" covers "${other.said}"`);
  }));
  return faults;
}"""
_SIZES = """() => [...document.querySelectorAll('#figure text, #figure tspan')].filter(text => text.textContent.trim())
  .map(text => parseFloat(getComputedStyle(text).fontSize))"""
_BOX = """() => {
  const box = document.querySelector('#figure .main-svg').getBoundingClientRect();
  return [box.width, box.height];
}"""


def every_result(folder: Path, models: tuple[str, ...]) -> Store:
    """Made-up results that have every figure."""
    store = write_all(folder, models=models)
    write_comparison(store, models=models, group="pythia" if len(models) > 1 else None)
    return store


def results_of(store: Store, evaluations: Path) -> Results:
    """The results of a store with a folder of evaluations."""
    return Results(store, Namespace(model=None, task=None, evaluations=evaluations))


def drawings_of(results: Results, *, strict: bool = True) -> dict[str, Drawing]:
    """All figures by script and name; unless `strict`, those that the results allow."""
    drawn = {}
    for script in SCRIPTS:
        figure = importlib.import_module(f"circuits_over_time.plotting.{script}").FIGURE
        with nullcontext() if strict else suppress(UserError):
            drawn |= {f"{script}: {name}": drawing for name, drawing in figure.drawings(results).items()}
    return drawn


class Printer:
    """A browser's page that shows one figure after the other."""

    def __init__(self, page: Any) -> None:
        self.page = page
        page.set_content("<body style='margin: 0'><div id='figure'></div></body>")
        page.add_script_tag(content=get_plotlyjs())

    def show(self, figure: go.Figure) -> None:
        """Draw a figure at its own size."""
        shown = json.loads(pio.to_json(figure))
        self.page.evaluate(
            """async ({data, layout}) => {
              const at = document.getElementById('figure');
              Object.assign(at.style, {width: layout.width + 'px', height: layout.height + 'px'});
              await Plotly.newPlot(at, data, layout, {staticPlot: true});
            }""",
            shown,
        )

    def faults(self) -> list[str]:
        """What is wrong with the texts of the figure shown."""
        return list(self.page.evaluate(_FAULTS))

    def text_sizes(self) -> set[float]:
        """Sizes of the texts shown, in pixels."""
        return {round(size, 2) for size in self.page.evaluate(_SIZES)}

    def size(self) -> list[float]:
        """Width and height of the drawing, in pixels."""
        return [round(side, 1) for side in self.page.evaluate(_BOX)]


@contextmanager
def printer() -> Iterator[Printer]:
    """A browser that draws figures; skips where there is none."""
    with chromium() as browser:
        yield Printer(browser.new_context(offline=True, viewport={"width": 1200, "height": 1200}).new_page())
