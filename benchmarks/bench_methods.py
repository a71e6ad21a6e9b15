"""Every way to score edges: what it costs, how near it comes to exact patching, and what circuits it gives.

    OMP_NUM_THREADS=1 python benchmarks/bench_methods.py                       # cost, at the shape of pythia-160m
    OMP_NUM_THREADS=1 python benchmarks/bench_methods.py model_cache/toy       # a trained model, by task and ablation
    OMP_NUM_THREADS=1 python benchmarks/bench_methods.py model_cache/smollm2-135m -t ioi -n 10 --edges 200

Cost is counted and not timed: floating-point operations of all matrix products, in those of one forward pass of the
Hugging Face model over the same prompts. There, weights are random: 16 pairs of 15 to 18 tokens that share their first
eleven, 5 steps; of exact scores, 256 edges spread over the graph, and the cost of all follows from theirs. Means cost
one more pass, over the reference prompts.

Of a trained model: Pearson's and Spearman's correlation with exact scores (of all edges, or of so many that `eap_ig`
finds strongest), MIB's CMD, edges of the smallest circuit of faithfulness 0.8, and the stability of its edges: the
share of circuits from resampled folds of the prompts that have an edge, mean over the circuit's edges.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from typing import Any, get_args

import torch
from bench_circuits import Setting
from random_pythia import SHAPES
from torch.utils.flop_counter import FlopCounterMode

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.choices import USUAL_STEPS, Ablation, Method
from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.reference import Reference
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.exact import exact_scores
from circuits_over_time.edge_attribution_patching.scores.methods import edge_scores

EXACT_EDGES = 256
TASKS = ("ioi", "greater_than", "gendered_pronoun", "sva")
EDGE = ["source", "target", "input"]
WAYS = {"pearson": 8, "spearman": 9}
"""Correlations, and the width of their columns."""


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of its matrix products."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def print_costs(shape: str, ablations: list[Ablation]) -> None:
    """Every method's cost in forward passes, with every ablation."""
    setting = Setting.of(SHAPES[shape], 16, 5, "cpu")
    weights, pairs = read_weights(setting.model), setting.pairs
    graph = Graph.of(weights)
    some = graph.flat_edges[torch.linspace(0, graph.n_edges - 1, EXACT_EDGES).long()]
    plain = operations(lambda: setting.plain(backward=False))

    def cost(ablation: Ablation, method: Method, edges: torch.Tensor | None = None) -> float:
        def run() -> None:
            reference = Reference.of(weights, ablation, pairs.clean, pairs.lengths)
            if edges is not None:
                exact_scores(weights, pairs, setting.metric, edges=edges, reference=reference)
            else:
                how: dict[str, Any] = {"method": method, "steps": setting.steps, "reference": reference}
                edge_scores(weights, pairs, setting.metric, **how)

        return operations(run) / plain

    print(f"{shape}, 16 pairs, {setting.steps} steps: forward passes")
    print(f"{'method':26}{''.join(f'{ablation:>17}' for ablation in ablations)}")
    for method in get_args(Method):
        if method == "exact":
            continue
        print(f"{method:26}{''.join(f'{cost(ablation, method):17.2f}' for ablation in ablations)}", flush=True)
    half, whole = ([cost(ablation, "exact", edges) for ablation in ablations] for edges in (some[::2], some))
    each = [2 * (every - part) / EXACT_EDGES for part, every in zip(half, whole, strict=True)]
    totals = [every + one * (graph.n_edges - EXACT_EDGES) for every, one in zip(whole, each, strict=True)]
    print(f"{f'exact, {graph.n_edges} edges':26}{''.join(f'{total:17.1f}' for total in totals)}")


def print_agreement(arguments: argparse.Namespace) -> None:
    """How every method does on the tasks of a trained model, with every ablation."""
    model = cot.load(arguments.model)
    keys: dict[str, Any] = {"n_prompts": arguments.prompts, "exact": {"edges": arguments.edges or "all"}}
    names = f"{'task':18}{'ablation':17}{'method':25}"
    print(f"{names}{'Pearson':>8}{'Spearman':>9}{'CMD':>7}{'size':>7}{'stability':>10}", flush=True)
    for name, ablation in product(arguments.task, arguments.ablations):
        task, keys = cot.task(name), keys | {"ablation": ablation}
        exact = cot.scores(model, task, method="exact", **keys).set_index(EDGE)["score"]
        exact = exact[exact != 0]
        for method in arguments.methods:
            steps = {"ig_steps": arguments.steps} if arguments.steps and method in USUAL_STEPS else {}
            circuit = cot.find_circuit(model, task, method=method, mib=True, n_random=0, **keys, **steps)
            found, mask = circuit.circuit, circuit.circuit.graph.edge_mask
            own = Circuit(found.graph, found.scores, mask).to_table().set_index(EDGE)["score"].reindex(exact.index)
            cells = "".join(f"{own.corr(exact, method=way):{width}.3f}" for way, width in WAYS.items())
            cmd = circuit.tables["baselines"]["cmd"].iloc[0]
            cells += f"{cmd:7.3f}{circuit.size or '-':>7}{circuit.edges['stability'].mean():10.2f}"
            print(f"{name:18}{ablation:17}{method:25}{cells}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder of checkpoints, whose last is taken; none for the cost")
    parser.add_argument("--shape", choices=SHAPES, default="160m")
    parser.add_argument("-t", "--task", nargs="+", default=TASKS)
    parser.add_argument("-m", "--methods", nargs="+", choices=get_args(Method), default=get_args(Method))
    parser.add_argument("-a", "--ablations", nargs="+", choices=get_args(Ablation), default=get_args(Ablation))
    parser.add_argument("-n", "--prompts", type=int, default=40)
    parser.add_argument("--steps", type=int, help="integration steps, in place of every method's own")
    parser.add_argument("--edges", type=int, help="how many exact scores; all by default")
    arguments = parser.parse_args()
    print_agreement(arguments) if arguments.model else print_costs(arguments.shape, arguments.ablations)


if __name__ == "__main__":
    main()
