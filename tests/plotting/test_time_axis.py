"""The training axis: where checkpoints stand and what is written beneath them."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits_over_time.plotting.parts.time_axis import TimeAxis, compact
from circuits_over_time.utils.config.schedules import PYTHIA_STEPS, tokens_at


def frame(steps: list[int] | tuple[int, ...], per_step: int = 2_097_152) -> pd.DataFrame:
    return pd.DataFrame({"step": steps, "tokens": [step * per_step for step in steps]})


@given(st.sets(st.integers(0, 200_000), min_size=2, max_size=30), st.integers(4, 12))
def test_checkpoints_stand_in_order_within_the_range_and_labels_keep_apart(steps: set[int], most: int) -> None:
    table = frame(sorted(steps))
    axis = TimeAxis.of(table)
    places = np.log10(axis.position(table["tokens"]))
    low, high = axis.range()
    assert (np.diff(places) > 0).all()
    assert low < places.min()
    assert places.max() < high
    positions, labels = axis.ticks(most)
    assert len(positions) == len(labels)
    assert labels[-1].startswith(compact(max(steps) * 2_097_152) + "<br>")
    trained = np.log10(positions[1:] if 0 in steps else positions)
    assert (np.diff(trained) >= (high - low) / most - 1e-9).all()


def test_step_0_stands_left_of_the_first_trained_checkpoint() -> None:
    table = frame(PYTHIA_STEPS)
    axis = TimeAxis.of(table)
    assert axis.position(table["tokens"]).iloc[0] <= tokens_at(1) / 2
    # The rest of the axis is to scale.
    assert axis.position(table["tokens"]).iloc[1:].tolist() == [tokens_at(step) for step in PYTHIA_STEPS[1:]]


def test_pythia_ticks_give_tokens_with_steps_below() -> None:
    _, labels = TimeAxis.of(frame(PYTHIA_STEPS)).ticks(9)
    assert labels == [
        "0<br>0",
        "2.1M<br>1",
        "21M<br>10",
        "210M<br>100",
        "2.1B<br>1,000",
        "21B<br>10,000",
        "300B<br>143,000",
    ]


def test_without_step_0_there_is_no_place_and_no_label_for_it() -> None:
    axis = TimeAxis.of(frame([1000, 2000]))
    assert axis.zero is None
    assert "0<br>0" not in axis.ticks()[1]


def test_an_untrained_checkpoint_alone_can_be_drawn() -> None:
    axis = TimeAxis.of(frame([0]))
    assert axis.ticks() == ([1.0], ["0"])
    assert axis.position(pd.Series([0])).tolist() == [1.0]


def test_models_with_different_tokens_per_step_share_tokens_and_have_no_steps_below() -> None:
    axis = TimeAxis.of(frame([0, 100, 1000]), frame([0, 100, 1000], per_step=1000))
    _, labels = axis.ticks()
    assert axis.title == "training tokens"
    assert not any("<br>" in label for label in labels)
    assert "1B" in labels


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (512, "512"),
        (999, "999"),
        (1000, "1k"),
        (143_000, "143k"),
        (2_097_152, "2.1M"),
        (299_892_736_000, "300B"),
        (999_600, "1M"),
    ],
)
def test_numbers_are_compact(number: int, text: str) -> None:
    assert compact(number) == text


def test_the_rows_of_ticks_say_what_they_count_without_moving_their_numbers() -> None:
    axis = TimeAxis.of(pd.DataFrame({"step": [0, 1, 10], "tokens": [0, 64, 640]}))
    figure = go.Figure()
    axis.apply(figure)
    first, second, *_ = figure.layout.xaxis.ticktext
    tokens, steps = first.split("<br>")
    assert (tokens.rstrip("\u00a0"), steps.rstrip("\u00a0")) == ("tokens 0", "steps 0")
    # Of Helvetica's widths, in thousandths of its size: a space has 278.
    widths = {"t": 278, "o": 556, "k": 500, "e": 556, "n": 556, "s": 500, "p": 556, " ": 278}
    for row in (tokens, steps):
        name = row.rstrip("\u00a0")[:-1]
        assert sum(widths[letter] for letter in name) == pytest.approx(278 * row.count("\u00a0"), abs=160)
    assert second == "64<br>1"
