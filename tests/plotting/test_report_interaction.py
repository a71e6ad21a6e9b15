"""The report's interactive part in a headless Chromium: comparisons, details, threshold, search, address, downloads."""

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.formats import of_eap_ig_json
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.plotting.make_report import main
from circuits_over_time.plotting.parts.circuit_similarity import compare, edges_of
from circuits_over_time.plotting.parts.roles import ROLES
from circuits_over_time.plotting.report import figures
from circuits_over_time.utils.results.edges import named_targets
from circuits_over_time.utils.results.store import ResultsFolder, Store
from tests.support.browser import OpenPage, chromium
from tests.support.shared_folder import filled_once
from tests.support.stored import write_table, write_tensors
from tests.support.synthetic_results import HEADS, LAYERS, MODELS, PROMPT, STEPS, write_all

pytestmark = pytest.mark.browser

ONE, OTHER = MODELS[:2]
LAST = STEPS[-1]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Results of two models of one shape, with the stability of edges and the shape in run.json; those of other
    kinds, of which nothing here tells, would take long to draw."""
    store = write_all(tmp_path_factory.mktemp("results"), models=(ONE, OTHER))
    for kind in ("transfer", "task_performance", "successor", "cspa", "ioi_consistency", "ioi_backup"):
        shutil.rmtree(store.root / kind)
    shape = {"n_layers": LAYERS, "n_heads": HEADS, "parallel_attn_mlp": True, "d_model": 8}
    for model in (ONE, OTHER):
        for task in store.tasks("graphs", model):
            folder = store.folder("graphs", model, task)
            for step in folder.steps():
                table = folder.read_table(step)
                table["stability"] = np.linspace(1, 0.5, len(table)).round(3)
                table["inclusion"] = np.arange(len(table)) % 9 / 8
                table.to_csv(folder.file(step), index=False)
                write_tensors(folder, step, tensors(table, step))
            run = {"analysis": "get_circuits_over_time", "checkpoints": {str(LAST): {"shape": shape, "sha256": "0"}}}
            (folder.path / "run.json").write_text(json.dumps(run))
    return store


def tensors(circuit: pd.DataFrame, step: int) -> dict[str, Any]:
    """A graph with the scores of a circuit, and random ones outside it."""
    graph = Graph(LAYERS, HEADS, parallel=True)
    scores = 0.01 * torch.randn(graph.n_forward, graph.n_backward, generator=torch.Generator().manual_seed(step))
    in_circuit = torch.zeros(scores.shape, dtype=torch.bool)
    for (source, target), score in edges_of(circuit).items():
        scores[graph.edge_index(f"{source}->{target}")] = score
        in_circuit[graph.edge_index(f"{source}->{target}")] = True
    return Circuit(graph, scores, in_circuit).to_tensors()


@pytest.fixture(scope="module")
def path(pair: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def fill(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            # What is tested here is above the figures, which take long to draw, as the page without plotly.js to open.
            patch.setattr(figures, "figures", list)
            assert main(["-r", str(pair.root), "-o", str(folder / "report.html")]) == 0

    return filled_once(tmp_path_factory, "page_of_two", fill) / "report.html"


@pytest.fixture(scope="module")
def opened(browser: Any, path: Path) -> Iterator[OpenPage]:
    opened = OpenPage(browser, path, width=1280, height=900)
    yield opened
    assert opened.complaints == []
    opened.close()


@pytest.fixture
def page(opened: OpenPage) -> Any:
    """The page as it opens, every edge drawn."""
    opened.page.evaluate(
        "() => new Promise((done) => { addEventListener('hashchange', done, { once: true }); "
        "location.hash = `#reset=${Math.random()}`; })"
    )
    opened.page.select_option("#circuit-strongest", "all")
    opened.page.select_option("#circuit-model", ONE)
    opened.page.select_option("#circuit-task", "ioi")
    go_to(opened.page, LAST)
    return opened.page


def write_filled(folder: ResultsFolder, step: int, table: pd.DataFrame) -> None:
    """Write a table that lacks columns of its kind; they are empty."""
    write_table(folder, step, table.reindex(columns=folder.kind.columns_of(table)), step)


@pytest.fixture(scope="module")
def variants(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """A page of a circuit by role of the token, at steps 8 and 9, and of one of nodes."""
    store = Store(tmp_path_factory.mktemp("variants"))
    graph = Graph(3, 2, True, ("s1", "end"), ((True, False), (True, True)))
    first = ["input@s1->a0.h0<k>", "input@end->a0.h0<q>", "a0.h0@end->logits"]
    further = ["input@s1->a0.h0<v>", "a0.h0@s1->m1", "m1@s1->a2.h0<v>", "a2.h0@end->logits"]
    for step, names in ((8, first), (9, first + further)):
        scores = torch.zeros(graph.n_forward, graph.n_backward)
        for score, name in enumerate(names, 1):
            scores[graph.edge_index(name)] = score
        found, folder = Circuit(graph, scores, scores > 0), store.folder("graphs", "toy", "ioi@positions")
        write_filled(folder, step, found.to_table())
        write_tensors(folder, step, found.to_tensors())
    nodes = pd.DataFrame({"source": ["a1.h0", "m0"], "target": "logits", "input": "", "score": [2.0, -1.0]})
    write_filled(store.folder("graphs", "toy", "ioi@node"), 9, nodes)
    edges = pd.DataFrame({"source": ["input", "m0"], "target": ["m0", "logits"], "input": "", "score": [2.0, 1.0]})
    write_filled(store.folder("graphs", "toy", "sva"), 9, edges)
    size = pd.DataFrame({"size": [2], "n_edges": [10], "n_nodes": [4], "faithfulness": [0.9], "selected": [True]})
    write_filled(store.folder("faithfulness", "toy", "ioi@node"), 9, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "figures", list)
        assert main(["-r", str(store.root), "-o", str(store.root / "report.html")]) == 0
    opened = OpenPage(browser, store.root / "report.html", width=1280, height=900)
    yield opened
    assert opened.complaints == []
    opened.close()


def test_a_circuit_by_role_has_a_column_for_each_and_its_edges_reach_the_tokens_that_attend(variants: OpenPage) -> None:
    page = variants.page
    page.select_option("#circuit-task", "ioi@positions")
    assert page.locator("#facts").inner_text().startswith("7 edges, 5 nodes")
    assert page.locator("#change").inner_text() == "Since step 8: 4 edges added, 0 removed, 3 kept."
    assert page.locator("#drawing .role").all_text_contents() == ["s1", "end"]
    boxes = page.locator("#drawing .boxes > g").all()
    middles = {box.get_attribute("data-node"): box.locator(".box").bounding_box()["x"] for box in boxes}
    boundary = page.locator("#drawing .rows line").bounding_box()["x"]
    assert len(middles) == 7
    assert all((x > boundary) == name.endswith("@end") for name, x in middles.items())
    arrows = "(paths) => paths.map((path) => path.getAttribute('d').split('M').length - 1)"
    assert sorted(page.locator("#drawing path.edge").evaluate_all(arrows)) == [1, 1, 1, 1, 1, 2, 2]
    page.locator("#drawing [data-node='a0.h0@s1']").click()
    assert neighbours(page, "Incoming edges") == {"input@s1->a0.h0<k>": 1, "input@s1->a0.h0<v>": 4}
    assert neighbours(page, "Outgoing edges") == {"a0.h0@s1->m1": 5}
    assert page.locator("#save-json").is_disabled()
    with page.expect_download() as csv_file:
        page.locator("#save-csv").click()
    rows = list(csv.DictReader(io.StringIO(Path(csv_file.value.path()).read_text())))
    assert {(row["source"], row["role"], row["target"], row["input"]) for row in rows} >= {("m1", "s1", "a2.h0", "v")}
    page.locator("#step").fill("0")  # Where the head writes at the end alone.
    assert set(page.locator("#drawing path.edge").evaluate_all(arrows)) == {1}
    assert page.locator("#drawing [data-node='a0.h0@s1']").get_attribute("data-state") == "out"


def test_a_circuit_of_nodes_is_told_by_its_edges_and_drawn_by_its_nodes(variants: OpenPage) -> None:
    page = variants.page
    page.select_option("#circuit-task", "ioi@node")
    assert page.locator("#facts").inner_text().startswith("10 edges, 4 nodes")
    assert page.locator("#threshold-label").inner_text() == "none: 0 of 2 nodes hidden"
    summary = page.locator("table.summary tr", has_text="(node)")
    told = [summary.locator(f"[data-name='Circuit {what}']").text_content() for what in ("edges", "nodes")]
    assert told == ["10", "4"]
    assert page.locator("#drawing path.edge").count() == 0
    fills = page.locator("#drawing .box").evaluate_all("(boxes) => boxes.map((box) => box.style.fill)")
    assert sum("color-mix" in fill for fill in fills) == 2
    page.locator("#drawing [data-node='m0']").hover()
    assert page.locator("#tip").inner_text().split("\n") == ["m0", "score -1"]
    assert page.locator("#save-json").is_disabled()
    page.select_option("#other-task", "ioi@positions")  # Two kinds on one plan: all is another.
    assert page.locator("#change").inner_text() == "Against IOI (positions), step 9: 2 edges added, 7 removed, 0 kept."
    assert page.locator("#drawing .role").all_text_contents() == ["all tokens", "s1", "end"]
    page.select_option("#other-task", "sva")  # A node's line to the logits is not the edge that is called so.
    assert page.locator("#change").inner_text().endswith("2 edges added, 2 removed, 0 kept.")


def go_to(page: Any, step: int) -> None:
    page.locator("#step").fill(str(STEPS.index(step)))
    assert page.locator("#step-label").inner_text().startswith(f"step {step:,}")


def circuit(store: Store, model: str, task: str, step: int) -> pd.DataFrame:
    """A checkpoint's edges, with targets as the page writes them (`a1.h0<q>`)."""
    table = store.folder("graphs", model, task).read_table(step)
    return table.assign(target=named_targets(table), input="")


