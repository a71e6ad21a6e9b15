"""Put the results on one page that opens offline (report.html).

It shows the circuit of every checkpoint behind a slider, with the edges added and removed since the one before; a table
of heads that you can sort and filter; every figure that the results allow; and the configs, versions and weights behind
them.

    python plotting/make_report.py -r results -o report.html
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from circuits_over_time.plotting.parts.export import run_script, script_parser, write_drawings
from circuits_over_time.plotting.parts.options import Style, add_style_flags, style_of
from circuits_over_time.plotting.parts.style import Drawing
from circuits_over_time.plotting.parts.tables import Results, logger
from circuits_over_time.plotting.parts.theme import drawn_in
from circuits_over_time.plotting.report.advice import unfinished
from circuits_over_time.plotting.report.circuits import circuit_records
from circuits_over_time.plotting.report.figures import report_figures
from circuits_over_time.plotting.report.heads import attention_records, head_records
from circuits_over_time.plotting.report.page import page_html, refuse_empty
from circuits_over_time.plotting.report.runs import run_records
from circuits_over_time.plotting.report.story import story
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.base.files import atomic_write
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.results.store import Store

_PLAIN = Style()
# What the page does not take, because it is as wide as its window.
_OF_FILES = ("width", "height", "title", "format", "scale")


def report(results: Results, style: Style = _PLAIN) -> tuple[str, dict[str, Drawing]]:
    """The page, and the figures on it by name.

    Args:
        results: of any kinds; their arguments have `evaluations` (folder of lm-evaluation-harness JSON files, or None).
        style: of the page: its theme, palette, font and size of text.

    Raises:
        UserError: if there are no results, or results that cannot be read.
    """
    refuse_empty(results)
    with _collected_notes() as notes:
        for kind in KINDS:
            results.table_if_any(kind)
        circuits, sentences = circuit_records(results), story(results)
        attention = {model: attention_records(results, model) for model in results.models("graphs")}
        for record in circuits:
            record["attention"] = attention[record["model"]].get(record["task"])
            of = [one for one in sentences if (one.model, one.task) == (record["model"], record["task"])]
            record |= {"learned": of[0].learned, "changed": of[0].changed} if of else {}
        heads, meanings = head_records(results)
        with drawn_in(style.look):
            figures = report_figures(results)
        runs = run_records(results)
    return page_html(results, circuits, sentences, heads, meanings, figures, runs, notes, style), figures


@contextmanager
def _collected_notes() -> Iterator[list[str]]:
    """Collect what the figures' code logs inside the block, each line once: what is absent, and why."""
    notes: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (line := record.getMessage()) not in notes:
                notes.append(line)

    # The store says what it leaves out because it is damaged.
    loggers = (logger, logging.getLogger(Store.__module__))
    collector, levels = Collector(), [one.level for one in loggers]
    for one in loggers:
        one.addHandler(collector)
        one.setLevel(min(logging.INFO, one.getEffectiveLevel()))
    try:
        yield notes
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.removeHandler(collector)
            one.setLevel(level)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; the exit code is that of `run_script`."""
    parser = script_parser(__doc__, "show")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page (report.html)")
    parser.add_argument(
        "-e", "--evaluations", type=Path, help="folder of lm-evaluation-harness JSON files, shown too if given"
    )
    parser.add_argument("-f", "--figures", type=Path, help="folder that gets every figure as a file of its own")

    add_style_flags(parser, ["--format"])

    def work(arguments: argparse.Namespace) -> None:
        style = style_of(arguments)
        of_files = [name for name in _OF_FILES if getattr(style, name) != getattr(_PLAIN, name)]
        if of_files and not arguments.figures:
            raise UserError(f"--{of_files[0]}: the page has its own; for files of the figures add --figures FOLDER")
        page, figures = report(Results(Store(arguments.results), arguments, in_report=True), style)
        data = page.encode()
        atomic_write(arguments.output, data)
        if arguments.figures:
            write_drawings(figures, arguments.figures, style)
        for what, command in unfinished(Results(Store(arguments.results), arguments)):
            logger.info("not finished: %s; run: %s", what, command)
        logger.info("wrote %s (%.1f MB)", arguments.output, len(data) / 1e6)

    return run_script(parser, argv, work)


if __name__ == "__main__":
    raise SystemExit(main())
