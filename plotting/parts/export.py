"""What every figure script shares: its place in the report, its command line, and writing HTML, PNG, PDF and SVG.

HTML files carry plotly.js and open offline. The others are drawn by kaleido in an installed Chromium or Chrome.
"""

import argparse
import asyncio
import hashlib
import html
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.base.files import atomic_write
from circuits_over_time.utils.results.commands import folder_named
from circuits_over_time.utils.results.store import Store

from .options import PIXELS, Style, add_style_flags, style_of
from .paper import styled
from .style import Drawing
from .tables import Results, logger
from .theme import drawn_in

# Height in inches that a page of a paper has for a figure.
_PAGE = 9


@dataclass(frozen=True)
class Figure:
    """A figure as its script and the report know it. Every `plot_<subject>.py` has one, by the name FIGURE.

    Attributes:
        draw: from results to drawings by file name (without suffix).
        order: place in the report, ascending; None leaves it out.
        options: flags, such as "-e --evaluations", -> keywords of `add_argument`. The report takes the defaults.
    """

    draw: Callable[[Results], dict[str, Drawing]]
    order: int | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def drawings(self, results: Results) -> dict[str, Drawing]:
        """The drawings by file name. Options that the results' arguments lack have their defaults."""
        names = {flags.split()[-1].lstrip("-").replace("-", "_"): flags for flags in self.options}
        defaults = {name: self.options[flags].get("default") for name, flags in names.items()}
        return self.draw(results.with_arguments(**defaults | vars(results.arguments)))


def figure_main(figure: Figure, argv: Sequence[str] | None = None) -> int:
    """Run a figure's script with a command line, by default that of the process, as `run_script` does.

    --help shows the first line of the docstring of its module.
    """
    parser = script_parser(sys.modules[figure.draw.__module__].__doc__, "draw")
    parser.add_argument("-o", "--output", type=Path, default=Path("figures"), help="folder of figures (figures)")
    add_style_flags(parser)
    for flags, keywords in figure.options.items():
        parser.add_argument(*flags.split(), **keywords)

    def work(arguments: argparse.Namespace) -> None:
        style = style_of(arguments)
        results = Results(Store(arguments.results), arguments)
        with drawn_in(style.look):
            drawings = figure.drawings(results)
        write_drawings(drawings, arguments.output, style, results.store.left_out)

    return run_script(parser, argv, work)