def numbers(page: Any) -> dict[str, list[str]]:
    """The table of the details, column by column."""
    table = page.locator("#details .numbers table")
    names = table.locator("th").evaluate_all("(cells) => cells.map((cell) => cell.textContent)")
    rows = table.locator("tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent.replaceAll(',', '')))"
    )
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def neighbours(page: Any, title: str) -> dict[str, float]:
    block = page.locator("#details-body > div", has=page.locator("h4", has_text=title))
    texts = block.locator("li").evaluate_all(
        "(items) => items.map((item) => [...item.children].map((c) => c.textContent))"
    )
    return {name.replace(" → ", "->"): float(score.replace(",", "")) for name, score in texts}


def expected_text(old: pd.DataFrame, new: pd.DataFrame) -> str:
    change = compare(old, new)
    added, removed = change["edges_added"], change["edges_removed"]
    return rf"{added} edges? added, {removed} removed, {len(new) - added} kept\."


def test_a_page_of_several_models_opens_on_one_with_a_circuit(browser: Any, pair: Store, tmp_path: Path) -> None:
    shutil.copytree(pair.root, tmp_path / "results")
    store = Store(tmp_path / "results")
    shutil.rmtree(tmp_path / "results/components")
    for task in store.tasks("graphs", ONE):
        for step in STEPS:
            path = store.folder("graphs", ONE, task).file(step)
            path.write_text(path.read_text().partition("\n")[0] + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "figures", list)
        assert main(["-r", str(store.root), "-o", str(tmp_path / "report.html")]) == 0
    opened = OpenPage(browser, tmp_path / "report.html", unfold=False)
    assert opened.page.locator("#circuit-model").input_value() == OTHER
    assert opened.page.locator("#drawing .edge").count() > 0
    assert opened.complaints == []
    opened.close()


