"""Lifetimes, change points and emergence, on hand-made histories and on curves whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq

from circuits_over_time.utils.comparison.curves import change_points
from circuits_over_time.utils.comparison.emergence import crossings, find_emergence, order_shares
from circuits_over_time.utils.comparison.lifetimes import lifetimes, median_lifetime, turnover
from circuits_over_time.utils.comparison.statistics import normal_resamples

STEPS = [0, 10, 20, 30, 40]
PRESENT = np.array(
    [  # edges: always, born late, dies, leaves and returns, never
        [1, 0, 1, 1, 0],
        [1, 0, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 0, 0],
    ],
    dtype=bool,
)


def test_births_returns_departures_and_deaths_are_counted_at_their_checkpoints() -> None:
    assert turnover(PRESENT).to_dict("list") == {
        "n_edges": [3, 2, 3, 3, 2],
        "born": [3, 0, 1, 0, 0],
        "returned": [0, 0, 1, 0, 0],
        "left": [0, 1, 0, 0, 0],
        "died": [0, 0, 1, 0, 1],
    }


def test_lifetimes_of_a_hand_made_history() -> None:
    found = lifetimes(PRESENT, STEPS)
    none = pd.NA
    expected = {
        "edge": [0, 1, 2, 3],
        "birth_after": [none, 10, none, none],
        "birth_step": [0, 20, 0, 0],
        "last_step": [40, 40, 10, 30],
        "death_step": [none, none, 20, 40],
        "lifetime": [5, 3, 2, 4],
        "n_present": [5, 3, 2, 3],
        "n_spells": [1, 1, 1, 2],
    }
    for name, values in expected.items():
        assert found[name].fillna(-1).tolist() == [-1 if value is none else value for value in values], name
    # Survivors: 3 of 4 after two checkpoints; of the two left after four, one dies.
    assert found["median_lifetime"].tolist() == [4.0] * 4


def test_median_lifetime_is_unknown_if_more_than_half_live_on() -> None:
    assert np.isnan(median_lifetime(np.array([1, 5, 5]), np.array([True, False, False])))


def test_a_step_is_a_change_point_at_its_place_and_mostly_the_only_one() -> None:
    steps = np.repeat([0.2, 0.8], [8, 12])
    found = [change_points(steps + 0.02 * np.random.default_rng(seed).normal(size=20)) for seed in range(100)]
    assert all(8 in places for places in found)
    assert np.mean([places == [8] for places in found]) >= 0.85


def test_pure_noise_rarely_has_a_change_point() -> None:
    found = [bool(change_points(np.random.default_rng(seed).normal(size=18))) for seed in range(300)]
    assert np.mean(found) <= 0.2


def test_constant_and_short_curves_have_no_change_point() -> None:
    assert change_points(np.ones(10)) == change_points(np.array([0.0, 1.0, 0.0])) == []


def test_a_single_crossing_is_no_emergence() -> None:
    curve = np.array([[0.0, 0.9, 0.1, 0.6, 0.7, 1.0]])
    assert crossings(curve, 0.5, 1).tolist() == [1]
    assert crossings(curve, 0.5, 2).tolist() == [3]
    assert crossings(curve, 0.5, 5).tolist() == [6]  # never


def test_a_gap_is_not_above_the_level_and_zero_never_emerges() -> None:
    assert crossings(np.array([[0, np.nan, 1.0, np.nan, 1.0, 1.0], [0, 0, 0, 0, 0, 0]]), 0.5, 2).tolist() == [4, 6]


def test_accuracies_count_from_guessing() -> None:
    assert crossings(np.array([[0.5, 0.6, 0.8, 1.0]]), 0.5, 2, baseline=0.5).tolist() == [2]


@pytest.mark.parametrize("place", ["anywhere", "at a checkpoint"])
def test_intervals_of_emergence_cover_the_truth(place: str) -> None:
    """Smooth curves that cross half their maximum at some time, measured with errors of 6% of it."""
    at = np.arange(17.0)
    covered = []
    for seed in range(500):
        rng = np.random.default_rng(seed)
        crossing = rng.uniform(5, 11) if place == "anywhere" else float(rng.integers(5, 12))
        truth = smooth(at, brentq(short_of_half, 0, 16, args=(crossing, at[-1])))
        values = truth + 0.06 * rng.normal(size=len(at))
        resampled = normal_resamples(values, np.full(len(at), 0.06), seed, 200)
        low, high = find_emergence(values, resampled, 0.5, 2).interval
        covered.append(low <= crossing <= high)
    assert np.mean(covered) >= 0.95


def short_of_half(middle: float, crossing: float, last: float) -> float:
    """How far a curve is at `crossing` from half of its last value."""
    return float(smooth(crossing, middle) - 0.5 * smooth(last, middle))


def smooth(at: np.ndarray | float, middle: float) -> np.ndarray:
    """A logistic curve."""
    return 1 / (1 + np.exp(-0.75 * (at - middle)))


def test_without_uncertainty_the_interval_lies_between_two_checkpoints() -> None:
    found = find_emergence(np.array([0.0, 0.2, 0.9, 1.0]), None, 0.5, 2)
    assert (found.index, found.interval, found.share) == (2, (1, 2), 1.0)


def test_order_counts_only_resamples_in_which_one_of_two_emerges() -> None:
    first, second = np.array([1, 2, 3, 5]), np.array([2, 2, 1, 5])
    assert order_shares(first, second, n=5) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert np.isnan(order_shares(np.array([5]), np.array([5]), n=5)).all()
