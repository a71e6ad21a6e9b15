"""Cost of every way to score edges, in plain forward passes of the Hugging Face model over the same prompts.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/bench_methods.py

Random weights at the shape of pythia-160m, 16 pairs of 15 to 18 tokens that share their first eleven, 5 steps. Exact
scores are of some edges, spread over the graph; the cost of all is that of one of these times their number. Everything
is repeated in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import get_args

import torch
from bench_circuits import Setting, in_turn
from random_pythia import SHAPES

from circuits_over_time.edge_attribution_patching.choices import Method
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.edge_attribution_patching.scores.exact import exact_scores

EXACT_EDGES = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="160m")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    setting = Setting.of(SHAPES[arguments.shape], 16, 5, "cpu")
    weights = read_weights(setting.model)
    graph = Graph.of(weights)
    some = graph.flat_edges[torch.linspace(0, graph.n_edges - 1, EXACT_EDGES).long()]

    def scores(method: Method) -> Callable[[], object]:
        if method == "exact":
            return lambda: exact_scores(weights, setting.pairs, setting.metric, edges=some)
        return lambda: attribute(weights, setting.pairs, setting.metric, method=method, steps=setting.steps)

    jobs: dict[str, Callable[[], object]] = {"plain": lambda: setting.plain(backward=False)}
    jobs |= {method: scores(method) for method in get_args(Method)}
    least = {name: min(times) for name, times in in_turn(jobs, arguments.rounds).items()}
    print(f"{arguments.shape}, 16 pairs, {setting.steps} steps: forward passes, and in attributions by eap_ig")
    for method in get_args(Method):
        passes = least[method] / least["plain"]
        if method == "exact":
            print(f"  {EXACT_EDGES} exact edges   {passes:8.2f}")
            passes *= graph.n_edges / EXACT_EDGES
        print(f"  {method:16}{passes:8.2f}  {passes * least['plain'] / least['eap_ig']:8.2f}")


if __name__ == "__main__":
    main()