def test_the_bar_of_the_slider_hides_nothing_that_is_chosen(page: Any) -> None:
    bar = page.locator(".scrubber")
    colour = bar.evaluate("(bar) => getComputedStyle(bar).backgroundColor")
    assert colour == "rgb(255, 255, 255)"
    for name in ("logits", "input"):
        page.fill("#find", name)
        page.press("#find", "Enter")
        box, over = page.locator(f"#drawing g[data-node='{name}'] .box").bounding_box(), bar.bounding_box()
        assert box["y"] >= over["y"] + over["height"] - 1 or box["y"] + box["height"] <= over["y"] + 1
        assert 0 <= box["y"] <= 900 - box["height"]
    page.keyboard.press("Escape")


@pytest.mark.parametrize(("here", "there"), [(LAST, 4000), (4000, LAST)])
def test_any_two_checkpoints_are_compared(page: Any, pair: Store, here: int, there: int) -> None:
    go_to(page, here)
    page.select_option("#other-step", str(there))
    old, new = (circuit(pair, ONE, "ioi", step) for step in (there, here))
    expected = rf"Against step {there:,}: {expected_text(old, new)}"
    assert re.match(expected, page.locator("#change").inner_text())


@pytest.mark.parametrize(("choice", "other"), [("#other-model", (OTHER, "ioi")), ("#other-task", (ONE, "sva"))])
def test_two_models_or_tasks_are_compared_side_by_side(
    page: Any, pair: Store, choice: str, other: tuple[str, str]
) -> None:
    page.select_option(choice, other[0] if choice == "#other-model" else other[1])
    page.check("#side")
    new, old = circuit(pair, ONE, "ioi", LAST), circuit(pair, *other, LAST)
    assert re.search(expected_text(old, new), page.locator("#change").inner_text())
    names = {
        holder: set(page.locator(f"#{holder} .edge").evaluate_all("(edges) => edges.map((e) => e.dataset.edge)"))
        for holder in ("drawing", "drawing-other")
    }
    assert [len(names["drawing"]), len(names["drawing-other"])] == [len(new), len(old)]
    assert len(names["drawing"] & names["drawing-other"]) == len(set(edges_of(new)) & set(edges_of(old)))
    # A box stands at the same place in both drawings.
    places = [
        page.locator(f"#{holder} .boxes > g").evaluate_all(
            "(boxes) => boxes.map((g) => [g.dataset.node, g.querySelector('.box').getAttribute('x'), "
            "g.querySelector('.box').getAttribute('y')])"
        )
        for holder in ("drawing", "drawing-other")
    ]
    assert places[0] == places[1]
    boxes = {name: (x, y) for name, x, y in places[0]}
    assert len(set(boxes.values())) == len(boxes) == len(places[0]), "no box covers another"
    assert set(boxes) >= {end.partition("<")[0] for edge in [*edges_of(new), *edges_of(old)] for end in edge}


