"""Published numbers beside measured ones: on results made to agree, to disagree, and with gaps."""

from __future__ import annotations

import html
import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from circuits_over_time.plotting import plot_reproduction
from circuits_over_time.plotting.make_report import main as make_report
from circuits_over_time.plotting.parts.options import PIXELS, Style
from circuits_over_time.plotting.parts.paper import styled
from circuits_over_time.plotting.parts.published.reproduction import (
    COLUMNS,
    LEAST,
    MEASURES,
    commands,
    published,
    remaining,
    reproduction,
    resampled,
)
from circuits_over_time.plotting.parts.style import Drawing
from circuits_over_time.plotting.plot_reproduction import draw_reproduction, format_number, format_range
from circuits_over_time.plotting.report import figures
from circuits_over_time.utils.config.keys import load_config
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.estimate import needed_of_known
from circuits_over_time.utils.sweep.suite import SuiteConfig, jobs_of
from circuits_over_time.utils.sweep.times import gpu_hours
from tests.support.drawings import EVERYTHING, drawings, run
from tests.support.paths import ROOT
from tests.support.study_results import MODELS, STEPS, write_settings, write_study
from tests.support.synthetic_results import write

COUNTS = {
    "circuit_nodes": 20,
    "size_correlation": 8,
    "circuit_edges": 5,
    "level_percent": 12,
    "emergence_tokens": 20,
}


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_study(tmp_path_factory.mktemp("agreeing"), agree=True)


@pytest.fixture(scope="module")
def agreed(agreeing: Store) -> pd.DataFrame:
    """The table of these results. Do not change it."""
    return reproduction(agreeing, EVERYTHING)


@pytest.fixture(scope="module")
def drawing(agreeing: Store, agreed: pd.DataFrame) -> Drawing:
    """The figure of these results. Do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot_reproduction, "reproduction", lambda *_: agreed)  # It takes long to read.
        return drawings(plot_reproduction, agreeing)["reproduction"]


def only_of(agreeing: Store, folder: Path, *models: str) -> Store:
    """A copy of the results of some of the models."""
    others = shutil.ignore_patterns(*(set(MODELS) - set(models)))
    return Store(shutil.copytree(agreeing.root, folder / "study", ignore=others))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Results of a model that the study does not have."""
    store = Store(tmp_path_factory.mktemp("others"))
    heads = pd.DataFrame({"score": "induction", "layer": 0, "head": [0], "value": [0.1]})
    write(store, "components", "toy", None, 8, heads, 8)
    return store


def only(table: pd.DataFrame, **cells: object) -> pd.Series:
    """The one row with these cells."""
    for name, value in cells.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_every_published_number_has_a_source_and_a_range() -> None:
    numbers = published()
    assert {quantity: sum(n.quantity == quantity for n in numbers) for quantity in MEASURES} == COUNTS
    assert all(re.match(r"arXiv \d{4}\.\d{5}", number.source) for number in numbers)
    assert all(number.low <= number.high for number in numbers)


@pytest.mark.parametrize("item", ["printed", "true"])
def test_the_published_correlations_follow_from_the_published_means(item: str) -> None:
    numbers = published()
    parameters = {n.model: n.low for n in numbers if n.quantity == "parameters" and n.item == item}
    assert tuple(parameters) == MODELS
    for number in numbers:
        if number.quantity == "size_correlation" and number.item == item:
            means = {n.model: n.low for n in numbers if n.quantity == "circuit_nodes" and n.task == number.task}
            r = np.corrcoef([parameters[model] for model in MODELS], [means[model] for model in MODELS])[0, 1]
            # The means are printed to a tenth, which moves r by up to this.
            assert r == pytest.approx(number.low, abs=2e-3)


def test_results_that_agree_agree_in_every_number(agreed: pd.DataFrame) -> None:
    table = agreed
    assert list(table.columns) == list(COLUMNS)
    assert table.groupby("quantity").size().to_dict() == COUNTS
    assert set(table["verdict"]) == {"agrees"}
    assert set(table["command"]) == {""}
    # Nodes: the made-up means are the published ones, over the twenty checkpoints from step 1000 on.
    nodes = table[table["quantity"] == "circuit_nodes"]
    assert nodes["measured"].to_numpy() == pytest.approx(nodes["published_low"].to_numpy(), abs=0.026)
    assert set(nodes["n_checkpoints"]) == {len(STEPS) - 1}
    assert (nodes["low"] < nodes["measured"]).all()
    assert (nodes["measured"] < nodes["high"]).all()
    r = table[table["quantity"] == "size_correlation"]
    assert r["measured"].to_numpy() == pytest.approx(r["published_low"].to_numpy(), abs=0.005)
    edges = table[table["quantity"] == "circuit_edges"].set_index("step")
    assert edges["measured"].to_dict() == {4000: 74, 53000: 161, 99000: 788, 140000: 1377, 143000: 1059}
    assert (edges["high"] - edges["low"] == 20).all()


