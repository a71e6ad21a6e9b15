"""Figures of edges that come and go, of the order of emergence, of hand-overs and of controls show their tables."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from circuits_over_time.plotting import plot_controls, plot_handovers, plot_order, plot_turnover
from circuits_over_time.plotting.parts.roles import why_none
from circuits_over_time.plotting.parts.style import model_looks
from circuits_over_time.plotting.parts.time_axis import CheckpointAxis
from circuits_over_time.plotting.plot_controls import (
    CIRCUIT,
    GROUP,
    INCLUSION,
    ITS,
    RANDOM_ENTRY,
    RING,
    STABILITY,
    STABLE_ENTRY,
)
from circuits_over_time.plotting.plot_turnover import ENDED, LASTING, PARTS, SIZE
from circuits_over_time.utils.comparison.handovers import handovers
from circuits_over_time.utils.results.comparison import ComparisonFolder
from circuits_over_time.utils.results.store import Store
from tests.support.drawings import drawings
from tests.support.synthetic_comparison import EMERGED, STEPS, TASKS
from tests.support.synthetic_results import MODELS
from tests.support.synthetic_results import STEPS as RESULT_STEPS

MODEL = MODELS[0]


@pytest.fixture
def results(compared: Store) -> Store:
    return compared


def table(store: Store, name: str) -> pd.DataFrame:
    return ComparisonFolder(store.root).read(name)


def on_panel(figure: Any, panel: int, entry: str, *, band: bool = False) -> list[Any]:
    axis = "x" if panel == 1 else f"x{panel}"
    traces = [trace for trace in figure.data if trace.xaxis == axis and trace.legendgroup == entry]
    return [trace for trace in traces if (getattr(trace, "fill", None) == "toself") == band]


def texts(figure: Any) -> list[str]:
    return [note.text for note in figure.layout.annotations]


def test_bars_reach_as_far_up_and_down_as_edges_come_and_go(results: Store) -> None:
    figure = drawings(plot_turnover, results)[f"turnover_{MODEL}"].figure
    rows = table(results, "turnover").query("task == 'ioi' and at == 'faithfulness'")
    assert rows[["born", "returned", "left", "died"]].to_numpy().sum(axis=0).min() > 0
    for name, (entry, _, sign) in PARTS.items():
        (bars,) = on_panel(figure, 1, entry)
        assert list(bars.y) == (sign * rows[name]).tolist()
        assert list(bars.x) == list(range(len(STEPS)))
    (size,) = on_panel(figure, 1, SIZE)
    assert list(size.y) == rows["n_edges"].tolist()
    # The stacks end at all that come and at all that go.
    (top,), (bottom,) = on_panel(figure, 1, "returned"), on_panel(figure, 1, "left for a while")
    assert list(np.add(top.base, top.y)) == (rows["born"] + rows["returned"]).tolist()
    assert list(np.add(bottom.base, bottom.y)) == (-rows["died"] - rows["left"]).tolist()


def test_every_edge_is_a_line_from_birth_to_last_checkpoint(results: Store) -> None:
    figure = drawings(plot_turnover, results)[f"turnover_{MODEL}"].figure
    rows = table(results, "lifetimes").query("task == 'ioi' and at == 'faithfulness'")
    axis = CheckpointAxis.of(STEPS)
    for entry, own in ((LASTING, rows[rows["death_step"].isna()]), (ENDED, rows.dropna(subset="death_step"))):
        (bars,) = on_panel(figure, 3, entry)
        drawn = [
            (start + 0.5, length)
            for start, length, n in zip(bars.base, bars.x, bars.width, strict=True)
            for _ in range(int(n))
        ]
        assert sorted(drawn) == sorted((axis.place(row.birth_step), row.lifetime) for row in own.itertuples())
    heights = sorted(
        (middle - n / 2, middle + n / 2)
        for entry in (LASTING, ENDED)
        for bars in on_panel(figure, 3, entry)
        for middle, n in zip(bars.y, bars.width, strict=True)
    )
    assert [low for low, _ in heights] == [0, *(high for _, high in heights[:-1])], "lines touch and do not overlap"
    assert heights[-1][1] == len(rows)
    median = rows["median_lifetime"].iloc[0]
    told = "more than half live on at the end" if np.isnan(median) else f"median lifetime: {median:g} checkpoint"
    assert any(text.startswith(f"{len(rows)} edges; {told}") for text in texts(figure))


def test_a_task_without_a_circuit_says_so_and_sizes_can_be_chosen(results: Store) -> None:
    both = drawings(plot_turnover, results)[f"turnover_{MODEL}"].figure
    notes = [note for note in both.layout.annotations if note.text == "no circuit has an edge at any checkpoint"]
    assert [note.xref for note in notes] == ["x2 domain", "x4 domain"]
    # Without a trace a panel has no axes, and its note would go to another.
    assert {"x2", "x4"} <= {trace.xaxis for trace in both.data}
    fixed = drawings(plot_turnover, results, at="size")[f"turnover_{MODEL}"].figure
    assert "no circuit has an edge at any checkpoint" not in texts(fixed)
    assert "fixed size" in fixed.layout.yaxis.title.text


def test_one_checkpoint_of_one_task_can_be_drawn(results: Store) -> None:
    turnover = table(results, "turnover").query("task == 'ioi' and step == 4000")
    lives = table(results, "lifetimes").query("task == 'ioi' and birth_step == 4000")
    figure = plot_turnover.draw_turnover(turnover, lives, MODEL).figure
    assert list(figure.layout.xaxis.ticktext) == ["4,000"]
    assert list(on_panel(figure, 1, "born")[0].y) == turnover.query("at == 'faithfulness'")["born"].tolist()


@pytest.mark.parametrize(("n", "most"), [(1, 6), (6, 6), (7, 6), (40, 10), (154, 14)])
def test_labels_of_checkpoints_are_at_equal_distances_and_end_at_the_last(n: int, most: int) -> None:
    figure = go.Figure()
    CheckpointAxis.of(range(n)).apply(figure, most)
    places = list(figure.layout.xaxis.tickvals)
    assert places[-1] == n - 1
    assert 1 <= len(places) <= most
    assert len(set(np.diff(places))) <= 1


def test_cells_of_the_order_are_the_shares_of_the_table_in_order_of_emergence(results: Store) -> None:
    figure = drawings(plot_order, results)[f"order_{MODEL}"].figure
    order, emergence = table(results, "order"), table(results, "emergence")
    curves = plot_order.ordered(order, emergence)
    assert curves == sorted(EMERGED, key=EMERGED.__getitem__)
    z = np.array(figure.data[0].z, dtype=float)
    assert np.isnan(z.diagonal()).all()
    for row in order.itertuples():
        i, j = curves.index(row.first), curves.index(row.second)
        assert (z[i, j], z[j, i]) == (row.share_before, row.share_after)
        assert figure.data[0].customdata[i][j][2] == figure.data[0].customdata[j][i][2] == row.share_same
    assert figure.layout.yaxis.ticktext[0].startswith("IOI: circuit like the reference")


def test_segments_change_where_the_table_of_hand_overs_says(results: Store) -> None:
    heads = results.read_tables("ioi_consistency_heads", MODEL).assign(effect_se=0.01)
    axis = CheckpointAxis.of(RESULT_STEPS)
    found = [
        (role, axis.steps[one.last], axis.steps[other.first], one.head, other.head)
        for role in sorted(set(heads["role"].dropna()) - {""})
        for held in [plot_handovers.segments(heads, role, axis)]
        for one, other in pairwise(held)
        if one.head != other.head
    ]
    columns = ["role", "after_step", "step", "from_head", "to_head"]
    assert found
    assert found == list(handovers(heads, 0, 10)[columns].itertuples(index=False, name=None))


def test_a_gap_in_holding_a_role_ends_a_segment() -> None:
    rows = [(step, "induction", 1, 2, -0.5, step != 8) for step in (0, 1, 8, 64)]
    heads = pd.DataFrame(rows, columns=["step", "role", "layer", "head", "effect", "passes"])
    held = plot_handovers.segments(heads, "induction", CheckpointAxis.of(heads["step"]))
    assert [(one.first, one.last) for one in held] == [(0, 1), (3, 3)]


def test_hand_overs_are_marked_with_their_share_and_filled_if_sure(results: Store) -> None:
    figure = drawings(plot_handovers, results)[f"handovers_{MODEL}"].figure
    marks = [trace for trace in figure.data if trace.name == "hand-over"]
    rows = table(results, "handovers")
    assert sorted(mark.customdata[0][4] for mark in marks) == sorted(f"{share:.0%}" for share in rows["share"])
    symbols = {mark.customdata[0][4]: mark.marker.symbol[0] for mark in marks}
    assert symbols == {"97%": "triangle-down", "60%": "triangle-down-open"}
    middle = (RESULT_STEPS.index(512) + RESULT_STEPS.index(4000)) / 2
    assert {mark.x[0] for mark in marks} == {middle}
    assert {"a3.h1", "a3.h4", "60%", "97%"} <= set(texts(figure))
    assert sum(text.startswith("no head holds it") for text in texts(figure)) == 2


def test_a_reason_of_early_checkpoints_does_not_stand_for_the_last() -> None:
    level = pd.DataFrame({"step": [450, 600, 600], "reason": ["no circuit: task not learned", None, None]})
    assert why_none(level) == "no head holds it"
    assert why_none(level[:1]) == "no head holds it: no circuit: task not learned"


def controls_figure(results: Store) -> Any:
    return drawings(plot_controls, results)[f"controls_{MODEL}"].figure


def test_controls_are_the_circuit_over_the_range_of_the_random_ones(results: Store) -> None:
    figure = controls_figure(results)
    rows = results.read_tables("controls", MODEL, "ioi").sort_values("step")
    for panel, own, others in ((1, "circuit", "random"), (3, "without_circuit", "without_random")):
        (line,) = on_panel(figure, panel, CIRCUIT)
        drawn = [value for value in line.y if value == value]
        assert drawn == rows.loc[rows["control"] == own, "faithfulness"].tolist()
        grouped = rows[rows["control"] == others].groupby("step")["faithfulness"]
        (median,), (band,) = on_panel(figure, panel, RANDOM_ENTRY), on_panel(figure, panel, RANDOM_ENTRY, band=True)
        assert [value for value in median.y if value == value] == pytest.approx(grouped.median().tolist())
        assert list(band.y) == pytest.approx([*grouped.max(), *grouped.min()[::-1]])
    (beats,) = {text for step, _, text in on_panel(figure, 3, CIRCUIT)[0].customdata if step == RESULT_STEPS[-1]}
    assert beats == "5 of 5 random circuits"


def test_a_ring_marks_the_circuit_that_a_random_one_beats(results: Store) -> None:
    figure = controls_figure(results)
    (ring,) = on_panel(figure, 1, RING)
    assert [list(row) for row in ring.customdata] == [[RESULT_STEPS[-1], "4 of 5 random circuits"]]
    assert not on_panel(figure, 3, RING)


def test_stability_is_summarised_over_the_edges_of_each_circuit(results: Store) -> None:
    figure = controls_figure(results)
    grouped = results.read_tables("graphs", MODEL, "ioi").groupby("step")["stability"]
    (median,), (share,) = on_panel(figure, 5, STABILITY), on_panel(figure, 5, STABLE_ENTRY)
    assert [value for value in median.y if value == value] == pytest.approx(grouped.median().tolist())
    stable = grouped.agg(lambda values: np.mean(values >= 0.9))
    assert [value for value in share.y if value == value] == pytest.approx(stable.tolist())
    (included,) = on_panel(figure, 5, INCLUSION)
    inclusion = results.read_tables("graphs", MODEL, "ioi").groupby("step")["inclusion"].mean()
    assert [value for value in included.y if value == value] == pytest.approx(inclusion.tolist())


def test_prompts_have_their_spread_and_those_of_ioi_their_kinds(results: Store) -> None:
    figure = controls_figure(results)
    prompts = results.read_tables("prompt_groups", MODEL, "ioi").sort_values("step")
    (its,) = on_panel(figure, 7, ITS)
    everyone = prompts[prompts["group"] == "all"]
    assert [value for value in its.y if value == value] == everyone["circuit_median"].dropna().tolist()
    for kind, faithful in (("ABBA", 0.9), ("BABA", 0.75)):
        entry = GROUP.format(kind)
        (line,), (band,) = on_panel(figure, 9, entry), on_panel(figure, 9, entry, band=True)
        n = int((prompts["group"] == kind).sum() - prompts.loc[prompts["group"] == kind, "faithfulness"].isna().sum())
        assert [value for value in line.y if value == value] == [faithful] * n
        assert list(band.y) == pytest.approx([faithful + 0.05] * n + [faithful - 0.05] * n)
    assert not [trace for trace in figure.data if trace.xaxis == "x10" and trace.name]
    assert sum("its prompts are of one kind" in text for text in texts(figure)) == 1


def test_kinds_of_prompts_that_are_too_many_to_draw_are_left_out(results: Store) -> None:
    baselines = results.read_tables("baselines", MODEL, "sva")
    prompts = results.read_tables("prompt_groups", MODEL, "sva")
    every = pd.concat([prompts.assign(group=f"kind {n}", faithfulness=0.8) for n in range(4)], ignore_index=True)
    drawn = plot_controls.control_points(baselines, None, None, pd.concat([prompts, every]))
    assert set(drawn["panel"]) == {"prompts"}
    few = every[every["group"] != "kind 0"]
    drawn = plot_controls.control_points(baselines, None, None, pd.concat([prompts, few]))
    assert set(drawn.loc[drawn["panel"] == "groups", "line"]) == {GROUP.format(f"kind {n}") for n in (1, 2, 3)}


def test_controls_that_are_not_stored_name_the_key_to_measure_them_with(results: Store) -> None:
    baselines = results.read_tables("baselines", MODEL, "ioi").assign(status="found")
    first = results.read_tables("controls", MODEL, "ioi").query("step == 512")
    points = plot_controls.control_points(baselines, first, None, None)
    missing = points[points["value"].isna()]
    assert set(missing["step"]) == set(baselines["step"]) - {512}
    assert set(missing["reason"]) == {"no random circuits are stored; measure with n_random above 0"}


def test_a_task_that_is_not_learned_says_so_where_controls_would_be(results: Store) -> None:
    baselines = results.read_tables("baselines", MODEL, TASKS[0]).assign(status="found")
    unlearned = baselines.assign(task="sva", status="task not learned")
    controls = results.read_tables("controls", MODEL, TASKS[0])
    points = plot_controls.control_points(pd.concat([baselines, unlearned]), controls, None, None)
    figure = plot_controls.draw_controls(points, MODEL, model_looks([MODEL])[MODEL]).figure
    assert sum("task not learned" in text.replace("<br>", " ") for text in texts(figure)) == 2
    one = points[(points["task"] == TASKS[0]) & (points["step"] == RESULT_STEPS[-1])]
    lone = plot_controls.draw_controls(one, MODEL, model_looks([MODEL])[MODEL]).figure
    assert list(on_panel(lone, 1, CIRCUIT)[0].y) == [0.85]


def test_of_the_lines_of_controls_only_the_grey_ones_share_their_colour() -> None:
    colours = [look.colour for look in (*plot_controls.LOOKS.values(), *plot_controls.GROUP_LOOKS)]
    # Random circuits and the whole model stand in different panels.
    assert [colour for colour in {*colours} if colours.count(colour) > 1] == [plot_controls.RANDOM]
