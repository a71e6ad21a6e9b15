"""Curves of head scores, with the uncertainty that their tables hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from circuits_over_time.utils.comparison.curves import Curve, best_head_curves, head_curves, metric_curves
from circuits_over_time.utils.comparison.keys import ComparisonConfig
from circuits_over_time.utils.comparison.statistics import normal_resamples
from circuits_over_time.utils.comparison.tables import emergence_table
from circuits_over_time.utils.results.store import Store
from tests.support.synthetic_results import write

STEPS = (0, 10, 20, 30)
VALUES = (0.0, 0.1, 0.8, 0.9)


def curves(store: Store) -> dict[str, Curve]:
    return {curve.name: curve for curve in head_curves(store, "m", ComparisonConfig(results_dir=store.root))}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One head of each kind of score; the copy-suppression score is not defined at the first step."""
    store = Store(tmp_path)
    for step, value in zip(STEPS, VALUES, strict=True):
        head = pd.DataFrame({"layer": [1], "head": [2]})
        write(store, "components", "m", None, step, head.assign(score="induction", value=value, se=0.02), step)
        write(store, "successor", "m", None, step, head.assign(value=value, pairs=50), step)
        score = {"score": np.nan, "score_se": np.nan} if step == 0 else {"score": value, "score_se": 0.1}
        write(store, "cspa", "m", None, step, head.assign(**score), step)
    return store


def test_scores_of_heads_are_resampled_by_their_stored_errors(store: Store) -> None:
    curve = curves(store)["induction a1.h2"]
    assert curve.uncertainty == "standard errors"
    low, high = curve.interval()
    assert low == pytest.approx(np.array(VALUES) - 1.96 * 0.02, abs=0.005)
    assert high == pytest.approx(np.array(VALUES) + 1.96 * 0.02, abs=0.005)


def test_a_share_of_pairs_is_resampled_as_one(store: Store) -> None:
    curve = curves(store)["succession a1.h2"]
    assert curve.uncertainty == "binomial"
    assert curve.resampled is not None
    assert curve.resampled[:, 2].std() == pytest.approx(np.sqrt(0.8 * 0.2 / 50), rel=0.1)


def test_a_checkpoint_without_a_score_stays_without_one(store: Store) -> None:
    curve = curves(store)["copy_suppression a1.h2"]
    assert curve.uncertainty == "standard errors"
    assert curve.resampled is not None
    assert np.isnan(curve.resampled[:, 0]).all()
    assert curve.resampled[:, 1:].std(axis=0) == pytest.approx(0.1, rel=0.1)


def test_a_score_without_a_stored_error_is_not_resampled(store: Store) -> None:
    head = pd.DataFrame({"score": ["copy"], "layer": [0], "head": [0], "value": [50.0]})
    table = store.folder("components", "m").read_table(30)[["score", "layer", "head", "value", "se"]]
    write(store, "components", "m", None, 30, pd.concat([table, head]), 30)
    curve = curves(store)["copy a0.h0"]
    assert (curve.uncertainty, curve.resampled) == ("none", None)


def test_a_metric_of_one_prompt_is_not_resampled(store: Store) -> None:
    """With no error at all it would be sure to have emerged."""
    for step, value in zip(STEPS, VALUES, strict=True):
        of_run = {"run": "clean", "metric": "logit_diff", "value": value, "n": 1}
        for task, se in (("one", np.nan), ("many", 0.1)):
            write(store, "task_performance", "m", task, step, pd.DataFrame([of_run | {"se": se}]), step)
    many, one = metric_curves(store, "m", ComparisonConfig(results_dir=store.root))
    assert many.uncertainty == "standard errors"
    assert many.resampled is not None
    assert (one.uncertainty, one.resampled) == ("none", None)


def test_the_best_head_is_the_largest_at_each_checkpoint_with_that_heads_resamples(tmp_path: Path) -> None:
    store = Store(tmp_path)
    early, late = (0.0, 0.6, 0.4, np.nan), (0.0, 0.1, 0.8, 0.9)
    for step, *values in zip(STEPS, early, late, strict=True):
        heads = pd.DataFrame({"layer": [0, 1], "head": [3, 2], "score": "induction", "value": values})
        write(store, "components", "m", None, step, heads.assign(se=[0.1, 0.01]), step)
    heads = curves(store)
    (best,) = best_head_curves(heads.values())
    assert best.name == "best induction head"
    assert best.values.tolist() == [0.0, 0.6, 0.8, 0.9]
    assert best.steps.tolist() == list(STEPS)
    assert best.uncertainty == "standard errors"
    assert best.resampled is not None
    assert best.resampled[:, 1].tolist() == heads["induction a0.h3"].resampled[:, 1].tolist()  # type: ignore[index]
    assert best.resampled[:, 2:].tolist() == heads["induction a1.h2"].resampled[:, 2:].tolist()  # type: ignore[index]


