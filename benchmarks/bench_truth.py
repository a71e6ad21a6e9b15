"""Which way to score edges finds the circuit, where it is known: programs compiled to a transformer by tracr.

    OMP_NUM_THREADS=1 python benchmarks/bench_truth.py

Eight programs run side by side in one model (tests/support/tracr_models.py). For each, edges and nodes are ranked by
|score| (a node by the sum over the edges that leave it), and AUROC is the probability that one of the program comes
before one that is not; ties count half. The table has means over programs with 95% intervals from resampled programs,
for the model as compiled and for one with softer attention and noise on all weights, where all edges carry something.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from scipy import stats
from torch import Tensor

from circuits_over_time.edge_attribution_patching.choices import Method
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.scores.methods import edge_scores
from circuits_over_time.tests.support.tracr_models import Program, circuit, compiled, task

SETTINGS = {"as compiled": (1.0, 0.0), "softer, with noise": (0.1, 0.05)}
"""What attention scores are multiplied with, and the noise on weights in units of their root mean square."""


def auroc(values: Tensor, true: Tensor) -> float:
    """The probability that a true one has the larger value; ties count half."""
    found = stats.mannwhitneyu(values[true], values[~true]).statistic
    return float(found) / float(true.sum() * (~true).sum())


def aurocs(
    weights: ModelWeights, truth: Tensor, programs: list[Program], program: Program, method: Method
) -> list[float]:
    """AUROC of edges and of nodes."""
    pairs, metric = task(programs, program)
    found = edge_scores(weights, pairs, metric, method=method)
    strength, edges = found.scores.abs(), found.graph.edge_mask
    return [auroc(strength[edges], truth[edges]), auroc(strength.sum(1), truth.any(1))]


def main() -> None:
    exact_weights, programs = compiled()
    truths = [circuit(exact_weights, program) for program in programs]
    draws = np.random.default_rng(0).integers(len(programs), size=(2000, len(programs)))
    for name, (soften, noise) in SETTINGS.items():
        weights, _ = compiled(soften, noise)
        print(f"{name:20}  {'edges':^18}  {'nodes':^18}  {' '.join(program.name for program in programs)}")
        for method in get_args(Method):
            each = np.array(
                [aurocs(weights, truth, programs, *of, method) for truth, *of in zip(truths, programs, strict=True)]
            )
            low, high = np.percentile(each[draws].mean(1), [2.5, 97.5], axis=0)
            cells = [f"{m:.2f} [{a:.2f}, {b:.2f}]" for m, a, b in zip(each.mean(0), low, high, strict=True)]
            print(f"{method:24}{'  '.join(cells)}  {' '.join(f'{value:.2f}' for value in each[:, 0])}")


if __name__ == "__main__":
    main()
