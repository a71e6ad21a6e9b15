"""Circuits in the files of other programs, read and written.

| format | whose | holds |
|---|---|---|
| `eap_ig_json`, `eap_ig_pt` | EAP-IG's `Graph.to_json` and `Graph.to_pt` | score and membership of every edge |
| `mib_folder` | the Mechanistic Interpretability Benchmark | the same JSON, as its `TASK_MODEL/importances.json` |
| `graphml` | networkx, Gephi, Cytoscape | the circuit's edges |
| `circuit_tracer_json` | circuit-tracer's viewer | the circuit's nodes and edges, without positions |
| `circuitkit_scores` | CircuitKIT 0.2.0 | scores of nodes: the sum of |score| of the edges that leave them |

EAP-IG's and MIB's files, CircuitKIT's scores and lists of edges in CSV can be read.
"""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import pandas as pd
import torch
from torch import Tensor

from ..choices import ExportFormat, lacking_in_files
from ..connected import prune
from ..graph import Graph
from ..units import Units
from .circuit import Circuit
from .search import nodes_in

IMPORTANCES = ("importances.json", "importances.pt")
SUFFIXES: dict[ExportFormat, str] = {
    "eap_ig_json": ".json",
    "eap_ig_pt": ".eap_ig.pt",
    "mib_folder": ".mib",
    "graphml": ".graphml",
    "circuit_tracer_json": ".circuit_tracer.json",
    "circuitkit_scores": ".circuitkit_scores.json",
}
"""What the names of exported files end in, next to a checkpoint's `.pt`."""
BY_ENDING: dict[str, ExportFormat] = {".json": "eap_ig_json", ".graphml": "graphml"}
"""The format that a file's ending alone means, when it is written."""
MIB_MODELS = {
    "gpt2": "gpt2",
    "Qwen2.5-0.5B": "qwen2.5",
    "gemma-2-2b": "gemma2",
    "Llama-3.1-8B": "llama3",
}
"""What the benchmark calls its models; its names of tasks have no `mib_`, and `-` for `_`."""
LARGEST = torch.finfo(torch.float32).max
"""Of scores."""
TOP_UNITS = 0.2
"""The share of nodes that CircuitKIT lists as its units."""
MOST_PAIRS = 2**30
"""Of a node that writes and one that reads: more than any model has, and 5 GB as tensors."""


@dataclass(frozen=True)
class Origin:
    """Whose circuit it is, as other programs ask for it."""

    model: str
    task: str
    step: int
    d_model: int


# Writing.


def export(circuit: Circuit, format: ExportFormat, origin: Origin) -> tuple[str, bytes]:
    """A circuit's file in a format: what its name ends in (in the folder SUFFIXES names, for MIB), and its bytes."""
    suffix = SUFFIXES[format]
    level = circuit.graph.level if isinstance(circuit.graph, Units) else "edge"
    if lacking := lacking_in_files(level, positions=bool(circuit.graph.roles)):
        raise ValueError(f"files of other programs have no {lacking}; save this circuit as .pt")
    if format == "circuitkit_scores":
        return suffix, _json(_circuitkit(circuit, origin))
    circuit = circuit.as_edges
    if format == "eap_ig_json":
        return suffix, _json(eap_ig_json(circuit, origin.d_model))
    if format == "mib_folder":
        folder = f"{origin.task.removeprefix('mib_').replace('_', '-')}_{MIB_MODELS.get(origin.model, origin.model)}"
        return f"{suffix}/{folder}/{IMPORTANCES[0]}", _json(eap_ig_json(circuit, origin.d_model))
    if format == "eap_ig_pt":
        file = io.BytesIO()
        torch.save(_eap_ig_tensors(circuit, origin.d_model), file)
        return suffix, file.getvalue()
    if format == "graphml":
        return suffix, _graphml(circuit, origin).encode()
    return suffix, _json(_circuit_tracer(circuit, origin))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def eap_ig_json(circuit: Circuit, d_model: int) -> dict[str, Any]:
    """`cfg`, `nodes` and `edges` of EAP-IG's graphs."""
    graph = circuit.graph
    members = nodes_in(circuit.in_circuit[None], graph)[0].tolist()
    edges = {}
    for u, v in graph.edge_mask.nonzero().tolist():
        edge = {"score": float(circuit.scores[u, v]), "in_graph": bool(circuit.in_circuit[u, v])}
        edges[graph.edge_name(u, v)] = edge
    names = [*graph.forward_nodes, "logits"]
    return {
        "cfg": _cfg(graph, d_model),
        "nodes": {name: {"in_graph": member} for name, member in zip(names, members, strict=True)},
        "edges": edges,
    }


