"""Made-up results of a family the size of pythia-160m: 40 checkpoints, circuits of about a thousand edges."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.utils.config.schedules import PYTHIA_STEPS, tokens_at
from circuits_over_time.utils.results.comparison import ComparisonFolder
from circuits_over_time.utils.results.store import Store
from tests.support.stored import write_tensors
from tests.support.synthetic_comparison import edges_over_time
from tests.support.synthetic_results import write

MODEL = "pythia-160m"
LAYERS, HEADS = 12, 12
TASKS = ("ioi", "greater_than", "gendered_pronoun", "sva")
N_STEPS, N_EDGES = 40, 1000
SCORES = ("induction", "previous_token", "duplicate_token", "copy", "negative_copy")


def family_steps(n: int = N_STEPS) -> list[int]:
    """`n` of Pythia's checkpoints, spread over training, the first and the last among them."""
    return [PYTHIA_STEPS[i] for i in np.linspace(0, len(PYTHIA_STEPS) - 1, n).round().astype(int)]


def write_family(folder: Path, n_steps: int = N_STEPS, tasks: tuple[str, ...] = TASKS, n_edges: int = N_EDGES) -> Store:
    """All kinds of results but those of the IOI algorithm, and what becomes of edges; the same on every call."""
    store = Store(folder)
    rng = np.random.default_rng(0)
    graph = Graph(LAYERS, HEADS, parallel=True)
    edges = torch.as_tensor(graph.edge_mask).nonzero().numpy()
    steps = family_steps(n_steps)
    over_time: list[tuple[pd.DataFrame, ...]] = []
    for task in tasks:
        present = np.zeros((len(steps), len(edges)), dtype=bool)
        chosen = rng.choice(len(edges), n_edges, replace=False)
        for step in steps:
            tokens = tokens_at(step)
            # A tenth of the circuit changes from checkpoint to checkpoint.
            kept = rng.choice(chosen, n_edges - n_edges // 10, replace=False)
            others = np.setdiff1d(np.arange(len(edges)), kept)
            chosen = np.concatenate([kept, rng.choice(others, n_edges // 10, replace=False)])
            present[steps.index(step), chosen] = True
            circuit = _circuit(graph, edges[chosen], rng)
            write_tensors(store.folder("graphs", MODEL, task), step, circuit.to_tensors())
            sure = {"score_se": rng.random(n_edges), "stability": rng.random(n_edges), "inclusion": rng.random(n_edges)}
            write(store, "graphs", MODEL, task, step, circuit.to_table().assign(**sure), tokens)
            write(store, "controls", MODEL, task, step, _controls(rng), tokens)
            write(store, "prompt_groups", MODEL, task, step, _prompts(task, rng), tokens)
            write(store, "transfer", MODEL, task, step, _transfer(task, step, steps, rng), tokens)
            write(store, "faithfulness", MODEL, task, step, _faithfulness(n_edges, rng), tokens)
            full = {
                "full": 3.0 + rng.normal(),
                "corrupted": -1.0,
                "n_prompts": 100,
                "full_se": 0.1,
                "corrupted_se": 0.1,
            }
            write(store, "baselines", MODEL, task, step, pd.DataFrame([full | {"status": "found"}]), tokens)
            metrics = pd.DataFrame(
                {"run": "clean", "metric": ["logit_diff", "prob_diff", "accuracy"], "value": rng.random(3), "se": 0.02}
            )
            write(store, "task_performance", MODEL, task, step, metrics.assign(n=100), tokens)
        over_time.append(edges_over_time(steps, present, MODEL, task))
    comparison = ComparisonFolder(store.root)
    for name, tables in zip(("turnover", "lifetimes"), zip(*over_time, strict=True), strict=True):
        comparison.write(name, pd.concat(tables, ignore_index=True))
    for step in steps:
        heads = pd.concat([_heads(rng).assign(score=score) for score in SCORES], ignore_index=True)
        write(store, "components", MODEL, None, step, heads, tokens_at(step))
        write(store, "successor", MODEL, None, step, _heads(rng), tokens_at(step))
        write(store, "cspa", MODEL, None, step, _heads(rng).rename(columns={"value": "score"}), tokens_at(step))
    return store


def _circuit(graph: Graph, edges: np.ndarray, rng: np.random.Generator) -> Circuit:
    """A circuit of these edges [n, 2], with scores that few strong edges dominate."""
    scores = 1e-3 * torch.from_numpy(rng.normal(size=(graph.n_forward, graph.n_backward))).float()
    in_circuit = torch.zeros(scores.shape, dtype=torch.bool)
    at = torch.from_numpy(edges)
    in_circuit[at[:, 0], at[:, 1]] = True
    scores[at[:, 0], at[:, 1]] = torch.from_numpy(
        rng.normal(size=len(edges)) * np.exp(rng.normal(size=len(edges)) - 3)
    ).float()
    return Circuit(graph, scores, in_circuit)


def _controls(rng: np.random.Generator) -> pd.DataFrame:
    rows = [{"control": "circuit", "faithfulness": 0.85}, {"control": "without_circuit", "faithfulness": 0.05}]
    for control in ("random", "without_random"):
        rows += [{"control": control, "number": n, "faithfulness": rng.random(), "beaten": True} for n in range(20)]
    return pd.DataFrame(rows)


def _prompts(task: str, rng: np.random.Generator) -> pd.DataFrame:
    groups = ("all", "ABBA", "BABA") if task == "ioi" else ("all",)
    names = [f"{name}_{end}" for name in ("full", "circuit") for end in ("q25", "median", "q75")]
    names += [f"faithfulness{end}" for end in ("", "_low", "_high")]
    return pd.DataFrame([{"group": group, "n_prompts": 100} | dict.fromkeys(names, rng.random()) for group in groups])


def _transfer(task: str, step: int, steps: list[int], rng: np.random.Generator) -> pd.DataFrame:
    """The circuits of all steps, and those of the other tasks."""
    sources = [(other, task) for other in steps] + [(step, other) for other in TASKS if other != task]
    return pd.DataFrame(
        [
            {
                "from_step": other,
                "from_task": name,
                "circuit": f"{other:08x}",
                "n_edges": 1000,
                "faithfulness": rng.random(),
            }
            for other, name in sources
        ]
    )


def _faithfulness(n_edges: int, rng: np.random.Generator) -> pd.DataFrame:
    sizes = np.unique(np.geomspace(8, 3000, 30).round().astype(int))
    faithful = np.clip(1.0 - np.exp(-sizes / (0.5 * n_edges * (1 + 0.1 * rng.random()))), 0, None)
    selected = np.zeros(len(sizes), dtype=bool)
    selected[(faithful >= 0.8).argmax()] = True
    counts = {"size": sizes, "n_edges": np.where(selected, n_edges, sizes), "n_nodes": np.minimum(2 + sizes // 5, 157)}
    values = {"metric": faithful * 3, "faithfulness": faithful, "faithfulness_raw": faithful, "selected": selected}
    return pd.DataFrame(counts | values)


def _heads(rng: np.random.Generator) -> pd.DataFrame:
    layers, heads = (index.ravel() for index in np.indices((LAYERS, HEADS)))
    return pd.DataFrame({"layer": layers, "head": heads, "value": rng.random(layers.size) ** 6})