def test_a_circuit_compared_with_itself_keeps_every_edge(page: Any, pair: Store) -> None:
    page.select_option("#other-step", str(LAST))
    n = len(circuit(pair, ONE, "ioi", LAST))
    assert f"Against step {LAST:,}: 0 edges added, 0 removed, {n} kept." in page.locator("#change").inner_text()


def test_details_of_an_edge_hold_its_numbers_at_every_checkpoint(page: Any, pair: Store) -> None:
    last = circuit(pair, ONE, "ioi", LAST)
    assert circuit(pair, ONE, "ioi", 0).empty, "so the edge is not in every circuit"
    source, target, score, stability = last.loc[
        last["score"].abs().idxmax(), ["source", "target", "score", "stability"]
    ]
    page.fill("#find", f"{source}->{target}")
    page.press("#find", "Enter")
    assert page.locator("#details-title").inner_text() == f"{source} → {target}"
    facts = page.locator("#details-body > p").first.inner_text().replace(",", "")
    assert f"rank 1 of {len(last)}" in facts
    assert float(re.search(r"score ([+-][\d.e-]+)", facts)[1]) == pytest.approx(score, rel=1e-3)
    assert float(re.search(r"stability ([\d.]+?)\.? ", facts)[1]) == pytest.approx(stability, abs=1e-3)
    told = numbers(page)
    assert told["Step"] == [str(step) for step in STEPS]
    for at, step in enumerate(STEPS):
        table = circuit(pair, ONE, "ioi", step)
        row = table[(table["source"] == source) & (table["target"] == target)]
        stored = pair.folder("graphs", ONE, "ioi").read_tensors(step)
        indices = stored["forward_nodes"].index(source), stored["backward_nodes"].index(target)
        assert float(told["Score"][at]) == pytest.approx(float(stored["scores"][indices]), rel=6e-3)
        if row.empty:
            assert [told[name][at] for name in ("Score in the circuit", "Rank", "Stability")] == ["–"] * 3
            continue
        rank = 1 + int((table["score"].abs() > abs(row["score"].iloc[0])).sum())
        assert float(told["Score in the circuit"][at]) == pytest.approx(row["score"].iloc[0], rel=1e-3)
        assert int(told["Rank"][at]) == rank
        assert float(told["Stability"][at]) == pytest.approx(row["stability"].iloc[0], abs=1e-3)
    assert page.locator("#details figure.small").count() == 3