def script_parser(doc: str | None, verb: str) -> argparse.ArgumentParser:
    """A parser of what every script takes: the results, and whose to draw."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("-r", "--results", type=_results, default=Path("results"), help="folder of results (results)")
    parser.add_argument("-m", "--model", nargs="+", type=folder_named, metavar="NAME", help=f"models to {verb} (all)")
    parser.add_argument("-t", "--task", nargs="+", type=folder_named, metavar="NAME", help=f"tasks to {verb} (all)")
    return parser


def run_script(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, work: Callable[[argparse.Namespace], None]
) -> int:
    """Do a script's work, and return its exit code: 2 after a UserError, which is told in one line."""
    given = list(sys.argv[1:] if argv is None else argv)
    for at in range(len(given) - 1, 0, -1):
        if re.match(r"-[\d.]", given[at]) and given[at - 1].startswith("--"):
            given[at - 1 : at + 1] = [f"{given[at - 1]}={given[at]}"]  # argparse takes `-3in` for a flag.
    arguments = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # The browser and kaleido report things that users need not see.
    for noisy in ("kaleido", "choreographer", "logistro"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        work(arguments)
    except UserError as error:
        logger.error("%s", error)
        return 2
    return 0


def _results(text: str) -> Path:
    path = Path(os.path.expanduser(text))
    if path.is_file():
        raise argparse.ArgumentTypeError(f"{path} is a file; name the folder of results")
    return path


def write_drawings(drawings: Mapping[str, Drawing], folder: Path, style: Style, left_out: Sequence[str] = ()) -> None:
    """Write `folder/name.<format>` for every drawing and format of a style, and the numbers of those that have some.

    Existing files are replaced whole. `left_out`: what the page says is missing from the figure.

    Raises:
        UserError: if anything but HTML is asked for and no browser is installed.
    """
    pictures = []
    for name, drawing in drawings.items():
        figure, name = styled(drawing, style), html.unescape(name)
        long = style.width and not style.height and (inches := figure.layout.height / PIXELS["in"]) > _PAGE
        if long and not drawing.pages:
            logger.info("%s: %.1fin tall; for less ask for a larger width, or for fewer models or tasks", name, inches)
        if drawing.table is not None:
            _write(folder / f"{name}.csv", drawing.table.to_csv(index=False, lineterminator="\n").encode())
        if long and drawing.pages:
            with drawn_in(style.look):
                pages = drawing.pages()
            write_drawings(pages, folder, style, left_out)
            continue
        for suffix in style.format:
            path = folder / f"{name}.{suffix}"
            if suffix == "html":
                _write(path, figure_html(figure, name, left_out, fixed=style.sized).encode())
            else:
                picture = go.Figure(figure)
                for trace in picture.select_traces(lambda trace: trace.name):  # Nobody points at paper.
                    trace.name = trace.name.partition(": point at it")[0]
                pictures.append((path, picture, suffix))
    if pictures:
        with ThreadPoolExecutor(1) as thread:  # A notebook's own thread has a loop that runs already.
            thread.submit(asyncio.run, _write_pictures(pictures, style.scale)).result()


def _write(path: Path, data: bytes) -> None:
    atomic_write(path, data)
    logger.info("wrote %s", path)


async def _write_pictures(pictures: Sequence[tuple[Path, go.Figure, str]], scale: float) -> None:
    """Write figures in a format each, all drawn by one browser: its start takes longer than a figure."""
    # Imported here: HTML needs neither kaleido nor a browser.
    import kaleido
    from choreographer.browsers.chromium import ChromeNotFoundError

    try:
        # Without mathjax=False the page asks a content delivery network for it.
        async with kaleido.Kaleido(n=1, mathjax=False) as browser:
            for path, figure, suffix in pictures:
                size = {"width": figure.layout.width, "height": figure.layout.height}
                # PDF and SVG have their size in inches; only a PNG is made of more pixels for sharpness.
                options = {"format": suffix, "scale": scale if suffix == "png" else 1, **size}
                _write(path, await browser.calc_fig(figure, opts=options))
    except ChromeNotFoundError:
        raise UserError(
            f"{pictures[0][0]}: PNG, PDF and SVG need Chromium or Chrome; install it (Debian: apt-get install "
            "chromium, macOS: brew install --cask chromium) or ask for --format html"
        ) from None


def figure_html(figure: go.Figure, name: str, left_out: Sequence[str] = (), *, fixed: bool = False) -> str:
    """A page with the figure, plotly.js, and lines about what was left out. The same figure gives the same bytes.

    The figure is as wide as the window, unless its width is `fixed`.
    """
    responsive = figure if fixed else go.Figure(figure).update_layout(width=None, autosize=True)
    body = responsive.to_html(
        full_html=False,
        include_plotlyjs=True,
        # A name may hold anything that a folder's name may; an id stands in markup and in a script.
        div_id=f"figure-{hashlib.sha256(name.encode()).hexdigest()[:12]}",
        default_width="100%",
        config={
            "responsive": not fixed,
            "displaylogo": False,
            "toImageButtonOptions": {"format": "svg", "filename": name},
        },
    )
    title = html.escape(name.replace("_", " "))
    body += "".join(f'\n<p style="font:14px sans-serif;margin:1em">{html.escape(line)}</p>' for line in left_out)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'</head>\n<body style="margin:0">\n{body}\n</body>\n</html>\n'
    )
