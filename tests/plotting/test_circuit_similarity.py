"""Overlap of circuits, against a second implementation by brute force and against values worked out by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits_over_time.plotting.parts.circuit_similarity import (
    compare,
    edges_of,
    nodes_of,
    similarity_over_training,
    weighted_jaccard,
)
from circuits_over_time.plotting.plot_circuit_similarity import moving_average

SOURCES = ("input", "a0.h0", "a0.h1", "m0")
TARGETS = ("a1.h0<q>", "a1.h0<v>", "m1", "logits")
ALL_EDGES = list(itertools.product(SOURCES, TARGETS))
SCORES = st.one_of(st.just(0.0), st.floats(0.01, 5), st.floats(-5, -0.01))
CIRCUITS = st.dictionaries(st.sampled_from(ALL_EDGES), SCORES)


def table(circuit: dict) -> pd.DataFrame:
    return pd.DataFrame([(*edge, score) for edge, score in circuit.items()], columns=["source", "target", "score"])


def brute_force(first: dict, second: dict) -> dict[str, float]:
    """Counts edge by edge and node by node over everything that could be in a circuit."""
    counts = dict.fromkeys(("both", "either", "added", "removed"), 0)
    low = high = 0.0
    sums = [sum(abs(score) for score in circuit.values()) or 1.0 for circuit in (first, second)]
    for edge in ALL_EDGES:
        counts["both"] += edge in first and edge in second
        counts["either"] += edge in first or edge in second
        counts["added"] += edge in second and edge not in first
        counts["removed"] += edge in first and edge not in second
        a, b = first.get(edge, 0.0) / sums[0], second.get(edge, 0.0) / sums[1]
        if a * b >= 0:
            low += min(abs(a), abs(b))
            high += max(abs(a), abs(b))
        else:
            high += abs(a) + abs(b)
    nodes = {"input", "a0.h0", "a0.h1", "m0", "a1.h0", "m1", "logits"}
    within = [
        {node for node in nodes if any(node in (s, t) or t.startswith(node + "<") for s, t in circuit)}
        for circuit in (first, second)
    ]
    shared = sum(node in within[0] and node in within[1] for node in nodes)
    present = sum(node in within[0] or node in within[1] for node in nodes)
    return {
        "node_jaccard": shared / present if present else np.nan,
        "edge_jaccard": counts["both"] / counts["either"] if counts["either"] else np.nan,
        "weighted_edge_jaccard": low / high if high else np.nan,
        "edges_added": counts["added"],
        "edges_removed": counts["removed"],
        "n_edges": len(second),
        "n_nodes": len(within[1]),
    }


@given(CIRCUITS, CIRCUITS)
def test_similarity_agrees_with_brute_force(first: dict, second: dict) -> None:
    found, expected = compare(table(first), table(second)), brute_force(first, second)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, nan_ok=True), name


@given(CIRCUITS.filter(lambda circuit: any(circuit.values())))
def test_a_circuit_is_the_same_as_itself_at_any_scale(circuit: dict) -> None:
    grown = {edge: 7.5 * score for edge, score in circuit.items()}
    found = compare(table(circuit), table(grown))
    assert [found["node_jaccard"], found["edge_jaccard"]] == [1, 1]
    assert found["weighted_edge_jaccard"] == pytest.approx(1)
    assert weighted_jaccard(circuit, grown, raw=True) == pytest.approx(1 / 7.5)


def test_an_edge_that_changes_sign_is_no_overlap() -> None:
    first, second = {("input", "m0"): 1.0, ("m0", "logits"): 1.0}, {("input", "m0"): -1.0, ("m0", "logits"): 1.0}
    assert weighted_jaccard(first, second) == pytest.approx(0.5 / 1.5)


def test_inputs_of_a_head_are_one_node() -> None:
    edges = [("input", "a3.h2<q>"), ("input", "a3.h2<k>"), ("a3.h2", "logits")]
    assert nodes_of(edges) == {"input", "a3.h2", "logits"}


def test_an_edge_that_stands_twice_is_refused() -> None:
    twice = pd.DataFrame({"source": ["input"] * 2, "target": ["m0"] * 2, "score": [1.0, 2.0]})
    with pytest.raises(ValueError, match="input->m0 is in the circuit twice"):
        edges_of(twice)


def test_circuits_are_compared_with_the_one_before() -> None:
    a, b, c = {("input", "m0"): 1.0}, {("input", "m0"): 1.0, ("m0", "logits"): 1.0}, {("m0", "logits"): 1.0}
    found = similarity_over_training({100: table(c), 1: table(a), 10: table(b)})
    assert found["step"].tolist() == [10, 100]
    assert found["edge_jaccard"].tolist() == [0.5, 0.5]
    assert found[["edges_added", "edges_removed"]].to_numpy().tolist() == [[1, 0], [0, 1]]


def test_circuits_are_compared_with_the_reference() -> None:
    circuits = {1: table({("input", "m0"): 1.0}), 10: table({("m0", "logits"): 1.0})}
    found = similarity_over_training(circuits, reference=10)
    assert found["step"].tolist() == [1, 10]
    assert found["edge_jaccard"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="no circuit at step 5; there are circuits at 1, 10"):
        similarity_over_training(circuits, reference=5)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.floats(0.01, 1))
def test_moving_average_agrees_with_its_closed_form(values: list[float], alpha: float) -> None:
    found = moving_average(pd.Series(values), alpha)
    for t in range(len(values)):
        weights = [(1 - alpha) ** t] + [alpha * (1 - alpha) ** (t - i) for i in range(1, t + 1)]
        assert found[t] == pytest.approx(sum(w * x for w, x in zip(weights, values[: t + 1], strict=True)))


def test_moving_average_starts_at_the_first_value_and_passes_over_gaps() -> None:
    found = moving_average(pd.Series([np.nan, 0.8, np.nan, 0.4], index=[3, 1, 4, 9]), 0.5)
    assert found.index.tolist() == [3, 1, 4, 9]
    assert found.tolist() == pytest.approx([np.nan, 0.8, np.nan, 0.6], nan_ok=True)