def test_a_click_on_a_head_opens_its_edges_roles_and_scores(page: Any, pair: Store) -> None:
    table = circuit(pair, ONE, "ioi", LAST)
    ends = table["target"].str.partition("<")[0]
    heads = pair.read_tables("ioi_consistency_heads", ONE)
    heads = heads[heads["passes"].astype(bool)]
    layer, head, role = next(
        (row.layer, row.head, row.role)
        for row in heads[heads["step"] == LAST].itertuples()
        if {f"a{row.layer}.h{row.head}"} <= set(ends) & set(table["source"])
    )
    name = f"a{layer}.h{head}"
    page.locator(f"#drawing g[data-node='{name}'] .box").click()
    assert page.locator("#details-title").inner_text() == name
    for title, rows in (("Incoming edges", table[ends == name]), ("Outgoing edges", table[table["source"] == name])):
        expected = {f"{s}->{t}": score for s, t, score in rows[["source", "target", "score"]].itertuples(index=False)}
        assert expected
        assert neighbours(page, title) == pytest.approx(expected, rel=1e-3)
    n = heads[(heads["layer"] == layer) & (heads["head"] == head)]["step"].nunique()
    assert page.locator("#details .chip").all_inner_texts() == [ROLES[role][0]]
    assert f"at {n} checkpoint" in page.locator("#details .cells").get_attribute("aria-label")
    colours = page.locator("#details .cell").evaluate_all("(cells) => cells.map((c) => c.style.background)")
    assert sum("rgb" in colour for colour in colours) == n
    scores = pair.read_tables("components", ONE).query("score == 'induction'")
    scores = scores[(scores["layer"] == layer) & (scores["head"] == head)]
    assert [float(value) for value in numbers(page)["Induction"]] == pytest.approx(list(scores["value"]), rel=1e-3)
    page.locator("#details .neighbours button").first.click()
    assert "→" in page.locator("#details-title").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#details").is_hidden()


def test_a_head_opens_with_what_it_attends_to_and_the_tokens_that_it_moves(page: Any, pair: Store) -> None:
    """By keyboard, in words and in a table; the slider leads from checkpoint to checkpoint."""
    kept = pair.folder("attention", ONE, "ioi").read_json(LAST)["heads"]
    name = next(name for name in kept if name != "a0.h0")
    layer, head = (int(part[1:]) for part in name.split("."))
    page.fill("#find", name)
    page.press("#find", "Enter")
    page.keyboard.press("Escape")
    page.locator("#drawing").focus()
    drawing = page.locator("#drawing")
    boxes = page.locator("#drawing .boxes > g:not([data-state=out])").evaluate_all(
        "(all) => all.map((g) => g.dataset.node)"
    )
    ways = ["ArrowDown", *["ArrowLeft"] * HEADS, *["ArrowRight"] * HEADS] * len(boxes)

    def at() -> str:
        return page.locator(f"[id='{drawing.get_attribute('aria-activedescendant')}']").get_attribute("data-node")

    while at() != name and ways:
        page.keyboard.press(ways.pop(0))
    page.keyboard.press("Space")
    assert page.locator("#details-title").inner_text() == name
    seen = max(0, len(PROMPT) - 1 - layer - head)
    told = page.locator("#details svg.pattern").get_attribute("aria-label")
    assert f"from the last token, to, the most goes to {PROMPT[seen].strip()} (1)." in told
    page.locator("#details .attended summary").click()
    rows = page.locator("#details .attended tbody tr").evaluate_all(
        "(all) => all.map((r) => [...r.cells].map((c) => c.textContent))"
    )
    labels = [f"{n}. {token.strip()}" for n, token in enumerate(PROMPT, start=1)]
    assert rows == [[labels[n], labels[max(0, n - layer - head)], "1"] for n in range(len(PROMPT))]
    opacity = page.locator("#details .pattern rect").evaluate_all(
        "(all) => all.map((r) => Number(r.getAttribute('fill-opacity')))"
    )
    assert opacity == [share for row in kept[name] for share in row]
    assert page.locator("#details .moved").all_inner_texts() == [
        f"Raises Mary +{2 * (1 + head)}, John +{1 + head}.",
        f"Lowers and -{1.5 * (1 + head):g}, \\n -{0.5 * (1 + head):g}.",
    ]
    assert page.locator("#details h4").first.inner_text() == f"Attention at step {LAST:,}"
    page.locator("#previous-step").click()
    shown = page.locator("#details h4").first.inner_text()
    before = pair.folder("attention", ONE, "ioi").read_json(STEPS[-2])["heads"]
    assert shown == f"Attention at step {STEPS[-2] if name in before else LAST:,}"
    assert page.locator("#details .attended").get_attribute("open") is not None
    page.keyboard.press("Escape")


