"""Lifetimes and emergence, on hand-made histories and on curves whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from circuits_over_time.utils.comparison.emergence import crossings, find_emergence, order_shares, plateaus
from circuits_over_time.utils.comparison.lifetimes import RedrawnLives, lifetimes, median_lifetime, turnover
from circuits_over_time.utils.comparison.statistics import normal_resamples
from tests.support.simulations import crossings_covered, median_lifetimes, noise_that_emerges, onsets_covered

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


def test_errors_of_lifetimes_are_the_spread_over_histories() -> None:
    histories = np.random.default_rng(0).random((20, 5, 12)) < np.linspace(0.02, 0.3, 12)  # [draw, checkpoint, edge]
    lives = RedrawnLives(20, 12)
    for at in range(5):
        lives.add(histories[:, at])
    of_edges, of_median = lives.errors()
    lived = np.full((20, 12), np.nan)
    medians = []
    for row, history in zip(lived, histories, strict=True):
        table = lifetimes(history, STEPS)
        row[table["edge"]] = table["lifetime"]
        medians.append(table["median_lifetime"].fillna(6).iloc[0])
    several = (~np.isnan(lived)).sum(axis=0) > 1
    np.testing.assert_allclose(of_edges[several], np.nanstd(lived[:, several], axis=0, ddof=1))
    assert np.isnan(of_edges[~several]).all()
    assert of_median == pytest.approx(np.std(medians, ddof=1))


def test_errors_of_a_median_lifetime_are_those_of_new_prompts() -> None:
    """Between them, 20 draws of the prompts of a model differ as much as the resamples of one draw say."""
    spreads = np.array([median_lifetimes(seed, 20) for seed in range(4)])
    assert 0.7 < np.mean(spreads[:, 1] / spreads[:, 0]) < 1.6


def test_a_single_crossing_is_no_emergence() -> None:
    curve = np.array([[0.0, 0.9, 0.1, 0.6, 0.7, 1.0, 1.0]])
    assert crossings(curve, 0.5, 1).tolist() == [1]
    assert crossings(curve, 0.5, 2).tolist() == [3]
    assert crossings(curve, 0.5, 5).tolist() == [7]  # never


def test_a_gap_is_not_above_the_level_and_zero_never_emerges() -> None:
    assert crossings(np.array([[0, np.nan, 1.0, np.nan, 1.0, 1.0], [0, 0, 0, 0, 0, 0]]), 0.5, 2).tolist() == [4, 6]


def test_accuracies_count_from_guessing() -> None:
    assert crossings(np.array([[0.5, 0.6, 0.8, 1.0]]), 0.5, 2, chance=0.5).tolist() == [2]


@pytest.mark.parametrize("anywhere", [True, False])
def test_intervals_of_emergence_cover_the_truth(anywhere: bool) -> None:
    """Smooth curves that cross half their maximum at some time, measured with errors of 6% of it."""
    assert crossings_covered(range(500), anywhere) >= 0.95


def test_the_plateau_is_the_largest_median_of_five_neighbours() -> None:
    values = np.random.default_rng(0).normal(size=(40, 19))
    values[:, :6][np.random.default_rng(1).random((40, 6)) < 0.3] = np.nan
    expected = pd.DataFrame(values.T).rolling(5, center=True, min_periods=1).median().max()
    assert plateaus(values) == pytest.approx(expected.to_numpy())
    # A peak of two checkpoints is none; what lasts to the end of the curve is.
    assert plateaus(np.array([[0, 0, 0, 1, 1, 0, 0, 0.0], [0, 0, 0, 0, 0, 0, 1, 1]])).tolist() == [0, 1]


@pytest.mark.parametrize("n", [18, 154])
@pytest.mark.parametrize("error", [0.05, 0.2])
def test_a_dense_plateau_does_not_delay_emergence(n: int, error: float) -> None:
    """The largest of many noisy values lies far above a plateau, which its running median does not."""
    covered, late, emerged = onsets_covered(range(60), n, error)
    assert covered >= 0.93
    assert late <= n / 30
    assert emerged == 1


CORRELATED: dict[str, dict[str, float]] = {
    "white noise": {},
    "half shared by all": {"shared": 0.5},
    "nearly all shared": {"shared": 0.95},
    "drift": {"drift": 0.8},
    "three alike": {"alike": 3},
    "five alike": {"alike": 5},
}


@pytest.mark.parametrize("n", [8, 18, 154])
@pytest.mark.parametrize("name", CORRELATED)
def test_noise_emerges_at_most_at_the_nominal_rate(n: int, name: str) -> None:
    """Half the maximum of white noise is crossed twice in a row by 37% (18 checkpoints) to 72% (154) of the curves.

    Against curves with independent errors, 9% to 71% of those with correlated ones emerged.
    """
    emerged, crossed = noise_that_emerges(range(150), n, **CORRELATED[name])
    assert emerged <= 0.07  # 5%, and two standard errors of 150 curves
    assert crossed > 0.2


@pytest.mark.parametrize("n", [8, 18])
@pytest.mark.parametrize("growth", [2.0, 0.5])
def test_noise_emerges_at_most_at_the_nominal_rate_where_errors_grow_or_shrink(n: int, growth: float) -> None:
    """With every checkpoint's error counted alike, 9% to 10% did: medians at the ends are of fewer values."""
    emerged, _ = noise_that_emerges(range(600), n, growth=growth, drift=0.95)
    assert emerged <= 0.068  # 5%, and two standard errors of 600 curves