def test_results_that_disagree_disagree_in_every_number(tmp_path: Path) -> None:
    # Half of the checkpoints will do, with those of the numbers of edges.
    steps = (*STEPS[4:16:2], *STEPS[-4:])
    table = reproduction(write_study(tmp_path, agree=False, steps=steps), EVERYTHING)
    assert set(table["verdict"]) == {"disagrees"}
    assert set(table["command"]) == {""}


def test_medians_and_emergence_are_those_worked_out_by_hand(agreeing: Store, agreed: pd.DataFrame) -> None:
    table = agreed
    percent = agreeing.read_tables("ioi_consistency", "pythia-160m").query("level == 'induction' and step >= 4000")
    row = only(table, quantity="level_percent", model="pythia-160m", item="induction")
    assert row["measured"] == sorted(percent["percent"])[8]
    assert row["n_checkpoints"] == len(percent) == 17
    row = only(table, quantity="emergence_tokens", model="pythia-70m", item="succession")
    assert (row["low"], row["measured"]) == (1000 * 2_097_152, 2000 * 2_097_152)


def test_a_head_that_passes_once_has_not_emerged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step, value in ((512, 0.1), (1000, 0.9), (2000, 0.2), (3000, 0.8), (4000, 0.7)):
        heads = pd.DataFrame({"score": "induction", "layer": 0, "head": [0, 1], "value": [value, 0.0]})
        write(store, "components", "pythia-70m", None, step, heads, 10**6 * step)
    row = only(reproduction(store, EVERYTHING), quantity="emergence_tokens", model="pythia-70m", item="induction")
    assert (row["low"], row["measured"], row["verdict"]) == (2e9, 3e9, "agrees")


@pytest.mark.parametrize(("last", "verdict"), [(1, "open"), (9000, "disagrees")])
def test_a_head_that_never_passes_disagrees_only_once_it_is_late(tmp_path: Path, last: int, verdict: str) -> None:
    store = Store(tmp_path)
    for step in (0, last):
        heads = pd.DataFrame({"score": "induction", "layer": 0, "head": [0], "value": [0.1]})
        write(store, "components", "pythia-70m", None, step, heads, 2_097_152 * step)
    row = only(reproduction(store, EVERYTHING), quantity="emergence_tokens", model="pythia-70m", item="induction")
    assert (row["verdict"], row["note"]) == (verdict, "no head passes 0.5")
    assert np.isnan(row["measured"])
    (trace,) = (t for t in draw_reproduction(reproduction(store, EVERYTHING)).figure.data if t.name != "published")
    assert (trace.name, list(trace.y), list(trace.marker.symbol)) == (
        f"measured, {verdict}",
        [last * 2_097_152],
        ["triangle-up"],
    )


def test_few_checkpoints_and_levels_without_a_value_are_open_and_say_why(tmp_path: Path) -> None:
    store = write_study(tmp_path, agree=True, models=["pythia-160m"], steps=STEPS[:4])
    table = reproduction(store, EVERYTHING)
    row = only(table, quantity="circuit_nodes", model="pythia-160m", task="ioi")
    assert (row["verdict"], row["n_checkpoints"], row["note"]) == ("open", 3, f"an interval needs {LEAST}")
    row = only(table, quantity="size_correlation", task="ioi", item="true")
    assert (row["verdict"], row["note"]) == ("open", "1 of 5 models")
    for step in (8000, 9000):
        levels = pd.DataFrame({"level": ["name_movers"], "percent": [np.nan], "reason": ["no circuit"]})
        write(store, "ioi_consistency", "pythia-160m", None, step, levels, 8)
    row = only(reproduction(store, EVERYTHING), quantity="level_percent", model="pythia-160m", item="name_movers")
    assert (row["verdict"], row["note"].partition(";")[0]) == ("open", "2 of 2 checkpoints have no percentage")


