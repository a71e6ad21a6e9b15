"""Every way to score edges: what it costs, how near it comes to exact patching, and what circuits it gives.

    OMP_NUM_THREADS=1 python benchmarks/bench_methods.py                       # cost, at the shape of pythia-160m
    OMP_NUM_THREADS=1 python benchmarks/bench_methods.py model_cache/toy       # a trained model, task by task
    OMP_NUM_THREADS=1 python benchmarks/bench_methods.py model_cache/smollm2-135m -t ioi -n 10 --edges 200

Cost is counted and not timed: floating-point operations of all matrix products, in those of one forward pass of the
Hugging Face model over the same prompts. There, weights are random: 16 pairs of 15 to 18 tokens that share their first
eleven, 5 steps; of exact scores, 256 edges spread over the graph, and the cost of all follows from theirs.

Of a trained model: Pearson's and Spearman's correlation with exact scores (of all edges, or of so many that `eap_ig`
finds strongest), MIB's CMD, edges of the smallest circuit of faithfulness 0.8, and the stability of its edges: the
share of circuits from resampled folds of the prompts that have an edge, mean over the circuit's edges.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, get_args

import torch
from bench_circuits import Setting
from random_pythia import SHAPES
from torch.utils.flop_counter import FlopCounterMode

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.choices import USUAL_STEPS, Method
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.exact import exact_scores
from circuits_over_time.edge_attribution_patching.scores.methods import edge_scores

EXACT_EDGES = 256
TASKS = ("ioi", "greater_than", "gendered_pronoun", "sva")


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of its matrix products."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def print_costs(shape: str) -> None:
    """Every method's cost in forward passes."""
    setting = Setting.of(SHAPES[shape], 16, 5, "cpu")
    weights, what = read_weights(setting.model), (setting.pairs, setting.metric)
    graph = Graph.of(weights)
    some = graph.flat_edges[torch.linspace(0, graph.n_edges - 1, EXACT_EDGES).long()]
    plain = operations(lambda: setting.plain(backward=False))
    print(f"{shape}, 16 pairs, {setting.steps} steps: forward passes")
    for method in get_args(Method):
        if method != "exact":
            taken = operations(lambda method=method: edge_scores(weights, *what, method=method, steps=setting.steps))
            print(f"  {method:24}{taken / plain:10.2f}")
    half, whole = (
        operations(lambda edges=edges: exact_scores(weights, *what, edges=edges)) / plain for edges in (some[::2], some)
    )
    per_edge = (whole - half) / (EXACT_EDGES / 2)
    print(f"  exact, {graph.n_edges} edges{whole + per_edge * (graph.n_edges - EXACT_EDGES):12.1f}")


def print_agreement(arguments: argparse.Namespace) -> None:
    """How every method does on the tasks of a trained model."""
    model = cot.load(arguments.model)
    keys: dict[str, Any] = {"n_prompts": arguments.prompts, "exact": {"edges": arguments.edges or "all"}}
    print(f"{'task':18}{'method':26}{'Pearson':>8}{'Spearman':>9}{'CMD':>7}{'size':>6}{'stability':>10}")
    for name in arguments.task:
        task = cot.task(name)
        exact = _scores(model, task, "exact", keys)
        patched = exact[exact != 0].index
        for method in arguments.methods:
            steps = {"ig_steps": arguments.steps} if arguments.steps and method in USUAL_STEPS else {}
            own = _scores(model, task, method, keys | steps)[patched]
            circuit = cot.find_circuit(model, task, method=method, mib=True, n_random=0, **keys, **steps)
            row = [own.corr(exact[patched], method=way) for way in ("pearson", "spearman")]
            row.append(circuit.tables["baselines"]["cmd"].iloc[0])
            stability = circuit.edges["stability"].mean()
            print(
                f"{name:18}{method:26}{row[0]:8.3f}{row[1]:9.3f}{row[2]:7.3f}{circuit.size or '-':>6}{stability:10.2f}",
                flush=True,
            )


def _scores(model: Any, task: Any, method: str, keys: dict[str, Any]) -> Any:
    return cot.scores(model, task, method=method, **keys).set_index(["source", "target", "input"])["score"].sort_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder of checkpoints, whose last is taken; none for the cost")
    parser.add_argument("--shape", choices=SHAPES, default="160m")
    parser.add_argument("-t", "--task", nargs="+", default=TASKS)
    parser.add_argument("-m", "--methods", nargs="+", choices=get_args(Method), default=get_args(Method))
    parser.add_argument("-n", "--prompts", type=int, default=40)
    parser.add_argument("--steps", type=int, help="integration steps, in place of every method's own")
    parser.add_argument("--edges", type=int, help="how many exact scores; all by default")
    arguments = parser.parse_args()
    print_agreement(arguments) if arguments.model else print_costs(arguments.shape)


if __name__ == "__main__":
    main()
