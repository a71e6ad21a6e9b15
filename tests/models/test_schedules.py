"""Schedules pick published steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.config.schedules import PYTHIA_STEPS, SCHEDULES, select_steps, tokens_at

TOY_STEPS = (0, 1, 2, 4, 8, 16, 32, 64, *range(100, 1501, 100))
FAMILIES = st.sets(st.integers(0, 200_000), min_size=1, max_size=60)


def test_pythia_publishes_154_steps() -> None:
    assert len(PYTHIA_STEPS) == 154
    assert PYTHIA_STEPS[:12] == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
    assert PYTHIA_STEPS[-1] == 143_000


def test_a_pythia_step_is_two_million_tokens() -> None:
    assert tokens_at(143_000) == 143_000 * 2_097_152 == 299_892_736_000
    assert tokens_at(10, tokens_per_step=64) == 640


@given(st.sampled_from(SCHEDULES), FAMILIES)
def test_every_schedule_is_sorted_unique_and_published(schedule: str, published: set[int]) -> None:
    steps = select_steps(schedule, sorted(published), "any")
    assert steps == sorted(set(steps))
    assert set(steps) <= published
    assert steps[-1] == max(published) or schedule.endswith("_study")


def test_those_of_the_study_leave_out_the_last_step_alone() -> None:
    for schedule in ("exponential", "exp_plus_detail"):
        usual, of_study = (select_steps(name, PYTHIA_STEPS, "any") for name in (schedule, f"{schedule}_study"))
        assert of_study == usual[:-1]
    assert select_steps("exponential_study", [0], "any") == [0]


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if not name.endswith("_study")])
def test_every_schedule_ends_at_the_last_step(schedule: str) -> None:
    assert select_steps(schedule, PYTHIA_STEPS, "pythia-160m")[-1] == 143_000
    assert select_steps(schedule, TOY_STEPS, "toy")[-1] == 1500


EARLY = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ("all", list(PYTHIA_STEPS)),
        ("linear", list(range(1000, 143_001, 1000))),
        ("exponential", [*EARLY, 1000, 2000, 4000, 8000, 16000, 33000, 66000, 131000, 143000]),
        (
            "exp_plus_detail",
            [*EARLY, *range(1000, 15001, 1000), *range(20000, 65001, 5000), *range(70000, 140001, 10000), 143000],
        ),
        (
            "sparse",
            [
                *(256, 512),
                *range(1000, 10000, 1000),
                *range(10000, 50000, 5000),
                *range(50000, 100000, 10000),
                *(100000, 120000, 140000, 143000),
            ],
        ),
        ("late_start_all", list(range(4000, 143_001, 1000))),
    ],
)
def test_pythia_schedules_are_those_of_the_published_runs(schedule: str, steps: list[int]) -> None:
    assert select_steps(schedule, PYTHIA_STEPS, "pythia-160m") == steps


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ("all", list(TOY_STEPS)),
        ("linear", list(range(100, 1501, 100))),
        ("exponential", [1, 2, 4, 8, 16, 32, 64, 100, 300, 500, 1000, 1500]),
        ("sparse", [32, 64, *range(100, 1001, 100), 1500]),
        ("late_start_all", list(range(400, 1501, 100))),
    ],
)
def test_schedules_follow_the_spacing_of_a_local_family(schedule: str, steps: list[int]) -> None:
    assert select_steps(schedule, TOY_STEPS, "toy") == steps


def test_a_missing_checkpoint_moves_only_itself() -> None:
    published = [step for step in PYTHIA_STEPS if step not in (4000, 100_000)]
    full = select_steps("exponential", PYTHIA_STEPS, "pythia-160m")
    assert select_steps("exponential", published, "pythia-160m") == [5000 if step == 4000 else step for step in full]
    assert select_steps("linear", published, "pythia-160m") == [s for s in published if s >= 1000]


@given(st.lists(st.sampled_from(PYTHIA_STEPS), min_size=1))
def test_a_list_is_sorted_and_each_step_taken_once(steps: list[int]) -> None:
    assert select_steps(steps, PYTHIA_STEPS, "pythia-160m") == sorted(set(steps))


@pytest.mark.parametrize(
    ("step", "nearest"), [(1500, "1000, 2000"), (3, "2, 4"), (200_000, "143000"), (142_999, "142000, 143000")]
)
def test_an_unpublished_step_names_its_neighbours(step: int, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        select_steps([1000, step], PYTHIA_STEPS, "pythia-160m")
    assert str(caught.value) == f"checkpoints: step {step} is not published for pythia-160m (nearest: {nearest})"


def test_an_unknown_schedule_gets_a_suggestion() -> None:
    with pytest.raises(UserError) as caught:
        select_steps("exponental", PYTHIA_STEPS, "pythia-160m")
    assert str(caught.value) == "checkpoints: 'exponental' is not a schedule; did you mean 'exponential'?"