def test_heads_have_the_colours_of_the_roles_they_hold_at_the_checkpoint(page: Any, pair: Store) -> None:
    heads = pair.folder("ioi_consistency_heads", ONE).read_table(LAST)
    held = {f"a{row.layer}.h{row.head}": ROLES[row.role][1] for row in heads[heads["passes"].astype(bool)].itertuples()}
    drawn = dict(
        page.locator("#drawing .boxes > g").evaluate_all(
            "(boxes) => boxes.map((g) => [g.dataset.node, [...g.querySelectorAll('.tint')].map((t) => t.style.fill)])"
        )
    )
    expected = {name: [_rgb(held[name])] if name in held else [] for name in drawn}
    assert drawn == expected
    assert any(drawn.values())
    chip = page.locator("#heads-table .chip", has_text="S-inhibition (by effect)").first
    assert chip.locator("i").evaluate("(i) => i.style.borderColor") == _rgb(ROLES["s_inhibition"][1])


def _rgb(colour: str) -> str:
    return "rgb({}, {}, {})".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))


def test_the_threshold_hides_weaker_edges_and_says_how_many(page: Any, pair: Store) -> None:
    page.uncheck("#show-removed")
    slider = page.locator("#threshold")
    scores = circuit(pair, ONE, "ioi", LAST)["score"].abs()
    assert page.locator("#threshold-label").inner_text() == f"none: 0 of {len(scores)} edges hidden"
    hidden_counts = []
    for place in (1, 50, 80, 100):
        slider.fill(str(place))
        told = page.locator("#threshold-label").inner_text()
        threshold, hidden, n = re.fullmatch(r"\|score\| ≥ (\S+): (\d+) of (\d+) edges hidden", told).groups()
        assert int(n) == len(scores)
        assert int(hidden) == int((scores < float(threshold)).sum())
        assert page.locator("#drawing .edge").count() == len(scores) - int(hidden)
        hidden_counts.append(int(hidden))
    assert hidden_counts == sorted(hidden_counts)
    assert 0 < hidden_counts[1] < hidden_counts[2]


def test_search_finds_heads_and_edges_by_any_way_of_writing_them(page: Any) -> None:
    def found(text: str) -> list[str]:
        page.fill("#find", text)
        return [name.replace(" → ", "->") for name in page.locator("#found li").all_inner_texts()]

    assert found("3.4")[0] == found("a3.h4")[0] == "a3.h4"
    assert all("a3.h4" in name for name in found("a3.h4"))
    ends = found("m0 -> logits")
    assert ends == ["m0->logits"]
    assert found("logits -> m0") == []
    # A number is whole: layer 1, not 10, and no head 4 for head 40.
    assert all(re.search(r"a1\.h\d\b", name) for name in found("a1"))
    assert found("no such head") == []
    assert page.locator("#found-status").inner_text() == "0 found"
    page.fill("#find", "a2")
    page.press("#find", "ArrowDown")
    second = page.locator("#found li").nth(1)
    assert second.get_attribute("aria-selected") == "true"
    assert page.locator("#find").get_attribute("aria-activedescendant") == second.get_attribute("id")
    name = second.inner_text()
    page.press("#find", "Enter")
    assert page.locator("#details-title").inner_text() == name
    page.keyboard.press("Escape")
    assert page.locator("#details").is_hidden()
    assert page.evaluate("document.activeElement.id") == "find"
    assert page.locator("#found").is_hidden(), "what was found does not come back with the focus"
    page.press("#find", "Escape")
    assert page.locator("#find").input_value() == ""


