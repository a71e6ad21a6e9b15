"""Fold scores, bootstraps of circuits and signed selection against brute force on small graphs."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from circuits_over_time.edge_attribution_patching.circuits.search import Signed, edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.circuits.stability import (
    CircuitBootstrap,
    resampled_scores,
    sign_stable,
)
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.scores import folds as folds_module
from circuits_over_time.edge_attribution_patching.scores.folds import FoldScores, KeptFolds, assign_folds
from tests.support.simulations import edges_called, made_up_scores

graphs = st.builds(Graph, st.integers(1, 3), st.integers(1, 3), st.booleans())


def prompts_and_folds(graph: Graph, n_prompts: int, n_folds: int, seed: int) -> tuple[torch.Tensor, FoldScores]:
    """Scores of every prompt, and their folds."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(graph.n_forward, graph.n_backward, generator=generator)
    scores = (mean + torch.randn(n_prompts, *mean.shape, generator=generator)) * graph.edge_mask
    fold_of = assign_folds(n_prompts, n_folds, seed)
    sizes = fold_of.bincount()
    sums = torch.zeros(len(sizes), *mean.shape).index_add_(0, fold_of, scores)
    return scores, FoldScores(graph, sums, sizes)


@given(st.integers(1, 40), st.integers(2, 12), st.integers(0, 5))
def test_every_prompt_is_in_one_fold_and_folds_are_of_one_size(n_prompts: int, n_folds: int, seed: int) -> None:
    sizes = assign_folds(n_prompts, n_folds, seed).bincount()
    assert len(sizes) == min(n_prompts, n_folds)
    assert int(sizes.sum()) == n_prompts
    assert int(sizes.max() - sizes.min()) <= 1


