"""Lifetimes and emergence, on hand-made histories and on curves whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq

from circuits_over_time.utils.comparison.emergence import crossings, find_emergence, order_shares, plateaus
from circuits_over_time.utils.comparison.lifetimes import RedrawnLives, lifetimes, median_lifetime, turnover
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
    ratios = []
    for seed in range(4):
        spread, errors = median_lifetime_spread(seed)
        ratios.append(np.mean(errors) / spread)
    assert 0.7 < np.mean(ratios) < 1.6


def median_lifetime_spread(seed: int, n: int = 20) -> tuple[float, list[float]]:
    """Circuits of the 25 strongest of 300 edges at 18 checkpoints; scores of five folds, noise of a fifth of a score.

    Returns:
        The spread of the median lifetime over n draws of the prompts, and the standard error that each draw gives.
    """
    rng = np.random.default_rng(seed)
    at_end, at_start = rng.standard_t(3, size=(2, 300))
    turned = np.linspace(0, 0.8, 18)[:, None]
    truth = (1 - turned) * at_start + 2 * turned * at_end
    medians, errors = [], []
    for _ in range(n):
        # Most of a fold's noise is the same at all checkpoints: they are measured on the same prompts.
        noise = np.sqrt(0.7) * rng.normal(size=(1, 5, 300)) + np.sqrt(0.3) * rng.normal(size=(18, 5, 300))
        folds = truth[:, None] + 0.2 * np.sqrt(5) * noise
        means = folds.mean(axis=1)
        weights = rng.multinomial(5, [0.2] * 5, size=50) / 5
        lives = RedrawnLives(50, 300)
        for mean, of_fold in zip(means, folds, strict=True):
            lives.add(strongest(mean + np.sqrt(5 / 4) * (weights @ of_fold - mean)))
        errors.append(lives.errors()[1])
        observed = lifetimes(strongest(means), list(range(18)))["median_lifetime"].fillna(19).iloc[0]
        medians.append(observed)
    return float(np.std(medians, ddof=1)), errors


def strongest(scores: np.ndarray) -> np.ndarray:
    """Which scores of each row are among its 25 largest."""
    places = np.argsort(-np.abs(scores), axis=-1)[..., :25]
    present = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(present, places, True, axis=-1)
    return present


def test_a_single_crossing_is_no_emergence() -> None:
    curve = np.array([[0.0, 0.9, 0.1, 0.6, 0.7, 1.0, 1.0]])
    assert crossings(curve, 0.5, 1).tolist() == [1]
    assert crossings(curve, 0.5, 2).tolist() == [3]
    assert crossings(curve, 0.5, 5).tolist() == [7]  # never


def test_a_gap_is_not_above_the_level_and_zero_never_emerges() -> None:
    assert crossings(np.array([[0, np.nan, 1.0, np.nan, 1.0, 1.0], [0, 0, 0, 0, 0, 0]]), 0.5, 2).tolist() == [4, 6]


def test_accuracies_count_from_guessing() -> None:
    assert crossings(np.array([[0.5, 0.6, 0.8, 1.0]]), 0.5, 2, chance=0.5).tolist() == [2]


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
    truth = 1 / (1 + np.exp(-(np.arange(n) - n / 2) / (n / 20)))
    crossing = int(crossings(truth[None], 0.5, 2)[0])
    covered, late = [], []
    for seed in range(60):
        values = truth + error * np.random.default_rng(seed).normal(size=n)
        found = find_emergence(values, normal_resamples(values, np.full(n, error), seed + 1, 200), 0.5, 2)
        low, high = found.interval
        covered.append(low <= crossing <= high)
        late.append(found.index - crossing)
    assert np.mean(covered) >= 0.93
    assert np.mean(late) <= n / 30


@pytest.mark.parametrize("n", [8, 18, 154])
def test_noise_emerges_at_most_at_the_nominal_rate(n: int) -> None:
    """Half the maximum of white noise is crossed twice in a row by 37% (18 checkpoints) to 72% (154) of the curves."""
    crossed, emerged = [], []
    for seed in range(150):
        values = 0.1 * np.random.default_rng(seed).normal(size=n)
        found = find_emergence(values, normal_resamples(values, np.full(n, 0.1), seed + 1, 200), 0.5, 2)
        crossed.append(found.index < n)
        emerged.append(found.index < n and found.p_value <= 0.05)
    assert np.mean(emerged) <= 0.07  # 5%, and two standard errors of 150 curves
    assert np.mean(crossed) > 0.2


def test_sizes_of_effects_that_are_none_do_not_emerge() -> None:
    """|effect| is above 0 whatever it is; its draws at chance are folded too."""
    emerged = []
    for seed in range(150):
        signed = 0.1 * np.random.default_rng(seed).normal(size=18)
        resampled = normal_resamples(signed, np.full(18, 0.1), seed + 1, 200)
        found = find_emergence(np.abs(signed), np.abs(resampled), 0.5, 2, at_chance=np.abs(resampled - signed))
        emerged.append(found.p_value <= 0.05)
    assert np.mean(emerged) <= 0.07


def test_without_uncertainty_the_interval_lies_between_two_checkpoints() -> None:
    found = find_emergence(np.array([0.0, 0.2, 0.9, 1.0]), None, 0.5, 2)
    assert (found.index, found.interval, found.share) == (2, (1, 2), 1.0)


def test_order_counts_only_resamples_in_which_one_of_two_emerges() -> None:
    first, second = np.array([1, 2, 3, 5]), np.array([2, 2, 1, 5])
    assert order_shares(first, second, n=5) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert np.isnan(order_shares(np.array([5]), np.array([5]), n=5)).all()
