"""Seeds, and size against scale."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from circuits_over_time.utils.comparison.curves import Curve
from circuits_over_time.utils.comparison.scale import correlations, scale_table
from circuits_over_time.utils.comparison.seeds import (
    ABRUPT,
    NOT_SHOWN,
    jump_power,
    seed_emergence,
    seed_groups,
    seeds_table,
)
from tests.support.simulations import correlations_covered

STEPS = np.arange(6)


def curves(values: dict[str, np.ndarray]) -> dict[str, list[Curve]]:
    return {
        model: [Curve(model, "curve", "metric", "curve", STEPS, 100 * STEPS, of_model)]
        for model, of_model in values.items()
    }


def shape(values: dict[str, np.ndarray]) -> str | None:
    groups = {"family": list(values)}
    emergence = pd.DataFrame(
        {"model": list(values), "curve": "curve", "step": [int((v > 0.5).argmax()) for v in values.values()]}
    )
    table = seed_emergence(emergence, seeds_table(curves(values), groups), groups, 0.05)
    found = table["shape"].iloc[0]
    return None if pd.isna(found) else str(found)


def two_groups(n: int) -> dict[str, np.ndarray]:
    """Half of the models jump a step earlier than the others."""
    noise = 1e-3 * np.random.default_rng(0).normal(size=(n, len(STEPS)))
    return {f"m-seed{i}": (2 + i % 2 <= STEPS) + noise[i] for i in range(n)}


def test_names_that_differ_in_the_seed_alone_are_one_group() -> None:
    names = ["p-70m", "p-70m-seed1", "p-70m_seed-12", "p-160m-seed1", "p-70m-data-seed3", "other"]
    assert seed_groups(names, lambda one, other: True) == {
        "p-70m": ["p-70m", "p-70m-seed1", "p-70m_seed-12", "p-70m-data-seed3"]
    }
    assert seed_groups(names, lambda one, other: one == other) == {}


def test_seeds_are_summed_up_at_every_step_that_two_have() -> None:
    values = {f"m-seed{i}": np.array([0, 1, 2, 3, 4, 5.0]) * (1 + i) for i in range(6)}
    values["m-seed5"][5] = np.nan
    table = seeds_table(curves(values), {"m": list(values)}).set_index("step")
    assert table["n_seeds"].tolist() == [6, 6, 6, 6, 6, 5]
    assert table.loc[1, ["lowest", "lower_quartile", "median", "upper_quartile", "highest"]].tolist() == [
        1,
        2.25,
        3.5,
        4.75,
        6,
    ]
    # Equal values and five seeds are not tested.
    assert table["dip_p"].isna().tolist() == [True, False, False, False, False, True]
    tested = table["dip_p"].notna()
    assert (table["dip_q"][tested] >= table["dip_p"][tested]).all()


def test_nothing_is_abrupt_with_fewer_than_six_seeds() -> None:
    assert shape(two_groups(5)) is None


def test_six_seeds_that_split_in_half_are_abrupt_and_the_power_says_how_often_they_do() -> None:
    assert shape(two_groups(6)) == ABRUPT
    # Of six, 20 of the 62 splits are three on either side; the 30 of two and four are found if nothing else is tested.
    assert jump_power(6, 10, 0.05) == pytest.approx(20 / 62)
    assert jump_power(6, 1, 0.05) == pytest.approx(50 / 62)
    assert jump_power(12, 10, 0.05) > 0.8


def test_six_alike_seeds_are_not_shown_to_be_abrupt() -> None:
    rng = np.random.default_rng(0)
    assert shape({f"m-seed{i}": STEPS + rng.normal(size=6) for i in range(6)}) == NOT_SHOWN


def test_seeds_in_two_groups_are_abrupt() -> None:
    assert shape(two_groups(12)) == ABRUPT


def test_groups_before_or_after_the_curve_emerges_are_not_abrupt() -> None:
    noise = 1e-3 * np.random.default_rng(0).normal(size=(12, len(STEPS)))
    lower = {f"m-seed{i}": np.where(STEPS < 3, 0.1 * (i % 2), 1.0) + noise[i] for i in range(12)}
    assert (seeds_table(curves(lower), {"m": list(lower)})["dip_q"] < 0.05).any()
    assert shape(lower) == NOT_SHOWN


@pytest.mark.parametrize(
    "at_the_jump", [[0, 0, 0, 1, 1, 1], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0], [0.45, 0.45, 0.5, 0.5, 0.55, 0.6]], ids=str
)
def test_models_that_tie_are_no_groups(at_the_jump: list[float]) -> None:
    """Whether there is a circuit, or a share of few prompts: six models of one distribution often agree exactly."""
    values = {f"m-seed{i}": np.array([0, 0, at, 1, 1, 1]) for i, at in enumerate(at_the_jump)}
    assert shape(values) == NOT_SHOWN


def test_counts_of_one_distribution_are_called_groups_at_most_at_the_nominal_rate() -> None:
    """Shares of 20 prompts in six models: ties in most draws. Without care for them, far more would be called so."""
    rng = np.random.default_rng(0)
    draws = rng.binomial(20, 0.5, size=(500, 6)) / 20
    tables = seeds_table(
        {
            f"m-seed{i}": [
                Curve("m", f"curve{n}", "metric", "c", STEPS[:1], STEPS[:1], draws[n, i : i + 1]) for n in range(500)
            ]
            for i in range(6)
        },
        {"m": [f"m-seed{i}" for i in range(6)]},
    )
    assert (tables["dip_p"] <= 0.05).mean() <= 0.05


@pytest.mark.parametrize("n", [4, 6])
def test_correlations_over_models_have_exact_permutation_p(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(2, n))
    for found, measure in zip(correlations(x, y), (stats.pearsonr, stats.spearmanr), strict=True):
        every = np.array([measure(x, y[list(order)]).statistic for order in itertools.permutations(range(n))])
        value = measure(x, y).statistic
        assert found.value == pytest.approx(value)
        below, above = (np.mean(sign * every <= sign * value + 1e-9) for sign in (1, -1))
        assert found.p_value == pytest.approx(min(1, 2 * min(below, above)))
        assert found.exact
        assert found.n == n


def test_two_models_have_no_correlation_and_four_no_interval() -> None:
    assert np.isnan(correlations(np.array([1.0, 2]), np.array([1.0, 2]))[0].value)
    four = correlations(np.arange(4.0), np.arange(4.0) ** 2)[0]
    assert np.isnan(four.low)
    assert np.isnan(correlations(np.arange(5.0), np.arange(5.0) ** 2)[1].low)  # Ranks have none.
    assert four.value > 0.9


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("logarithmic", [True, False])
def test_intervals_of_correlations_cover_the_truth_with_five_models(correlation: float, logarithmic: bool) -> None:
    """Over given sizes of models, as of Pythia, and normal errors. Resampled models would cover 83%."""
    assert correlations_covered(correlation, logarithmic, 200) >= 0.92


def test_scale_takes_selected_circuits_of_models_of_known_size() -> None:
    rows = [
        {
            "model": f"m{i}",
            "task": "ioi",
            "step": step,
            "selected": step < 2,
            "n_edges": 10.0 * (i + 1),
            "n_nodes": 5.0 + i,
        }
        for i in range(4)
        for step in range(3)
    ]
    table = scale_table(pd.DataFrame(rows), {"m0": 1.0, "m1": 2.0, "m2": 3.0})
    assert table["n_models"].tolist() == [3] * 4
    assert table["value"].tolist() == pytest.approx([1.0] * 4)