def test_the_address_leads_to_the_same_view(browser: Any, page: Any, path: Path) -> None:
    go_to(page, 4000)
    page.select_option("#other-model", OTHER)
    page.select_option("#other-step", str(LAST))
    page.check("#side")
    page.locator("#threshold").fill("60")
    page.uncheck("#show-kept")
    page.locator("#drawing g[data-state=new] .box").first.click()
    page.select_option("#heads-step", str(LAST))
    page.get_by_label("Filter Induction").fill("> 0.1")
    page.locator("#heads-table th", has_text="Copying").locator("button").click()
    page.click("#copy-address")
    address = page.url
    seen = _view(page)
    assert address.startswith(path.as_uri() + "#")
    other = OpenPage(browser, path, width=1280, height=900)
    other.page.goto(address)
    other.page.reload()
    other.page.wait_for_selector("html[data-ready]", state="attached")
    assert _view(other.page) == seen
    assert other.complaints == []
    other.close()


def _view(page: Any) -> dict[str, Any]:
    texts = ("#step-label", "#change", "#threshold-label", "#details-title", "#heads-table .table-status")
    view = {name: page.locator(name).inner_text() for name in texts}
    view |= {f"{holder} edges": page.locator(f"#{holder} .edge").count() for holder in ("drawing", "drawing-other")}
    view["first head"] = page.locator("#heads-table tbody tr").first.inner_text()
    return view


@pytest.mark.parametrize(
    ("fragment", "said"),
    [
        ("model=none&task=&step=x&threshold=-1", "The address asks for the model none: there is none here."),
        ("step=7x", f"The address asks for step 7x: {ONE} has no such checkpoint here."),
        ("open=<img src=x onerror=hacked=1>", "that is no head, MLP or edge"),
        ("open=a99.h99", f"The address opens a99.h99: {ONE} has no head a99.h99."),
        ("open=a0.h0->m99", f"{ONE} has no MLP m99"),
        ("step=", ""),
        ("heads", ""),
    ],
)
def test_an_address_that_leads_nowhere_does_no_harm(opened: OpenPage, page: Any, fragment: str, said: str) -> None:
    page.evaluate("(text) => { location.hash = text; }", fragment)
    page.wait_for_timeout(50)
    assert page.locator("#step-label").inner_text().startswith(f"step {LAST:,}")
    assert page.evaluate("window.hacked") is None
    assert said in (note := page.locator("#address-note").inner_text())
    assert bool(said) == bool(note)
    assert page.locator("#details").is_hidden()
    assert opened.complaints == []


def test_downloads_hold_what_is_shown(page: Any, pair: Store) -> None:
    page.locator("#threshold").fill("60")
    page.uncheck("#show-removed")
    threshold = float(re.search(r"≥ (\S+):", page.locator("#threshold-label").inner_text())[1])
    table = circuit(pair, ONE, "ioi", LAST)
    shown = table[table["score"].abs() >= threshold]
    assert 0 < len(shown) < len(table)
    expected = edges_of(shown)
    rows = list(csv.DictReader(io.StringIO(download(page, "csv"))))
    for row in rows:
        row["target"] += row["input"] and f"<{row['input']}>"
    found = {(row["source"], row["target"]): float(row["score"]) for row in rows}
    assert found == pytest.approx(expected, rel=1e-5)
    before = edges_of(circuit(pair, ONE, "ioi", STEPS[-2]))
    inclusion = shown.set_index(["source", "target"])["inclusion"]
    for row in rows:
        edge = (row["source"], row["target"])
        assert float(row["inclusion"]) == pytest.approx(inclusion[edge], abs=1e-3)
        assert row["state"] == ("kept" if edge in before else "added")
        assert row["other_score"] == "" or float(row["other_score"]) == pytest.approx(before[edge], rel=1e-5)
        assert (row["model"], row["task"], row["step"], row["other_step"]) == (ONE, "ioi", str(LAST), str(STEPS[-2]))
    read = of_eap_ig_json(json.loads(download(page, "json")))
    assert (read.graph.n_layers, read.graph.n_heads, read.graph.parallel) == (LAYERS, HEADS, True)
    assert edges_of(read.to_table()) == pytest.approx(expected, rel=1e-5)
    drawing = ElementTree.fromstring(download(page, "svg"))
    paths = [path for path in drawing.iter(f"{SVG}path") if path.get("d") and path.get("data-edge")]
    assert len(paths) == len(shown)
    assert all(path.get("stroke", "").startswith("rgb") for path in paths)
    texts = {text.text for text in drawing.iter(f"{SVG}text")}
    assert f"{ONE}, IOI, step {LAST:,}: {len(table)} edges" in texts


