"""All figures of several models, in other sizes, with other text and on a dark page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuits_over_time.plotting.parts.options import Style
from circuits_over_time.plotting.parts.paper import styled
from circuits_over_time.plotting.parts.theme import drawn_in
from tests.support.print_check import drawings_of, every_result, printer, results_of
from tests.support.study_results import write_study
from tests.support.synthetic_results import MODELS

pytestmark = [pytest.mark.browser, pytest.mark.endurance]


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
def test_every_figure_of_several_models_is_whole(style: Style, tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / "pythia-70m"
    folder.mkdir(parents=True)
    results = {"arc_easy": {"acc": 0.3, "acc_stderr": 0.01}, "piqa": {"acc": 0.6, "acc_stderr": 0.01}}
    (folder / "70m-step1000.json").write_text(json.dumps({"results": results, "config": {"num_fewshot": 0}}))
    study = write_study(tmp_path / "study", agree=False)
    with drawn_in(style.look):
        drawn = drawings_of(results_of(every_result(tmp_path / "all", MODELS), folder.parent))
        of_study = drawings_of(results_of(study, folder.parent), strict=False)
        drawn |= {f"study {name}": drawing for name, drawing in of_study.items()}
    faults = {}
    with printer() as page:
        for name, drawing in drawn.items():
            figure = styled(drawing, style)
            page.show(figure)
            assert page.size()[0] == pytest.approx(style.width, abs=0.1)
            if found := page.faults():
                faults[name] = found
    assert faults == {}
