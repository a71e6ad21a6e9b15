"""Fixtures of the tests of figures and of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuits_over_time.plotting.make_report import main
from circuits_over_time.utils.results.store import Store
from tests.support.shared_folder import filled_once
from tests.support.synthetic_results import MODELS, write_all


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Every kind of result of one model, the first of MODELS. Do not change it."""
    return write_all(tmp_path_factory.mktemp("results"), models=MODELS[:1])


@pytest.fixture(scope="session")
def report(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of these results, and `figures/` beside it. Do not change them."""

    def fill(folder: Path) -> None:
        argv = ["-r", str(store.root), "-o", str(folder / "report.html"), "-f", str(folder / "figures")]
        assert main(argv) == 0

    return filled_once(tmp_path_factory, "page", fill) / "report.html"
