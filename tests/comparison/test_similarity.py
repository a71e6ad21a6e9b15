"""Similarities and floors, against brute force on small graphs and by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edge_attribution_patching.folds import KeptFolds
from edge_attribution_patching.graph import Graph
from plotting.circuit_similarity import compare
from utils.comparison.chance import expected_added, expected_jaccard, expected_weighted_jaccard
from utils.comparison.floors import Rule, changed, noise_floor, p_value
from utils.comparison.similarity import Circuits, Edges, of_circuits, rank_correlation, similarities

GRAPH = Graph(2, 2, True)
EDGES = Edges.all_of(GRAPH)
N = len(EDGES.flat)


def circuit(held: np.ndarray, scores: np.ndarray) -> Circuits:
    return Circuits(EDGES, torch.from_numpy(held)[None], torch.from_numpy(scores)[None])


def table(side: Circuits) -> pd.DataFrame:
    names = [EDGES.names()[place] for place in side.held[0].nonzero()[:, 0].tolist()]
    rows = [(*name, float(score)) for name, score in zip(names, side.scores[0][side.held[0]], strict=True)]
    return pd.DataFrame(rows, columns=["source", "target", "score"])


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_similarities_of_many_circuits_are_those_of_their_tables(seed: int, first: float, second: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = (circuit(rng.random(N) < share, rng.normal(size=N)) for share in (first, second))
    found, expected = of_circuits(a, b), compare(table(a), table(b))
    names = {"weighted_jaccard": "weighted_edge_jaccard"}
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
    found = similarities(one, one)
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


def test_weighted_chance_floor_of_equal_scores_is_that_of_edges() -> None:
    found = expected_weighted_jaccard(np.ones(4), np.ones(4), 10, seed=0, draws=4000)
    assert found == pytest.approx(expected_jaccard(4, 4, 10), abs=0.01)


def folds(means: torch.Tensor, graph: Graph, edges: Edges) -> KeptFolds:
    return KeptFolds(graph, edges.flat, means, torch.full((len(means),), 10), 1.0)


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[float]]:
    """p-values of edge overlap in 60 trials, circuits of 20 edges, of two draws of one distribution.

    A fold's standard error is a fifth of the mean |score|.
    """
    graph = Graph(3, 3, True)
    edges = Edges.all_of(graph)
    found: dict[str, list[float]] = {"same": []}
    for trial in range(60):
        rng = np.random.default_rng(trial)
        scores = rng.normal(size=len(edges.flat)) * np.exp(1.2 * rng.normal(size=len(edges.flat)))
        for name, other in (("same", scores),):
            noise = 0.2 * np.abs(scores).mean()
            sides = [
                folds(torch.from_numpy(mean + noise * rng.normal(size=(10, len(mean)))).float(), graph, edges)
                for mean in (scores, other)
            ]
            grown = []
            for side in sides:
                mean = side.means.mean(0)[None]
                grown.append(Circuits(edges, Rule().grower(side).circuits(mean, 20), mean))
            observed = float(of_circuits(*grown)["edge_jaccard"][0])
            floors = [noise_floor(side, {"at": (20, 20)}, Rule(), trial, 100)["at/edge_jaccard"] for side in sides]
            found[name].append(p_value(observed, floors, "edge_jaccard"))
    return found


@pytest.mark.slow
def test_two_draws_of_one_distribution_are_flagged_at_most_at_the_nominal_rate(drawn: dict[str, list[float]]) -> None:
    assert np.mean(np.array(drawn["same"]) <= 0.05) <= 0.05


def test_flags_are_those_of_benjamini_and_hochberg_and_a_missing_test_is_none() -> None:
    q, flags = changed(np.array([0.01, np.nan, 0.02, 0.5]), 0.05)
    assert q == pytest.approx([0.03, np.nan, 0.03, 0.5], nan_ok=True)
    assert flags.tolist() == [True, False, True, False]
