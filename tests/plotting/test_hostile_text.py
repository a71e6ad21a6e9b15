"""Names and cells of HTML, quotes and formulas in the page of every figure and in the report, in a real browser."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from circuits_over_time.plotting import plot_circuit, plot_size_vs_scale
from circuits_over_time.plotting.make_report import main
from circuits_over_time.plotting.parts.export import figure_html
from circuits_over_time.plotting.report.figures import figures
from tests.support.browser import OpenPage, chromium
from tests.support.drawings import run
from tests.support.synthetic_comparison import write_comparison
from tests.support.synthetic_results import write_all

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MODEL = """=1+1"><img src=x onerror=hacked=1>');hacked=1;("&lt;b&gt;"""
SEED = f"{MODEL}-seed1"
TASK = """@'"><img src=x onload=hacked=1>&amp;"""
CELL = """</pre></script><script>hacked=1</script>" onmouseover="hacked=1" <a href="javascript:hacked=1">x</a>"""
# Columns that hold sentences.
SENTENCES = {"reason", "status", "definitions", "uncertainty", "shape"}
# What no text of a model, task or cell may become.
MARKUP = """() => [...document.querySelectorAll("body *")].filter((node) =>
    node.matches("img, a[href^=javascript], svg svg svg[onload]")
    || [...node.attributes].some((attribute) => attribute.name.startsWith("on"))
).length"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results, `figures/` with a page of every figure, and `report.html`."""
    folder = tmp_path_factory.mktemp("hostile")
    store = write_all(folder / "results", models=(MODEL,), tasks=(TASK,))
    comparison = write_comparison(store, (MODEL, SEED), group=TASK)
    for path in store.root.rglob("*.csv"):
        if not {*SENTENCES, "task", "score"} & set(path.read_text().partition("\n")[0].split(",")):
            continue
        table = pd.read_csv(path)
        for name in SENTENCES & set(table):
            table[name] = table[name].astype(object).where(table[name] == "found", CELL)
        for name, known, text in (("task", "ioi", TASK), ("score", "duplicate_token", CELL)):
            if name in table:
                table[name] = table[name].replace(known, text)
        table.to_csv(path, index=False)
    tables = {path.stem: pd.read_csv(path) for path in comparison.path.glob("*.csv")}
    comparison.write_all(tables, {"config": {"seeds": {TASK: [MODEL, SEED]}}})
    record = {"analysis": CELL, "config": {"model": CELL, "metric": CELL}, "versions": {CELL: CELL}}
    for kind in ("baselines", "faithfulness", "graphs"):
        (store.folder(kind, MODEL, TASK).path / "run.json").write_text(json.dumps(record))
    for step in (0, 1000):
        path = folder / "evaluations" / MODEL / f"step{step}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"results": {"piqa": {"acc,none": 0.5, "acc_stderr,none": 0.1}}}))
    arguments = ["-r", str(store.root), "-e", str(folder / "evaluations"), "-f", str(folder / "figures")]
    assert main([*arguments, "-o", str(folder / "report.html")]) == 0
    # The report draws neither: it has a drawing of its own, and a single model has no other size.
    for script in (plot_circuit, plot_size_vs_scale):
        assert run(script, "-r", store.root, "-o", folder / "figures") == 0
    return folder


def test_the_page_of_every_figure_shows_names_as_text(browser: Any, hostile: Path) -> None:
    # One model's pages stand for the other's.
    pages = sorted(path for path in (hostile / "figures").glob("*.html") if SEED not in path.stem)
    stems = {path.stem for path in pages}
    subjects = [figure.draw.__module__.rpartition(".plot_")[2] for figure in figures()]
    # What needs the study's models, or models of other sizes, has nothing to draw here.
    drawn = [name for name in subjects if any(stem.startswith(name.removesuffix("_curve")) for stem in stems)]
    assert set(subjects) - set(drawn) <= {"reproduction"}
    page = browser.new_context(offline=True).new_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: dialogs.append(str(error)))
    # Every page brings plotly.js, which takes long to read: the window keeps that of the first.
    page.goto(pages[0].as_uri())
    library = get_plotlyjs()
    for path in pages:
        html = path.read_text(encoding="utf-8")
        before, *after = html.split(library)
        assert len(after) == 1
        page.set_content(before + after[0] if path != pages[0] else html)
        page.locator(".main-svg").first.wait_for(state="attached")
        assert page.evaluate("window.hacked") is None, path.name
        assert page.evaluate(MARKUP) == 0, path.name
        assert page.title() == path.stem.replace("_", " ")
        text = page.locator(".main-svg").evaluate_all("(all) => all.map((svg) => svg.textContent).join(' ')")
        assert MODEL in text or (MODEL not in path.stem and TASK in text), path.name
    assert dialogs == []
    page.context.close()


def test_the_report_shows_names_and_cells_as_text_and_its_csv_holds_no_formula(browser: Any, hostile: Path) -> None:
    opened = OpenPage(browser, hostile / "report.html")
    dialogs: list[str] = []
    opened.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    opened.see_everything()
    page = opened.page
    assert page.evaluate("window.hacked") is None
    assert page.evaluate(MARKUP) == 0
    assert dialogs == opened.complaints == []
    assert opened.requests == [(hostile / "report.html").as_uri()]
    assert MODEL in page.locator(".lead").inner_text()
    assert page.locator("#circuit-model option").all_inner_texts() == [MODEL]
    assert MODEL in page.locator("figure[id$='-circuits'] .legend").inner_text()
    assert any(MODEL in text for text in page.locator("#figures summary h3").all_inner_texts())
    assert CELL in page.locator("#runs").text_content()
    assert CELL in page.locator("#heads-table").text_content()
    page.locator("#step").press("Home")
    assert CELL in page.locator("#facts").inner_text()
    page.locator("#step").press("End")
    with page.expect_download() as caught:
        page.click("#save-csv")
    rows = list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text(encoding="utf-8"))))
    assert {row["model"] for row in rows} == {f"'{MODEL}"}
    assert {row["task"] for row in rows} == {f"'{TASK}"}
    scores = [float(row["score"]) for row in rows if row["score"]]
    assert min(scores) < 0, "a negative number stays a number"
    opened.close()


def test_the_same_name_has_the_same_id_and_no_other_has_it() -> None:
    page, again, other = (figure_html(go.Figure(), name) for name in (MODEL, MODEL, SEED))
    assert page == again
    ids = [text.partition('<div id="')[2].partition('"')[0] for text in (page, other)]
    assert len(set(ids)) == 2
    assert all(identifier.replace("-", "").isalnum() for identifier in ids)
