"""Figure scripts declare themselves: to the report, and to `make figures`."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuits_over_time.plotting import plot_circuit_similarity, plot_circuits
from circuits_over_time.plotting.make_report import main
from circuits_over_time.plotting.report import figures as report_figures
from circuits_over_time.plotting.report.figures import figures
from circuits_over_time.utils.results.store import Store
from tests.support.paths import ROOT


def test_every_script_is_in_the_report_but_those_of_what_it_draws_itself() -> None:
    scripts = {path.stem for path in (ROOT / "plotting").glob("plot_*.py")}
    drawn = {figure.draw.__module__.rpartition(".")[2] for figure in figures()}
    assert drawn == scripts - {"plot_attention", "plot_circuit"}
    orders = [figure.order for figure in figures()]
    assert orders == sorted(set(orders)), "no two figures have one place"


def test_the_same_results_give_the_same_page_and_figures_as_pages(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each figure takes long to draw, and has a test of its own.
    monkeypatch.setattr(report_figures, "figures", lambda: [plot_circuits.FIGURE, plot_circuit_similarity.FIGURE])
    pages, folder = [tmp_path / "first.html", tmp_path / "second.html"], tmp_path / "figures"
    for page, further in zip(pages, ([], ["-f", str(folder)]), strict=True):
        assert main(["-r", str(store.root), "-o", str(page), *further]) == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()
    names = {path.name for path in folder.iterdir()}
    assert names == {"circuits.html", "circuit_similarity.html", "circuit_similarity.csv"}
