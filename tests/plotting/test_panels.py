"""Lines over training and their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from circuits_over_time.plotting.parts import export
from circuits_over_time.plotting.parts.options import Style
from circuits_over_time.plotting.parts.panels import INTERVAL, Line, Panels
from circuits_over_time.plotting.parts.style import model_looks
from circuits_over_time.plotting.parts.time_axis import TimeAxis


def band_traces(values: list[float | None]) -> list[Any]:
    steps = [1000 * (place + 1) for place in range(len(values))]
    table = pd.DataFrame({"step": steps, "tokens": [2e6 * step for step in steps], "value": values, "se": 0.5})
    panels = Panels(1, 1, TimeAxis.of(table))
    panels.draw(Line(table, "value", "m", model_looks(["m"])["m"], error="se"), 1, 1)
    return [trace for trace in panels.done("title", "").figure.data if trace.fill == "toself"]


def test_an_interval_over_several_checkpoints_is_a_filled_band() -> None:
    (band,) = band_traces([1.0, 2.0, 3.0])
    assert band.line.width == 0
    assert len(band.x) == 6


def test_the_interval_of_a_single_checkpoint_is_a_bar_that_can_be_seen() -> None:
    (bar,) = band_traces([1.0])
    assert list(bar.y) == [1 + INTERVAL * 0.5, 1 - INTERVAL * 0.5]
    assert bar.line.width > 0
    assert len(set(bar.x)) == 1


def test_a_checkpoint_between_gaps_gets_a_bar_too() -> None:
    first, alone = band_traces([1.0, 2.0, None, 3.0, None])
    assert (first.line.width == 0, alone.line.width > 0) == (True, True)


def test_a_value_between_gaps_has_a_marker_on_a_line_without_markers() -> None:
    steps = [1000, 2000, 3000, 4000, 5000]
    table = pd.DataFrame(
        {"step": steps, "tokens": [2e6 * step for step in steps], "value": [1.0, 2.0, None, 3.0, None]}
    )
    panels = Panels(1, 1, TimeAxis.of(table))
    for rows in (table, table[:2], table[:1]):
        panels.draw(Line(rows, "value", "m", model_looks(["m"])["m"], markers=False), 1, 1)
    gaps, line, lone = panels.done("title", "").figure.data[:3]
    assert (gaps.mode, line.mode, lone.mode) == ("lines+markers", "lines", "lines+markers")
    assert (list(gaps.marker.size), list(lone.marker.size)) == ([0, 0, 0, 6, 0], [6])


def test_an_interval_with_an_open_end_is_no_band_that_stops_at_the_line() -> None:
    ends = {"low": [0.5, 1.5, 2.5], "high": [1.5, None, 3.5]}
    table = pd.DataFrame({"step": [1, 2, 3], "tokens": [2e6, 4e6, 6e6], "value": [1.0, 2.0, 3.0], **ends})
    panels = Panels(1, 1, TimeAxis.of(table))
    panels.draw(Line(table, "value", "m", model_looks(["m"])["m"], interval=("low", "high")), 1, 1)
    panels.draw(Line(table.iloc[[1]], "value", "m", model_looks(["m"])["m"], interval=("low", "high")), 1, 1)
    (band,) = [trace for trace in panels.done("title", "").figure.data if trace.fill == "toself"]
    assert list(band.y) == [1.5, 2.0, 3.5, 2.5, 2.0, 0.5]


def test_a_page_says_point_at_it_and_a_picture_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    async def keep(pictures: Any, scale: float) -> None:
        drawn.extend(figure for _, figure, _ in pictures)

    monkeypatch.setattr(export, "_write_pictures", keep)
    table = pd.DataFrame({"step": [1], "tokens": [2e6], "value": [1.0]})
    panels = Panels(1, 1, TimeAxis.of(table))
    panels.mark("no value: point at it for the reason", "x-thin")
    export.write_drawings({"one": panels.done("title", "")}, tmp_path, Style(format=("png", "html")))
    assert [trace.name for trace in drawn[0].data] == ["no value"]
    assert "no value: point at it" in (tmp_path / "one.html").read_text(encoding="utf-8")