def _cfg(graph: Graph, d_model: int) -> dict[str, Any]:
    sizes = {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel}
    return sizes | {"d_model": d_model}


def _eap_ig_tensors(circuit: Circuit, d_model: int) -> dict[str, Any]:
    graph = circuit.graph
    return {
        "cfg": _cfg(graph, d_model),
        "src_nodes": graph.forward_nodes,
        "dst_nodes": graph.backward_nodes,
        "edges_scores": circuit.scores,
        "edges_in_graph": circuit.in_circuit,
        "nodes_in_graph": nodes_in(circuit.in_circuit[None], graph)[0, : graph.n_forward],  # Without the logits.
    }


def _graphml(circuit: Circuit, origin: Origin) -> str:
    import networkx  # type: ignore[import-untyped]

    graph = networkx.MultiDiGraph(model=origin.model, task=origin.task, step=origin.step)
    for edge in circuit.to_table().to_dict("records"):
        numbers = {"score": float(edge["score"]), "strength": abs(float(edge["score"]))}
        graph.add_edge(edge["source"], edge["target"], key=edge["input"], input=edge["input"], **numbers)
    return "\n".join(networkx.generate_graphml(graph)) + "\n"


def _circuit_tracer(circuit: Circuit, origin: Origin) -> dict[str, Any]:
    graph, edges = circuit.graph, circuit.to_table()
    # A node of the viewer is a feature of a layer at a position: heads by their number, then the MLP, at position 0.
    places = {"input": ("E", 0, "embedding"), "logits": (str(graph.n_layers + 1), 0, "logit")}
    for layer in range(graph.n_layers):
        names = [*(f"a{layer}.h{head}" for head in range(graph.n_heads)), f"m{layer}"]
        places |= {name: (str(layer), number, "cross layer transcoder") for number, name in enumerate(names)}
    used = [name for name in [*graph.forward_nodes, "logits"] if name in {*edges["source"], *edges["target"]}]
    nodes = []
    for name in used:
        place, feature, kind = places[name]
        node: dict[str, Any] = {
            "node_id": f"{place}_{feature}_0",
            "jsNodeId": f"{place}_{feature}-0",
            "feature": feature,
        }
        node |= {"layer": place, "ctx_idx": 0, "feature_type": kind, "clerp": name, "is_target_logit": name == "logits"}
        nodes.append(node)
    ids: dict[str, str] = {node["clerp"]: node["node_id"] for node in nodes}
    # A head's three inputs are one link of the viewer.
    links: dict[tuple[str, str], float] = defaultdict(float)
    for edge in edges.to_dict("records"):
        links[ids[edge["source"]], ids[edge["target"]]] += float(edge["score"])
    return {
        "metadata": {
            "slug": f"{origin.model}-{origin.task}-step{origin.step}",
            "scan": origin.model,
            "transcoder_list": [],
            "prompt_tokens": [origin.task],
            "prompt": origin.task,
            "schema_version": 1,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": [{"source": ends[0], "target": ends[1], "weight": weight} for ends, weight in links.items()],
    }


def _circuitkit(circuit: Circuit, origin: Origin) -> dict[str, Any]:
    graph = circuit.model_graph
    sizes = circuit.scores.abs() * circuit.graph.edge_mask
    strengths = (circuit.graph.by_node(sizes) if isinstance(circuit.graph, Units) else sizes.sum(1)).tolist()
    named = {_circuitkit_name(name): score for name, score in zip(graph.forward_nodes[1:], strengths[1:], strict=True)}
    members = nodes_in(circuit.in_circuit[None], circuit.graph)[0].tolist()
    listed = [_circuitkit_name(name) for name, member in zip(graph.forward_nodes, members, strict=False) if member]
    return {
        "task": origin.task,
        "model": origin.model,
        "algorithm": "eap-ig",
        "level": "node",
        "node_scores": named,
        "timestamp": "",  # The same circuit gives the same bytes.
        "version": "1.0",
        "discovery_cfg": {"step": origin.step},
        "safety_units": {"unit_ids": [unit for unit in listed if unit != "input"]},
    }


def _circuitkit_name(name: str) -> str:
    """`a3.h1` -> `A3.1`, `m3` -> `MLP 3`."""
    return re.sub(r"^a(\d+)\.h(\d+)$", r"A\1.\2", re.sub(r"^m(\d+)$", r"MLP \1", name))


# Reading.


def read(path: Path, graph: Graph | None = None) -> tuple[Circuit, dict[str, Any]]:
    """A circuit from a file of another program (a folder: its `importances` file), and what it says of its model.

    CircuitKIT's scores are of nodes: the circuit has the nodes that it lists as its units, else the 20% of largest
    score, with all edges between them, the input and the logits; an edge has its source's score. Edges of a CSV
    (`source, target`, and `input`, `score`, `role` where there are some) without a score have 0.

    Args:
        graph: the model's graph. It is needed for CircuitKIT's scores and a CSV, which do not name it; a file that does
            must name this one.

    Raises:
        ValueError: if the file holds no circuit, or one of another graph, naming the first wrong edge.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    if path.is_dir():
        # A submission is a folder for each task and model; one that holds a single of them is as good.
        found = [one for name in IMPORTANCES for one in (*path.glob(name), *path.glob(f"*/{name}"))]
        if len(found) != 1:
            raise ValueError(f"a folder needs a single {' or '.join(IMPORTANCES)}; there are {len(found)}")
        (path,) = found
    if path.suffix == ".csv":
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
        if not isinstance(table.index, pd.RangeIndex):  # pandas took the first cells of every row for its name.
            raise ValueError("its rows have more cells than its first line")
        return _of_edges(table, _known(graph, path)), {}
    if path.suffix == ".json":
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("not an object of JSON")
        if "node_scores" in stored:
            known = {name: stored[name] for name in ("model", "task") if isinstance(stored.get(name), str)}
            return _of_node_scores(stored, _known(graph, path)), known
        circuit = of_eap_ig_json(stored, graph)
    elif path.suffix == ".pt":
        stored = torch.load(path, map_location="cpu", weights_only=True)
        circuit = of_eap_ig_tensors(stored, graph)
    else:
        raise ValueError(f"a file that ends with {path.suffix or 'nothing'}")
    return of_same_graph(circuit, graph), dict(stored["cfg"])


def _is_score(value: Any) -> TypeGuard[float]:
    """Whether it is a number that a score in float32 can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def _known(graph: Graph | None, path: Path) -> Graph:
    if graph is None:
        raise ValueError(f"a {path.suffix} like this names no model; say which it is of (model=)")
    return graph


def of_same_graph(circuit: Circuit, graph: Graph | None) -> Circuit:
    """The circuit, if its graph is this one.

    Raises:
        ValueError: naming both, and the first edge that one of them lacks.
    """
    theirs = circuit.model_graph
    if graph is None or theirs == graph:
        return circuit
    if theirs.plain == graph.plain and sorted(theirs.roles) == sorted(graph.roles):  # Other prompts, in another order.
        order = [theirs.roles.index(role) for role in graph.roles]
        parts = (part.unflatten(0, (graph.n_roles, -1))[order] for part in (circuit.scores, circuit.in_circuit))
        return Circuit(graph, *(part.flatten(0, 1) for part in parts))
    if theirs.roles != graph.roles and theirs.plain == graph.plain:
        of_each = [", ".join(one.roles) or "none" for one in (theirs, graph)]
        way_out = "leave out positions" if graph.roles else "it needs positions"
        if theirs.roles and graph.roles:
            way_out = "name the task that it is of, or ask for as many prompts"
        raise ValueError(f"the roles of its tokens are {of_each[0]}, those of the prompts {of_each[1]}; {way_out}")
    raise _other_graph(theirs, graph)


def _other_graph(theirs: Graph, graph: Graph) -> ValueError:
    shapes = [f"{one.n_layers} layers of {one.n_heads} heads" for one in (theirs, graph)]
    blocks = "" if theirs.parallel == graph.parallel else ", and blocks of another order"
    lacking = first_lacking(graph, theirs)
    which = f"it has no {lacking}" if lacking else f"the file has no {first_lacking(theirs, graph)}"
    return ValueError(f"the circuit is one of {shapes[0]}, the model has {shapes[1]}{blocks}; {which}")


def first_lacking(graph: Graph, other: Graph) -> str | None:
    """The first edge of another graph that a graph has not, by their sizes alone: a file may claim any."""
    if other.n_heads > graph.n_heads:
        return f"input->a0.h{graph.n_heads}<q>"
    if other.n_layers > graph.n_layers:
        return f"input->a{graph.n_layers}.h0<q>"
    return "a0.h0->m0" if graph.parallel and not other.parallel else None


def names_of_edges(graph: Graph) -> list[str]:
    """`a0.h1->a3.h2<q>` and so on, in the order of the graph."""
    return [graph.edge_name(u, v) for u, v in graph.edge_mask.nonzero().tolist()]


def _graph_of(cfg: Any, model: Graph | None) -> Graph:
    """The graph that EAP-IG's `cfg` describes; one far larger than the model's is refused before anything is made."""
    try:
        n_layers, n_heads, parallel = (cfg[name] for name in ("n_layers", "n_heads", "parallel_attn_mlp"))
    except (KeyError, TypeError):
        raise ValueError("its cfg lacks n_layers, n_heads or parallel_attn_mlp") from None
    for name, size in (("n_layers", n_layers), ("n_heads", n_heads)):
        if not isinstance(size, int) or not 1 <= size <= 10_000:
            raise ValueError(f"cfg.{name}: {size!r} is no number of them")
    graph = Graph(n_layers, n_heads, bool(parallel))
    if graph.n_forward * graph.n_backward > MOST_PAIRS:
        raise ValueError(f"cfg: {n_layers} layers of {n_heads} heads are more than any model has")
    if model is not None and graph.n_forward > 2 * model.n_nodes:
        raise _other_graph(graph, model)
    return graph


def of_eap_ig_json(stored: Mapping[str, Any], model: Graph | None = None) -> Circuit:
    """The circuit in EAP-IG's JSON, of all edges of its graph or of the circuit's alone: the others then score 0.

    Raises:
        ValueError: if an edge is wrong or missing, naming it, or contradicts what `nodes` says of its ends.
    """
    if not isinstance(stored.get("edges"), dict) or not stored["edges"]:
        raise ValueError("it has no edges")
    graph = _graph_of(stored.get("cfg"), model)
    scores = torch.zeros(graph.n_forward, graph.n_backward)
    in_circuit = torch.zeros(graph.n_forward, graph.n_backward, dtype=torch.bool)
    for name, edge in stored["edges"].items():
        index = graph.edge_index(name)
        score, member = (edge.get("score"), edge.get("in_graph")) if isinstance(edge, dict) else (None, None)
        if not _is_score(score):
            raise ValueError(f"{name}: its score {score!r} is no number")
        if not isinstance(member, bool):
            raise ValueError(f"{name}: in_graph is {member!r}, neither true nor false")
        scores[index], in_circuit[index] = score, member
    if int(in_circuit.sum()) < len(stored["edges"]) < graph.n_edges:
        missing = next(name for name in names_of_edges(graph) if name not in stored["edges"])
        raise ValueError(f"{len(stored['edges'])} of the graph's {graph.n_edges} edges: {missing} is missing")
    nodes = stored.get("nodes", {})
    if not isinstance(nodes, dict) or not all(isinstance(node, dict) for node in nodes.values()):
        raise ValueError("nodes: not an object of nodes, each with its in_graph")
    left_out = {name for name, node in nodes.items() if node.get("in_graph") is False}
    neurons = {name: node["neurons"] for name, node in nodes.items() if node.get("neurons") is not None}
    if crooked := [name for name, held in neurons.items() if not isinstance(held, list)]:
        raise ValueError(f"nodes: {crooked[0]}: its neurons are not a list")
    partly = {name for name, held in neurons.items() if not all(held)}
    return _with_nodes(Circuit(graph, scores, in_circuit), left_out, partly)


def _with_nodes(circuit: Circuit, left_out: Set[str], partly: Set[str]) -> Circuit:
    """The circuit, if the file has the nodes of its edges, and all their neurons.

    What lies on no path from `input` to `logits` does not count: an unpruned file may have edges at nodes without
    others.
    """
    graph = circuit.graph
    for u, v in prune(circuit.in_circuit[None], graph)[0].nonzero().tolist() if left_out | partly else ():
        for node in (graph.forward_nodes[u], graph.backward_nodes[v].partition("<")[0]):
            if node in left_out - {"logits"}:
                raise ValueError(f"{graph.edge_name(u, v)}: it is in the circuit, and its node {node} is not")
            if node in partly:
                raise ValueError(f"{graph.edge_name(u, v)}: only some neurons of {node} are there; nodes count whole")
    return circuit


def of_eap_ig_tensors(stored: Mapping[str, Any], model: Graph | None = None) -> Circuit:
    """The circuit in EAP-IG's tensors.

    Raises:
        ValueError: if nodes, shapes or edges are not those of its graph.
    """
    if not isinstance(stored, Mapping) or (missing := {"cfg", "edges_scores", "edges_in_graph"} - set(stored)):
        raise ValueError(f"it has no {min(missing) if isinstance(stored, Mapping) else 'edges'}")
    graph = _graph_of(stored["cfg"], model)
    for key, nodes in (("src_nodes", graph.forward_nodes), ("dst_nodes", graph.backward_nodes)):
        named = list(stored.get(key, nodes))
        if named != nodes:
            other = next((one for one, own in zip(named, nodes, strict=False) if one != own), None)
            raise ValueError(f"{key}: {len(named)} nodes, the graph's are {len(nodes)}; the first other one: {other}")
    scores, in_circuit = stored["edges_scores"], stored["edges_in_graph"]
    for key, tensor in (("edges_scores", scores), ("edges_in_graph", in_circuit)):
        if not isinstance(tensor, Tensor) or tensor.shape != graph.edge_mask.shape:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else tensor
            raise ValueError(f"{key}: {shape} where the graph needs {tuple(graph.edge_mask.shape)}")
    in_circuit = in_circuit.bool()
    if any(stored.get(key) is not None for key in ("nodes_scores", "neurons_in_graph")):
        in_circuit = in_circuit & graph.edge_mask  # Its circuits of nodes fill whole rows.
    _require_edges(in_circuit & ~graph.edge_mask, graph, "it is no edge of the graph")
    _require_edges(~scores.isfinite() & graph.edge_mask, graph, "its score is no number")
    lacking = []
    for key in ("nodes_in_graph", "neurons_in_graph"):
        held = torch.ones(graph.n_forward) if stored.get(key) is None else stored[key]
        if not isinstance(held, Tensor) or not held.ndim or len(held) != graph.n_forward:
            raise ValueError(f"{key}: not a tensor of {graph.n_forward} nodes")
        lacking.append(
            {graph.forward_nodes[node] for node in (held.view(len(held), -1) == 0).any(1).nonzero()[:, 0].tolist()}
        )
    return _with_nodes(Circuit(graph, scores.float() * graph.edge_mask, in_circuit), *lacking)


def _require_edges(wrong: Tensor, graph: Graph, why: str) -> None:
    if len(found := wrong.nonzero()):
        raise ValueError(f"{graph.edge_name(*found[0].tolist())}: {why}")


def _of_edges(table: pd.DataFrame, graph: Graph) -> Circuit:
    """The circuit of a list of edges."""
    if missing := {"source", "target"} - set(table):
        raise ValueError(f"it has no column {min(missing)!r}; its columns are {', '.join(map(str, table))}")
    scores = torch.zeros(graph.n_forward, graph.n_backward)
    in_circuit = torch.zeros(graph.n_forward, graph.n_backward, dtype=torch.bool)
    numbers = pd.to_numeric(table["score"], errors="coerce") if "score" in table else pd.Series(0.0, table.index)
    inputs, roles = (
        table[name].astype(str) if name in table else pd.Series("", table.index) for name in ("input", "role")
    )
    rows = zip(table["source"], roles, table["target"], inputs, numbers, strict=True)
    for row, (source, role, target, letter, score) in enumerate(rows, start=2):
        try:
            indices = graph.edges_named(source + (role and f"@{role}") + f"->{target}" + (letter and f"<{letter}>"))
        except ValueError as error:
            raise ValueError(f"row {row}: {error}") from None
        for index in indices:
            if in_circuit[index]:
                raise ValueError(f"row {row}: {graph.edge_name(*index)} is there twice")
            if not _is_score(score):
                raise ValueError(f"row {row}: the score of {graph.edge_name(*index)} is no number")
            scores[index], in_circuit[index] = score, True
    return Circuit(graph, scores, in_circuit)


def _of_node_scores(stored: Mapping[str, Any], graph: Graph) -> Circuit:
    """The circuit of CircuitKIT's units."""
    scores = stored["node_scores"]
    if stored.get("level", "node") != "node" or not isinstance(scores, dict) or not scores:
        raise ValueError(f"node_scores of the level {stored.get('level', 'node')!r}: scores of nodes can be read")
    own = {_circuitkit_name(name): number for number, name in enumerate(graph.forward_nodes)}
    for name, score in scores.items():
        if name not in own:
            raise ValueError(f"{name}: the model has no such node ({graph.n_layers} layers of {graph.n_heads} heads)")
        if not _is_score(score):
            raise ValueError(f"{name}: its score {score!r} is no number")
    listed = stored.get("safety_units") or {}
    units = listed.get("unit_ids") if isinstance(listed, dict) else listed
    named = isinstance(listed, dict) and isinstance(units, list) and all(isinstance(unit, str) for unit in units)
    if units is not None and not named:
        raise ValueError("safety_units: its unit_ids are not a list of nodes' names")
    if units is None:
        units = sorted(scores, key=lambda name: -scores[name])[: max(1, round(len(scores) * TOP_UNITS))]
    if unknown := [unit for unit in units if unit not in own]:
        raise ValueError(f"{unknown[0]}: the model has no such node")
    sources = torch.zeros(1, graph.n_forward, 1, dtype=torch.bool)
    sources[0, [own[unit] for unit in units]] = True
    in_circuit = Units(0, 0, graph.parallel, model=graph, level="node").edges(sources[:, 1:])[0]
    of_source = torch.zeros(graph.n_forward)
    of_source[[own[name] for name in scores]] = torch.tensor([float(score) for score in scores.values()])
    return Circuit(graph, of_source[:, None] * graph.edge_mask, in_circuit)
