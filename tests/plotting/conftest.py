"""Fixtures of the tests of figures and of the report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from circuits_over_time.plotting.make_report import main
from circuits_over_time.utils.results.store import Store
from tests.support.shared_folder import filled_once
from tests.support.synthetic_comparison import write_comparison
from tests.support.synthetic_results import MODELS, write_all


@pytest.fixture(scope="session")
def one_model(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Every kind of result of one model, the first of MODELS. Do not change it."""
    return Store(filled_once(tmp_path_factory, "one_model", lambda folder: write_all(folder, models=MODELS[:1])))


@pytest.fixture(scope="session")
def store(one_model: Store) -> Store:
    return one_model


@pytest.fixture(scope="session")
def all_models(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Every kind of result of all MODELS. Do not change it."""
    return Store(filled_once(tmp_path_factory, "all_models", write_all))


@pytest.fixture(scope="session")
def compared(one_model: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Every kind of result of one model, and what comparisons say of it. Do not change it."""

    def fill(folder: Path) -> None:
        shutil.copytree(one_model.root, folder, dirs_exist_ok=True)
        write_comparison(Store(folder), MODELS[:1])

    return Store(filled_once(tmp_path_factory, "compared", fill))


@pytest.fixture(scope="session")
def report(one_model: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one model's results. Do not change it."""

    def fill(folder: Path) -> None:
        assert main(["-r", str(one_model.root), "-o", str(folder / "report.html")]) == 0

    return filled_once(tmp_path_factory, "page", fill) / "report.html"
