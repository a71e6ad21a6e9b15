"""Similarities and floors, against brute force on small graphs and by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from circuits_over_time.edge_attribution_patching.choices import Order, Selection
from circuits_over_time.edge_attribution_patching.circuits.search import Signed, edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.plotting.parts.circuit_similarity import compare
from circuits_over_time.utils.base.multiple_tests import adjusted_p_values
from circuits_over_time.utils.comparison.chance import expected_added, expected_jaccard, expected_weighted_jaccard
from circuits_over_time.utils.comparison.floors import (
    SelectionRule,
    bootstrap_scores,
    change_test,
    noise_floor,
    p_value,
)
from circuits_over_time.utils.comparison.similarity import Circuits, Edges, of_circuits, rank_correlation
from tests.support.simulations import changes_found, folds_of

GRAPH = Graph(2, 2, True)
EDGES = Edges.all_of(GRAPH)
N = len(EDGES.flat)


def circuit(held: np.ndarray, scores: np.ndarray) -> Circuits:
    return Circuits(EDGES, torch.from_numpy(held)[None], torch.from_numpy(scores)[None])


def table(side: Circuits) -> pd.DataFrame:
    names = [EDGES.names()[place] for place in side.masks[0].nonzero()[:, 0].tolist()]
    rows = [(*name, float(score)) for name, score in zip(names, side.scores[0][side.masks[0]], strict=True)]
    return pd.DataFrame(rows, columns=["source", "target", "score"])


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_similarities_of_many_circuits_are_those_of_their_tables(seed: int, first: float, second: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = (circuit(rng.random(N) < share, rng.normal(size=N)) for share in (first, second))
    found, expected = of_circuits(a, b), compare(table(a), table(b))
    names = {"weighted_jaccard": "weighted_edge_jaccard"}
    low, high = (np.sum(of(*(abs(side.scores * side.masks).numpy() for side in (a, b)))) for of in (np.fmin, np.fmax))
    of_tables = compare(table(a), table(b), raw=True)["weighted_edge_jaccard"]
    for raw in (of_tables, of_circuits(a, b, raw=True)["weighted_jaccard"][0]):
        assert raw == pytest.approx(low / high if high else np.nan, nan_ok=True)
    for measure in ("node_jaccard", "edge_jaccard", "weighted_jaccard", "edges_added", "edges_removed"):
        assert found[measure][0] == pytest.approx(expected[names.get(measure, measure)], nan_ok=True), measure
    heads = [
        {node.partition("<")[0] for pair in table(side).iloc[:, :2].to_numpy() for node in pair} for side in (a, b)
    ]
    heads = [{node for node in nodes if node.startswith("a")} for nodes in heads]
    union = heads[0] | heads[1]
    assert found["head_jaccard"][0] == pytest.approx(
        len(heads[0] & heads[1]) / len(union) if union else np.nan, nan_ok=True
    )


def test_a_circuit_is_the_same_as_itself() -> None:
    rng = np.random.default_rng(0)
    one = circuit(rng.random(N) < 0.3, rng.normal(size=N))
    found = of_circuits(one, one) | {"rank_correlation": rank_correlation(one.scores, one.scores)}
    assert {name: float(values[0]) for name, values in found.items()} == pytest.approx(
        dict.fromkeys(found, 1.0) | {"edges_added": 0, "edges_removed": 0}
    )


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (2, 20)).astype(float), rng.normal(size=(2, 20))
    found = rank_correlation(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx([stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])


@pytest.mark.parametrize(
    ("first", "second", "total", "always"), [(2, 3, 6, 0), (1, 1, 4, 0), (0, 2, 4, 0), (3, 4, 7, 2)]
)
def test_chance_floors_are_means_over_all_circuits(first: int, second: int, total: int, always: int) -> None:
    rest = range(always, total)
    fixed = set(range(always))
    draws = [
        (fixed | set(a), fixed | set(b))
        for a in itertools.combinations(rest, first - always)
        for b in itertools.combinations(rest, second - always)
    ]
    mean = np.mean([len(a & b) / len(a | b) for a, b in draws])
    assert expected_jaccard(first, second, total, always) == pytest.approx(mean)
    if not always:
        assert expected_added(first, second, total) == pytest.approx(np.mean([len(b - a) for a, b in draws]))


def test_raw_chance_floor_of_a_circuit_of_larger_scores_is_the_overlap_over_the_larger_sum() -> None:
    """Of k edges in common 2 k / (8 * 4 + 2 * (4 - k)), with k hypergeometric."""
    found = expected_weighted_jaccard(2 * np.ones(4), -8 * np.ones(4), 10, seed=0, draws=4000, raw=True)
    exact = sum(stats.hypergeom(10, 4, 4).pmf(k) * 2 * k / (32 + 2 * (4 - k)) for k in range(5))
    assert found == pytest.approx(exact, abs=0.003)


def test_weighted_chance_floor_of_equal_scores_is_that_of_edges() -> None:
    found = expected_weighted_jaccard(np.ones(4), np.ones(4), 10, seed=0, draws=4000)
    assert found == pytest.approx(expected_jaccard(4, 4, 10), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.2, 1.0])
def test_two_draws_of_one_distribution_are_flagged_at_most_at_the_nominal_rate(noise: float) -> None:
    found = changes_found(noise, 0, 60)
    assert (found <= 0.05).all(), found


@pytest.mark.slow
def test_two_draws_of_unequal_numbers_of_prompts_are_rarely_flagged() -> None:
    """One of 100 prompts, one of 10. With deviations of all folds alike, 17% to 52% were, as the measure may be."""
    found = changes_found(0.5, 0, 60, prompts=(10, 1))
    assert (found <= 0.1).all(), found


@pytest.mark.slow
def test_a_planted_change_is_found_with_the_stated_power() -> None:
    """Of about 14 edges that pruning leaves, 8 or 4 exchanged; a fold's noise a fifth of the mean |score|."""
    found = changes_found(0.2, 8, 40)
    assert found["at/edge_jaccard"] >= 0.9
    assert found["at/weighted_jaccard"] >= 0.9
    assert found["rank_correlation"] >= 0.95
    assert changes_found(0.2, 4, 40)["at/edge_jaccard"] >= 0.7


