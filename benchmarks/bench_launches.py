"""Kernels, waits and transfers of each stage on a pretended accelerator (tests/support/pretend_device.py).

    python benchmarks/bench_launches.py
    python benchmarks/bench_launches.py --scripts

pythia-160m's shape with random weights, 5 integration steps, IOI-like pairs that share their first eleven tokens. A
kernel of this size takes a GPU less time than its launch, so these counts, and not the arithmetic, are its time. With
`--scripts` of whole scripts on the last checkpoint of a toy family, with as many prompts as they take by default.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench_circuits import SIZES, Setting
from random_pythia import SHAPES

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.edge_attribution_patching.scores.folds import assign_folds
from circuits_over_time.tests.support.pretend_device import Counts, device, pretended_device
from circuits_over_time.tests.support.pretended_runs import files_of, scripts_on_the_device

MEMORY: dict[str, Any] = {"memory_budget_gb": 16.0}
"""As `auto` gives on a small GPU."""


ALL_SHAPES = {**SHAPES, "narrow": (12, 12, 96), "shallow": (3, 12, 96)}
"""`narrow` has 160m's layers and heads, and so its counts; `shallow` a quarter of its layers."""


def counts(shape: str, n_prompts: int, steps: int = 5, sizes: Sequence[int] = SIZES) -> Iterator[tuple[str, Counts]]:
    """Each stage's counts."""
    with pretended_device() as counting:
        setting = Setting.of(ALL_SHAPES[shape], n_prompts, steps, str(device()))
        weights = read_weights(setting.model)
        graph = Graph.of(weights)
        counting.restart()
        fold_of = assign_folds(n_prompts, 10, 0)
        folds = attribute(weights, setting.pairs, setting.metric, fold_of, steps=steps, **MEMORY)
        yield "attribution", counting.restart()
        order = edge_order(folds.scores, graph, "top_n")
        counting.restart()
        evaluator = CircuitEvaluator(weights, setting.pairs, setting.metric, **MEMORY)
        yield "prepare the evaluation", counting.restart()
        evaluate = evaluator.prefixes_of(order)
        evaluate([1000])
        yield "one circuit of 1,000 edges", counting.restart()
        evaluate(sizes)
        yield "many sizes", counting.restart()


WHOLE = {
    "agreement, 5 random circuits, with tests": (
        "get_circuits_over_time",
        ["task=sva", "n_random=5", "hypothesis_tests=true"],
    ),
    "greater-than, the same": (
        "get_circuits_over_time",
        ["task=greater_than", "n_random=5", "hypothesis_tests=true"],
    ),
    "greater-than consistency": ("get_greater_than_consistency", []),
    "IOI consistency, study": ("get_ioi_consistency", ["definitions=study", "cspa.corpus=toy"]),
    "IOI consistency, standard": ("get_ioi_consistency", ["cspa.corpus=toy"]),
}
"""Scripts and their overrides."""


def print_scripts() -> None:
    for name, (script, overrides) in WHOLE.items():
        with scripts_on_the_device() as restart:
            files_of(script, [*overrides, f"memory_budget_gb={MEMORY['memory_budget_gb']}"])
            made = restart()
        print(f"{name:42}{made.kernels:8,} / {made.waits:,} / {made.transfers:,}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=ALL_SHAPES, default="160m")
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many sizes the last stage has")
    parser.add_argument("--output", type=Path, help="a file for the counts as json")
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 100])
    parser.add_argument(
        "--top", type=int, default=0, metavar="N", help="also the N most frequent operations of each stage"
    )
    parser.add_argument("--scripts", action="store_true", help="whole scripts instead of stages")
    arguments = parser.parse_args()
    if arguments.scripts:
        print_scripts()
        return
    found: dict[int, dict[str, list[int]]] = {}
    for n_prompts in arguments.prompts:
        found[n_prompts] = {}
        print(f"{arguments.shape}, {n_prompts} pairs: kernels / waits / transfers")
        for stage, made in counts(arguments.shape, n_prompts, sizes=SIZES[: arguments.sizes]):
            print(f"  {stage:28}{made.kernels:8,} / {made.waits:,} / {made.transfers:,}")
            for name, number in made.by_name.most_common(arguments.top):
                print(f"      {number:6,}  {name}")
            found[n_prompts][stage] = [made.kernels, made.waits, made.transfers]
    if arguments.output:
        arguments.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
