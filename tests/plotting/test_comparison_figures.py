"""Figures of comparisons: floors, flags, intervals and censoring as the tables have them."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from circuits_over_time.plotting import (
    plot_comparison,
    plot_controls,
    plot_emergence,
    plot_handovers,
    plot_order,
    plot_transfer,
    plot_turnover,
)
from circuits_over_time.plotting.parts.head_attention import matches_of
from circuits_over_time.plotting.parts.options import Style
from circuits_over_time.plotting.parts.style import model_looks
from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.plotting.parts.time_axis import TimeAxis
from circuits_over_time.plotting.parts.timeline import OPEN
from circuits_over_time.plotting.plot_comparison import (
    CEILING_ENTRY,
    CHANCE_ENTRY,
    CHANGED_ENTRY,
    DIFFERS_ENTRY,
    NAMES,
    NOISE_ENTRY,
    SHUFFLED_ENTRY,
)
from circuits_over_time.plotting.plot_emergence import leading
from circuits_over_time.plotting.report import figures
from circuits_over_time.utils.results.comparison import COMPARISONS, ComparisonFolder
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.results.store import Store
from tests.support.drawings import drawings, run
from tests.support.shared_folder import filled_once
from tests.support.synthetic_comparison import CHANGED_AT, NEVER, STEPS, TASKS, TOKENS_PER_STEP, write_comparison
from tests.support.synthetic_results import write, write_all

SEEDS = tuple(f"toy-seed{number}" for number in range(5))
SCRIPTS = (
    plot_comparison,
    plot_controls,
    plot_emergence,
    plot_handovers,
    plot_order,
    plot_transfer,
    plot_turnover,
)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(filled_once(tmp_path_factory, "comparison_of_one", lambda folder: write_comparison(Store(folder))))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Store:
    def fill(folder: Path) -> None:
        write_comparison(Store(folder), SEEDS, group="toy")

    return Store(filled_once(tmp_path_factory, "comparison_of_seeds", fill))


def comparison(store: Store, **arguments: Any) -> dict[str, Any]:
    drawn = drawings(plot_comparison, store, **arguments)
    return {name: drawing.figure for name, drawing in drawn.items()}


def emergence(store: Store, **arguments: Any) -> dict[str, Any]:
    drawn = drawings(plot_emergence, store, **arguments)
    return {name: drawing.figure for name, drawing in drawn.items()}


def on_panel(figure: Any, panel: int, entry: str, *, band: bool = False) -> list[Any]:
    axis = "x" if panel == 1 else f"x{panel}"
    traces = [trace for trace in figure.data if trace.xaxis == axis and trace.legendgroup == entry]
    return [trace for trace in traces if (trace.fill == "toself") == band and trace.x[0] is not None]


def rows_of(store: Store, **cells: str) -> pd.DataFrame:
    table = ComparisonFolder(store.root).read("similarity")
    for name, value in cells.items():
        table = table[table[name] == value]
    return table


def position(figure_axis: TimeAxis, step: int) -> float:
    return float(figure_axis.position(pd.Series([step * TOKENS_PER_STEP])).iloc[0])


AXIS = TimeAxis.of(pd.DataFrame({"step": STEPS, "tokens": [step * TOKENS_PER_STEP for step in STEPS]}))


def test_every_similarity_curve_lies_over_its_noise_floor_and_its_chance_floor(one: Store) -> None:
    figure = comparison(one)["comparison_toy"]
    panel = 0
    for against in ("previous", "reference"):
        for at in ("faithfulness", "size"):
            for task in TASKS:
                panel += 1
                rows = rows_of(one, against=against, at=at, task=task)
                (line,) = on_panel(figure, panel, "toy")
                assert list(line.y) == rows["value"].tolist()
                (noise,), (chance,) = (on_panel(figure, panel, name, band=True) for name in (NOISE_ENTRY, CHANCE_ENTRY))
                n = len(rows)
                assert list(noise.y) == [*rows["noise_high"], *rows["noise_low"][::-1]]
                assert list(chance.y) == [*rows["chance_floor"], *[0.0] * n]
                (level,) = on_panel(figure, panel, CHANCE_ENTRY)
                assert list(level.y) == rows["chance_floor"].tolist()


def test_rings_are_around_the_flagged_changes_alone(one: Store) -> None:
    figure = comparison(one)["comparison_toy"]
    for panel, cells in enumerate(
        ({"against": "previous", "at": at, "task": task} for at in ("faithfulness", "size") for task in TASKS), 1
    ):
        (rings,) = on_panel(figure, panel, CHANGED_ENTRY)
        flagged = rows_of(one, **cells)[lambda rows: rows["changed"].astype(bool)]
        assert list(rings.y) == flagged["value"].tolist()
        assert [step for step, _ in rings.customdata] == flagged["step"].tolist()
        assert set(flagged["step"]) <= set(CHANGED_AT)


@pytest.mark.parametrize(("at", "rows"), [(None, 4), ("size", 2), ("faithfulness", 2)])
def test_sizes_are_drawn_below_each_other_or_one_is_chosen(one: Store, at: str | None, rows: int) -> None:
    figure = comparison(one, at=at)["comparison_toy"]
    titles = [figure.layout[f"yaxis{panel if panel > 1 else ''}"].title.text for panel in range(1, 2 * rows, 2)]
    shown = {"size": ["fixed size"], "faithfulness": ["as found"], None: ["as found", "fixed size"]}[at]
    assert [title.split("<br>")[1] for title in titles] == shown * 2
    assert titles[-1].startswith("to step 4,000")


def test_models_of_one_shape_are_a_thin_line_a_pair_with_their_median_and_quartiles(seeds: Store) -> None:
    figure = comparison(seeds)["comparison_models"]
    pairs = on_panel(figure, 1, "pair of models")
    assert len(pairs) == 10
    assert {pair.line.width for pair in pairs} == {1}
    values = np.array([pair.y for pair in pairs], dtype=float)
    (median,) = on_panel(figure, 1, plot_comparison.MEDIAN_ENTRY)
    (band,) = on_panel(figure, 1, plot_comparison.MEDIAN_ENTRY, band=True)
    assert list(median.y) == pytest.approx(np.median(values, axis=0))
    assert list(band.y[: len(STEPS)]) == pytest.approx(np.quantile(values, 0.75, axis=0))
    assert len(on_panel(figure, 1, DIFFERS_ENTRY)) == 10
    assert on_panel(figure, 1, NOISE_ENTRY, band=True)


def with_matches(seeds: Store, root: Path) -> Store:
    """The comparisons of seeds with matches of heads beside them."""
    held = ComparisonFolder(seeds.root)
    tables = {name: held.read(name) for name in COMPARISONS if held.has(name)}
    keys = itertools.product(["ioi", None], STEPS[-2:], [("edge_jaccard", "size"), ("transfer", "faithfulness")], NAMES)
    rows = [
        {"task": task, "step": step, "measure": measure, "at": at, "names": names, "value": 0.1 * place + 0.01 * number}
        for number, (task, step, (measure, at), names) in enumerate(keys)
        for place in [list(NAMES).index(names)]
    ]
    rows.append({"step": 64, "measure": "similarity", "at": "layer 0", "names": "attention", "value": 0.5})
    same = pd.DataFrame(rows).assign(group="toy", low=0.05, high=0.9, noise_floor=0.95, shuffled_floor=0.02)
    pair = {"model": SEEDS[0], "other_model": SEEDS[1], "layer": [0, 1], "head": [3, 2], "other_layer": 1}
    matches = pd.DataFrame({"matched": [True, False], "other_head": [0, 1], **pair}).assign(signature="function")
    third = matches[:1].assign(other_model=SEEDS[2], other_layer=0)
    matches = pd.concat([matches, third], ignore_index=True)
    for name, table in (("same_circuit", same), ("matches", matches)):
        tables[name] = table.reindex(columns=list(COMPARISONS[name]))
    ComparisonFolder(root).write_all(tables, {"config": {"seeds": {"toy": list(SEEDS)}}})
    return Store(root)


def test_seeds_by_matched_names_stand_beside_the_given_ones_over_their_floors(seeds: Store, tmp_path: Path) -> None:
    figures = comparison(with_matches(seeds, tmp_path))
    figure = figures["comparison_matched_toy"]
    assert "head_stability" in figures
    same = ComparisonFolder(tmp_path).read("same_circuit")
    for panel, (measure, task) in enumerate(itertools.product(("edge_jaccard", "transfer"), ("ioi", None)), 1):
        of_panel = same[(same["measure"] == measure) & (same["task"].eq("ioi") if task else same["task"].isna())]
        for names, (entry, _) in NAMES.items():
            (line,) = on_panel(figure, panel, entry)
            assert list(line.y) == pytest.approx(of_panel.loc[of_panel["names"] == names, "value"].tolist())
            (band,) = on_panel(figure, panel, entry, band=True)
            assert set(band.y) == {0.05, 0.9}
        floors = on_panel(figure, panel, SHUFFLED_ENTRY)
        assert [set(line.y) for line in floors] == [{0.02}] * 3
        # Where one step is all there is, marks tell a floor from what stands above it, side by side.
        assert all(line.marker.symbol.endswith("-open") for line in floors)
        (ceiling,) = on_panel(figure, panel, CEILING_ENTRY)
        assert list(ceiling.y) == pytest.approx([0.95, 0.95])
    assert "comparison_matched_toy" not in comparison(seeds)


def test_the_stability_of_heads_is_drawn_by_layer_over_heads_dealt_anew() -> None:
    rows = [("toy", "attention", layer, step, 0.1 * layer) for layer in range(12) for step in (5, 64)]
    rows = [*rows, *(("toy", "function", layer, 64, 0.5) for layer in (0, 1)), ("wide", "attention", 0, 64, 0.9)]
    table = pd.DataFrame(rows, columns=["group", "names", "at", "step", "value"])
    table = table.assign(measure="similarity", shuffled_floor=table["value"] - 0.05, high=table["value"] + 0.03)
    table = table.assign(at="layer " + table["at"].astype(str), n_pairs=10, low=0.0)
    figure = plot_comparison.draw_stability(table).figure
    function, floor, attention, floors, wide, _ = (line for line in figure.data if len(line.x))
    titles = [title.text for title in figure.layout.annotations]
    assert titles == ["Heads matched by function", "Heads matched by attention"]
    assert list(attention.y) == pytest.approx(0.1 * np.arange(12))  # of the last step alone
    assert list(np.round(attention.x)) == list(range(12))
    assert list(floors.y) == pytest.approx(0.1 * np.arange(12) - 0.05)
    assert list(attention.error_y.array) == pytest.approx([0.03] * 12)
    assert (list(function.y), list(floor.y), wide.name, list(wide.y)) == ([0.5, 0.5], [0.45, 0.45], "wide", [0.9])
    assert (attention.xaxis, function.xaxis, wide.x[0] > attention.x[0]) == ("x2", "x", True)


def test_a_heads_matches_are_named_where_the_head_is_shown(seeds: Store, tmp_path: Path) -> None:
    results = Results(with_matches(seeds, tmp_path))
    assert matches_of(results, SEEDS[0]) == {
        "a0.h3": f"a1.h0 of {SEEDS[1]} (by function); a0.h0 of {SEEDS[2]} (by function)"  # in the models' order
    }
    assert matches_of(results, SEEDS[1]) == {"a1.h0": f"a0.h3 of {SEEDS[0]} (by function)"}
    assert matches_of(Results(seeds), SEEDS[0]) == {}


def test_the_chance_level_of_counted_changes_is_a_line_without_a_band(one: Store) -> None:
    table = ComparisonFolder(one.root).read("similarity").assign(measure="edges_added", value=3.0, chance_floor=30.0)
    look = model_looks(["toy"])["toy"]
    figure = plot_comparison.draw_comparison(table, "toy", "edges_added", look).figure
    assert not on_panel(figure, 1, CHANCE_ENTRY, band=True)
    (level,) = on_panel(figure, 1, CHANCE_ENTRY)
    assert set(level.y) == {30.0}
    assert on_panel(figure, 1, NOISE_ENTRY, band=True)


def row_of(figure: Any, name: str) -> int:
    return list(figure.layout.yaxis.ticktext).index(name)


def bars(figure: Any, place: float, width: float) -> list[Any]:
    lines = [trace for trace in figure.data if trace.line.width == width and trace.x[0] is not None]
    return [trace for trace in lines if list(trace.y) == [place, place]]


def test_timeline_has_a_row_for_the_strongest_head_of_a_kind_and_for_tasks(one: Store) -> None:
    figure = emergence(one)["emergence_toy"]
    assert list(figure.layout.yaxis.ticktext) == [
        "Induction: a1.h5",
        "Subject-verb agreement: probability difference",
        "Subject-verb agreement: accuracy",
        "IOI: circuit like the reference",
        "IOI: a faithful circuit exists",
    ]


def test_thick_bars_span_the_two_checkpoints_and_thin_ones_the_interval(one: Store) -> None:
    figure = emergence(one)["emergence_toy"]
    place = row_of(figure, "Subject-verb agreement: probability difference")
    (thick,), (thin,) = bars(figure, place, 12), bars(figure, place, 2.5)
    assert list(thick.x) == [position(AXIS, 8), position(AXIS, 64)]
    assert list(thin.x) == [position(AXIS, 1), position(AXIS, 512)]
    without = row_of(figure, "IOI: a faithful circuit exists")
    assert not bars(figure, without, 2.5), "nothing is known of its uncertainty"


def test_an_end_that_no_checkpoint_bounds_gets_an_arrow(one: Store) -> None:
    figure = emergence(one)["emergence_toy"]
    arrows = [trace for trace in figure.data if trace.name == OPEN and trace.x[0] is not None]
    place = row_of(figure, "IOI: circuit like the reference")
    assert {(arrow.y[0], arrow.marker.symbol) for arrow in arrows} == {(place, "triangle-left")}
    assert {arrow.x[0] for arrow in arrows} == {position(AXIS, 0)}
    table = ComparisonFolder(one.root).read("emergence")
    table.loc[table["curve"] == "sva prob_diff", "high_step"] = np.nan
    curves = ComparisonFolder(one.root).read("curves")
    figure = plot_emergence.draw_timeline(table, curves, "toy").figure
    (right,) = [trace for trace in figure.data if trace.marker.symbol == "triangle-right"]
    assert right.x[0] == position(AXIS, STEPS[-1])


def test_what_does_not_emerge_says_why(one: Store) -> None:
    figure = emergence(one)["emergence_toy"]
    place = row_of(figure, "Subject-verb agreement: accuracy")
    (note,) = [note for note in figure.layout.annotations if note.y == place]
    assert note.text == f"does not emerge: {NEVER}"


def test_learning_coefficients_stand_under_the_circuits_on_one_axis(one: Store, tmp_path: Path) -> None:
    shutil.copytree(one.root / "comparison", tmp_path / "comparison")
    store = Store(tmp_path)
    for number, step in enumerate(STEPS):
        rows = [
            [None, None, 10.0 + number, 0.5, 1.0, 3.0, None],
            [1, 2, 1.0, 0.2, 1.3, 3.0, "chains have not converged"],
        ]
        table = pd.DataFrame(rows, columns=list(KINDS["learning_coefficients"].columns))
        write(store, "learning_coefficients", "toy", None, step, table, step * TOKENS_PER_STEP)
    figure = drawings(plot_emergence, store)["learning_coefficients_toy"].figure
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers" and trace.x[0] is not None}
    assert list(lines["whole model"].y) == [10.0 + number for number in range(len(STEPS))]
    assert len({str(lines[name].x) for name in ("whole model", "a1.h2")}) == 1
    rings = [trace for trace in figure.data if trace.name == "not to be trusted"]
    assert sum(len(trace.x) for trace in rings) == len(STEPS)
    emergence = ComparisonFolder(store.root).read("emergence")
    onsets = emergence.loc[(emergence["model"] == "toy") & (emergence["score"] == "similarity"), "step"].dropna()
    emerged = [trace for trace in figure.data if trace.name == "emerges" and len(trace.x)]
    assert sorted(step for trace in emerged for step, _ in trace.customdata) == sorted(onsets)
    assert figure.layout.xaxis.range == figure.layout.xaxis2.range == figure.layout.xaxis3.range


def test_of_every_model_the_strongest_head_of_a_score_leads(seeds: Store) -> None:
    rows = leading(ComparisonFolder(seeds.root).read("emergence"))
    assert rows.loc[rows["kind"] == "head", ["model", "layer", "head"]].to_numpy().tolist() == [
        [model, 1, 5] for model in sorted(SEEDS, key=lambda name: int(name[-1]) % 2)
    ]


def test_seeds_have_a_bar_each_over_a_band_from_the_earliest_to_the_latest(seeds: Store) -> None:
    figure = emergence(seeds)["emergence_seeds_toy"]
    place = row_of(figure, "Subject-verb agreement: probability difference")
    near = [trace for trace in figure.data if trace.name == "a seed" and abs(trace.y[0] - place) < 0.5]
    assert sorted(tuple(trace.x) for trace in near) == sorted(
        [(position(AXIS, 8), position(AXIS, 64))] * 3 + [(position(AXIS, 64), position(AXIS, 512))] * 2
    )
    (band,) = [trace for trace in figure.data if trace.fill == "toself" and trace.y[0] == place - 0.4]
    assert (min(band.x), max(band.x)) == (position(AXIS, 8), position(AXIS, 512))
    (median,) = [trace for trace in figure.data if trace.legendgroup == "median" and trace.y[0] == place - 0.4]
    assert median.x[0] == position(AXIS, 64)


def test_seeds_curves_are_thin_lines_over_quartiles_and_only_enough_seeds_are_called_anything(seeds: Store) -> None:
    figure = emergence(seeds)["curves_seeds_toy"]
    table = ComparisonFolder(seeds.root).read("curves")
    names = [name for name in dict.fromkeys(table["curve"]) if ".h" not in name]
    for panel, name in enumerate(names, 1):
        thin = on_panel(figure, panel, "a seed")
        assert [list(trace.y) for trace in thin] == [
            table[(table["model"] == model) & (table["curve"] == name)]["value"].tolist() for model in SEEDS
        ]
        assert on_panel(figure, panel, "median and quartiles", band=True)
    titles = [note.text for note in figure.layout.annotations[: len(names)]]
    assert [title for title in titles if "abrupt" in title] == [titles[names.index("sva prob_diff")]]


def test_one_model_has_no_figure_of_seeds(one: Store) -> None:
    assert list(emergence(one)) == ["emergence_toy"]
    assert list(comparison(one)) == ["comparison_toy"]


@pytest.mark.parametrize("module", [plot_comparison, plot_emergence, plot_handovers, plot_order, plot_turnover])
def test_without_tables_one_line_names_the_command(
    module: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(module, "-r", tmp_path, "-o", tmp_path / "figures") == 2
    (error,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert error.endswith(f"is missing; run: python compare_circuits.py results_dir={tmp_path}")


def test_a_model_or_task_without_rows_is_named(one: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    argv = ["-r", one.root, "-o", tmp_path, "-m", "toy", "gone", "-t", "sva"]
    assert run(plot_comparison, *argv) == 0
    assert "no results of model gone; left out" in caplog.text
    assert run(plot_comparison, *argv[:4], "-m", "gone") == 2
    assert "similarity.csv holds nothing of gone" in caplog.text


def test_report_has_these_figures_whole_and_for_narrow_screens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [script.FIGURE for script in SCRIPTS]
    assert [figure for figure in figures.figures() if figure in few] == sorted(few, key=lambda figure: figure.order)
    monkeypatch.setattr(figures, "figures", lambda: few)
    store = write_all(tmp_path, models=SEEDS[:1], tasks=TASKS)
    write_comparison(store, SEEDS[:2], group="toy")
    found = figures.report_figures(Results(store, in_report=True))
    records = {one["name"]: one for one in json.loads(figures.figures_json(found, Style()))["figures"]}
    for name, drawing in found.items():
        whole, phone = (go.Figure(records[name][which]) for which in ("whole", "phone"))
        assert [trace.type for trace in whole.data] == [trace.type for trace in drawing.figure.data]
        assert max(phone.layout[axis].domain[1] for axis in phone.layout if axis.startswith("xaxis")) <= 1
        texts = [note.text for note in phone.layout.annotations]
        if drawing.narrow is None:  # The same numbers, laid out anew.
            for one, other in zip(whole.data, phone.data, strict=True):
                assert one.name == other.name
                assert str(one.y) == str(other.y)
        elif name.startswith("emergence_"):
            assert set(drawing.figure.layout.yaxis.ticktext) <= set(texts)
            assert not [text for text in texts if text.startswith(":")]
    assert {"comparison_models", "emergence_seeds_toy", "curves_seeds_toy"} <= set(found)
