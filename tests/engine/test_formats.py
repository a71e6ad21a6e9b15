"""Circuits in other programs' files: what is written can be read back, and what they wrote is understood."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, get_args

import networkx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuits_over_time.edge_attribution_patching.choices import ExportFormat
from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.formats import (
    Origin,
    export,
    first_lacking,
    names_of_edges,
    read,
)
from circuits_over_time.edge_attribution_patching.graph import Graph
from tests.engine.test_circuit import circuit_of, graphs, same
from tests.support.paths import PEER_FILES

ORIGIN = Origin("toy", "ioi", 1350, 16)
GRAPH = Graph(2, 2, True)


def written(circuit: Circuit, format: ExportFormat, folder: Path) -> Path:
    ending, data = export(circuit, format, ORIGIN)
    path = folder / f"step001350{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("format", ["eap_ig_json", "eap_ig_pt", "mib_folder"])
@given(graph=graphs, seed=st.integers(0, 10**6), size=st.integers(0, 60))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, format: ExportFormat, graph: Graph, seed: int, size: int
) -> None:
    circuit = circuit_of(graph, seed, size)
    path = written(circuit, format, tmp_path_factory.mktemp("formats"))
    assert same(read(path)[0], circuit)
    assert same(read(path.parent if format == "mib_folder" else path, graph)[0], circuit)


def test_a_mib_submission_is_as_the_benchmark_asks(tmp_path: Path) -> None:
    circuit = circuit_of(GRAPH, 0, 9)
    path = written(circuit, "mib_folder", tmp_path)
    assert (path.name, path.parent.name) == ("importances.json", "ioi_toy")
    stored = json.loads(path.read_text())
    assert stored["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": True, "d_model": 16}
    assert set(stored["nodes"]) == {*GRAPH.forward_nodes, "logits"}
    assert len(stored["edges"]) == GRAPH.n_edges
    assert all(set(edge) == {"score", "in_graph"} for edge in stored["edges"].values())
    assert sum(edge["in_graph"] for edge in stored["edges"].values()) == circuit.n_edges
    assert sum(node["in_graph"] for node in stored["nodes"].values()) == circuit.n_nodes


def test_graphml_holds_the_circuits_edges(tmp_path: Path) -> None:
    circuit = circuit_of(GRAPH, 1, 12)
    graph = networkx.read_graphml(written(circuit, "graphml", tmp_path), force_multigraph=True)
    table = circuit.to_table()
    found = {(u, v, data["input"]): data["score"] for u, v, data in graph.edges(data=True)}
    assert found == {
        (row.source, row.target, row.input): pytest.approx(row.score, rel=1e-6) for row in table.itertuples()
    }
    assert graph.graph["task"] == "ioi"


def test_circuit_tracers_links_join_its_nodes_and_add_up_a_heads_inputs(tmp_path: Path) -> None:
    circuit = circuit_of(GRAPH, 2, 14)
    stored = json.loads(written(circuit, "circuit_tracer_json", tmp_path).read_text())
    names = {node["node_id"]: node["clerp"] for node in stored["nodes"]}
    assert len(names) == len(stored["nodes"]) == circuit.n_nodes
    assert {"E", "3"} <= {node["layer"] for node in stored["nodes"]}  # The embedding, and the logits after two layers.
    expected = circuit.to_table().groupby(["source", "target"])["score"].sum().to_dict()
    found = {(names[link["source"]], names[link["target"]]): link["weight"] for link in stored["links"]}
    assert found == pytest.approx(expected, rel=1e-6)
    assert {"slug", "scan", "transcoder_list", "prompt_tokens", "prompt"} <= set(stored["metadata"])


def test_circuitkits_scores_are_of_nodes_and_their_circuit_is_all_edges_between_its_units(tmp_path: Path) -> None:
    circuit = circuit_of(GRAPH, 3, 7)
    path = written(circuit, "circuitkit_scores", tmp_path)
    assert path.name == "step001350.circuitkit_scores.json"
    stored = json.loads(path.read_text())
    u = GRAPH.forward_nodes.index("a1.h0")
    assert stored["node_scores"]["A1.0"] == pytest.approx(float((circuit.scores.abs() * GRAPH.edge_mask)[u].sum()))
    assert set(stored["node_scores"]) == {"A0.0", "A0.1", "MLP 0", "A1.0", "A1.1", "MLP 1"}
    found, _ = read(path, GRAPH)
    table = circuit.to_table()
    nodes = {*table["source"], *table["target"]}
    between = {
        name
        for name in (
            f"{GRAPH.forward_nodes[u]}->{GRAPH.backward_nodes[v]}" for u, v in GRAPH.edge_mask.nonzero().tolist()
        )
        if name.split("->")[0] in nodes | {"input"} and name.split("->")[1].split("<")[0] in nodes | {"logits"}
    }
    edges = found.in_circuit.nonzero().tolist()
    assert {f"{GRAPH.forward_nodes[u]}->{GRAPH.backward_nodes[v]}" for u, v in edges} == between
    # Without units, the top fifth of the scores.
    del stored["safety_units"]
    path.write_text(json.dumps(stored))
    top = max(stored["node_scores"], key=stored["node_scores"].get)
    kept = read(path, GRAPH)[0].to_table()
    assert {*kept["source"]} == {"input", top.replace("MLP ", "m") if "MLP" in top else f"a{top[1]}.h{top[3]}"}


def test_a_list_of_edges_names_heads_inputs_or_means_all_three(tmp_path: Path) -> None:
    path = tmp_path / "edges.csv"
    path.write_text("source,target\ninput,a0.h1\nm0,logits\n")
    table = read(path, GRAPH)[0].to_table()
    assert set(zip(table["source"], table["target"], table["input"], strict=True)) == {
        *(("input", "a0.h1", letter) for letter in "qkv"),
        ("m0", "logits", ""),
    }
    circuit = circuit_of(GRAPH, 4, 10)
    circuit.to_table().to_csv(path, index=False)
    found, _ = read(path, GRAPH)
    assert torch.equal(found.in_circuit, circuit.in_circuit)
    assert torch.allclose(found.scores, circuit.scores * circuit.in_circuit)


def wrong_files() -> list[tuple[str, Any, str]]:
    good = json.loads(export(circuit_of(GRAPH, 0, 5), "eap_ig_json", ORIGIN)[1])
    edge = "a0.h1->a1.h0<q>"
    member = next(name for name, node in good["nodes"].items() if node["in_graph"] and name != "input")

    def changed(name: str, value: Any) -> dict[str, Any]:
        return good | {"edges": good["edges"] | {name: value}}

    return [
        ("x.json", changed("a0.h1->m0", {"score": 0.0, "in_graph": False}), "a0.h1->m0: m0 does not read a0.h1"),
        ("x.json", changed("a0.h9->m1", {"score": 0.0, "in_graph": True}), "a0.h9->m1: the graph has no node 'a0.h9'"),
        ("x.json", changed(edge, {"score": None, "in_graph": True}), f"{edge}: its score None is no number"),
        ("x.json", changed(edge, {"score": 1e300, "in_graph": True}), f"{edge}: its score 1e[+]300 is no number"),
        ("x.json", changed(edge, {"score": True, "in_graph": True}), f"{edge}: its score True is no number"),
        ("x.json", {"node_scores": {"A0.0": 10**400}}, "A0.0: its score 10*0 is no number"),
        ("x.json", changed(edge, {"score": 1.0, "in_graph": "yes"}), f"{edge}: in_graph is 'yes'"),
        (
            "x.json",
            good | {"edges": {edge: good["edges"][edge] | {"in_graph": False}}},
            "1 of the graph's .* edges: input->a0.h0<q> is missing",
        ),
        ("x.json", good | {"cfg": {"n_layers": 2}}, "its cfg lacks"),
        ("x.json", good | {"cfg": good["cfg"] | {"n_heads": "2"}}, r"cfg.n_heads: '2' is no number of them"),
        ("x.json", {"cfg": good["cfg"]}, "it has no edges"),
        ("x.json", {**good, "edges": {}}, "it has no edges"),
        ("x.json", [1], "not an object"),
        ("x.json", {"node_scores": {"A7.0": 1.0}, "level": "node"}, "A7.0: the model has no such node"),
        ("x.json", {"node_scores": {"L3.42": 1.0}, "level": "neuron"}, "the level 'neuron'"),
        *(
            ("x.json", {"node_scores": {"A0.0": 1.0}, "safety_units": units}, "safety_units: its unit_ids are not")
            for units in (["A0.0"], {"unit_ids": "A0.0"}, {"unit_ids": [["A0.0"]]})
        ),
        ("x.json", good | {"nodes": ["input"]}, "nodes: not an object"),
        ("x.json", good | {"nodes": good["nodes"] | {member: {"neurons": 3}}}, f"nodes: {member}: its neurons are not"),
        ("x.json", good | {"nodes": good["nodes"] | {member: {"in_graph": False}}}, f"its node {member} is not"),
        (
            "x.json",
            good | {"nodes": good["nodes"] | {member: {"in_graph": True, "neurons": [1.0, 0.0]}}},
            f"only some neurons of {member} are there",
        ),
        ("x.json", good | {"cfg": good["cfg"] | {"n_layers": 9999, "n_heads": 9999}}, "more than any model has"),
        ("x.json", good | {"cfg": good["cfg"] | {"n_layers": 300}}, "the model has 2 layers of 2 heads; it has no inp"),
        ("x.csv", "source,target\ninput,a0.h0\ninput,m9\n", "row 3: input->m9: the graph has no node 'm9'"),
        ("x.csv", "source,target\nm0,m0\n", "row 2: m0->m0: m0 does not read m0"),
        ("x.csv", "source,target\nm0,m1\nm0,m1\n", "row 3: m0->m1 is there twice"),
        ("x.csv", "source,target,score\nm0,m1,much\n", "row 2: the score of m0->m1 is no number"),
        ("x.csv", "source,target,score\nm0,m1,1e300\n", "row 2: the score of m0->m1 is no number"),
        ("x.csv", "source,target\n1,2\n", "row 2: 1->2: the graph has no node '1'"),
        ("x.csv", "source,target\nm0,m1,\n", "its rows have more cells than its first line"),
        ("x.csv", "from,to\nm0,m1\n", "no column 'source'"),
    ]


@pytest.mark.parametrize(("name", "content", "message"), wrong_files())
def test_a_wrong_file_is_refused_with_its_first_wrong_edge(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read(path, GRAPH)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("edges_scores", torch.zeros(3, 3), r"edges_scores: \(3, 3\) where the graph needs"),
        ("edges_in_graph", torch.ones(7, 15, dtype=torch.bool), "a0.h0->a0.h0<q>: it is no edge of the graph"),
        ("edges_scores", torch.full((7, 15), float("nan")), "input->a0.h0<q>: its score is no number"),
        ("src_nodes", ["input", "a0.h1"], "src_nodes: 2 nodes, the graph's are 7; the first other one: a0.h1"),
        ("cfg", None, "its cfg lacks"),
        ("nodes_in_graph", torch.zeros(7, dtype=torch.bool), "it is in the circuit, and its node input is not"),
        ("nodes_in_graph", [True] * 7, "nodes_in_graph: not a tensor of 7 nodes"),
        ("neurons_in_graph", torch.zeros(7, 16), "only some neurons of input are there"),
    ],
)
def test_wrong_tensors_are_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = written(circuit_of(GRAPH, 0, 5), "eap_ig_pt", tmp_path)
    torch.save(torch.load(path, weights_only=True) | {key: value}, path)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_graph_of_the_circuits_edges_alone_is_read(tmp_path: Path) -> None:
    circuit = circuit_of(GRAPH, 0, 9)
    stored = json.loads(export(circuit, "eap_ig_json", ORIGIN)[1])
    stored["edges"] = {name: edge for name, edge in stored["edges"].items() if edge["in_graph"]}
    (tmp_path / "x.json").write_text(json.dumps(stored))
    found, _ = read(tmp_path / "x.json", GRAPH)
    assert torch.equal(found.in_circuit, circuit.in_circuit)
    assert torch.equal(found.scores, circuit.scores * circuit.in_circuit)


def test_files_that_the_published_eap_ig_did_not_prune_or_made_of_nodes_are_read(tmp_path: Path) -> None:
    whole = circuit_of(GRAPH, 0, GRAPH.n_edges)
    stored = torch.load(written(whole, "eap_ig_pt", tmp_path), weights_only=True)
    # It fills whole rows of its nodes, entries that are no edges too, and counts no node that nothing goes into.
    nodes = torch.tensor([name in ("input", "m0", "a1.h0") for name in GRAPH.forward_nodes])
    stored |= {"edges_in_graph": nodes[:, None].expand(7, 15).clone(), "nodes_in_graph": nodes}
    torch.save(stored | {"nodes_scores": torch.ones(7), "neurons_in_graph": None}, tmp_path / "nodes.pt")
    assert torch.equal(read(tmp_path / "nodes.pt")[0].in_circuit, GRAPH.edge_mask & nodes[:, None])
    loose = json.loads(export(circuit_of(GRAPH, 0, 0), "eap_ig_json", ORIGIN)[1])
    for name in ("input->m0", "m0->logits", "m1->logits"):
        loose["edges"][name]["in_graph"] = True
    loose["nodes"] |= {name: {"in_graph": True, "neurons": None} for name in ("input", "m0")}
    (tmp_path / "loose.json").write_text(json.dumps(loose))
    assert read(tmp_path / "loose.json")[0].n_edges == 3


def test_the_first_edge_that_a_graph_lacks_is_known_by_their_sizes() -> None:
    sizes = itertools.product((1, 2, 3), (1, 2, 3), (False, True))
    for one, other in itertools.product([Graph(*size) for size in sizes], repeat=2):
        there = set(names_of_edges(one))
        assert first_lacking(one, other) == next((name for name in names_of_edges(other) if name not in there), None)


def test_a_circuit_of_another_model_is_refused_with_an_edge_it_has_not(tmp_path: Path) -> None:
    path = written(circuit_of(Graph(3, 2, True), 0, 5), "eap_ig_pt", tmp_path)
    with pytest.raises(
        ValueError, match="is one of 3 layers of 2 heads, the model has 2 layers of 2 heads; it has no inp"
    ):
        read(path, GRAPH)
    edges = tmp_path / "edges.csv"
    edges.write_text("source,target\nm0,m1\n")
    with pytest.raises(ValueError, match=r"a \.csv like this names no model"):
        read(edges)


@pytest.mark.skipif(not PEER_FILES.is_dir(), reason="the files of the published EAP-IG are not here")
def test_the_published_eap_igs_own_files_are_read_and_written_as_it_does(tmp_path: Path) -> None:
    by_json, by_tensors = (read(PEER_FILES / name)[0] for name in ("graph.json", "graph.pt"))
    assert same(by_json, by_tensors)
    origin = Origin("toy", "ioi", 1350, 128)
    ours = tmp_path / "ours.pt"
    ours.write_bytes(export(by_json, "eap_ig_pt", origin)[1])
    mine, theirs = (torch.load(path, weights_only=True) for path in (ours, PEER_FILES / "graph.pt"))
    assert set(mine) == set(theirs)
    for key, value in theirs.items():
        assert mine[key].equal(value) if isinstance(value, torch.Tensor) else list(mine[key]) == list(value), key
    stored = json.loads((PEER_FILES / "graph.json").read_text())
    assert by_json.n_edges == sum(edge["in_graph"] for edge in stored["edges"].values()) > 0
    again = json.loads(export(by_json, "eap_ig_json", origin)[1])
    assert again["cfg"] == stored["cfg"]
    assert again["nodes"] == stored["nodes"]
    assert again["edges"] == stored["edges"]


def test_every_format_is_written(tmp_path: Path) -> None:
    circuit = circuit_of(GRAPH, 0, 5)
    assert all(written(circuit, format, tmp_path).stat().st_size > 100 for format in get_args(ExportFormat))
    empty = circuit_of(GRAPH, 0, 0)
    assert all(written(empty, format, tmp_path).stat().st_size > 50 for format in get_args(ExportFormat))