def test_folds_of_one_prompt_give_the_standard_error_of_the_mean() -> None:
    scores, folds = prompts_and_folds(Graph(2, 2, True), 12, 12, seed=0)
    torch.testing.assert_close(folds.standard_error, scores.std(0) / math.sqrt(12), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(folds.scores, scores.mean(0))


def test_standard_errors_from_folds_are_right_on_average_also_for_unequal_folds() -> None:
    generator = torch.Generator().manual_seed(0)
    graph = Graph(8, 8, True)
    # Thousands of edges, each of variance 9.
    scores = 3 * torch.randn(25, graph.n_forward, graph.n_backward, generator=generator) * graph.edge_mask
    fold_of = torch.arange(25).clamp(max=9) % 4  # folds of 3, 3, 2 and 17 prompts
    sizes = fold_of.bincount()
    folds = FoldScores(graph, torch.zeros(4, *scores.shape[1:]).index_add_(0, fold_of, scores), sizes)
    mean_square = folds.standard_error[graph.edge_mask].square().mean()
    assert float(mean_square) == pytest.approx(9 / 25, rel=0.03)


def test_a_single_fold_has_no_standard_error() -> None:
    _, folds = prompts_and_folds(Graph(1, 1, True), 1, 10, seed=0)
    assert bool(folds.standard_error[folds.graph.edge_mask].isnan().all())


@pytest.mark.parametrize("size_of_scores", [1e-12, 1.0, 1e6])
def test_stored_fold_scores_average_to_the_scores(size_of_scores: float) -> None:
    graph = Graph(3, 4, False)
    _, folds = prompts_and_folds(graph, 33, 10, seed=1)
    folds = FoldScores(graph, folds.sums * size_of_scores, folds.sizes)
    kept = folds.keep(edge_order(folds.scores, graph), 20)
    stored = kept.to_tensors()
    assert stored["fold_scores"].dtype == torch.float16
    assert stored["fold_scores"].shape == (10, graph.n_edges)
    assert stored["fold_edges"].dtype == torch.int32
    assert stored["fold_edges"].tolist() == graph.edge_mask.flatten().nonzero()[:, 0].tolist()
    read = KeptFolds.from_tensors(stored, graph)
    assert torch.equal(read.means, kept.means)
    mean = (read.means * read.sizes[:, None]).sum(0) / 33
    expected = folds.scores.flatten()[read.edges]
    largest = read.means.abs().max(0).values
    assert bool(((mean - expected).abs() <= 6e-4 * largest).all())


def test_a_large_graph_keeps_the_edges_of_its_circuits_and_those_that_could_join(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(folds_module, "KEEP_ALL", 60)
    monkeypatch.setattr(folds_module, "KEEP_MOST", 100)
    graph = Graph(4, 4, True)
    _, folds = prompts_and_folds(graph, 30, 10, seed=2)
    order = edge_order(folds.scores, graph)
    for largest, n_kept in ((5, 60), (20, 80), (400, 100)):
        kept = folds.keep(order, largest)
        assert len(kept.edges) == n_kept
        assert bool(graph.edge_mask.flatten()[kept.edges].all())
        edges = set(kept.edges.tolist())
        first = order[: n_kept // 2]
        assert {u * graph.n_backward + v for u, v in first.tolist()} <= edges
        reach = (folds.scores.abs() + 1.96 * folds.standard_error).flatten()
        left_out = [edge for edge in graph.edge_mask.flatten().nonzero()[:, 0].tolist() if edge not in edges]
        added = [e for e in edges if e not in {u * graph.n_backward + v for u, v in first.tolist()}]
        assert min(reach[added]) >= max(reach[left_out])


@settings(max_examples=25)
@given(graphs, st.integers(0, 100), st.sampled_from(["greedy", "top_n"]), st.sampled_from(["absolute", "signed"]))
def test_stability_is_the_share_of_resampled_circuits_with_the_edge(
    graph: Graph, seed: int, order: str, selection: str
) -> None:
    _, folds = prompts_and_folds(graph, 11, 4, seed)
    kept = folds.keep(edge_order(folds.scores, graph), 0)
    size, resamples = min(5, graph.n_edges), 30
    bootstrap = CircuitBootstrap(kept, order, selection, 0.7, seed=9)
    stability = bootstrap.stability(size, seed=3, resamples=resamples)
    stable = torch.zeros(graph.n_forward * graph.n_backward, dtype=torch.bool)
    stable[kept.edges] = sign_stable(kept, seed=9)
    signed = Signed(stable.view_as(graph.edge_mask), 0.7) if selection == "signed" else None
    # The draws of `Bootstrap`, one by one.
    draws = torch.randint(0, 4, (resamples, 4), generator=torch.Generator().manual_seed(3))
    count = torch.zeros_like(stability)
    for drawn in draws.tolist():
        total = sum(kept.means[fold].double() * int(kept.sizes[fold]) for fold in drawn)
        scores = torch.zeros(graph.n_forward * graph.n_backward)
        scores[kept.edges] = (total / sum(int(kept.sizes[fold]) for fold in drawn)).float()
        scores = scores.view_as(stability)
        count += top_n_masks(edge_order(scores, graph, order, signed=signed), graph, [size])[0]
    torch.testing.assert_close(stability, count / resamples)


def test_edges_that_every_prompt_ranks_first_are_stable_and_coin_flips_are_not() -> None:
    graph = Graph(1, 1, True)
    means = torch.zeros(10, graph.n_forward, graph.n_backward)
    means[:, 0, graph.logits] = 1.0
    folds = FoldScores(graph, means * 3, torch.full((10,), 3))
    kept = folds.keep(edge_order(folds.scores, graph), 0)
    assert float(CircuitBootstrap(kept).stability(1, seed=0)[0, graph.logits]) == 1.0
    means[:5, 0, graph.mlp_input(0)] = 4.0
    means[5:, 0, graph.mlp_input(0)] = -4.0
    means[:, graph.mlp(0), graph.logits] = 0.9
    folds = FoldScores(graph, means * 3, torch.full((10,), 3))
    kept = folds.keep(edge_order(folds.scores, graph), 0)
    stable = torch.zeros(graph.n_forward * graph.n_backward, dtype=torch.bool)
    stable[kept.edges] = sign_stable(kept, seed=0)
    assert not bool(stable[graph.mlp_input(0)])
    assert bool(stable.view_as(graph.edge_mask)[0, graph.logits])


@given(graphs, st.integers(0, 1000), st.floats(0, 1))
def test_signed_selection_puts_stable_signs_first_and_keeps_up_its_positive_share(
    graph: Graph, seed: int, share: float
) -> None:
    """Against a naive loop over the edges within reach."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-4, 5, (graph.n_forward, graph.n_backward), generator=generator) / 7
    stable = torch.rand(scores.shape, generator=generator) < 0.6
    order = edge_order(scores, graph, signed=Signed(stable, share)).tolist()
    joined, left, expected = {graph.n_forward}, graph.edge_mask.nonzero().tolist(), []
    n_positive = 0
    while True:
        reach = [(u, v) for u, v in left if int(graph.forward_of_backward[v]) in joined]
        if not reach:
            break
        positive = [(u, v) for u, v in reach if stable[u, v] and scores[u, v] > 0]
        pool = positive if positive and n_positive < share * (len(expected) + 1) else reach
        best = min(pool, key=lambda e: (not stable[e], -abs(float(scores[e])), e[0] * graph.n_backward + e[1]))
        expected.append(list(best))
        n_positive += bool(stable[best] and scores[best] > 0)
        joined.add(best[0])
        left.remove(list(best))
    assert order == expected


def test_resampled_scores_of_unequal_folds_weight_by_prompts() -> None:
    graph = Graph(1, 1, True)
    edges = graph.edge_mask.flatten().nonzero()[:, 0]
    means = torch.tensor([[1.0], [5.0]]).expand(2, len(edges))
    kept = KeptFolds.rounded(graph, edges, means, torch.tensor([3, 1]))
    values = sorted({round(float(value), 4) for value in resampled_scores(kept, seed=0, resamples=50)[:, 0]})
    assert values == [1.0, 2.0, 5.0]
    parts = torch.cat([resampled_scores(kept, 0, 50, part) for part in (slice(0, 20), slice(20, 50))])
    np.testing.assert_array_equal(parts, resampled_scores(kept, 0, 50))


@pytest.mark.parametrize("skew", ["normal", "lognormal"])
def test_few_edges_of_small_q_value_have_no_effect_and_strong_ones_are_found(skew: str) -> None:
    """A tenth of the edges has an effect, and folds differ by a prompt. Student's t calls 5% and 19% wrongly."""
    graph = Graph(4, 4, parallel=True)
    wrong, found, covered = edges_called(made_up_scores(skew, graph), graph, 0.9, 57, 12)
    assert 0 < wrong <= 0.03
    assert found > 0.99
    assert covered >= 0.9


def test_q_values_are_missing_where_there_is_no_edge() -> None:
    graph = Graph(4, 4, parallel=True)
    _, folds = prompts_and_folds(graph, 57, 10, seed=0)
    assert torch.equal(folds.q_values.isnan(), ~graph.edge_mask)


def test_edges_are_tested_against_all_resamples_of_all_edges() -> None:
    """Of three folds there are 27 resamples. In three of them all folds are the same, and the ratio is infinite."""
    graph = Graph(2, 2, parallel=False)
    means = torch.randn(3, *graph.edge_mask.shape, generator=torch.Generator().manual_seed(0)) * graph.edge_mask
    folds = FoldScores(graph, means * 3, torch.full((3,), 3))
    of_edges = means[:, graph.edge_mask].double().numpy()
    drawn = (of_edges - of_edges.mean(axis=0))[list(itertools.product(range(3), repeat=3))]  # [resample, fold, edge]
    errors = drawn.std(axis=1, ddof=1) / np.sqrt(3)
    by_chance = np.where(errors < 1e-9, np.inf, np.abs(drawn.mean(axis=1)) / errors.clip(1e-9))
    ratios = np.abs(stats.ttest_1samp(of_edges, 0).statistic)
    expected = stats.false_discovery_control([(by_chance >= ratio).mean() for ratio in ratios])
    assert folds.q_values[graph.edge_mask].tolist() == pytest.approx(expected.tolist(), abs=0.02)
    assert FoldScores(graph, means[:1], torch.tensor([3])).q_values.isnan().all()
