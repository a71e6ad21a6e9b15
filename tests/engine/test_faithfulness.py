"""Faithfulness, its intervals, and the search for the smallest circuit."""

import math

import pytest
import torch

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import (
    Baselines,
    CircuitEvaluator,
    FaithfulnessCurve,
    too_few_prompts,
)
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.statistics import quotient_interval
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


def test_the_interval_of_a_size_is_that_of_the_quotient_of_the_means() -> None:
    full, corrupted = torch.rand(20) + 1, -torch.rand(20)
    half = (full + corrupted) / 2 + 0.1 * torch.randn(20)
    curve = FaithfulnessCurve(full, corrupted, {9: full, 1: corrupted, 5: half})
    low, high = curve.intervals()
    assert (low[0], high[2]) == pytest.approx((0, 1), abs=1e-6)
    for one, expected in zip((low, high), quotient_interval(half - corrupted, full - corrupted), strict=True):
        assert one[1] == expected
    for one, expected in zip(curve.intervals(raw=True), quotient_interval(half, full), strict=True):
        assert one[1] == expected


def test_too_few_prompts_have_no_interval_but_the_number_it_takes() -> None:
    full, corrupted = torch.tensor([3.0, 1.0, 2.0]), torch.zeros(3)
    curve = FaithfulnessCurve(full, corrupted, {1: torch.tensor([2.0, 1.0, 1.5])})
    assert too_few_prompts(full, corrupted) == "too few prompts (3), 4 needed"
    assert all(end.isnan().all() for end in curve.intervals())
    assert too_few_prompts(torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.zeros(4)) == ""
    assert too_few_prompts(full[:1], corrupted[:1]) == "too few prompts (1), 3 needed"
    assert too_few_prompts(full, full) == "the metric is the same on clean and on corrupted prompts"


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
