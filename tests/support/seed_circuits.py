"""Stored circuits of made-up seeds, with the scores of their folds of prompts."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import torch

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.scores.folds import KeptFolds
from circuits_over_time.utils.results.store import Store
from tests.support.stored import write_tensors
from tests.support.synthetic_results import write

GRAPH = Graph(2, 2, True)
STEPS = (0, 10, 20)
SIZE = 20


def write_seed(store: Store, model: str, seed: int, task: str = "ioi") -> None:
    """Circuits of one task: alike at steps 10 and 20, another one at step 0."""
    rng = np.random.default_rng(seed)
    graphs = store.folder("graphs", model, task)
    edges = GRAPH.edge_mask.flatten().nonzero()[:, 0]
    means = {0: rng.normal(size=len(edges)), 10: rng.normal(size=len(edges)) ** 3}
    for step in STEPS:
        noisy = means[min(step, 10)] + 0.02 * rng.normal(size=(10, len(edges)))
        folds = KeptFolds.rounded(GRAPH, edges, torch.from_numpy(noisy).float(), torch.full((10,), 10))
        scores = torch.zeros(GRAPH.n_forward * GRAPH.n_backward)
        scores[edges] = folds.means.mean(0)
        scores = scores.view(GRAPH.n_forward, GRAPH.n_backward)
        circuit = Circuit(GRAPH, scores, top_n_masks(edge_order(scores, GRAPH, "top_n"), GRAPH, [SIZE])[0])
        write_tensors(graphs, step, circuit.to_tensors() | folds.to_tensors())
        write(store, "graphs", model, task, step, circuit.to_table(), 100 * step)
        row = {"full": 3.0, "full_se": 0.1, "corrupted": -1.0, "corrupted_se": 0.1, "n_prompts": 100}
        row |= {"size": SIZE, "status": "found"}
        write(store, "baselines", model, task, step, pd.DataFrame([row]), 100 * step)
        chosen = {"selected": [True], "n_edges": [circuit.n_edges], "n_nodes": [circuit.n_nodes]}
        write(store, "faithfulness", model, task, step, pd.DataFrame(chosen), 100 * step)
    settings = {"search.order": "top_n", "search.selection": "signed", "search.positive_share": 0.6, "seed": 7}
    (graphs.path / "run.json").write_text(json.dumps({"settings": settings}))