def test_what_is_missing_names_the_command_with_the_studys_config(agreeing: Store, tmp_path: Path) -> None:
    store = only_of(agreeing, tmp_path, "pythia-70m", "pythia-160m")
    table, there = reproduction(store, EVERYTHING), f" results_dir={store.root}"
    missing = table[table["verdict"] == "not measured"]
    assert set(missing["model"]) == set(MODELS) - {"pythia-70m", "pythia-160m"}
    for command in table.loc[table["command"] != "", "command"]:
        script, config, model, into = re.match(
            r"python (\S+) -c (\S+) model=(.*?)(?: checkpoints=\[\d+\])?( results_dir=\S+)$", command
        ).groups()
        assert (ROOT / script).is_file()
        assert into == there
        assert set(MODELS) <= set(yaml.safe_load((ROOT / config).read_text())["model"])
        assert set(re.findall(r"pythia-[\d.]+[mb]", model)) <= set(MODELS)
    together = commands(store, table)
    models = 'model="[pythia-410m, pythia-1.4b, pythia-2.8b]"'
    assert f"python get_model_cspa.py -c configs/study/cspa.yml {models}{there}" in together
    steps = "checkpoints=[4000,53000,99000,140000,143000]"
    assert f"python get_circuits_over_time.py -c configs/study/ioi.yml model=pythia-410m {steps}{there}" in together
    assert sum(together.values()) == len(missing)
    edges = only(table, quantity="circuit_edges", step=53000)
    assert edges["command"].endswith("-c configs/study/ioi.yml model=pythia-410m checkpoints=[53000]" + there)
    r = only(table, quantity="size_correlation", task="sva", item="true")
    assert r["command"].endswith(f"sva.yml {models}{there}")
    default = Store(Path("results"))
    assert all("results_dir" not in command for command in commands(default, reproduction(default, EVERYTHING)))


def test_one_command_measures_all_that_is_missing_in_as_many_hours_as_its_operations_take(tmp_path: Path) -> None:
    store, of_one = Store(tmp_path), Namespace(model=["pythia-410m"], task=None)
    command, hours = remaining(store, reproduction(store, of_one))
    assert command == f"python run_suite.py -c configs/study/all.yml model=pythia-410m results_dir={tmp_path}"
    entries = yaml.safe_load((ROOT / "configs/study/all.yml").read_text())["analyses"]
    suite = load_config(SuiteConfig, ROOT / "configs/study/all.yml", [f"results_dir={tmp_path}"])
    jobs = jobs_of(suite)
    # Every number is about what one of its entries measures.
    steps = {entry["config"]: entry.get("checkpoints") for entry in entries}
    for number in published():
        if number.quantity != "parameters":
            assert number.config.as_posix() in steps
            assert number.step is None or number.step in steps[number.config.as_posix()]
    operations = needed_of_known(jobs, "pythia-410m").operations
    ioi = next(job for job in jobs if job.tasks[0] is not None and job.tasks[0].name == "ioi")
    one = gpu_hours([ioi], ["pythia-410m"])
    assert one == pytest.approx(46 * operations[ioi, "ioi"] / 8e12 / 3600)
    for kind in ioi.analysis.kinds:
        write(store, kind.name, "pythia-410m", "ioi", 53000, pd.DataFrame({"x": [1]}), 0)
    assert gpu_hours([ioi], ["pythia-410m"]) == pytest.approx(one * 45 / 46)
    assert one < hours < 100 * one
    assert remaining(store, reproduction(store, of_one).assign(command="")) is None


def test_settings_that_differ_from_the_studys_are_named(agreeing: Store, tmp_path: Path) -> None:
    store = only_of(agreeing, tmp_path, "pythia-410m")
    study = yaml.safe_load((ROOT / "configs" / "study" / "ioi.yml").read_text())
    write_settings(store, "faithfulness", "pythia-410m", "ioi", study | {"device": "cpu", "dtype": "float32"})
    other = study | {"dtype": "float32", "search": study["search"] | {"criterion": "normalised"}}
    write_settings(store, "faithfulness", "pythia-410m", "sva", other)
    table = reproduction(store, EVERYTHING)
    assert only(table, quantity="circuit_nodes", model="pythia-410m", task="ioi")["settings"] == ""
    told = only(table, quantity="circuit_nodes", model="pythia-410m", task="sva")["settings"]
    assert "dtype=float32 (study: bfloat16)" in told
    assert "search.criterion=normalised (study: raw)" in told
    unknown = only(table, quantity="circuit_nodes", model="pythia-410m", task="greater_than")["settings"]
    assert unknown == "unknown: there is no run.json"


def test_intervals_of_checkpoints_alike_are_wider_than_of_independent_ones() -> None:
    values = np.random.default_rng(0).normal(size=400)
    width = resampled(values).std()
    assert width == pytest.approx(values.std() / 20, rel=0.15)
    # The same values, neighbours alike: sorted into runs.
    runs = np.sort(values).reshape(20, 20)[np.random.default_rng(1).permutation(20)].ravel()
    assert resampled(runs).std() > 3 * width
    assert np.isnan(resampled(values[: LEAST - 1])).all()
    assert resampled(np.full(LEAST, 7.0)).tolist() == [7.0] * 2000


def test_models_and_tasks_asked_for_are_all_there_is(agreeing: Store) -> None:
    table = reproduction(agreeing, Namespace(model=["pythia-410m"], task=["ioi"]))
    assert set(table["model"]) == {"pythia-410m", ""}
    assert set(table["task"]) == {"ioi", ""}
    assert len(table[table["quantity"] == "circuit_edges"]) == 5


