"""The report in a headless Chromium with the network off: what it says and does, against the tables."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from circuits_over_time.plotting.make_report import main
from circuits_over_time.plotting.parts.circuit_similarity import compare, edges_of
from circuits_over_time.utils.results.edges import named_targets
from circuits_over_time.utils.results.store import Store
from tests.support.browser import OpenPage, chromium
from tests.support.report_family import MODEL as FAMILY
from tests.support.report_family import N_EDGES, N_STEPS, write_family
from tests.support.synthetic_results import MODELS, STEPS, TASKS

pytestmark = pytest.mark.browser

MODEL = MODELS[0]
MAX_BYTES = 15_000_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def wide(browser: Any, report: Path) -> Iterator[OpenPage]:
    opened = OpenPage(browser, report)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def phone(browser: Any, report: Path) -> Iterator[OpenPage]:
    opened = OpenPage(browser, report, width=390, height=844, touch=True)
    yield opened
    opened.close()


@pytest.mark.parametrize("screen", ["wide", "phone"])
def test_page_opens_offline_without_a_complaint_or_a_request(
    screen: str, report: Path, request: pytest.FixtureRequest
) -> None:
    opened = request.getfixturevalue(screen)
    opened.see_everything()
    assert opened.complaints == []
    assert opened.requests == [report.as_uri()]
    assert opened.page.locator(".plot .main-svg").count() > 0


@pytest.mark.parametrize("screen", ["wide", "phone"])
def test_nothing_sticks_out_of_the_screen(screen: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(screen).page
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for control in ("#step", "#play", "#circuit-task", "#heads-model"):
        box = page.locator(control).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= page.viewport_size["width"]


def test_a_phone_gets_figures_laid_out_for_it_and_a_wide_screen_whole(wide: OpenPage, phone: OpenPage) -> None:
    for opened in (wide, phone):
        opened.see_everything()
        figure = opened.page.locator("figure[id$=circuit_similarity] .js-plotly-plot")
        assert figure.count() == 1
        assert figure.bounding_box()["width"] <= opened.page.viewport_size["width"]
    sizes = "(texts) => texts.map((text) => parseFloat(getComputedStyle(text).fontSize))"
    assert min(phone.page.locator(".plot text").evaluate_all(sizes)) >= 10


def test_a_phone_shows_every_cell_of_the_summary_with_its_name(phone: OpenPage) -> None:
    rows = phone.page.locator(".summary tbody tr").all()
    assert len(rows) == len(TASKS)
    for cell in phone.page.locator(".summary td").all():
        box = cell.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= phone.page.viewport_size["width"]
    shown = [cell.evaluate("(td) => getComputedStyle(td, '::before').content") for cell in rows[0].locator("td").all()]
    assert shown[2:4] == ['"Step"', '"First circuit at step"']


def test_no_button_stands_over_a_title_on_a_phone(phone: OpenPage) -> None:
    phone.see_everything()
    assert phone.page.locator(".modebar-btn").count() == 0


@pytest.mark.parametrize("width", [1600, 990])
def test_heads_names_at_line_ends_keep_clear_of_the_next_panels_axis(
    browser: Any, report: Path, wide: OpenPage, width: int
) -> None:
    opened = wide if width == wide.page.viewport_size["width"] else OpenPage(browser, report, width=width)
    figure = opened.page.locator(f"figure[id$=head_scores_{MODEL}]")
    figure.scroll_into_view_if_needed()
    figure.locator(".main-svg").first.wait_for(state="attached")
    assert figure.locator(".js-plotly-plot").count() == 1, "the whole figure, not its panels one by one"
    boxes = """(texts) => texts.map((text) => {
        const { left, right, top, bottom } = text.getBoundingClientRect();
        return { text: text.textContent, left, right, top, bottom };
    })"""
    texts = figure.locator(".annotation-text").evaluate_all(boxes)
    names = [text for text in texts if re.fullmatch(r"\d+\.\d+", text["text"])]
    others = figure.locator(".ytitle, .ytick text, [class*='y'][class*='title']").evaluate_all(boxes)
    assert len(names) > 5
    assert len(others) > 5
    for name, other in itertools.product(names, others):
        apart = name["right"] < other["left"] or other["right"] < name["left"]
        assert apart or name["bottom"] < other["top"] or other["bottom"] < name["top"], (name, other)
    if opened is not wide:
        opened.close()


def test_on_paper_every_figure_is_drawn_and_nothing_is_cut(browser: Any, report: Path) -> None:
    opened = OpenPage(browser, report)
    page = opened.page
    # Before anything is scrolled to. Some browsers tell of printing by the change of medium alone.
    page.emulate_media(media="print")
    # The page is told of it with its next frame.
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('.main-svg'))")
    # Paper is narrower than the window, and no resize tells of it.
    page.evaluate("document.body.style.width = '700px'")
    for selector in (".main-svg", ".drawing svg", "table"):
        rights = page.locator(f"{selector}:visible").evaluate_all(
            "(elements) => elements.map((element) => element.getBoundingClientRect().right)"
        )
        assert rights
        assert max(rights) <= 700, selector
    assert page.locator("#step").is_hidden()
    assert page.locator("#play").is_hidden()
    # Heads of tables are repeated on every page, and buttons are not painted there: the words stand beside them.
    assert page.locator("#heads-table th").first.inner_text() == "Head"
    opened.close()


def test_a_page_opens_with_its_story_and_folds_the_rest(browser: Any, report: Path) -> None:
    opened = OpenPage(browser, report, width=390, height=844, touch=True, unfold=False)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollHeight") <= 6 * 844
    assert page.locator("#story li").count() == len(TASKS)
    assert not page.locator(".plot:visible").count()
    opened.close()
    wide = OpenPage(browser, report, width=1440, height=900, unfold=False)
    for part in ("#story", "#lanes svg", "#step"):
        box = wide.page.locator(part).bounding_box()
        assert box["y"] + box["height"] <= 900, f"{part} is on the first screen"
    assert wide.page.locator("#drawing").bounding_box()["y"] < 900
    sizes = "(texts) => texts.map((text) => parseFloat(getComputedStyle(text).fontSize))"
    assert min(wide.page.locator("svg.lanes text, #drawing text").evaluate_all(sizes)) >= 10
    wide.close()


def test_edges_within_a_column_run_beside_its_boxes(wide: OpenPage) -> None:
    """And not behind those that they pass: drawn points of every such edge, against the other boxes of its column."""
    wide.page.select_option("#circuit-strongest", "all")
    passing, hidden = wide.page.evaluate("""() => {
        const boxes = [...document.querySelectorAll("#drawing rect.box")].map((box) => box.getBBox());
        const has = ({ x, y, width, height }, at, air) =>
            at.x > x - air && at.x < x + width + air && at.y > y - air && at.y < y + height + air;
        const result = [0, []];
        for (const path of document.querySelectorAll("#drawing path.edge")) {
            const length = path.getTotalLength();
            const points = Array.from({ length: 80 }, (_, i) => path.getPointAtLength((length * i) / 79));
            const [start, end] = [points[0], points[79]];
            const own = boxes.find((box) => has(box, start, 2));
            const others = boxes.filter((box) => Math.abs(box.x - own.x) < 1 && box !== own && !has(box, end, 2));
            const between = others.filter((box) => box.y < start.y && box.y > end.y);
            if (Math.abs(end.x - start.x) > boxes[0].width || !between.length) continue;
            result[0] += 1;
            if (others.some((box) => points.some((at) => has(box, at, -2)))) result[1].push(path.dataset.edge);
        }
        return result;
    }""")
    assert passing > 0
    assert hidden == []


def test_the_overview_has_a_lane_per_task_and_leads_to_its_circuits(wide: OpenPage, store: Store) -> None:
    page = wide.page
    for task in TASKS:
        found = [step for step in STEPS if not store.folder("graphs", MODEL, task).read_table(step).empty]
        lane = page.locator(f".lane[data-task={task}]")
        assert lane.locator(".bar").count() == len(found)
        assert lane.locator(".none").count() == len(STEPS) - len(found)
    place = STEPS.index(4000)
    page.locator(".lane[data-task=sva] .press").nth(place).click()
    assert page.locator("#circuit-task").input_value() == "sva"
    assert page.locator("#step-label").inner_text().startswith("step 4,000")
    assert page.locator(".lane .now").count() == 1


def test_roles_in_ioi_are_shown_on_ioi_only(wide: OpenPage) -> None:
    page = wide.page
    page.locator("#step").press("End")
    for task, shown in (("sva", False), ("ioi", True)):
        page.select_option("#circuit-task", task)
        assert page.locator("#role-keys").is_visible() == shown
        assert (page.locator("#drawing .tint").count() > 0) == shown


def test_slider_shows_every_checkpoints_circuit_and_its_change(wide: OpenPage, store: Store) -> None:
    page = wide.page
    page.select_option("#circuit-task", "ioi")
    page.select_option("#circuit-strongest", "all")
    slider = page.locator("#step")
    slider.focus()
    slider.press("Home")
    before = None
    for step in STEPS:
        table = store.folder("graphs", MODEL, "ioi").read_table(step)
        assert page.locator("#step-label").inner_text().startswith(f"step {step:,}")
        facts, change = page.locator("#facts").inner_text(), page.locator("#change").inner_text()
        drawn = {state: page.locator(f".edge.{state}").count() for state in ("added", "removed", "kept", "only")}
        if table.empty:
            assert facts.startswith("No circuit")
            assert sum(drawn.values()) == 0
        else:
            chosen = store.folder("faithfulness", MODEL, "ioi").read_table(step).query("selected").iloc[0]
            size = compare(table, table)
            assert facts.startswith(f"{size['n_edges']} edges, {size['n_nodes']} nodes")
            assert f"faithfulness {chosen['faithfulness']:.4g}" in facts
            if before is None:
                assert drawn == {"added": 0, "removed": 0, "kept": 0, "only": len(table)}
            else:
                change_expected = compare(store.folder("graphs", MODEL, "ioi").read_table(before), table)
                added, removed = change_expected["edges_added"], change_expected["edges_removed"]
                expected = f"Since step {before:,}: {added} edges? added, {removed} removed, {len(table) - added} kept"
                assert re.match(expected, change)
                assert drawn == {"added": added, "removed": removed, "kept": len(table) - added, "only": 0}
            before = step
        slider.press("ArrowRight")
    assert before is not None


def test_unticked_edges_are_not_drawn(wide: OpenPage) -> None:
    page = wide.page
    page.locator("#step").focus()
    page.locator("#step").press("End")
    for state in ("added", "removed", "kept"):
        assert page.locator(f".edge.{state}").count() > 0
        page.uncheck(f"#show-{state}")
        assert page.locator(f".edge.{state}").count() == 0
        page.check(f"#show-{state}")


@pytest.mark.parametrize("screen", ["wide", "phone"])
def test_pointing_at_an_edge_shows_its_score(screen: str, store: Store, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(screen).page
    page.select_option("#circuit-task", "ioi")
    page.locator("#step").focus()
    page.locator("#step").press("End")
    table = store.folder("graphs", MODEL, "ioi").read_table(STEPS[-1])
    scores = {f"{source} → {target}": score for (source, target), score in edges_of(table).items()}
    page.select_option("#circuit-strongest", "50")
    shown = set()
    for edge in page.locator(".edge.kept, .edge.added").all()[-12:]:
        spot = edge.evaluate(
            """(path) => {
                const [at, frame] = [path.getPointAtLength(path.getTotalLength() * 0.45), path.ownerSVGElement];
                const holder = document.getElementById("drawing");
                holder.scrollLeft = at.x - holder.clientWidth / 2;
                window.scrollBy(0, frame.getBoundingClientRect().top + at.y - window.innerHeight * 0.6);
                const box = frame.getBoundingClientRect();
                return [box.left + at.x, box.top + at.y];
            }"""
        )
        page.mouse.move(*spot) if screen == "wide" else page.touchscreen.tap(*spot)
        if page.locator("#details").is_visible():  # A second tap on the box that lies over this edge and the last.
            page.locator("#details-close").tap()
            continue
        assert page.locator("#tip").is_visible()
        name, *lines = page.locator("#tip").inner_text().split("\n")
        if name in scores:  # Not a box that lies over the edge.
            shown.add(name)
            assert float(lines[0].removeprefix("score ")) == pytest.approx(scores[name], rel=1e-3)
            tip = page.locator("#tip").bounding_box()
            assert 0 <= tip["x"] <= tip["x"] + tip["width"] <= page.viewport_size["width"]
    assert len(shown) >= 3
    if screen == "wide":
        page.mouse.move(1, 1)
        assert not page.locator("#tip").is_visible()


def test_pointing_at_a_box_shows_the_heads_scores(wide: OpenPage, store: Store) -> None:
    page = wide.page
    page.locator("#step").press("End")
    box = page.locator(".boxes g.head[data-state=in]").first
    name = box.get_attribute("data-node")
    box.locator("rect").hover()
    layer, head = re.fullmatch(r"a(\d+)\.h(\d+)", name).groups()
    table = store.folder("components", MODEL).read_table(STEPS[-1])
    row = table.query(f"score == 'induction' and layer == {layer} and head == {head}").iloc[0]
    lines = page.locator("#tip").inner_text().split("\n")
    assert lines[0] == name
    (shown,) = [line for line in lines if line.startswith("Induction: ")]
    assert float(shown.removeprefix("Induction: ")) == pytest.approx(row["value"], rel=1e-3)


def test_edge_list_holds_the_circuit(wide: OpenPage, store: Store) -> None:
    page = wide.page
    page.locator("#edge-list > summary").click()
    page.locator("#step").press("End")
    page.select_option("#edge-table select", "added")
    found = {(row[0], row[1]): float(row[2]) for row in cells(page, "#edge-table")}
    last, before = (edges_of(store.folder("graphs", MODEL, "ioi").read_table(step)) for step in (STEPS[-1], STEPS[-2]))
    assert found == pytest.approx({edge: score for edge, score in last.items() if edge not in before}, rel=1e-3)
    titles = page.locator("#edge-table th").all_inner_texts()
    table = store.folder("graphs", MODEL, "ioi").read_table(STEPS[-1])
    table = table.assign(target=named_targets(table)).set_index(["source", "target"])
    for name in ("stability", "inclusion"):
        column = titles.index(name.capitalize())
        shares = {(row[0], row[1]): float(row[column]) for row in cells(page, "#edge-table")}
        assert shares == pytest.approx(table[name].loc[list(found)].to_dict(), abs=1e-3)
    page.locator("#edge-list > summary").click()


def test_head_table_sorts_by_a_score(wide: OpenPage, store: Store) -> None:
    page = wide.page
    page.select_option("#heads-step", str(STEPS[-1]))
    table = store.folder("components", MODEL).read_table(STEPS[-1]).query("score == 'induction'")
    header = page.locator("#heads-table th", has_text="Induction")
    column = page.locator("#heads-table th").all_inner_texts().index("Induction")
    for order, best in (("descending", table.loc[table["value"].idxmax()]), ("ascending", None)):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == order
        values = [float(row[column]) for row in cells(page, "#heads-table")]
        assert values == sorted(values, reverse=order == "descending")
        if best is not None:
            assert cells(page, "#heads-table")[0][0] == f"a{best['layer']}.h{best['head']}"
            assert values[0] == pytest.approx(best["value"], rel=1e-3)


def test_head_table_filters_by_score_role_and_step(wide: OpenPage, store: Store) -> None:
    page = wide.page
    page.select_option("#heads-step", "highest")
    table = store.read_tables("components", MODEL).query("score == 'induction'")
    highest = table.groupby(["layer", "head"])["value"].max()
    page.get_by_label("Filter Induction").fill("> 0.5")
    page.get_by_label("Filter Role").select_option("induction")
    rows = cells(page, "#heads-table")
    assert {row[0] for row in rows} == {f"a{layer}.h{head}" for layer, head in highest[highest > 0.5].index}
    first = table[table["value"] > 0.5].groupby(["layer", "head"])["step"].min()
    latest = int(first.max())
    page.get_by_label("Filter First step").fill(f">= {latest}")
    rows = cells(page, "#heads-table")
    assert {row[0] for row in rows} == {f"a{layer}.h{head}" for layer, head in first[first >= latest].index}
    page.get_by_label("Filter First step").fill("soon")
    assert page.get_by_label("Filter First step").get_attribute("aria-invalid") == "true"
    said = page.locator("#heads-table .table-status").inner_text()
    assert "First step: “soon” is no filter; write a number, or > 0.5" in said
    for label in ("Filter Induction", "Filter First step"):
        page.get_by_label(label).fill("")
    page.get_by_label("Filter Role").select_option("")


def test_figure_draws_the_tables_values_and_its_legend_switches_models(wide: OpenPage, store: Store) -> None:
    page = wide.page
    figure = page.locator("figure[id$='-circuits']")
    figure.scroll_into_view_if_needed()
    plot = figure.locator(".js-plotly-plot")
    drawn = plot.evaluate(
        "(div) => [...div._fullData.find((t) => t.name === 'pythia-70m' && t.mode.includes('markers')).y]"
    )
    table = store.read_tables("faithfulness", MODEL, "ioi").query("selected")
    assert [value for value in drawn if value is not None and value == value] == table["n_edges"].tolist()
    button = figure.locator(".legend button", has_text=MODEL)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    visible = "(div) => div._fullData.filter((t) => t.legendgroup === 'pythia-70m').map((t) => t.visible)"
    assert not any(plot.evaluate(visible))
    button.click()
    assert all(plot.evaluate(visible))


@pytest.mark.endurance
def test_the_page_of_a_family_of_40_checkpoints_stays_small_and_draws_every_edge(browser: Any, tmp_path: Path) -> None:
    store = write_family(tmp_path / "results")
    steps = store.folder("graphs", FAMILY, "ioi").steps()
    assert len(steps) == N_STEPS
    assert main(["-r", str(store.root), "-o", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").stat().st_size < MAX_BYTES
    opened = OpenPage(browser, tmp_path / "report.html")
    opened.page.select_option("#circuit-strongest", "all")
    slider = opened.page.locator("#step")
    for key, step in (("Home", steps[0]), ("End", steps[-1])):
        slider.press(key)
        assert opened.page.locator("#step-label").inner_text().startswith(f"step {step:,}")
        assert opened.page.locator(".edge:not(.removed)").count() == N_EDGES
    opened.close()


def cells(page: Any, table: str) -> list[list[str]]:
    """The text of every cell of a table's body, row by row."""
    rows: list[list[str]] = page.locator(f"{table} tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent.replaceAll(',', '')))"
    )
    return rows
