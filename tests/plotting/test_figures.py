"""The figure scripts: what they draw from made-up results, what they write, what they say where results are missing."""

import importlib
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from choreographer.browsers.chromium import Chromium

from circuits_over_time.plotting import (
    plot_attention,
    plot_circuit,
    plot_circuit_similarity,
    plot_circuits,
    plot_component_swaps,
    plot_faithfulness_curve,
    plot_head_scores,
    plot_ioi_backup,
    plot_ioi_consistency,
    plot_ioi_roles,
    plot_size_vs_scale,
    plot_task_performance,
    plot_transfer,
)
from circuits_over_time.plotting.parts.head_attention import roles_of
from circuits_over_time.plotting.parts.head_scores import head_scores
from circuits_over_time.plotting.parts.options import parse_formats
from circuits_over_time.plotting.parts.panels import INTERVAL
from circuits_over_time.plotting.parts.roles import LEVELS, ROLE_TINT, ROLES
from circuits_over_time.plotting.parts.style import Drawing, model_looks
from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.plotting.parts.theme import tint
from circuits_over_time.utils.comparison.scale import mean_sizes
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.tasks.registry import task_label
from tests.support import drawings
from tests.support.drawings import drawings as drawn_by
from tests.support.paths import ROOT
from tests.support.stored import write_table
from tests.support.synthetic_results import MODELS, PROMPT, STEPS, TASKS, write_all

SCRIPTS = {
    "plot_circuits": ["circuits"],
    "plot_task_performance": ["task_performance"],
    "plot_head_scores": ["head_scores", f"head_scores_{MODELS[0]}"],
    "plot_ioi_consistency": ["ioi_consistency", "greater_than_consistency"],
    "plot_ioi_backup": ["ioi_backup"],
    "plot_ioi_roles": [f"ioi_roles_{MODELS[0]}"],
    "plot_circuit_similarity": ["circuit_similarity"],
    "plot_size_vs_scale": ["size_vs_scale"],
    "plot_transfer": [f"transfer_{MODELS[0]}"],
    "plot_component_swaps": [f"component_swaps_{MODELS[0]}"],
    "plot_attention": [f"attention_{MODELS[0]}_ioi_step143000"],
    "plot_circuit": [f"circuit_{MODELS[0]}_ioi_step143000"],
    "plot_faithfulness_curve": ["cpr_cmd", f"faithfulness_curve_{MODELS[0]}"],
}
TINTS = {role: tint(colour, ROLE_TINT) for role, (_, colour) in ROLES.items()}


@pytest.fixture(scope="module")
def store(all_models: Store) -> Store:
    return all_models


@pytest.fixture(scope="module")
def results(store: Store) -> Results:
    """What is read of them, once. Do not change it."""
    return Results(store)


def run(script: str, *argv: str | Path) -> int:
    return drawings.run(importlib.import_module(f"circuits_over_time.plotting.{script}"), *argv)