def test_a_metric_that_grows_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    means = torch.from_numpy(rng.normal(size=(10, N)) + 3 * rng.normal(size=N)).float()
    found = change_test(
        folds_of(means, GRAPH, EDGES), folds_of(8 * means, GRAPH, EDGES), {"at": (10, 10)}, SelectionRule(), 0, 99
    )
    assert found == dict.fromkeys(found, 1.0)


def test_a_metric_that_grows_changes_raw_weights_and_raw_noise_has_their_size() -> None:
    rng = np.random.default_rng(0)
    means = torch.from_numpy(0.1 * rng.normal(size=(10, N)) + 3 * rng.normal(size=N)).float()
    sides = folds_of(means, GRAPH, EDGES), folds_of(2 * means, GRAPH, EDGES)
    assert change_test(*sides, {"at": (10, 10)}, SelectionRule(), 0, 99, raw=True)["at/weighted_jaccard"] == 0.01
    floors = [noise_floor(side, {"at": (10, 10)}, SelectionRule(), 0, 100, raw=True) for side in sides]
    assert floors[0]["at/weighted_jaccard"] == pytest.approx(floors[1]["at/weighted_jaccard"], abs=1e-6)
    assert 0.9 < floors[0]["at/weighted_jaccard"].mean() < 1


def test_single_folds_have_no_p_value() -> None:
    one = folds_of(torch.ones(1, N), GRAPH, EDGES)
    assert np.isnan(list(change_test(one, one, {"at": (5, 5)}, SelectionRule(), 0, 99).values())).all()


def test_p_values_count_the_observed_circuits_and_never_break_ties() -> None:
    assert p_value(np.array([0.5, 0.4, 0.5 + 1e-12, 0.9, np.nan]), "edge_jaccard") == pytest.approx(3 / 5)
    assert p_value(np.array([4.0, 3, 4, 5]), "edges_added") == pytest.approx(3 / 4)
    assert np.isnan(p_value(np.array([np.nan, 0.5]), "edge_jaccard"))


def test_noise_floors_widen_resamples_to_the_variance_of_the_mean() -> None:
    means = torch.from_numpy(np.random.default_rng(0).normal(size=(4, N))).float()
    side = folds_of(means, GRAPH, EDGES)
    spread = bootstrap_scores(side, 0, 20_000).var(0, correction=0)
    assert spread.numpy() == pytest.approx(means.var(0).numpy() / 4, rel=0.06)


@pytest.mark.parametrize("order", ["greedy", "top_n"])
@pytest.mark.parametrize("selection", ["absolute", "signed"])
def test_circuits_are_grown_by_the_rule_of_the_stored_ones(order: Order, selection: Selection) -> None:
    """From folds without noise, resampled circuits are those of the search."""
    rng = np.random.default_rng(0)
    scores = torch.zeros(GRAPH.n_forward * GRAPH.n_backward)
    scores[EDGES.flat] = torch.from_numpy(rng.normal(size=N)).float()
    scores = scores.view(GRAPH.n_forward, GRAPH.n_backward)
    side = folds_of(scores.flatten()[EDGES.flat].repeat(3, 1), GRAPH, EDGES)
    rule = SelectionRule(order, selection, positive_share=0.9)
    signed = Signed(torch.ones_like(scores, dtype=torch.bool), 0.9) if selection == "signed" else None
    expected = top_n_masks(edge_order(scores, GRAPH, order, signed=signed), GRAPH, [25])[0]
    assert expected.any()
    found = rule.grower(side).circuits(side.means, 25)
    assert torch.equal(found, expected.flatten()[EDGES.flat].expand_as(found))
    assert noise_floor(side, {"at": (25, 25)}, rule, 0, 100)["at/edge_jaccard"].tolist() == [1.0] * 100


def test_flags_are_those_of_benjamini_and_hochberg_and_a_missing_test_is_none() -> None:
    q = adjusted_p_values(np.array([0.01, np.nan, 0.02, 0.5]))
    assert q == pytest.approx([0.03, np.nan, 0.03, 0.5], nan_ok=True)
    assert (q <= 0.05).tolist() == [True, False, True, False]
