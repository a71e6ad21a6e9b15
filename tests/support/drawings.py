"""What figure scripts draw from a results folder."""

from __future__ import annotations

from argparse import Namespace
from functools import cache
from pathlib import Path
from types import ModuleType

from circuits_over_time.plotting.parts.export import figure_main
from circuits_over_time.plotting.parts.style import Drawing
from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.utils.results.store import Store

EVERYTHING = Namespace(model=None, task=None)


def drawings(script: ModuleType, store: Store, **options: object) -> dict[str, Drawing]:
    """The drawings of a script by file name; options that are not given have its defaults.

    Those of results that no test changes (`filled_once`) are drawn once. Do not change them.
    """
    if not options and (store.root / "filled").exists():
        return _drawn_once(script, store.root)
    drawn: dict[str, Drawing] = script.FIGURE.drawings(Results(store, Namespace(**vars(EVERYTHING) | options)))
    return drawn


@cache
def _drawn_once(script: ModuleType, root: Path) -> dict[str, Drawing]:
    drawn: dict[str, Drawing] = script.FIGURE.drawings(Results(Store(root), EVERYTHING))
    return drawn


def run(script: ModuleType, *argv: object) -> int:
    """Run a script with a command line; its exit code."""
    return figure_main(script.FIGURE, [str(part) for part in argv])
