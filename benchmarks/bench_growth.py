"""How the cost of edge scores and of a circuit grows with prompts, their length, integration steps, layers and width.

    OMP_NUM_THREADS=1 python benchmarks/bench_growth.py

One of them grows at a time, from 35 pairs of 10 tokens, 5 steps, 4 layers and 256 dimensions in heads of 64. Weights
are random, the vocabulary has 2,048 tokens, and pairs differ from their first token on. The memory budget of 10 MB is
less than one step takes, so work is split up as in a large model. Counted are the operations of matrix products, and
the bytes of tensors above the weights at their peak; CPU time is the least of some rounds. Exponents are slopes of the
logarithm of a cost by that of what grows. A circuit has a tenth of the edges; both runs are prepared for it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from bench_circuits import Products
from random_pythia import random_pythia

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.tests.support.live_bytes import Live

BUDGET_GB = 0.01
VOCABULARY, D_HEAD = 2048, 64

GROWS = {
    "prompts": (35, 140, 560, 1120),
    "length": (10, 20, 40, 80, 160),
    "steps": (1, 5, 15, 50),
    "layers": (4, 8, 16),
    "width": (256, 512, 1024),
}


@dataclass(frozen=True)
class Setting:
    """What a cost is measured at."""

    prompts: int = 35
    length: int = 10
    steps: int = 5
    layers: int = 4
    width: int = 256


def costs(setting: Setting, rounds: int) -> list[float]:
    """Operations, seconds and bytes of the scores of all edges, and of one circuit."""
    model = random_pythia(setting.layers, setting.width // D_HEAD, setting.width, vocabulary=VOCABULARY)
    weights = read_weights(model)
    clean, corrupted = torch.randint(0, VOCABULARY, (2, setting.prompts, setting.length))
    corrupted[:, 0] = (clean[:, 0] + 1) % VOCABULARY
    pairs = TokenPairs(clean, corrupted, torch.full((setting.prompts,), setting.length))

    def metric(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return logits[:, 100] - logits[:, 200]

    def score(steps: int = setting.steps) -> torch.Tensor:
        return attribute(weights, pairs, metric, steps=steps, memory_budget_gb=BUDGET_GB).scores

    graph = Graph.of(weights)
    n_edges = graph.n_edges // 10
    order = edge_order(score(1), graph, limit=n_edges)

    def evaluate() -> None:
        CircuitEvaluator(weights, pairs, metric, memory_budget_gb=BUDGET_GB).prefixes_of(order)([n_edges])

    return [cost for run in (score, evaluate) for cost in _costs_of(run, rounds)]


def _costs_of(run: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    with Live() as live, Products() as products:
        run()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return products.flop, min(seconds), live.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROWS, default=list(GROWS))
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':16}{'scores of all edges':>30}{'one circuit':>30}")
    print(f"{'':16}" + 2 * f"{'GFLOP':>10}{'seconds':>10}{'MB':>10}")
    for name in arguments.only:
        rows = []
        for value in GROWS[name]:
            rows.append(costs(replace(Setting(), **{name: value}), arguments.rounds))
            cells = (cost / unit for cost, unit in zip(rows[-1], (1e9, 1, 1e6) * 2, strict=True))
            print(f"{name:10}{value:6}" + "".join(f"{cell:10.2f}" for cell in cells), flush=True)
        slopes, _ = np.polyfit(np.log(GROWS[name]), np.log(rows), 1)
        print(f"{'  exponents':16}" + "".join(f"{slope:10.2f}" for slope in slopes))


if __name__ == "__main__":
    main()
