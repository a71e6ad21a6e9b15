"""Circuits survive being stored: as tensors read with weights_only, as tables, as EAP-IG's JSON."""

import io
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.formats import eap_ig_json, of_eap_ig_json
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.graph import Graph

graphs = st.builds(Graph, st.integers(1, 3), st.integers(1, 3), st.booleans())


def circuit_of(graph: Graph, seed: int, size: int) -> Circuit:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(graph.n_forward, graph.n_backward, generator=generator) * graph.edge_mask
    return Circuit(graph, scores, top_n_masks(edge_order(scores, graph), graph, [min(size, graph.n_edges)])[0])


def same(one: Circuit, other: Circuit) -> bool:
    return (
        one.graph == other.graph
        and torch.equal(one.scores, other.scores)
        and torch.equal(one.in_circuit, other.in_circuit)
    )


@settings(deadline=None)
@given(graphs, st.integers(0, 10**6), st.integers(0, 60))
def test_json_round_trip_gives_the_same_circuit(graph: Graph, seed: int, size: int) -> None:
    circuit = circuit_of(graph, seed, size)
    assert same(of_eap_ig_json(json.loads(json.dumps(eap_ig_json(circuit, 16)))), circuit)


@settings(deadline=None)
@given(graphs, st.integers(0, 10**6), st.integers(0, 60))
def test_tensor_round_trip_gives_the_same_circuit(graph: Graph, seed: int, size: int) -> None:
    circuit = circuit_of(graph, seed, size)
    file = io.BytesIO()
    torch.save(circuit.to_tensors(), file)
    file.seek(0)
    assert same(Circuit.from_tensors(torch.load(file, weights_only=True)), circuit)


def test_json_has_the_keys_and_names_of_eap_ig() -> None:
    circuit = circuit_of(Graph(2, 2, True), 0, 9)
    stored = eap_ig_json(circuit, 16)
    assert set(stored) == {"cfg", "nodes", "edges"}
    assert set(stored["nodes"]) == {*circuit.graph.forward_nodes, "logits"}
    assert len(stored["edges"]) == circuit.graph.n_edges
    assert set(stored["edges"]["a0.h1->a1.h0<q>"]) == {"score", "in_graph"}
    assert sum(edge["in_graph"] for edge in stored["edges"].values()) == circuit.n_edges
    assert sum(node["in_graph"] for node in stored["nodes"].values()) == circuit.n_nodes


def test_table_lists_the_edges_of_the_circuit_strongest_first() -> None:
    circuit = circuit_of(Graph(2, 2, False), 1, 12)
    table = circuit.to_table()
    assert len(table) == circuit.n_edges
    assert table["score"].abs().is_monotonic_decreasing
    for row in table.itertuples():
        assert row.input in (("q", "k", "v") if row.target.startswith("a") else ("",))
        index = circuit.graph.edge_index(f"{row.source}->{row.target}" + (row.input and f"<{row.input}>"))
        assert circuit.in_circuit[index]
        assert circuit.scores[index] == row.score


def test_foreign_names_and_edges_are_refused() -> None:
    circuit = circuit_of(Graph(1, 2, True), 0, 5)
    tensors = circuit.to_tensors() | {"forward_nodes": ["input", "a0.h0", "m0"]}
    with pytest.raises(ValueError, match="are not those of 1 layers of 1 heads"):
        Circuit.from_tensors(tensors)
    stored = eap_ig_json(circuit, 4)
    stored["edges"]["a0.h0->m0"] = {"score": 0.0, "in_graph": False}
    with pytest.raises(ValueError, match="m0 does not read a0"):
        of_eap_ig_json(stored)