def test_sizes_of_effects_that_are_none_do_not_emerge() -> None:
    """|effect| is above 0 whatever it is; so the test of its error has two sides."""
    for correlated in ({}, {"shared": 0.9}):
        assert noise_that_emerges(range(150), 18, sizes=True, **correlated)[0] <= 0.07


def test_a_curve_none_of_whose_values_has_an_error_has_no_p_value() -> None:
    values, unknown = np.array([0.1, 0.9]), np.full((9, 2), np.nan)
    found = find_emergence(values, values[None].repeat(9, 0), 0.5, 1, signed_errors=unknown[0])
    assert np.isnan(found.p_value)
    assert np.isnan(find_emergence(values, unknown, 0.5, 1).p_value)


def test_the_p_value_of_a_plateau_is_that_of_the_largest_of_independent_groups_of_three() -> None:
    """Errors shared by three neighbours each: the plateau of 3 m checkpoints is the largest of m, but for the ends."""
    values, errors = np.full(16, 0.25), np.full(16, 0.1)
    found = find_emergence(values, normal_resamples(values, errors, 0, 20_000), 0.5, 2)
    draws = np.random.default_rng(1).normal(scale=0.1, size=(40_000, 6)).max(axis=1)
    assert found.p_value == pytest.approx((draws >= 0.25).mean(), rel=0.1)
    of_sizes = find_emergence(values, values[None].repeat(9, 0), 0.5, 2, signed_errors=errors)
    assert of_sizes.p_value == pytest.approx(2 * found.p_value, rel=0.1)
    # One checkpoint without precision neither makes nor hides an onset.
    errors[7] = 100
    spoiled = find_emergence(values, values[None].repeat(9, 0), 0.5, 2, signed_errors=errors)
    assert spoiled.p_value == pytest.approx(of_sizes.p_value)


def test_a_curve_without_any_value_does_not_emerge() -> None:
    values = np.full(6, np.nan)
    found = find_emergence(values, values[None].repeat(9, 0), 0.5, 2)
    assert (found.index, found.p_value, found.share) == (6, 1.0, 0.0)


def test_without_uncertainty_the_interval_lies_between_two_checkpoints() -> None:
    found = find_emergence(np.array([0.0, 0.2, 0.9, 1.0]), None, 0.5, 2)
    assert (found.index, found.interval, found.share) == (2, (1, 2), 1.0)


def test_order_counts_only_resamples_in_which_one_of_two_emerges() -> None:
    first, second = np.array([1, 2, 3, 5]), np.array([2, 2, 1, 5])
    assert order_shares(first, second, n=5) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert np.isnan(order_shares(np.array([5]), np.array([5]), n=5)).all()