def test_a_best_head_without_a_stored_error_is_not_resampled(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in STEPS:
        heads = pd.DataFrame({"layer": [0, 1], "head": [3, 2], "score": "induction", "value": [0.2, step / 30]})
        write(store, "components", "m", None, step, heads.assign(se=[0.1, np.nan]), step)
    (best,) = best_head_curves(curves(store).values())
    assert best.resampled is None
    assert best.uncertainty == "none"


def test_a_checkpoint_at_which_no_head_was_measured_is_one_without_effect(tmp_path: Path) -> None:
    """Before there is a circuit the table of heads has no row, and the table of levels says that it was measured."""
    store = Store(tmp_path)
    for step in STEPS:
        write(store, "ioi_consistency", "m", None, step, pd.DataFrame({"level": ["name_movers"]}), step)
        heads = pd.DataFrame(
            {"level": ["name_movers"], "layer": [1], "head": [2], "effect": [-0.9], "effect_se": [0.1]}
        )
        write(store, "ioi_consistency_heads", "m", None, step, heads.iloc[: int(step >= 20)], step)
    curve = curves(store)["effect_name_movers a1.h2"]
    assert curve.steps.tolist() == list(STEPS)
    assert curve.values.tolist() == [0.0, 0.0, 0.9, 0.9]
    table, _ = emergence_table([curve], ComparisonConfig(results_dir=tmp_path))
    assert table[["after_step", "step"]].iloc[0].tolist() == [10, 20]


def test_heads_that_stay_at_chance_do_not_emerge_however_high_chance_is(tmp_path: Path) -> None:
    store, rng = Store(tmp_path), np.random.default_rng(0)
    for step in range(0, 180, 10):
        values = 0.04 + 0.001 * rng.normal(size=16) + np.where(np.arange(16) == 0, 0.06 * (step >= 90), 0)
        heads = pd.DataFrame({"layer": 0, "head": np.arange(16), "score": "duplicate_token", "value": values})
        write(store, "components", "m", None, step, heads.assign(se=0.001, chance=0.04), step)
    config = ComparisonConfig(results_dir=tmp_path)
    table, leading = emergence_table(list(head_curves(store, "m", config)), config)
    assert table["step"].dropna().tolist() == [90]
    assert list(leading) == ["duplicate_token a0.h0"]
    # Measured from 0, all of them would be there from the first checkpoint on.
    at_zero, _ = emergence_table([replace(c, chance=0.0) for c in head_curves(store, "m", config)], config)
    assert (at_zero["step"] == 0).sum() == 15


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_curve_without_any_value_has_no_maximum(tmp_path: Path) -> None:
    """The similarity of circuits of a task that a model never learns."""
    steps = np.array(STEPS)
    curve = Curve("m", "ioi circuit similarity", "circuit", "similarity", steps, steps, np.full(4, np.nan), chance=0.1)
    table, _ = emergence_table([curve], ComparisonConfig(results_dir=tmp_path))
    assert table[["maximum", "step"]].isna().all(axis=None)
    assert table["reason"].tolist() == ["has no value at any checkpoint"]


@pytest.mark.parametrize("effects", [False, True])
def test_the_best_of_many_heads_at_chance_emerges_at_most_at_the_nominal_rate(tmp_path: Path, effects: bool) -> None:
    """The largest of 40 heads lies above chance at every checkpoint; without their number nearly all emerged."""
    config, emerged, alone = ComparisonConfig(results_dir=tmp_path), [], []
    for seed in range(60):
        signed = 0.1 * np.random.default_rng(seed).normal(size=(40, 18))
        heads = []
        for head, values in enumerate(signed):
            resampled = normal_resamples(values, np.full(18, 0.1), 100 * seed + head, 100)
            curve = Curve("m", f"s a0.h{head}", "head", "s", np.arange(18), np.arange(18), values, resampled)
            if effects:
                size, errors = np.abs(values), np.full(18, 0.1)
                curve = replace(curve, values=size, resampled=np.abs(resampled), signed_errors=errors)
            heads.append(curve)
        (best,) = best_head_curves(heads)
        emerged.append(emergence_table([best], config)[0]["step"].notna().item())
        alone.append(emergence_table([replace(best, among=1)], config)[0]["step"].notna().item())
    assert np.mean(emerged) <= 0.05
    assert np.mean(alone) > 0.5
