"""All figures of several models, in other sizes, with other text and on a dark page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from circuits_over_time.plotting.parts.options import Style
from circuits_over_time.plotting.parts.paper import styled
from circuits_over_time.plotting.parts.style import Drawing
from circuits_over_time.plotting.parts.theme import drawn_in
from circuits_over_time.utils.results.store import Store
from tests.support.print_check import Printer, drawings_of, every_result, printer, results_of
from tests.support.shared_folder import filled_once
from tests.support.study_results import write_study
from tests.support.synthetic_results import MODELS

pytestmark = [pytest.mark.browser, pytest.mark.endurance]
Drawn = Callable[[str, str], dict[str, Drawing]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """All figures in a theme and a palette, drawn once for all sizes. Do not change them."""

    def fill(folder: Path) -> None:
        of_model = folder / "evaluations" / "pythia-70m"
        of_model.mkdir(parents=True)
        results = {"arc_easy": {"acc": 0.3, "acc_stderr": 0.01}, "piqa": {"acc": 0.6, "acc_stderr": 0.01}}
        (of_model / "70m-step1000.json").write_text(json.dumps({"results": results, "config": {"num_fewshot": 0}}))
        write_study(folder / "study", agree=False)
        every_result(folder / "all", MODELS)

    folder = filled_once(tmp_path_factory, "of_several_models", fill)
    results, study = (results_of(Store(folder / name), folder / "evaluations") for name in ("all", "study"))

    @cache
    def draw(theme: str, palette: str) -> dict[str, Drawing]:
        with drawn_in(Style(theme=theme, palette=palette).look):
            of_study = drawings_of(study, strict=False)
            return drawings_of(results) | {f"study {name}": drawing for name, drawing in of_study.items()}

    return draw


@pytest.fixture(scope="module")
def page() -> Iterator[Printer]:
    with printer() as started:
        yield started


@pytest.mark.parametrize(
    "style",
    [
        Style(width="3.25in"),
        Style(width="5.5in"),
        Style(width="5.5in", font_size="10pt", title=False),
        Style(width="6.75in", font_size="7pt", theme="dark", palette="tol-bright"),
    ],
    ids=["column", "page", "large text", "dark"],
)
def test_every_figure_of_several_models_is_whole(style: Style, drawn: Drawn, page: Printer) -> None:
    faults = {}
    for name, drawing in drawn(style.theme, style.palette).items():
        figure = styled(drawing, style)
        page.show(figure)
        assert page.size()[0] == pytest.approx(style.width, abs=0.1)
        if found := page.faults():
            faults[name] = found
    assert faults == {}
