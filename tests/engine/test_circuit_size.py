"""The search for the smallest circuit that is faithful enough."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits_over_time.edge_attribution_patching.circuits.circuit_size import SizeRule
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import FaithfulnessCurve

FULL, CORRUPTED = 2.0, -1.0
ADAPTIVE = SizeRule(0.8)
STUDY = SizeRule(0.8, "raw", "study")


def curve_of(n_prompts: int = 4) -> FaithfulnessCurve:
    return FaithfulnessCurve(torch.full((n_prompts,), FULL), torch.full((n_prompts,), CORRUPTED))


def evaluator(metric, calls: list | None = None, n_prompts: int = 4):
    """Gives every prompt of a circuit the metric of its size."""

    def evaluate(sizes):
        if calls is not None:
            calls.append(list(sizes))
        return torch.tensor([[metric(size)] * n_prompts for size in sizes])

    return evaluate


def with_faithfulness(value: float) -> float:
    """The metric that has this faithfulness under `curve_of`."""
    return CORRUPTED + value * (FULL - CORRUPTED)


@settings(deadline=None)
@given(st.integers(1, 5000), st.data())
def test_the_adaptive_search_finds_the_threshold_of_a_monotone_curve(n_edges: int, data: st.DataObject) -> None:
    first_good = data.draw(st.integers(1, n_edges))
    calls: list[list[int]] = []
    evaluate = evaluator(lambda size: with_faithfulness(0.9 if size >= first_good else 0.1), calls)
    assert ADAPTIVE.search(curve_of(), evaluate, n_edges) == first_good
    sizes = [size for call in calls for size in call]
    assert len(sizes) == len(set(sizes)), "a size was evaluated twice"
    assert len(sizes) < 60


@settings(deadline=None)
@given(st.integers(2, 400), st.integers(0, 10**6))
def test_the_adaptive_result_is_confirmed_by_its_neighbours_on_any_curve(n_edges: int, seed: int) -> None:
    noise = torch.rand(n_edges + 1, generator=torch.Generator().manual_seed(seed))
    noise[n_edges] = 1.0
    curve = curve_of()
    found = ADAPTIVE.search(curve, evaluator(lambda size: with_faithfulness(float(noise[size]))), n_edges)
    assert found is not None
    known = curve.sizes
    place = known.index(found)
    assert curve.faithfulness(found) >= 0.8
    if found < n_edges:
        assert curve.faithfulness(known[place + 1]) >= 0.8
    if place > 0:
        assert known[place - 1] == found - 1
    else:
        assert found == 1


@settings(deadline=None)
@given(st.integers(1, 3000), st.data())
def test_the_studys_search_finds_the_threshold_of_a_monotone_curve(n_edges: int, data: st.DataObject) -> None:
    first_good = data.draw(st.integers(1, n_edges))
    calls: list[list[int]] = []
    evaluate = evaluator(lambda size: 1.7 if size >= first_good else 1.5, calls)  # 0.85 and 0.75 of the model's 2
    found = STUDY.search(curve_of(), evaluate, n_edges)
    on_grid = range(25, min(1600, n_edges) + 1, 25) or [n_edges]
    assert found == (first_good if first_good <= on_grid[-1] else None)
    sizes = [size for call in calls for size in call]
    assert len(sizes) == len(set(sizes)), "a size was evaluated twice"


@settings(deadline=None)
@given(st.integers(30, 2000), st.integers(0, 10**6))
def test_the_studys_sizes_are_steps_of_25_a_bisection_and_five_either_side(n_edges: int, seed: int) -> None:
    """Against the same search written out plainly, one size at a time."""
    noise = torch.rand(n_edges + 1, generator=torch.Generator().manual_seed(seed))

    def enough(size: int) -> bool:
        return float(noise[size]) > 0.8 * FULL / 2

    expected = None
    for size in range(25, min(1600, n_edges) + 1, 25):
        if enough(size):
            low, high = size - 25, size
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if enough(middle) else (middle, high)
            around = [size for size in range(high - 5, high + 6) if 1 <= size <= n_edges]
            expected = min(size for size in around if enough(size))
            break
    curve = curve_of()
    found = STUDY.search(curve, evaluator(lambda size: 2 * float(noise[size])), n_edges)
    if expected is None:
        assert found is None
    else:
        # What the bisection passed by counts too where it is enough.
        assert found == min(size for size in curve.sizes if enough(size)) <= expected


def test_no_size_is_found_where_none_reaches_the_threshold() -> None:
    for rule in (ADAPTIVE, STUDY):
        assert rule.search(curve_of(), evaluator(lambda size: 0.5), 100) is None


def test_a_lonely_size_above_the_threshold_is_not_confirmed_and_counts_in_the_study() -> None:
    assert ADAPTIVE.select([10, 20, 30], [0.9, 0.5, 0.9], 100) is None
    assert ADAPTIVE.select([10, 20, 30], [0.9, 0.85, 0.1], 100) == 10
    assert ADAPTIVE.select([10, 20, 100], [0.1, 0.5, 0.9], 100) == 100
    assert STUDY.select([10, 20, 30], [0.1, 0.9, 0.5], 100) == 20


def test_the_raw_criterion_is_the_share_of_the_models_metric_and_has_to_be_exceeded() -> None:
    curve = curve_of()
    metrics = torch.tensor([1.5, 1.6, 1.7], dtype=torch.float64)
    curve.values.update(zip((10, 20, 30), metrics[:, None].expand(-1, 4), strict=True))
    raw = SizeRule(0.8, "raw")
    assert raw.values(curve) == pytest.approx([0.75, 0.8, 0.85])
    assert [raw.reached(value) for value in (0.75, 0.8, 0.85)] == [False, False, True]
    assert ADAPTIVE.values(curve) == pytest.approx([2.5 / 3, 2.6 / 3, 2.7 / 3])
    assert ADAPTIVE.select(curve.sizes, ADAPTIVE.values(curve), 100) == 10
    assert raw.select([*curve.sizes, 40], [*raw.values(curve), 0.9], 100) == 30
    assert raw.resampled(curve, 0)[0].tolist() == pytest.approx([0.75, 0.8, 0.85])
