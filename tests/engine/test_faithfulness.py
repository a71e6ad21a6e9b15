"""Faithfulness, its intervals, and the search for the smallest circuit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attribution_patching.faithfulness import (
    Baselines,
    CircuitEvaluator,
    FaithfulnessCurve,
    search_circuit_size,
    smallest_confirmed,
)
from edge_attribution_patching.graph import Graph
from edge_attribution_patching.pairs import TokenPairs
from edge_attribution_patching.search import edge_order
from edge_attribution_patching.statistics import percentile_interval
from edge_attribution_patching.weights import read_weights
from tests.support import eap_reference
from tests.support.random_models import ARCHITECTURES, random_model, random_pairs


def curve_of(n_prompts: int = 4) -> FaithfulnessCurve:
    """Full model at 2, corrupted run at -1."""
    return FaithfulnessCurve(torch.full((n_prompts,), 2.0), torch.full((n_prompts,), -1.0))


def evaluator(faithfulness, n_prompts: int = 4, calls: list | None = None):
    """Per-prompt metrics that have the given faithfulness under `curve_of`."""

    def evaluate(sizes):
        if calls is not None:
            calls.append(list(sizes))
        return torch.tensor([[3 * faithfulness(size) - 1] * n_prompts for size in sizes])

    return evaluate


@settings(deadline=None)
@given(st.integers(1, 5000), st.data())
def test_search_finds_the_threshold_of_a_monotone_curve(n_edges: int, data: st.DataObject) -> None:
    first_good = data.draw(st.integers(1, n_edges))
    calls: list[list[int]] = []
    curve = curve_of()
    found = search_circuit_size(
        curve, evaluator(lambda size: 0.9 if size >= first_good else 0.1, calls=calls), n_edges, 0.8
    )
    assert found == first_good
    sizes = [size for call in calls for size in call]
    assert len(sizes) == len(set(sizes)), "a size was evaluated twice"
    assert len(sizes) < 60


@settings(deadline=None)
@given(st.integers(2, 400), st.integers(0, 10**6))
def test_search_result_is_confirmed_by_its_neighbours_on_any_curve(n_edges: int, seed: int) -> None:
    noise = torch.rand(n_edges + 1, generator=torch.Generator().manual_seed(seed))
    noise[n_edges] = 1.0
    curve = curve_of()
    found = search_circuit_size(curve, evaluator(lambda size: float(noise[size])), n_edges, 0.8)
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


def test_no_size_is_found_where_none_reaches_the_threshold() -> None:
    assert search_circuit_size(curve_of(), evaluator(lambda size: 0.5), 100, 0.8) is None


def test_a_lonely_size_above_the_threshold_is_not_confirmed() -> None:
    assert smallest_confirmed([10, 20, 30], [0.9, 0.5, 0.9], 0.8, 100) is None
    assert smallest_confirmed([10, 20, 30], [0.9, 0.85, 0.1], 0.8, 100) == 10
    assert smallest_confirmed([10, 20, 100], [0.1, 0.5, 0.9], 0.8, 100) == 100


def test_faithfulness_and_its_raw_share_are_the_published_ratios() -> None:
    curve = curve_of()
    curve.values[3] = torch.full((4,), 0.5)
    assert curve.faithfulness(3) == pytest.approx((0.5 + 1) / (2 + 1))
    assert curve.raw(3) == pytest.approx(0.25)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """95% intervals of a ratio of means, over 200 samples of 60 prompts from known distributions."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for sample in range(200):
        shared = torch.randn(60, generator=generator)
        full = 3 + shared + 0.3 * torch.randn(60, generator=generator)
        corrupted = -1 + 0.5 * torch.randn(60, generator=generator)
        circuit = 2 + shared + 0.3 * torch.randn(60, generator=generator)
        curve = FaithfulnessCurve(full, corrupted, {1: circuit})
        low, high = percentile_interval(curve.resampled(sample, 400)[:, 0])
        covered += bool(low <= (2 + 1) / (3 + 1) <= high)
    assert 0.88 <= covered / 200 <= 0.99


def test_resampling_is_paired_and_seeded() -> None:
    full, corrupted = torch.rand(20) + 1, -torch.rand(20)
    curve = FaithfulnessCurve(full, corrupted, {1: full, 2: corrupted, 3: (full + corrupted) / 2})
    draws = curve.resampled(0)
    for column, expected in enumerate((1.0, 0.0, 0.5)):
        torch.testing.assert_close(draws[:, column], torch.full((1000,), expected, dtype=torch.float64))
    assert torch.equal(draws, curve.resampled(0))


def test_a_gap_within_its_noise_is_not_learned() -> None:
    generator = torch.Generator().manual_seed(0)
    corrupted = torch.randn(50, generator=generator)
    noisy = corrupted + 0.1 + torch.randn(50, generator=generator)
    assert not Baselines.of(noisy, corrupted).learned(0.01)
    assert Baselines.of(corrupted + 0.1, corrupted).learned(0.01)
    assert not Baselines.of(corrupted + 0.1, corrupted).learned(0.2)
    assert not Baselines.of(corrupted - 1, corrupted).learned(0.01)
    one = Baselines.of(torch.tensor([2.0]), torch.tensor([1.0]))
    assert one.learned(0.01)
    assert math.isnan(one.full_se)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("memory_budget_gb", [1.0, 1e-9])
def test_evaluator_gives_the_full_model_and_the_corrupted_run_at_its_ends(
    architecture: str, memory_budget_gb: float
) -> None:
    model = random_model(architecture)
    weights = read_weights(model)
    graph = Graph.of(weights)
    clean, corrupted, lengths = random_pairs(5)
    metric = eap_reference.logit_diff_metric(97, 5)
    scores = torch.randn(graph.n_forward, graph.n_backward, generator=torch.Generator().manual_seed(0))
    evaluator = CircuitEvaluator(
        weights, TokenPairs(clean, corrupted, lengths), metric, batch_size=2, memory_budget_gb=memory_budget_gb
    )
    values = evaluator.prefixes_of(edge_order(scores, graph))([graph.n_edges, 0])
    for tokens, kept, value in ((clean, evaluator.full, values[0]), (corrupted, evaluator.corrupted, values[1])):
        logits = model(tokens).logits[torch.arange(5), lengths - 1]
        expected = metric(logits, torch.arange(5))
        torch.testing.assert_close(kept, expected, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=2e-5)
