"""Draws of distinct prompts."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.tasks.sampling import draw, seeded, shuffled, unravel

GROUPS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=3)


@given(st.integers(0, 60), st.integers())
def test_shuffled_numbers_come_once_each(size, seed):
    assert sorted(shuffled(size, seeded(seed))) == list(range(size))


def test_every_order_is_equally_likely():
    counts = Counter(tuple(shuffled(3, seeded("orders", seed))) for seed in range(6000))
    assert len(counts) == 6
    assert all(abs(times - 1000) < 150 for times in counts.values())  # five standard deviations


def test_a_huge_space_is_drawn_from_at_once():
    taken = [number for _, _, number in draw("x", [[10**15]], 1000, 0)]
    assert len(set(taken)) == 1000
    assert max(taken) > 9 * 10**14


@given(GROUPS, st.integers(0, 3), st.data())
def test_draws_are_distinct_within_the_sizes_and_begin_alike(groups, seed, data):
    total = sum(map(sum, groups))
    n = data.draw(st.integers(0, total))
    if n == 0:
        with pytest.raises(UserError, match="at least 1"):
            draw("x", groups, n, seed)
        return
    drawn = draw("x", groups, n, seed)
    assert len(drawn) == len(set(drawn)) == n
    assert all(0 <= number < groups[group][stratum] for group, stratum, number in drawn)
    assert drawn == draw("x", groups, total, seed)[:n]
    with pytest.raises(UserError, match=f"x asked for, but it can make only {total}"):
        draw("x", groups, total + 1, seed)


@given(st.integers(1, 60), st.integers(0, 5))
def test_groups_take_turns_and_strata_come_equally_often(n, seed):
    drawn = draw("x", [[30] * 4, [30] * 4], n, seed)
    assert [group for group, _, _ in drawn] == [row % 2 for row in range(n)]
    for group in (0, 1):
        counts = Counter(stratum for g, stratum, _ in drawn if g == group)
        times = [counts[stratum] for stratum in range(4)]
        assert max(times) - min(times) <= 1


def test_tasks_and_seeds_have_draws_of_their_own():
    draws = {tuple(draw(task, [[1000]], 10, seed)) for task in ("a", "b") for seed in (0, 1, 2)}
    assert len(draws) == 6


def test_unravel_counts_in_mixed_radix():
    digits = [unravel(number, (2, 3, 2)) for number in range(12)]
    assert digits == [[a, b, c] for a in range(2) for b in range(3) for c in range(2)]
