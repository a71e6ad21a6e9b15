"""Models that have learned nothing hold no roles, whatever passes by the study's rule. `bench_roles.py` has more."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.support.untrained import simulate


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    return pd.concat([simulate(kind, range(n)) for kind, n in {"gpt_neox": 1, "llama": 1, "olmo2": 1}.items()])


def test_untrained_models_hold_no_role(found: pd.DataFrame) -> None:
    assert found["standard"].sum() == 0


def test_effects_that_are_noise_make_no_name_movers(found: pd.DataFrame) -> None:
    assert found["standard_of_noise"].sum() == 0
    assert found["study_of_noise"].sum() > 0.4 * found["n_heads"].sum()


def test_no_untrained_head_has_the_scores_of_the_third_level(found: pd.DataFrame) -> None:
    assert found["standard_scores"].sum() == 0
    assert found["study_scores"].sum() > 0.5 * found["n_heads"].sum()
    assert found["highest_over_chance"].max() < 1.4