def download(page: Any, kind: str) -> str:
    with page.expect_download() as caught:
        page.click(f"#save-{kind}")
    assert caught.value.suggested_filename == f"circuit_{ONE}_ioi_step{LAST}.{kind}"
    return Path(caught.value.path()).read_text(encoding="utf-8")


def test_the_keyboard_goes_from_box_to_box_and_opens_and_closes_details(page: Any) -> None:
    page.locator("#threshold").focus()
    while page.evaluate("document.activeElement.id") != "drawing":
        page.keyboard.press("Tab")
    drawing = page.locator("#drawing")
    assert drawing.evaluate("(d) => getComputedStyle(d).outlineStyle") == "solid"

    def at() -> str:
        return page.locator(f"[id='{drawing.get_attribute('aria-activedescendant')}']").get_attribute("data-node")

    assert at() == "logits"
    nodes = page.locator("#drawing .boxes > g:not([data-state=out])").evaluate_all(
        "(boxes) => boxes.map((g) => g.dataset.node)"
    )
    rows = [[name for name in nodes if name.startswith(f"a{layer}.")] for layer in range(LAYERS)]
    layer = max(range(LAYERS), key=lambda layer: len(rows[layer]))
    assert len(rows[layer]) > 2
    while not at().startswith(f"a{layer}."):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    left = at()
    page.keyboard.press("ArrowRight")
    right = at()
    x = {name: page.locator(f"#drawing g[data-node='{name}'] .box").bounding_box()["x"] for name in (left, right)}
    assert x[left] < x[right]
    assert {left, right} <= set(rows[layer])
    first = right
    label = page.locator(f"#drawing g[data-node='{first}']").get_attribute("aria-label")
    assert re.search(r"\d+ edges? in", label)
    page.keyboard.press("Enter")
    assert page.locator("#details-title").inner_text() == first
    assert page.evaluate("document.activeElement.id") == "details-title"
    # From there the keyboard reaches an edge.
    page.locator("#details .neighbours button").first.focus()
    page.keyboard.press("Enter")
    assert "→" in page.locator("#details-title").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#details").is_hidden()
    assert page.evaluate("document.activeElement.id") == "drawing"


def test_heads_and_edges_in_the_tables_open_their_details(page: Any) -> None:
    page.get_by_label("Filter Head", exact=True).fill("a3.h4")
    page.locator("#heads-table button.link").first.click()
    assert page.locator("#details-title").inner_text() == "a3.h4"
    page.click("#details-close")
    page.get_by_label("Filter Head", exact=True).fill("")
    page.select_option("#heads-model", OTHER)
    page.locator("#heads-table button.link").first.click()
    assert page.locator("#circuit-model").input_value() == OTHER, "the circuit follows the model whose head is open"
    page.click("#details-close")
    page.locator("#edge-list > summary").click()
    row = page.locator("#edge-table tbody tr").first
    row.locator("button").wait_for()  # The table is filled when it is opened.
    source, target = row.locator("td").all_inner_texts()[:2]
    row.locator("button").click()
    assert page.locator("#details-title").inner_text() == f"{source} → {target}"
    page.locator("#edge-list > summary").click()


def test_on_a_phone_a_second_tap_opens_details_at_the_foot_of_the_screen(browser: Any, path: Path) -> None:
    opened = OpenPage(browser, path, width=390, height=844, touch=True)
    page = opened.page
    box = page.locator("#drawing g[data-state=in] .box").first
    box.scroll_into_view_if_needed()
    box.tap()
    assert page.locator("#details").is_hidden()
    assert "Tap again" in page.locator("#tip").inner_text()
    box.tap()
    sheet = page.locator("#details").bounding_box()
    assert (sheet["x"], sheet["width"]) == (0, 390)
    assert sheet["y"] >= 844 / 2
    assert sheet["y"] + sheet["height"] == pytest.approx(844, abs=1)
    page.check("#side")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert opened.complaints == []
    opened.close()
