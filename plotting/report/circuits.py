"""Circuits over training, as the slider on the page draws them: one layout for all checkpoints, edges by number."""

from __future__ import annotations

import base64
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results import edges as lists
from circuits_over_time.utils.results.checked import Damaged
from circuits_over_time.utils.results.store import ResultsFolder
from circuits_over_time.utils.tasks.registry import primary_metric, task_label

from ..parts.circuit_layout import at_roles, graph_of_roles, lay_out
from ..parts.circuit_similarity import nodes_of
from ..parts.style import metric_label, task_order
from ..parts.tables import Results, fields, plain

if TYPE_CHECKING:
    from circuits_over_time.edge_attribution_patching.graph import Graph

logger = logging.getLogger("plotting")

# Bytes of base64 that all records of the page may take for this.
BUDGET = 4_000_000
Facts = dict[int, dict[str, Any]]
PORTS = ("", "q", "k", "v")
_NO_CIRCUIT = pd.DataFrame(columns=["source", "target", "input", "score"])
BASELINE = ("full", "corrupted", "n_prompts", "full_se", "corrupted_se", "status", "cpr", "cmd")
CHOSEN = ("faithfulness", "faithfulness_low", "faithfulness_high", "n_edges", "n_nodes")


def circuit_records(results: Results) -> list[dict[str, Any]]:
    """One record per model and task: every checkpoint whose graph was measured, even without a circuit.

    Raises:
        UserError: if a table cannot be read as a circuit.
    """
    # If no table of circuits has rows, no task is learned at any checkpoint, and the page says so.
    by_pair = {} if results.table_if_any("graphs") is None else results.circuits(with_roles=True)
    baselines, faithfulness = results.table_if_any("baselines"), results.table_if_any("faithfulness")
    if faithfulness is not None:
        faithfulness = faithfulness[faithfulness["selected"].astype(bool)]
    pairs = [(model, task) for model in results.models("graphs") for task in task_order(results.tasks("graphs", model))]
    records = []
    for pair in pairs:
        try:
            facts = (_facts(baselines, *pair, BASELINE), _facts(faithfulness, *pair, CHOSEN))
            records.append(_record(results, *pair, by_pair.get(pair, {}), facts, BUDGET // len(pairs)))
        except ValueError as error:
            raise UserError(f"{results.store.folder('graphs', *pair).path}: {error}") from error
    return records


def _facts(table: pd.DataFrame | None, model: str, task: str, names: tuple[str, ...]) -> Facts:
    """The named cells by step, as far as they are there."""
    if table is None:
        return {}
    rows = table[(table["model"] == model) & (table["task"] == task)].drop_duplicates("step").set_index("step")
    return {int(str(step)): fields(row, names) for step, row in rows.to_dict("index").items()}


def _record(
    results: Results, model: str, task: str, circuits: dict[int, pd.DataFrame], facts: Sequence[Facts], budget: int
) -> dict[str, Any]:
    folder, tokens = results.store.folder("graphs", model, task), results.tokens(model)
    circuits, graph = _with_roles(folder, circuits)
    numbers: dict[tuple[str, str], int] = {}
    boxes: defaultdict[int, dict[str, None]] = defaultdict(dict)  # Where each edge ends.
    steps = []
    for step in folder.steps():
        table = circuits.get(step, _NO_CIRCUIT)
        edges = list(zip(lists.named_sources(table), lists.named_targets(table), strict=True))
        ids = [numbers.setdefault(edge, len(numbers)) for edge in edges]
        if len(set(ids)) < len(ids):
            raise ValueError(f"an edge is there twice at step {step}")
        scores = [plain(score) for score in table["score"]]
        record = {"step": step, "tokens": plain(tokens.get(step)), "edges": ids, "scores": scores}
        # Inclusion in thousandths, which are exact for eight thresholds: whole numbers keep the page small.
        for name, unit, digits in (("stability", 1, 3), ("inclusion", 1000, 0)):
            if name in table and table[name].notna().any():
                record[name] = [plain(round(unit * share, digits)) for share in table[name].astype(float)]
        for known in facts:
            record |= known.get(step, {})
        between = [record.pop(name, None) for name in ("n_edges", "n_nodes")]
        listed = [len(edges), len(nodes_of(edges))]
        in_full = lists.is_of_units(table) and None not in between  # A list of nodes has no edges.
        record["size"], record["nodes"] = between if in_full else listed
        drawn = at_roles(table, graph) if graph else table
        for place, node in zip(drawn.index, lists.with_inputs(drawn)["target"], strict=True):
            boxes[ids[place]][node] = None
        record |= {"units": int(table["units"].sum())} if "units" in table else {}
        steps.append(record)
    roles = graph.roles if graph else ()
    ends = ((source, node) for (source, _), number in numbers.items() for node in boxes[number])
    layout = lay_out(ends, roles) if numbers else None
    place = {name: i for i, name in enumerate(layout.positions)} if layout else {}
    flat: list[int] = []
    for (source, target), number in numbers.items():
        if (port := target.partition("<")[2].removesuffix(">")) not in PORTS:
            raise ValueError(f"'{target}' is not an end of an edge; ends are a0.h1<q>, a0.h1<k>, a0.h1<v>, m0, logits")
        flat += [place[source], place[next(iter(boxes[number]))], PORTS.index(port)]
    if (metric := primary_metric(task)) is None:  # That of circuits of a prompts CSV, if the baselines say so.
        baselines = results.table_if_any("baselines")
        rows = (
            pd.DataFrame({"metric": []}) if baselines is None else baselines.query("model == @model and task == @task")
        )
        metric = str(next(iter(rows["metric"].dropna()), "metric"))
    counts = Counter(edge for state in steps for edge in state["edges"])
    histories = score_histories(folder, list(numbers), [counts[i] for i in range(len(numbers))], budget)
    return {
        "model": model,
        "task": task,
        "label": task_label(task),
        "metric": metric_label(metric),
        "nodes": [[name, *at] for name, at in layout.positions.items()] if layout else [],
        "rows": layout.rows if layout else [],
        "halfWidth": layout.half_width if layout else 1,
        "height": layout.height if layout else 0,
        "columns": [[role, *ends] for role, ends in layout.columns.items()] if layout else [],
        "edges": flat,
        "ends": {number: [place[node] for node in of_edge] for number, of_edge in boxes.items() if len(of_edge) > 1},
        "ofNodes": any(lists.is_of_units(table) for table in circuits.values()),
        "shape": _shape(results, model, task),
        "histories": histories,
        "steps": steps,
    }


def _with_roles(
    folder: ResultsFolder, circuits: dict[int, pd.DataFrame]
) -> tuple[dict[int, pd.DataFrame], Graph | None]:
    """The lists of edges, and their graph where they have roles of tokens that some tensors tell of."""
    circuits = {step: edges.reset_index(drop=True) for step, edges in circuits.items()}
    for step in sorted((step for step, edges in circuits.items() if lists.has_roles(edges)), reverse=True):
        try:
            return circuits, graph_of_roles(folder, step, circuits[step])
        except Damaged as error:
            logger.warning("roles of tokens at step %d left out: %s", step, error)
    return {step: lists.over_roles(edges) for step, edges in circuits.items()}, None


def _shape(results: Results, model: str, task: str) -> dict[str, Any] | None:
    """`n_layers, n_heads, parallel_attn_mlp, d_model` of the model, if the run says so."""
    try:
        checkpoints = results.store.folder("graphs", model, task).read_run().get("checkpoints", {})
    except UserError:
        return None
    shapes = [weights["shape"] for weights in checkpoints.values() if "shape" in weights]
    return shapes[-1] if shapes else None


def score_histories(
    folder: ResultsFolder, edges: Sequence[tuple[str, str]], counts: Sequence[int], budget: int
) -> dict[str, Any] | None:
    """The scores of edges at the steps of a folder of graphs, from the tensors next to its tables.

    If not all fit into the budget (bytes of base64), those that are in the circuit of the most checkpoints (`counts`)
    come first.

    Returns:
        `edges`, the numbers of those that are there; `scale` and `data`: little-endian float16 [edge, step] in base64,
        to be multiplied with the scale, NaN where a checkpoint has no tensors. None if none has any.

    Raises:
        UserError: if the tensors lack a node of an edge.
    """
    steps = folder.steps()
    if not edges or not any(folder.has(step, ".pt") for step in steps):
        return None
    most = budget * 3 // 4 // (2 * len(steps))
    kept = sorted(range(len(edges)), key=lambda edge: (-counts[edge], edge))[:most]
    if not kept:
        return None
    values = np.full((len(kept), len(steps)), np.nan, dtype=np.float32)
    for column, step in enumerate(steps):
        if not folder.has(step, ".pt"):
            continue
        try:
            circuit = folder.read_circuit(step)[0].as_edges
            circuit = circuit if any("@" in source for source, _ in edges) else circuit.over_roles
        except Damaged as error:
            logger.warning("scores of edges at step %d left out: %s", step, error)
            continue
        sources = {name: i for i, name in enumerate(circuit.graph.forward_nodes)}
        targets = {name: i for i, name in enumerate(circuit.graph.backward_nodes)}
        try:
            rows, columns = zip(*((sources[u], targets[v]) for u, v in (edges[edge] for edge in kept)), strict=True)
        except KeyError as missing:
            raise UserError(
                f"{folder.file(step, '.pt')} has no node {missing}, but a circuit has; run: "
                f"{folder.how_to_make(overwrite=True)}"
            ) from None
        values[:, column] = circuit.scores.numpy()[rows, columns]
    if np.isnan(values).all():
        return None
    scale = float(f"{np.nanmax(np.abs(values)):.6g}") or 1.0
    data = (values / scale).astype("<f2").tobytes()
    return {"edges": kept, "scale": scale, "data": base64.b64encode(data).decode()}
