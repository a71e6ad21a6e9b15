"""The search for the smallest circuit that is faithful enough."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.choices import Order
from circuits_over_time.edge_attribution_patching.circuits.circuit_size import SizeRule
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator, FaithfulnessCurve
from circuits_over_time.edge_attribution_patching.circuits.search import circuit_sizes, edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.circuits.find import circuit_prompts, evaluator_of, score_edges
from circuits_over_time.utils.circuits.keys import CircuitSettings
from circuits_over_time.utils.tasks import TASKS
from tests.support.eap_reference import logit_diff_metric
from tests.support.paths import TOY
from tests.support.random_models import random_model, random_pairs

FULL, CORRUPTED = 2.0, -1.0
ADAPTIVE = SizeRule(0.8)
STUDY = SizeRule(0.8, "raw", "study")
GIVEN = SizeRule(0.8, sizes=(5, 85, 90))
ALL = range(1, 101)
"""Every size of a graph of 100 edges is another circuit."""


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
    assert ADAPTIVE.search(curve_of(), evaluate, range(1, n_edges + 1)) == first_good
    sizes = [size for call in calls for size in call]
    assert len(sizes) == len(set(sizes)), "a size was evaluated twice"
    assert len(sizes) < 60


def assert_is_the_smallest(
    found: int | None, curve: FaithfulnessCurve, starts: Sequence[int], values: Sequence[float]
) -> None:
    """What docs/circuits.md says of the size found, against the values of all circuits, in order of `starts`."""
    enough = [value >= ADAPTIVE.threshold for value in values]
    confirmed = [one and after for one, after in pairwise([*enough, True])]
    if found is None:
        # Not even the whole graph is enough, and no two of the ladder in a row.
        assert not confirmed[-1]
        return
    place = starts.index(found)
    assert confirmed[place]
    assert place == 0 or not enough[place - 1]
    tried = {bisect_right(starts, size) - 1 for size in curve.sizes}
    assert {place, min(place + 1, len(starts) - 1)} <= tried
    assert not any(confirmed[one] for one in tried & set(range(place)) if one + 1 in tried)


@settings(deadline=None)
@given(st.integers(2, 400), st.integers(0, 10**6))
def test_the_circuit_found_reaches_the_threshold_as_does_the_next_larger_but_not_the_next_smaller_one(
    n_edges: int, seed: int
) -> None:
    """On curves of pure noise, with sizes at which pruning leaves the circuit as it is."""
    rng = np.random.default_rng(seed)
    starts = sorted({n_edges, *rng.choice(n_edges, size=rng.integers(1, n_edges), replace=False).tolist()} - {0})
    values = [*rng.random(len(starts) - 1).tolist(), 1.0]
    curve = curve_of()
    calls: list[list[int]] = []

    def faithfulness(size: int) -> float:
        circuit = bisect_right(starts, size)
        return with_faithfulness(values[circuit - 1] if circuit else 0.0)

    found = ADAPTIVE.search(curve, evaluator(faithfulness, calls), starts)
    assert_is_the_smallest(found, curve, starts, [curve.normalised(with_faithfulness(value)) for value in values])
    circuits = [bisect_right(starts, size) for call in calls for size in call]
    assert len(circuits) == len(set(circuits)), "a circuit was evaluated twice"


@pytest.mark.parametrize("order", ["greedy", "top_n"])
@pytest.mark.parametrize("seed", range(4))
def test_of_every_circuit_of_a_random_model_the_right_one_is_found(order: Order, seed: int) -> None:
    pairs = TokenPairs(*random_pairs(6, seed=seed))
    model = CircuitEvaluator(
        read_weights(random_model(n_layers=2, n_heads=2, d_model=16, seed=seed)), pairs, logit_diff_metric(97, 6, seed)
    )
    graph = model.graph
    scores = torch.randn(graph.n_forward, graph.n_backward, generator=torch.Generator().manual_seed(seed))
    assert_search_is_right(model, edge_order(scores, graph, order))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "order"), zip(TASKS, ["greedy", "top_n"] * 2, strict=True))
def test_of_every_circuit_of_the_kept_checkpoint_the_right_one_is_found(task: str, order: Order) -> None:
    handle = cot.load(TOY, step=1350)
    settings = CircuitSettings(n_prompts=6, search={"order": order}, eap={"ig_steps": 2})
    prompts = circuit_prompts(settings, TASKS[task], handle.tokenizer, handle.weights)
    scores = score_edges(handle.weights, prompts, settings).scores
    found = assert_search_is_right(
        evaluator_of(handle.weights, prompts, settings), edge_order(scores, handle.graph, order)
    )
    assert found is not None


def assert_search_is_right(model: CircuitEvaluator, order: torch.Tensor) -> int | None:
    """Against every circuit that there is, pruned one by one."""
    sizes = range(1, len(order) + 1)
    masks = top_n_masks(order, model.graph, sizes)
    starts = [size for size in sizes if masks[size - 1].sum() > (masks[size - 2].sum() if size > 1 else 0)]
    assert circuit_sizes(order, model.graph) == starts
    brute = FaithfulnessCurve(model.full, model.corrupted)
    brute.values.update(zip(starts, model(masks[[size - 1 for size in starts]]), strict=True))
    curve = FaithfulnessCurve(model.full, model.corrupted)
    # Their values, for the search too: a circuit's own differ in the last digits with those evaluated beside it.
    of_circuit = [model.corrupted, *(brute.values[start] for start in starts)]
    found = ADAPTIVE.search(curve, lambda sizes: [of_circuit[bisect_right(starts, size)] for size in sizes], starts)
    assert_is_the_smallest(found, curve, starts, ADAPTIVE.values(brute))
    return found


@settings(deadline=None)
@given(st.integers(1, 3000), st.data())
def test_the_studys_search_finds_the_threshold_of_a_monotone_curve(n_edges: int, data: st.DataObject) -> None:
    first_good = data.draw(st.integers(1, n_edges))
    calls: list[list[int]] = []
    evaluate = evaluator(lambda size: 1.7 if size >= first_good else 1.1, calls)  # 0.85 and 0.55 of the model's 2
    found = STUDY.search(curve_of(), evaluate, range(1, n_edges + 1))
    on_grid = range(25, min(1599, n_edges) + 1, 25) or [n_edges]
    assert found == (first_good if first_good <= on_grid[-1] else None)
    sizes = [size for call in calls for size in call]
    assert len(sizes) == len(set(sizes)), "a size was evaluated twice"


DIP = {25: 0.3, 50: 0.65, 62: 0.7, 68: 0.66, 80: 0.72, 86: 0.5}
LONELY = {62: 0.75, 57: 0.75, 58: 0.75, 59: 0.85}


@pytest.mark.parametrize(
    ("curve", "n_edges", "tried", "found"),
    [
        # Rising: half a step above 0.6, and all five sizes on either side of 81, which is close to the threshold.
        (lambda n: (n - 0.5) / 100, 100, [25, 50, 75, 87, 81, *range(76, 81), *range(82, 87)], 81),
        # A dip: steps of 12 and 6, then 25 and at once 12 where it falls, 6, and 25 where it is low; no value is close.
        (
            lambda n: DIP.get(n, 0.9 if n >= 100 else 0.5),
            500,
            [25, 50, 62, 68, 80, 86, 111, 98, 105, 101, 99, 100],
            100,
        ),
        # Slow: the steps shrink to 1, and no further.
        (lambda n: 0.6995 + n / 1000, 500, [25, 37, 43, *range(46, 102)], 101),
        (lambda n: 0.5, 100, [25, 50, 75, 100], None),
        (lambda n: 0.5, 5000, [*range(25, 1600, 25)], None),
        (lambda n: 0.9, 100, [25, 13, 6, 3, 1], 1),
        # A lonely size beside the middle ends the look around, and the bisection.
        (lambda n: LONELY.get(n, 0.85 if n >= 75 else 0.4), 100, [25, 50, 75, 62, 57, 58, 59], 59),
    ],
    ids=["rising", "dip", "slow", "never", "never below 1,600", "at the first size", "lonely"],
)
def test_the_study_tries_these_sizes_in_this_order(curve, n_edges: int, tried: list[int], found: int | None) -> None:
    calls: list[list[int]] = []
    evaluate = evaluator(lambda size: FULL * curve(size), calls)
    assert STUDY.search(curve_of(), evaluate, range(1, n_edges + 1)) == found
    assert [size for call in calls for size in call] == tried


def test_no_size_is_found_where_none_reaches_the_threshold() -> None:
    for rule in (ADAPTIVE, STUDY, GIVEN):
        assert rule.search(curve_of(), evaluator(lambda size: 0.5), ALL) is None


def test_a_lonely_size_above_the_threshold_is_not_confirmed_and_counts_in_the_study() -> None:
    assert ADAPTIVE.select([10, 20, 30], [0.9, 0.5, 0.9], ALL) is None
    assert ADAPTIVE.select([10, 20, 30], [0.9, 0.85, 0.1], ALL) == 10
    assert ADAPTIVE.select([10, 20, 100], [0.1, 0.5, 0.9], ALL) == 100
    assert STUDY.select([10, 20, 30], [0.1, 0.9, 0.5], ALL) == 20


def test_the_same_circuit_at_the_next_size_confirms_nothing() -> None:
    assert ADAPTIVE.select([10, 11, 12], [0.9, 0.9, 0.1], [10, 12, 100]) is None
    assert ADAPTIVE.select([10, 11, 12], [0.9, 0.9, 0.8], [10, 12, 100]) == 10
    assert ADAPTIVE.select([50, 60], [0.9, 0.9], [50]) == 50  # the whole graph


def test_of_sizes_that_are_given_the_smallest_that_reaches_the_threshold_counts_without_confirmation() -> None:
    calls: list[list[int]] = []
    curve = curve_of()
    found = GIVEN.search(curve, evaluator(lambda size: with_faithfulness(size / 100), calls), ALL)
    assert (found, calls) == (85, [[5, 85, 90]])
    assert GIVEN.select([5, 85, 90], [0.0, 0.0, 0.985], ALL) == 90


def noisy_curve(n_prompts: int, seed: int) -> tuple[FaithfulnessCurve, np.ndarray]:
    """A model of 100 edges whose circuits keep 1 - exp(-n / 20) on average; per-prompt metrics of every circuit."""
    rng = np.random.default_rng(seed)
    gap = rng.normal(3, 1, n_prompts)
    kept = 1 - np.exp(-np.arange(101) / 20)
    effects = gap * kept[:, None] + rng.normal(0, 1, n_prompts) * np.sqrt(kept * (1 - kept))[:, None]
    effects[-1] = gap
    return FaithfulnessCurve(torch.tensor(gap), torch.zeros(n_prompts, dtype=torch.float64)), effects


def test_the_interval_of_the_size_is_what_all_sizes_would_give_and_holds_the_true_size() -> None:
    """The search evaluates a part of the sizes: its ends, and the sizes of lower thresholds, are those of all."""
    true, covered, widths = 33, 0, []  # 1 - exp(-33 / 20) is the first above 0.8
    for seed in range(100):
        curve, effects = noisy_curve(60, seed)
        found = ADAPTIVE.search(curve, lambda sizes: torch.tensor(effects[list(sizes)]), ALL)  # noqa: B023
        everything, _ = noisy_curve(60, seed)
        everything.values.update(enumerate(torch.tensor(effects[1:]), start=1))
        low, high = ADAPTIVE.interval(curve, ALL)
        assert isinstance(low, int)
        assert isinstance(high, int)
        assert low <= (found or 0) <= high
        assert (low, high) == ADAPTIVE.interval(everything, ALL)
        for threshold in (0.6, 0.65, 0.7, 0.75):
            lower = SizeRule(threshold)
            assert lower.select(curve.sizes, lower.values(curve), ALL) == lower.select(
                everything.sizes, lower.values(everything), ALL
            )
        covered += low <= true <= high
        widths.append(high - low)
        assert len(curve.sizes) < 60
    assert covered >= 95
    assert np.median(widths) < 15


def test_the_raw_criterion_is_the_share_of_the_models_metric_and_has_to_be_exceeded() -> None:
    curve = curve_of()
    metrics = torch.tensor([1.5, 1.6, 1.7], dtype=torch.float64)
    curve.values.update(zip((10, 20, 30), metrics[:, None].expand(-1, 4), strict=True))
    raw = SizeRule(0.8, "raw")
    assert raw.values(curve) == pytest.approx([0.75, 0.8, 0.85])
    assert [raw.reached(value) for value in (0.75, 0.8, 0.85)] == [False, False, True]
    assert ADAPTIVE.values(curve) == pytest.approx([2.5 / 3, 2.6 / 3, 2.7 / 3])
    assert ADAPTIVE.select(curve.sizes, ADAPTIVE.values(curve), ALL) == 10
    assert raw.select([*curve.sizes, 40], [*raw.values(curve), 0.9], ALL) == 30
