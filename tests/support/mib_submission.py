"""What the circuit track of the Mechanistic Interpretability Benchmark asks of a submission (arXiv 2504.13151)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuits_over_time.edge_attribution_patching.graph import Graph

MODELS = {
    "gpt2": Graph(12, 12, False),
    "qwen2.5": Graph(24, 14, False),
    "gemma2": Graph(26, 8, False),
    "llama3": Graph(32, 32, False),
}
"""The benchmark's models, by the names that it gives their folders."""
TASKS = ("ioi", "mcqa", "arithmetic-addition", "arithmetic-subtraction", "arc-easy", "arc-challenge")


def faults_of_submission(folder: Path, models: Mapping[str, Graph] = MODELS) -> list[str]:
    """What is wrong with a submission of importances, one line each: a folder TASK_MODEL for each task and model."""
    faults, parts = [], sorted(folder.iterdir())
    if not parts:
        faults.append("no folder TASK_MODEL")
    for part in parts:
        task, _, model = part.name.partition("_")
        if task not in TASKS:
            faults.append(f"{part.name}: unknown task")
        elif model not in models:
            faults.append(f"{part.name}: unknown model")
        elif [file.name for file in part.iterdir()] != ["importances.json"]:
            faults.append(f"{part.name}: not one importances.json")
        else:
            wrong = _fault_of_graph(json.loads((part / "importances.json").read_text()), models[model])
            faults += [f"{part.name}: {wrong}"] if wrong else []
    return faults


def _fault_of_graph(stored: Mapping[str, Any], graph: Graph) -> str:
    shape = {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel}
    if {name: stored["cfg"].get(name) for name in shape} != shape or not isinstance(stored["cfg"].get("d_model"), int):
        return "cfg is another model's"
    names = {*graph.forward_nodes, "logits"}
    if set(stored["nodes"]) != names:
        return "nodes are not those of the model"
    edges = {f"{graph.forward_nodes[u]}->{graph.backward_nodes[v]}" for u, v in graph.edge_mask.nonzero().tolist()}
    if lacking := sorted(edges - set(stored["edges"])):
        return f"edges lack {lacking[0]}"
    if unknown := sorted(set(stored["edges"]) - edges):
        return f"edges have {unknown[0]}"
    entries = [*stored["nodes"].items(), *stored["edges"].items()]
    if wrong := [name for name, entry in entries if not isinstance(entry.get("in_graph"), bool)]:
        return f"{wrong[0]} does not say whether it is in the graph"
    scores = {name: entry.get("score") for name, entry in stored["edges"].items()}
    return next((f"{name} has no score" for name, score in scores.items() if not _finite(score)), "")


def _finite(score: Any) -> bool:
    return isinstance(score, float) and math.isfinite(score)