def test_figure_shows_every_number_and_what_was_measured(agreed: pd.DataFrame, drawing: Drawing) -> None:
    table, figure = agreed, drawing.figure
    titles = [note.text for note in figure.layout.annotations]
    assert len(titles) == 4 + 3 + 3 + 4
    for name in ("published", "measured, agrees"):
        traces = [trace for trace in figure.data if trace.name == name]
        assert sum(len(trace.x) for trace in traces) == len(table)
        assert sum(trace.showlegend for trace in traces) == 1
    edges = next(t for t in figure.data if t.name == "measured, agrees" and t.x[0] == "4,000")
    assert list(edges.y) == [74, 161, 788, 1377, 1059]
    assert list(edges.error_y.array) == [10] * 5


def test_a_panel_without_a_value_says_so(tmp_path: Path) -> None:
    store = write_study(tmp_path, agree=True, models=["pythia-70m"], steps=STEPS[:2])
    titles = [note.text for note in draw_reproduction(reproduction(store, EVERYTHING)).figure.layout.annotations]
    said = {title.partition("<br>")[0]: title for title in titles}
    assert said["r with size (true sizes)"].endswith(">1 of 5 models</span>")
    assert said["IOI edges of pythia-410m"].endswith(">not measured</span>")
    assert said["Nodes: IOI"] == "Nodes: IOI"


def test_script_writes_the_figure_or_its_parts_for_a_narrow_page_and_the_table(
    agreeing: Store,
    agreed: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(plot_reproduction, "reproduction", lambda *_: agreed)  # It takes long to read.
    for width, names in (([], ["reproduction"]), (["--width", "3.25in"], list(plot_reproduction.PAGES))):
        folder = tmp_path / names[0]
        assert run(plot_reproduction, "-r", agreeing.root, "-o", folder, *width) == 0
        files = {"reproduction.csv", *(f"{name}.html" for name in names)}
        assert {path.name for path in folder.iterdir()} == files
        table = pd.read_csv(folder / "reproduction.csv")
        assert len(table) == sum(COUNTS.values())
    assert "run: python" not in caplog.text


def test_results_of_other_models_are_refused_in_one_line(
    others: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(plot_reproduction, "-r", others.root, "-o", tmp_path, "-m", "toy") == 2
    assert "the study published nothing of these" in caplog.text


def test_without_results_the_figure_shows_what_is_published_and_what_is_left_to_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    drawing = drawings(plot_reproduction, store := Store(tmp_path))["reproduction"]
    assert re.search(r"Of 65 numbers .* 65 are not measured \(about \d+ hours of a GPU\)", drawing.subtitle)
    # The config has twelve models more, of which nothing is published: they are no part of the hours.
    command = f'python run_suite.py -c configs/study/all.yml model="[{", ".join(MODELS)}]" results_dir={store.root}'
    assert command in html.unescape(drawing.details)
    assert re.search(r"or all, in about \d+ hours of a GPU .* run: python run_suite\.py", caplog.text)


def test_the_report_holds_the_numbers_where_there_are_some(
    others: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "figures", lambda: [plot_reproduction.FIGURE])  # The others take long to draw.
    study = write_study(tmp_path / "study", agree=True, models=MODELS[:1], steps=STEPS[:4])
    for store, model, expected in ((study, MODELS[0], True), (others, "toy", False)):
        page = tmp_path / "report.html"
        assert make_report(["-r", str(store.root), "-o", str(page), "-m", model]) == 0
        text = page.read_text(encoding="utf-8")
        assert ("<details class='reproduction'>" in text) == expected, model


def test_numbers_are_written_as_the_study_prints_them() -> None:
    assert [format_number(x, "circuit_edges") for x in (1377.0, float("nan"))] == ["1,377", "–"]
    assert (format_number(15.0, "circuit_nodes"), format_number(0.89, "size_correlation")) == ("15.0", "0.890")
    assert format_range(1.5e9, 2.5e9, "emergence_tokens") == "1.5B to 2.5B"
    assert format_range(74, 74, "circuit_edges") == "74"
    assert format_range(8.4e9, float("inf"), "emergence_tokens") == "after 8.4B"


def test_on_a_narrow_page_it_comes_in_parts_that_fit_one(drawing: Drawing) -> None:
    narrow = Style(width="3.25in")
    assert styled(drawing, narrow).layout.height > 9 * PIXELS["in"]
    assert drawing.pages is not None
    pages = drawing.pages()
    parts = {name: styled(part, narrow) for name, part in pages.items()}
    assert list(parts) == ["reproduction_circuits", "reproduction_heads"]
    assert all(part.layout.height < 9 * PIXELS["in"] for part in parts.values())
    panels = [note.text for note in drawing.figure.layout.annotations]
    assert panels == [note.text for part in pages.values() for note in part.figure.layout.annotations]