def lines(drawing: Drawing, name: str, axis: str = "x") -> list:
    """A figure's visible curves of one legend entry on one panel."""
    found = [trace for trace in drawing.figure.data if trace.name == name and trace.xaxis == axis]
    return [trace for trace in found if trace.mode != "markers" and trace.x is not None and trace.x[0] is not None]


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_writes_its_figures_as_pages_that_open_offline(script: str, one_model: Store, tmp_path: Path) -> None:
    tasks = ["-t", "ioi"] if script in ("plot_circuit", "plot_attention") else []
    assert run(script, "-r", one_model.root, "-o", tmp_path, *tasks) == 0
    assert sorted(path.stem for path in tmp_path.glob("*.html")) == sorted(SCRIPTS[script])
    page = (tmp_path / f"{SCRIPTS[script][0]}.html").read_text()
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.replace(_plotly_js(), ""))
    assert not [tag for tag in tags if "src=" in tag or "href=" in tag]
    assert _plotly_js() in page


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def test_the_same_results_give_the_same_bytes(one_model: Store, tmp_path: Path) -> None:
    for name in ("first", "second"):
        run("plot_ioi_backup", "-r", one_model.root, "-o", tmp_path / name)
    assert (tmp_path / "first/ioi_backup.html").read_bytes() == (tmp_path / "second/ioi_backup.html").read_bytes()


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_results_one_line_names_the_command_that_makes_them(
    script: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(script, "-r", tmp_path / "none", "-o", tmp_path) == 2
    (error,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert "\n" not in error
    assert re.search(r"hold(s)? no .*; run: python get_\w+\.py -c configs/\w+\.yml", error)
    assert not list(tmp_path.glob("*.html"))


def test_absent_models_tasks_and_steps_are_left_out_with_a_line(
    all_models: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "results")
    for kind in ("faithfulness", "baselines"):
        shutil.copytree(all_models.root / kind, store.root / kind, ignore=shutil.ignore_patterns("pythia-1.4b"))
        for path in store.folder(kind, "pythia-160m", "sva").path.iterdir():
            path.unlink()
        store.folder(kind, "pythia-70m", "ioi").file(64).unlink()
    arguments = ("-r", store.root, "-o", tmp_path, "-m", "models/pythia-70m/", "pythia-160m", "pythia-12b")
    with caplog.at_level(logging.INFO):
        assert run("plot_circuits", *arguments) == 0
    said = caplog.text
    assert "no results of model pythia-12b; left out" in said
    assert "baselines: pythia-160m has no sva; left out" in said
    assert "baselines: pythia-70m ioi lacks steps that other tasks have: 64" in said


def test_circuit_figure_shows_the_selected_sizes_with_gaps_and_the_metric_with_bands(
    store: Store, results: Results
) -> None:
    sizes_of, baselines_of = (
        dict(iter(results.table(kind).groupby(["model", "task", "step"]))) for kind in ("faithfulness", "baselines")
    )
    drawn = drawn_by(plot_circuits, store, count="edges")["circuits"]
    for column, task in enumerate(TASKS):
        panels = [column + 1 + row * len(TASKS) for row in range(3)]
        axes = ["x" if panel == 1 else f"x{panel}" for panel in panels]
        for model in MODELS:
            (sizes,), (faithful,) = (lines(drawn, model, axis) for axis in axes[:2])
            of_metric = [trace for trace in drawn.figure.data if trace.xaxis == axes[2] and trace.legendgroup == model]
            full, corrupted = (trace for trace in of_metric if trace.fill is None)
            band, _ = (trace for trace in of_metric if trace.fill == "toself")
            for i, step in enumerate(STEPS):
                table = sizes_of[model, task, step]
                chosen = table[table["selected"]]
                if chosen.empty:
                    assert np.isnan(sizes.y[i])
                    assert np.isnan(faithful.y[i])
                else:
                    assert sizes.y[i] == chosen["n_edges"].iloc[0]
                    assert faithful.y[i] == chosen["faithfulness"].iloc[0]
                baseline = baselines_of[model, task, step].iloc[0]
                assert full.y[i] == baseline["full"]
                assert corrupted.y[i] == baseline["corrupted"]
                assert band.y[i] == pytest.approx(baseline["full"] + INTERVAL * baseline["full_se"])
                assert band.y[-1 - i] == pytest.approx(baseline["full"] - INTERVAL * baseline["full_se"])
    titles = [note.text for note in drawn.figure.layout.annotations]
    assert [title for title in titles if title] == [task_label(task) for task in TASKS]


def test_a_model_has_its_colour_in_every_figure(store: Store) -> None:
    looks = model_looks(MODELS)
    for module in (
        plot_circuits,
        plot_task_performance,
        plot_ioi_consistency,
        plot_circuit_similarity,
        plot_size_vs_scale,
    ):
        for drawing in drawn_by(module, store).values():
            for model in MODELS:
                colours = {trace.marker.color for trace in drawing.figure.data if trace.name == model}
                assert colours == {looks[model].colour}, module.__name__


def test_transfer_matrices_have_the_circuits_step_down_and_the_models_along(store: Store) -> None:
    figure = drawn_by(plot_transfer, store, step=None)[f"transfer_{MODELS[0]}"].figure
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    titles = [note.text for note in figure.layout.annotations]
    assert titles == [*(task_label(task) for task in TASKS), "Across tasks at step 143,000"]
    table = store.read_tables("transfer", MODELS[0], "ioi")
    for row in table[table["from_task"] == "ioi"].itertuples():
        down, along = list(maps[0].y).index(f"{row.from_step:,}"), list(maps[0].x).index(f"{row.step:,}")
        assert maps[0].z[down][along] == row.faithfulness
    across = maps[-1]
    assert list(across.x) == list(across.y) == [task_label(task) for task in TASKS]
    assert np.allclose(np.diag(across.z), 0.9)
    assert np.allclose(across.z - np.diag(np.diag(across.z)), 0.01 * (1 - np.eye(len(TASKS))))


def test_swap_matrices_have_the_source_down_and_the_model_along(store: Store) -> None:
    figure = drawn_by(plot_component_swaps, store)[f"component_swaps_{MODELS[0]}"].figure
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [note.text for note in figure.layout.annotations] == [f"{task_label(task)}: a1.h2" for task in TASKS]
    assert list(maps[0].y) == [f"{step:,}" for step in STEPS[-4:]]
    assert list(maps[0].x) == [f"{step:,}" for step in STEPS]
    apart = np.abs(np.subtract.outer(np.arange(len(STEPS))[-4:], np.arange(len(STEPS))))
    assert np.allclose(maps[0].z, -apart / apart.max())  # a share of the largest change
    assert np.allclose(maps[0].customdata[..., 1], 1 - 0.1 * apart)
    circles = [trace for trace in figure.data if trace.type == "scatter"]
    marked = list(zip(circles[0].y, circles[0].x, strict=True))
    expected = [(f"{STEPS[len(STEPS) - 4 + row]:,}", f"{STEPS[column]:,}") for row, column in np.argwhere(apart == 1)]
    assert sorted(marked) == sorted(expected)
    assert [trace.showlegend for trace in circles] == [True] + [False] * (len(TASKS) - 1)


def test_swap_matrices_have_the_steps_of_their_task_alone() -> None:
    table = pd.DataFrame({"task": ["ioi", "sva"], "components": "heads", "from_step": [1, 2], "step": [1, 2]})
    table = table.assign(metric=1.0, change=[0.1, 0.2], usual=False)
    figure = plot_component_swaps.draw_swaps(table, "toy", [("ioi", "heads"), ("sva", "heads")]).figure
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [(list(one.x), list(one.y)) for one in maps] == [(["1"], ["1"]), (["2"], ["2"])]


def test_swaps_of_many_sets_are_on_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot_component_swaps, "PAGE", 1)
    results = Results(store, drawings.EVERYTHING)
    drawing = plot_component_swaps.draw(results)[f"component_swaps_{MODELS[0]}"]
    assert drawing.pages is not None
    pages = drawing.pages()
    titles = [[note.text for note in page.figure.layout.annotations] for page in pages.values()]
    assert titles == [[note.text] for note in drawing.figure.layout.annotations]
    assert list(pages) == [f"component_swaps_{MODELS[0]}_{n}" for n in (1, 2)]
    monkeypatch.setattr(plot_component_swaps, "PAGE", 2)  # Two tasks do not share one.
    of_two = plot_component_swaps.draw(results)[f"component_swaps_{MODELS[0]}"].pages
    assert of_two is not None
    assert list(of_two()) == list(pages)


def test_legend_names_each_model_once(store: Store) -> None:
    figure = drawn_by(plot_circuits, store, count="edges")["circuits"].figure
    named = [trace.name for trace in figure.data if trace.showlegend is not False]
    shared = ["whole model: clean prompts", "corrupted prompts", "no value: point at it for the reason"]
    assert sorted(named) == sorted([*MODELS, *shared])


def test_a_task_from_a_csv_goes_by_the_metric_of_its_run(tmp_path: Path) -> None:
    store = write_all(tmp_path, models=("toy",), tasks=("my_prompts",))
    run_record = store.folder("baselines", "toy", "my_prompts").path / "run.json"
    run_record.write_text(json.dumps({"config": {"metric": "prob_diff"}}))
    figure = drawn_by(plot_circuits, store, count="edges")["circuits"].figure
    assert figure.layout.yaxis3.title.text == "probability difference"


def test_top_heads_are_those_with_the_highest_score_at_any_step() -> None:
    table = pd.DataFrame(
        [(1, 0, 0, 0.9), (2, 0, 0, 0.1), (1, 0, 1, 0.2), (2, 0, 1, 0.3), (1, 1, 0, 0.3), (2, 1, 0, np.nan)],
        columns=["step", "layer", "head", "value"],
    )
    assert plot_head_scores.top_heads(table, 2) == [(0, 0), (0, 1)]
    assert plot_head_scores.top_heads(table, 9) == [(0, 0), (0, 1), (1, 0)]


def test_head_figure_shows_each_steps_best_head(store: Store, results: Results) -> None:
    table = head_scores(results)
    figure = plot_head_scores.draw_maxima(table, model_looks(MODELS))
    (line,) = lines(figure, "pythia-160m")
    for value, named, step in zip(line.y, line.customdata, STEPS, strict=True):
        scores = store.folder("components", "pythia-160m").read_table(step)[lambda rows: rows["score"] == "induction"]
        best = scores.loc[scores["value"].idxmax()]
        assert value == best["value"]
        assert named[2] == f"{best['layer']}.{best['head']}"


def test_head_figure_draws_what_is_measured_where_successor_and_cspa_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = write_all(tmp_path, models=("toy",), tasks=("ioi",))
    for kind in ("successor", "cspa"):
        for path in store.folder(kind, "toy").path.iterdir():
            path.unlink()
    with caplog.at_level(logging.INFO):
        figures = drawn_by(plot_head_scores, store, top=2)
    titles = [note.text for note in figures["head_scores"].figure.layout.annotations if note.text]
    assert titles == ["Induction", "Previous token", "Duplicate token", "Copying (name movers)"]
    assert "get_model_cspa.py" in caplog.text


def test_scores_that_were_stored_without_a_standard_error_are_drawn_without_a_band(tmp_path: Path) -> None:
    store = write_all(tmp_path, models=("toy",), tasks=("ioi",))
    for path in store.folder("successor", "toy").path.glob("*.csv"):
        pd.read_csv(path).drop(columns="se", errors="ignore").to_csv(path, index=False)
    rows = head_scores(Results(store)).query("score == 'succession'")
    assert rows["value"].notna().all()
    assert rows["se"].isna().all()


def test_a_head_without_effect_does_not_flatten_the_cspa_panel() -> None:
    table = pd.DataFrame(
        {"model": "toy", "step": [1, 2], "tokens": [9, 18], "score": "cspa", "layer": 0, "head": [0, 1]}
    )
    figure = plot_head_scores.draw_top_heads(table.assign(value=[-40.0, 0.6], chance=0.0), "toy", 2).figure
    low, high = figure.layout.yaxis.range
    assert -0.7 < low < -0.5
    assert 0.6 < high < 1.1


def test_names_at_line_ends_do_not_overlap(results: Results) -> None:
    table = head_scores(results)
    figure = plot_head_scores.draw_top_heads(table[table["model"] == MODELS[0]], MODELS[0], 8).figure
    bottom, top = figure.layout.yaxis.domain
    pixels = (top - bottom) * (figure.layout.height - figure.layout.margin.t - figure.layout.margin.b)
    drawn = [y for trace in figure.data if trace.xaxis == "x" for y in trace.y]
    heights = sorted(note.y for note in figure.layout.annotations if note.xref == "x")
    assert len(heights) == 8
    # The axis of a score has its zero.
    assert figure.layout.yaxis.rangemode == "tozero"
    apart = np.diff(heights) / (max(drawn) - min(0, *drawn)) * pixels
    assert apart.min() >= 11


def test_ioi_figure_has_three_panels_in_percent(store: Store) -> None:
    figure = drawn_by(plot_ioi_consistency, store)["ioi_consistency"]
    assert figure.figure.layout.yaxis.title.text.endswith("(%)")
    for axis, level in (("x", "name_movers"), ("x2", "s_inhibition"), ("x3", "induction")):
        (line,) = lines(figure, "pythia-70m", axis)
        for value, step in zip(line.y, STEPS, strict=True):
            table = store.folder("ioi_consistency", "pythia-70m").read_table(step).set_index("level")
            assert value == table.loc[level, "percent"]


def test_ioi_figure_shows_percentages_above_100_whole(store: Store) -> None:
    table = store.read_tables("ioi_consistency", "pythia-70m")
    table.loc[table["level"] == "induction", "percent"] += 60
    figure = plot_ioi_consistency.draw_consistency(table, model_looks(["pythia-70m"])).figure
    top = table.loc[table["level"] == "induction", "percent"].max()
    assert figure.layout.yaxis3.range[1] > top > 105
    assert figure.layout.yaxis.range[1] == 105


def test_backup_figure_has_a_panel_for_every_part_that_can_bring_something_back(store: Store) -> None:
    figure = drawn_by(plot_ioi_backup, store)["ioi_backup"]
    table = store.read_tables("ioi_backup", "pythia-70m").set_index("part")
    for axis, part in (("x", "all"), ("x2", "heads"), ("x3", "mlps"), ("x4", "final_norm")):
        (line,) = lines(figure, "pythia-70m", axis)
        assert list(line.y) == list(table.loc[part, "came_back"])


def test_a_share_of_next_to_nothing_is_not_drawn_and_says_why(store: Store) -> None:
    table = store.read_tables("ioi_backup", "pythia-70m")
    little = (table["part"] == "heads") & (table["step"] == 8)
    table.loc[little, ["came_back", "came_back_low", "came_back_high"]] = [2400.0, 2300.0, 2500.0]
    unsure = (table["part"] == "mlps") & (table["step"] == 8)
    table.loc[unsure, ["came_back", "came_back_low", "came_back_high"]] = [20.0, -900.0, 940.0]
    figure = plot_ioi_backup.draw_backup(table, model_looks(["pythia-70m"])).figure
    crosses = [trace for trace in figure.data if trace.mode == "markers" and trace.x[0] is not None]
    said = {(trace.xaxis, cell[0]): cell[1].replace("<br>", " ") for trace in crosses for cell in trace.customdata}
    assert said["x2", 8] == "too little is lost to take a share of: 2,400% (95% interval 2,300% to 2,500%)"
    assert said["x3", 8] == "too little is lost to take a share of: 20% (95% interval -900% to 940%)"
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert max(np.nanmax(np.abs(np.array(trace.y, dtype=float))) for trace in lines) <= plot_ioi_backup.LARGEST


def test_without_any_backup_every_panel_says_why(store: Store) -> None:
    table = store.read_tables("ioi_backup", "pythia-70m").assign(came_back=np.nan, reason="there are no name movers")
    figure = plot_ioi_backup.draw_backup(table, model_looks(["pythia-70m"])).figure
    said = [note.text.replace("<br>", " ") for note in figure.layout.annotations if note.text]
    assert sum("pythia-70m, steps 0 to 143,000: there are no name movers" in text for text in said) == 4


def test_a_level_without_any_percentage_says_why_where_its_curve_would_be(store: Store) -> None:
    table = store.read_tables("ioi_consistency", "pythia-70m").assign(reason=None)
    empty = table["level"] == "s_inhibition"
    table.loc[empty, ["percent", "percent_low", "percent_high"]] = np.nan
    table.loc[empty, "reason"] = ["no circuit: task not learned"] * 3 + ["no head of the circuit has an effect"] * 5
    figure = plot_ioi_consistency.draw_consistency(table, model_looks(["pythia-70m"])).figure
    (note,) = [note for note in figure.layout.annotations if "No value at any checkpoint" in note.text]
    assert note.xref == "x2 domain"
    lines = note.text.replace("<br>", " ")
    last, first = (
        lines.index(f"pythia-70m, steps {steps}: {why}")
        for steps, why in (
            ("64 to 143,000", "no head of the circuit has an effect"),
            ("0 to 8", "no circuit: task not learned"),
        )
    )
    assert last < first
    assert "configs/toy_ioi_family.yml" not in lines
    toy = table.assign(model="toy")
    figure = plot_ioi_consistency.draw_consistency(toy, model_looks(["toy"])).figure
    assert any("configs/toy_ioi_family.yml" in note.text for note in figure.layout.annotations)


def test_checkpoints_without_a_percentage_are_marked_with_the_reason(store: Store) -> None:
    table = store.read_tables("ioi_consistency", "pythia-70m").assign(reason=None)
    gone = (table["level"] == "name_movers") & table["step"].isin([0, 8])
    table.loc[gone, "percent"] = np.nan
    table.loc[gone, "reason"] = "no circuit: task not learned"
    figure = plot_ioi_consistency.draw_consistency(table, model_looks(["pythia-70m"])).figure
    (marks,) = [trace for trace in figure.data if trace.mode == "markers" and trace.x[0] is not None]
    assert [tuple(said) for said in marks.customdata] == [
        (0, "no circuit: task not learned"),
        (8, "no circuit: task not learned"),
    ]
    (line,) = (trace for trace in figure.data if trace.xaxis == "x" and trace.mode == "lines+markers")
    assert list(marks.x) == [line.x[0], line.x[2]]
    assert not any("No value" in note.text for note in figure.layout.annotations)


def test_a_task_that_is_learned_at_no_checkpoint_says_so_in_its_panel(results: Results) -> None:
    table = plot_circuits.selected_circuits(results.table("faithfulness"), results.table("baselines"))
    table = table[table["model"] == "pythia-70m"]
    sva = table["task"] == "sva"
    table = table.assign(n_edges=table["n_edges"].where(~sva), status="task not learned")
    metrics = {"ioi": "logit_diff", "sva": "prob_diff"}
    figure = plot_circuits.draw_circuits(table, model_looks(["pythia-70m"]), "edges", metrics).figure
    (note,) = [note for note in figure.layout.annotations if "No value at any checkpoint" in note.text]
    assert note.xref == "x2 domain"
    assert "task not learned" in note.text.replace("<br>", " ")


def test_a_head_score_that_is_empty_at_a_checkpoint_has_its_reason_there(results: Results) -> None:
    table = head_scores(results).query("model == 'pythia-70m'").assign(reason=None)
    first = (table["score"] == "cspa") & (table["step"] == STEPS[0])
    table.loc[first, ["value", "reason"]] = [np.nan, "nothing was ablated"]
    one_head = (table["score"] == "cspa") & (table["step"] == STEPS[1]) & (table["head"] == 0)
    table.loc[one_head, "value"] = np.nan
    figure = plot_head_scores.draw_maxima(table, model_looks(["pythia-70m"])).figure
    (marks,) = [trace for trace in figure.data if trace.mode == "markers" and trace.x[0] is not None]
    assert [tuple(said) for said in marks.customdata] == [(STEPS[0], "nothing was ablated")]
    nothing = table.assign(value=table["value"].where(table["score"] != "cspa"))
    figure = plot_head_scores.draw_maxima(nothing, model_looks(["pythia-70m"])).figure
    assert sum("No value at any checkpoint" in note.text for note in figure.layout.annotations) == 1


def test_the_timeline_of_roles_has_a_row_per_head_and_role_coloured_where_it_holds_the_role() -> None:
    levels = pd.DataFrame(
        [
            {"step": step, "level": level, "reason": "too early" if step == 0 else None}
            for step in (0, 10, 20)
            for level in LEVELS
        ]
    )
    heads = pd.DataFrame(
        [
            (10, "name_movers", 1, 0, "name_mover", -0.2, True),
            (20, "name_movers", 1, 0, "", 0.0, False),
            (10, "name_movers", 0, 2, "name_mover", -0.1, False),
            (20, "name_movers", 0, 2, "name_mover", -0.3, True),
            (20, "s_inhibition", 0, 2, "s_inhibition", -0.4, True),
        ],
        columns=["step", "level", "layer", "head", "role", "effect", "passes"],
    )
    figure = plot_ioi_roles.draw_roles(heads, levels, "m").figure
    assert list(figure.layout.yaxis.ticktext) == ["a1.h0", "a0.h2", "a0.h2"]
    assert list(figure.layout.xaxis.ticktext) == ["0", "10", "20"]
    colours = [trace.colorscale[0][1] for trace in figure.data]
    assert colours[1::2] == [ROLES["name_mover"][1], ROLES["s_inhibition"][1]]
    not_held, held = ([list(row) for row in trace.z] for trace in figure.data[:2])
    assert held == [[None, 1, None], [None, None, 1]]
    assert not_held == [[None, None, 1], [None, 1, None]]
    notes = [note.text.replace("<br>", " ") for note in figure.layout.annotations]
    assert notes.count("no head holds it") == 4  # the reason of an earlier checkpoint is none of the last one


def test_the_drawing_of_a_circuit_colours_heads_by_their_roles() -> None:
    edges = pd.DataFrame(
        {"source": ["input", "a0.h1", "input"], "target": ["a0.h1<v>", "logits", "logits"], "score": [1.0, 2.0, 0.1]}
    )
    roles = {"a0.h1": ("name_mover", "s_inhibition"), "a3.h3": ("induction",)}
    drawing = plot_circuit.draw_circuit(edges, "", "", roles)
    fills = [shape.fillcolor for shape in drawing.figure.layout.shapes]
    assert [fill for fill in fills if fill in TINTS.values()] == [TINTS["name_mover"], TINTS["s_inhibition"]]
    keys = {trace.name: trace.marker.color for trace in drawing.figure.data if trace.mode == "markers" and trace.name}
    assert keys == {"name mover": TINTS["name_mover"], "S-inhibition": TINTS["s_inhibition"]}
    assert not set(fills) & set(TINTS.values()) - {TINTS["name_mover"], TINTS["s_inhibition"]}


def test_the_attention_of_heads_is_drawn_with_the_tokens_that_they_move_and_their_roles(
    store: Store, results: Results
) -> None:
    model, folder = MODELS[0], store.folder("attention", MODELS[0], "ioi")
    stored = folder.read_json(STEPS[-1])["heads"]
    roles = roles_of(results, model)
    head = next(head for head in stored if head in roles)
    (drawing,) = drawn_by(plot_attention, store, model=[model], task=["ioi"], heads=[head]).values()
    (heatmap,) = drawing.figure.data
    for query, row in enumerate(stored[head]):
        assert list(heatmap.z[query][: query + 1]) == row
        assert np.isnan(heatmap.z[query][query + 1 :]).all()
    assert list(heatmap.x) == list(heatmap.y) == [f"{token.strip()} {n}" for n, token in enumerate(PROMPT, start=1)]
    (title,) = (note.text.replace("<br>", " ") for note in drawing.figure.layout.annotations)
    by = 1 + int(head.partition(".h")[2])
    assert title.startswith(
        f"<b>{head}</b> raises Mary\xa0{2.0 * by:+.2g}, John\xa0{by:+.2g} lowers and\xa0{-1.5 * by:+.2g}"
    )
    assert title.endswith(roles[head])
    held = store.read_tables("ioi_consistency_heads", model)
    held = held[held["passes"].astype(bool)]
    named = "a" + held["layer"].astype(str) + ".h" + held["head"].astype(str)
    steps = held.loc[(named == head) & (held["role"] == held.loc[named == head, "role"].iloc[0]), "step"]
    assert roles[head].split(" at ")[1].startswith(f"step {steps.min():,}")
    assert (f"to {steps.max():,} ({len(steps)} checkpoints)" in roles[head]) == (len(steps) > 1)
    (few,) = drawn_by(plot_attention, store, model=[model], task=["ioi"]).values()
    assert f"; {plot_attention.SHOWN} of {len(stored)} heads" in few.subtitle


def test_similarity_table_is_written_beside_the_figure(store: Store, tmp_path: Path) -> None:
    assert run("plot_circuit_similarity", "-r", store.root, "-o", tmp_path, "--reference", "143000") == 0
    table = pd.read_csv(tmp_path / "circuit_similarity.csv")
    last = table[table["step"] == 143_000]
    assert len(last) == len(MODELS) * len(TASKS)
    assert (last[["node_jaccard", "edge_jaccard", "weighted_edge_jaccard"]] == 1).all().all()
    assert run("plot_circuit_similarity", "-r", store.root, "-o", tmp_path, "--reference", "7") == 2


def test_curves_ring_the_selected_size(store: Store) -> None:
    drawn = drawn_by(plot_faithfulness_curve, store, model=["pythia-70m"], task=["ioi"], curves=3)
    figure = drawn["faithfulness_curve_pythia-70m"].figure
    assert [trace.name for trace in figure.data] == ["step 0", "step 512", "step 143,000"]
    table = store.folder("faithfulness", "pythia-70m", "ioi").read_table(143_000)
    ringed = [x for x, size in zip(figure.data[-1].x, figure.data[-1].marker.size, strict=True) if size > 5]
    assert ringed == table.loc[table["selected"], "size"].tolist()


def test_areas_are_those_of_the_results_with_gaps_where_there_are_none(store: Store) -> None:
    figure = drawn_by(plot_faithfulness_curve, store, model=["pythia-70m"], task=["ioi"], curves=3)["cpr_cmd"]
    for axis, measure in (("x", "cpr"), ("x2", "cmd")):
        (line,) = lines(figure, "pythia-70m", axis)
        expected = store.read_tables("baselines", "pythia-70m", "ioi")[measure]
        assert expected.isna().any()
        assert list(line.y) == pytest.approx(expected.tolist(), nan_ok=True)


def test_without_areas_a_line_says_how_to_measure_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = write_all(tmp_path, models=("toy",), tasks=("ioi",))
    for step in STEPS:
        folder = store.folder("baselines", "toy", "ioi")
        table = folder.read_table(step).drop(columns=["model", "step", "tokens"])
        write_table(folder, step, table.assign(cpr=np.nan, cmd=np.nan), step)
    with caplog.at_level(logging.INFO):
        assert list(drawn_by(plot_faithfulness_curve, store, curves=3)) == ["faithfulness_curve_toy"]
    assert re.search(
        r"no CPR and CMD; run: .*get_circuits_over_time\.py .*search\.mib=true overwrite=true", caplog.text
    )


def test_size_figure_states_the_correlation(store: Store, results: Results) -> None:
    parameters = ["pythia-70m=1", "pythia-160m=2", "pythia-1.4b=4"]
    figure = drawn_by(plot_size_vs_scale, store, count="edges", parameters=parameters)["size_vs_scale"].figure
    sizes = mean_sizes(results.table("faithfulness"), "edges")
    ioi = sizes[sizes["task"] == "ioi"].set_index("model")["size"]
    r = np.corrcoef([1, 2, 4], ioi[["pythia-70m", "pythia-160m", "pythia-1.4b"]])[0, 1]
    assert f"r = {r:.2f} (3 models), exact p = " in figure.layout.annotations[0].text


@pytest.mark.parametrize(
    ("script", "options", "says"),
    [
        ("plot_circuits", ["--format", "gif"], "--format: gif given; choose from html, png, pdf, svg"),
        ("plot_circuit", ["--step", "5"], "--step 5: no circuit of that step"),
        ("plot_attention", ["--step", "5"], "--step 5: no heads of that step"),
        ("plot_attention", ["--heads", "a9.h9"], "--heads a9.h9: not kept of pythia-70m ioi, step 143000 (there: a"),
        ("plot_circuit", ["--strongest", "0"], "--strongest: 0 edges asked for"),
        ("plot_transfer", ["--step", "5"], "--step 5: nothing was transferred to that step"),
        ("plot_circuit_similarity", ["--alpha", "0"], "--alpha: 0.0 is not in"),
        ("plot_task_performance", ["--metric", "loss"], "--metric: loss is not in"),
        ("plot_head_scores", ["--top", "0"], "--top: 0 heads asked for"),
        ("plot_size_vs_scale", ["--parameters", "toy=many"], "'toy=many' is not name=count"),
        ("plot_faithfulness_curve", ["--curves", "0"], "--curves: 0 asked for"),
        ("plot_pythia_evals", ["-e", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_options_are_told_in_one_line(
    script: str, options: list[str], says: str, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(script, "-r", store.root, "-o", tmp_path, *options) == 2
    assert says in caplog.records[-1].getMessage()


def test_formats_are_read_once_each() -> None:
    assert parse_formats("html, PNG,html") == ("html", "png")
    with pytest.raises(ValueError, match="nothing given"):
        parse_formats(" ,")


def test_files_have_the_heading_above_the_panels(store: Store, tmp_path: Path) -> None:
    drawing = drawn_by(plot_ioi_consistency, store)["ioi_consistency"]
    assert drawing.figure.layout.title.text is None
    figure = drawing.titled()
    assert figure.layout.title.text.startswith(f"<b>{drawing.title}</b>")
    assert drawing.subtitle in figure.layout.title.text
    # The room that the heading takes is added to the figure: its panels keep their height.
    before, after = drawing.figure.layout, figure.layout
    assert after.height - before.height == after.margin.t - before.margin.t > 60


def test_figure_scripts_do_without_torch() -> None:
    modules = [
        f"circuits_over_time.plotting.{path.stem}"
        for path in (ROOT / "plotting").glob("*.py")
        if path.stem != "__init__"
    ]
    assert "circuits_over_time.plotting.make_report" in modules
    code = (
        f"import sys, {', '.join(modules)}; print(*sorted({{'torch', 'transformers', 'jaxtyping'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_scripts_run_by_path_from_anywhere(store: Store, tmp_path: Path) -> None:
    script = ROOT / "plotting" / "plot_ioi_consistency.py"
    command = [sys.executable, script, "-r", store.root, "-o", "figures"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "wrote figures/ioi_consistency.html" in done.stderr
    assert (tmp_path / "figures" / "ioi_consistency.html").is_file()


@pytest.mark.browser
@pytest.mark.skipif(Chromium.find_browser(skip_local=False) is None, reason="no Chromium or Chrome is installed")
def test_a_png_and_an_svg_are_drawn_by_one_browser(store: Store, tmp_path: Path) -> None:
    assert run("plot_ioi_consistency", "-r", store.root, "-o", tmp_path, "--format", "png,svg") == 0
    png = (tmp_path / "ioi_consistency.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    figure = drawn_by(plot_ioi_consistency, store)["ioi_consistency"].titled()
    # Width and height stand in the header; figures are drawn at twice their size for sharpness.
    assert int.from_bytes(png[16:20]) == 2 * figure.layout.width
    assert int.from_bytes(png[20:24]) == 2 * figure.layout.height
    drawing = ElementTree.parse(tmp_path / "ioi_consistency.svg").getroot()
    assert drawing.tag.endswith("svg")
    assert "Is the IOI algorithm the same at every checkpoint?" in "".join(drawing.itertext())


def test_without_a_browser_html_is_written_and_the_line_says_what_to_install(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Chromium, "find_browser", classmethod(lambda cls, **options: None))
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    assert run("plot_ioi_consistency", "-r", store.root, "-o", tmp_path, "--format", "html,png") == 2
    assert (
        "ioi_consistency.png: PNG, PDF and SVG need Chromium or Chrome; install it" in caplog.records[-1].getMessage()
    )
    assert {path.suffix for path in tmp_path.iterdir()} == {".html"}
    assert (tmp_path / "ioi_consistency.html").is_file()


def test_a_results_folder_that_is_a_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").write_text("no folder")
    with pytest.raises(SystemExit, match="2"):
        plot_circuits.figure_main(plot_circuits.FIGURE, ["-r", str(tmp_path / "results")])
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith(f"{tmp_path / 'results'} is a file; name the folder of results")
