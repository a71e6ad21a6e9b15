"""How many integration steps each quadrature needs on the trained toy family: the choice of the default.

    python benchmarks/bench_quadrature.py -m model_cache/toy

For every task and some late checkpoints: the fewest steps from which on the largest error of any edge's score stays
below 1% of the largest score, against a 200-point Gauss-Legendre integral. A rule's number is its worst case. The cost
column counts forward+backward passes, a forward pass as half: every rule but `left` also needs the corrupted run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge_attribution_patching.attribution import Quadrature, attribute
from utils.circuits import CircuitsConfig, circuit_prompts
from utils.models.family import resolve_family
from utils.tasks import TASKS

TOLERANCE = 0.01


def steps_needed(errors: dict[int, float]) -> int | None:
    """The fewest steps such that this number and every larger one tried stay within the tolerance."""
    good = None
    for steps in sorted(errors, reverse=True):
        if errors[steps] > TOLERANCE:
            return good
        good = steps
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="model_cache/toy", help="a local family")
    parser.add_argument("--checkpoints", type=int, default=3, help="how many of the last checkpoints")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--most", type=int, default=40, help="most steps tried")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    family = resolve_family(arguments.model, Path("model_cache"))
    config = CircuitsConfig(model=arguments.model, task=list(TASKS), n_prompts=arguments.prompts)
    needed: dict[str, list[int | None]] = {rule: [] for rule in get_args(Quadrature)}
    print(f"{'step':>6} {'task':18}" + "".join(f"{rule:>16}" for rule in needed))
    for step in sorted(family.steps)[-arguments.checkpoints :]:
        checkpoint = family.load(step, "float32", torch.device("cpu"))
        for task in TASKS:
            prompts = circuit_prompts(config, TASKS[task], checkpoint.tokenizer).scoring
            pairs, metric = prompts.pairs, prompts.metric(TASKS[task].primary)

            def scores(steps: int, rule: str, pairs=pairs, metric=metric, weights=checkpoint.weights) -> torch.Tensor:
                return attribute(weights, pairs, metric, steps=steps, quadrature=rule, batch_size=100)

            exact = scores(200, "gauss-legendre")
            for rule, found in needed.items():
                errors = {
                    steps: float((scores(steps, rule) - exact).abs().max() / exact.abs().max())
                    for steps in range(1, arguments.most + 1)
                }
                found.append(steps_needed(errors))
            print(f"{step:6} {task:18}" + "".join(f"{found[-1] or '-':>16}" for found in needed.values()), flush=True)
    for rule, found in needed.items():
        worst = None if None in found else max(steps for steps in found if steps is not None)
        extra = 0 if rule == "left" else 0.5
        cost = "" if worst is None else f", cost {worst + extra:g}"
        print(f"{rule}: {worst or f'more than {arguments.most}'} steps{cost}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
