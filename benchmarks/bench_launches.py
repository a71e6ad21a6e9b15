"""Kernels, waits and transfers of each stage on a pretended accelerator (tests/support/pretend_device.py).

    python benchmarks/bench_launches.py

pythia-160m's shape with random weights, 5 integration steps, IOI-like pairs that share their first eleven tokens. A
kernel of this size takes a GPU less time than its launch, so these counts, and not the arithmetic, are its time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from bench_circuits import SIZES, Setting
from random_pythia import SHAPES

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.edge_attribution_patching.scores.folds import assign_folds
from circuits_over_time.tests.support.pretend_device import Counting, device, pretended_device


def counts(shape: str, n_prompts: int, steps: int = 5) -> Iterator[tuple[str, Counting]]:
    """Each stage's counts."""
    with pretended_device() as counting:
        setting = Setting.of(SHAPES[shape], n_prompts, steps, str(device()))
        weights = read_weights(setting.model)
        graph = Graph.of(weights)
        counting.restart()
        folds = attribute(weights, setting.pairs, setting.metric, assign_folds(n_prompts, 10, 0), steps=steps)
        yield "attribution", counting.restart()
        order = edge_order(folds.scores, graph, "top_n")
        counting.restart()
        evaluator = CircuitEvaluator(weights, setting.pairs, setting.metric)
        yield "prepare the evaluation", counting.restart()
        evaluate = evaluator.prefixes_of(order)
        evaluate([1000])
        yield "one circuit of 1,000 edges", counting.restart()
        evaluate(SIZES)
        yield f"{len(SIZES)} sizes", counting.restart()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="160m")
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 100])
    parser.add_argument(
        "--top", type=int, default=0, metavar="N", help="also the N most frequent operations of each stage"
    )
    arguments = parser.parse_args()
    for n_prompts in arguments.prompts:
        print(f"{arguments.shape}, {n_prompts} pairs: kernels / waits / transfers")
        for stage, found in counts(arguments.shape, n_prompts):
            print(f"  {stage:28}{found.kernels:8,} / {found.waits:,} / {found.transfers:,}")
            for name, number in found.by_name.most_common(arguments.top):
                print(f"      {number:6,}  {name}")


if __name__ == "__main__":
    main()
