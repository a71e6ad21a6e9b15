"""Faithfulness, its intervals, and the search for the smallest circuit."""

import math

import pytest
import torch

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import (
    Baselines,
    CircuitEvaluator,
    FaithfulnessCurve,
)
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.statistics import percentile_interval
from tests.support import eap_reference
from tests.support.random_models import HOOKED, random_model, random_pairs


def curve_of(n_prompts: int = 4) -> FaithfulnessCurve:
    """Full model at 2, corrupted run at -1."""
    return FaithfulnessCurve(torch.full((n_prompts,), 2.0), torch.full((n_prompts,), -1.0))


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


@pytest.mark.parametrize("architecture", HOOKED)
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
