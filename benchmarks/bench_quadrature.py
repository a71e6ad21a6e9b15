"""How many integration steps each quadrature needs on trained models: the choice of the default.

    python benchmarks/bench_quadrature.py -m model_cache/toy
    python benchmarks/bench_quadrature.py -m model_cache/smollm2-135m --tasks ioi gendered_pronoun sva --prompts 20 \\
        --steps 8 10 12 14 16 18 20 24 30 --reference 64

For every task and some late checkpoints: the fewest steps from which on the largest error of any edge's score stays
below 1% of the largest score, against a Gauss-Legendre integral of many points. A rule's number is its worst case. The
cost column counts forward+backward passes, a forward pass as half: every rule but `left` also needs the corrupted run.
With `--steps`, every error is printed, and the share of the 500 strongest edges that are the same as in the integral.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import torch

from circuits_over_time.edge_attribution_patching.choices import Quadrature
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.utils.circuits.find import circuit_prompts
from circuits_over_time.utils.circuits.keys import CircuitsConfig
from circuits_over_time.utils.models.family import resolve_family
from circuits_over_time.utils.tasks import TASKS

TOLERANCE = 0.01
STRONGEST = 500


def steps_needed(errors: dict[int, float]) -> int | None:
    """The fewest steps such that this number and every larger one tried stay within the tolerance."""
    good = None
    for steps in sorted(errors, reverse=True):
        if errors[steps] > TOLERANCE:
            return good
        good = steps
    return good


def strongest(scores: torch.Tensor) -> set[int]:
    """The edges of the largest absolute scores."""
    return set(scores.abs().flatten().topk(min(STRONGEST, int((scores != 0).sum()))).indices.tolist())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="model_cache/toy", help="a local family")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rules", nargs="+", default=list(get_args(Quadrature)), choices=get_args(Quadrature))
    parser.add_argument("--checkpoints", type=int, default=3, help="how many of the last checkpoints")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--steps", type=int, nargs="+", help="numbers of steps to try (default: 1 to 40)")
    parser.add_argument("--reference", type=int, default=200, help="points of the integral that is taken as exact")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tried = arguments.steps or list(range(1, 41))
    family = resolve_family(arguments.model, Path("model_cache"))
    config = CircuitsConfig(model=arguments.model, task=arguments.tasks, n_prompts=arguments.prompts)
    needed: dict[str, list[int | None]] = {rule: [] for rule in arguments.rules}
    print(f"{'step':>8} {'task':18}" + "".join(f"{rule:>16}" for rule in needed))
    for step in sorted(family.steps)[-arguments.checkpoints :]:
        checkpoint = family.load(step, "float32", "cpu")
        for task in arguments.tasks:
            prompts = circuit_prompts(config, TASKS[task], checkpoint.tokenizer, checkpoint.weights).scoring
            pairs, metric = prompts.pairs, prompts.metric(TASKS[task].primary)

            def scores(steps: int, rule: str, pairs=pairs, metric=metric, weights=checkpoint.weights) -> torch.Tensor:
                return attribute(weights, pairs, metric, steps=steps, quadrature=rule, batch_size=100).scores

            exact = scores(arguments.reference, "gauss-legendre")
            for rule, found in needed.items():
                errors = {}
                for steps in tried:
                    these = scores(steps, rule)
                    errors[steps] = float((these - exact).abs().max() / exact.abs().max())
                    if arguments.steps:
                        same = len(strongest(these) & strongest(exact)) / len(strongest(exact))
                        print(f"  {task} {rule} {steps}: {errors[steps]:.2%}, {same:.1%} of edges", flush=True)
                found.append(steps_needed(errors))
            print(f"{step:8} {task:18}" + "".join(f"{found[-1] or '-':>16}" for found in needed.values()), flush=True)
    for rule, found in needed.items():
        worst = None if None in found else max(steps for steps in found if steps is not None)
        extra = 0 if rule == "left" else 0.5
        cost = "" if worst is None else f", cost {worst + extra:g}"
        print(f"{rule}: {worst or f'more than {max(tried)}'} steps{cost}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
