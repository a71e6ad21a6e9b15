"""How often the intervals, tests and errors of comparisons, head scores and roles hold, where the truth is known.

    OMP_NUM_THREADS=1 python benchmarks/bench_comparisons.py

Prints a row of docs/trust.md each: the number, what was simulated, and the coverage or rate that was found
(`tests/support/simulations.py`). Scores and effects are drawn from a population of the kept checkpoint's own prompts,
blocks and sequences. Takes about five minutes; `--share 0.1` a tenth of it. `bench_roles.py` has the roles of
untrained models.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.utils.algorithms.definitions import EffectDefinition
from circuits_over_time.utils.algorithms.effects import PairedRuns
from circuits_over_time.utils.circuits.find import circuit_prompts, score_edges
from circuits_over_time.utils.circuits.keys import CircuitSettings
from circuits_over_time.utils.comparison.seeds import jump_power
from circuits_over_time.utils.heads.attention_and_copy import (
    attention_samples,
    chance_levels,
    ordinary_tokens,
    repeated_blocks,
)
from circuits_over_time.utils.heads.copy_scores import copy_samples
from circuits_over_time.utils.heads.corpus import Corpus, draw_sequences
from circuits_over_time.utils.heads.cspa_scores import cspa_scores, mean_outputs
from circuits_over_time.utils.heads.function_words import function_tokens
from circuits_over_time.utils.heads.keys import Ablation
from circuits_over_time.utils.models.checkpoint import load_weights
from circuits_over_time.utils.tasks import TASKS, build_prompts
from tests.support import simulations as simulated
from tests.support.paths import TOY, TOY_IOI, TOY_IOI_STEP, TOY_STEPS

IDENTIFIED = {(1, 3), (3, 0), (3, 1), (3, 2), (3, 3), (4, 0), (4, 3), (5, 0), (5, 3)}
"""Heads of the kept checkpoint that hold a role at the first level."""


def emergence(share: float) -> None:
    n = round(200 * share)
    for checkpoints in (18, 154):
        for error in (0.05, 0.2, 0.3):
            what = f"{checkpoints} checkpoints, errors of {error:.0%} of the plateau"
            covered, late, emerged = simulated.onsets_covered(range(n), checkpoints, error)
            row("interval of emergence", what, covered)
            row("- its checkpoint, how many late", "", f"{late:+.1f}")
            row("- power, beyond chance at 5%", "", emerged)
            covered, _, emerged = simulated.onsets_covered(range(n), checkpoints, error, shared=0.7)
            row("interval of emergence", "the same, 70% of the variance shared by all checkpoints", covered)
            row("- power, beyond chance at 5%", "", emerged)
        slow, *_ = simulated.onsets_covered(range(n), checkpoints, 0.05, shared=0.7, steepness=5)
        row("interval of emergence", f"{checkpoints} checkpoints, shared errors of 5%, a slow rise", slow)
    noises: dict[str, list[dict[str, float]]] = {
        "white noise": [{}],
        "30% to 95% of the variance shared by all": [{"shared": shared} for shared in (0.3, 0.5, 0.7, 0.9, 0.95)],
        "neighbours correlate with 0.5 to 0.95": [{"drift": drift} for drift in (0.5, 0.8, 0.95)],
        "three or five neighbours alike": [{"alike": 3}, {"alike": 5}],
    }
    for checkpoints in (8, 18, 154):
        for name, kinds in noises.items():
            for sizes in (False, True):
                rates = [
                    simulated.noise_that_emerges(range(3 * n), checkpoints, sizes=sizes, **one)[0] for one in kinds
                ]
                what = f"{name}, {checkpoints} checkpoints{', sizes of effects' if sizes else ''}"
                row("onset where nothing is, at most", what, max(rates))


def changes(share: float) -> None:
    for noise in (0.2, 1.0):
        found = simulated.changes_found(noise, 0, round(200 * share))
        row("change of a circuit", f"two draws of one distribution, noise of folds {noise}", float(found.max()))
    for prompts in ((10, 2), (10, 1)):
        found = simulated.changes_found(0.2, 0, round(200 * share), prompts)
        row("change of a circuit", f"the same, of 100 and of {10 * prompts[1]} prompts", float(found.max()))
    for exchanged in (8, 4):
        found = simulated.changes_found(0.2, exchanged, round(100 * share))["at/edge_jaccard"]
        row("- power", f"{exchanged} of 14 edges exchanged", float(found))


def edges(share: float) -> None:
    graph = Graph(4, 4, parallel=True)
    whole: dict[str, tuple[torch.Tensor, Graph, float]] = {
        f"{skew}, a tenth has an effect": (simulated.made_up_scores(skew, graph), graph, 0.9)
        for skew in ("normal", "exponential", "lognormal")
    }
    large = Graph(12, 12, parallel=True)
    few = "lognormal, one in a thousand of 32,347 edges has an effect"
    whole[few] = simulated.made_up_scores("lognormal", large, 300), large, 0.999
    handle = cot.load(TOY, step=TOY_STEPS[-1])
    settings = CircuitSettings(n_prompts=300, evaluate_on="same", eap={"ig_steps": 5, "n_folds": 300})
    for name, task in TASKS.items():
        prompts = circuit_prompts(settings, task, handle.tokenizer, handle.weights)
        scores = score_edges(handle.weights, prompts, settings)  # a fold is a prompt
        whole[f"{name}, half moved to 0"] = scores.sums, scores.graph, 0.5
    for what, population in whole.items():
        for n in (50, 100):
            trials = max(1, round((10 if what == few else 200) * share))
            wrong, found, covered = simulated.edges_called(*population, n, trials)
            row("score of an edge, Student's t", f"{what}, {n} prompts", covered)
            row("- q at most 5%: without effect", "", wrong)
            row("- found of the others", "", found)


def lives(share: float) -> None:
    for noise in (0.1, 0.2, 0.5):
        pairs = np.array([simulated.median_lifetimes(seed, 30, noise) for seed in range(max(2, round(8 * share)))])
        ratio = (pairs[:, 1] / np.maximum(pairs[:, 0], 1e-9)).mean()
        row("error of a median lifetime", f"over its spread, noise {noise} of a score", f"{ratio:.2f}")


def models(share: float) -> None:
    for correlation in (0.0, 0.5, 0.8, 0.95):
        covered = simulated.correlations_covered(correlation, True, round(1000 * share))
        row("Pearson, five models", f"true correlation {correlation}", covered)
    for n in (5, 6, 8, 12):
        row("abrupt, power", f"{n} seeds, a perfect jump", jump_power(n, 10, 0.05))


def scores(share: float) -> None:
    weights, _ = load_weights(TOY_IOI / f"step{TOY_IOI_STEP}", "float32", torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(TOY_IOI / f"step{TOY_IOI_STEP}")
    n, repetitions = round(600 * share), 400
    blocks = repeated_blocks(ordinary_tokens(tokenizer, weights.d_vocab), n, 18, 1)
    chance = chance_levels(36, weights.d_vocab)
    for name, of_heads in attention_samples(weights, blocks, 50).items():
        population = of_heads.flatten(0, 1)
        covered = simulated.means_covered(population, 50, repetitions)
        rows(f"{name} +- 1.96 se", "50 blocks", covered, population.mean(dim=1) >= chance[name], "above chance")
    prompts = build_prompts("ioi", tokenizer, n, 1)
    names = torch.stack([prompts.positions[name] for name in ("io", "s1", "s2")], dim=1)
    for name, of_heads in copy_samples(weights, prompts.clean, prompts.lengths, names, 50).items():
        population = of_heads.flatten(0, 1)
        covered = simulated.means_covered(population, 100, repetitions)
        rows(f"{name} +- 1.96 se", "100 prompts", covered, population.mean(dim=1) >= 10, "above 10%")
    text = torch.tensor(draw_sequences(Corpus("toy"), tokenizer, 100 + n // 2, 40, 1))
    means, words = mean_outputs(weights, text[:100]), function_tokens(tokenizer)
    alone = [cspa_scores(weights, sequence[None], means, words, Ablation()) for sequence in text[100:]]
    kls = [torch.tensor(np.stack([one[name] for one in alone], axis=1)) for name in ("kl_cspa", "kl_ablated")]
    large = 1 - kls[0].mean(dim=1) / kls[1].mean(dim=1) >= 0.05
    for n_sequences in (17, 100):
        covered = simulated.quotients_covered(*kls, n_sequences, repetitions)
        rows("CSPA, Student's t", f"{n_sequences} sequences", covered, large, "above 0.05")
    row("KL(orig || ablated) +- 1.96 se", "17 sequences", simulated.means_covered(kls[1], 17, repetitions))

    runs = PairedRuns(weights, prompts, prompts.corrupted, 50, 1.0)
    clean, corrupted = runs.both()
    heads = [(layer, head) for layer in range(weights.n_layers) for head in range(weights.n_heads)]
    patched = EffectDefinition("standard").on_logits(runs, heads)
    held = torch.tensor([head in IDENTIFIED for head in heads])
    row("logit difference +- 1.96 se", "100 prompts", simulated.means_covered(clean[None], 100, repetitions))
    for prompts_drawn in (20, 70):
        given = (patched, clean, corrupted, held, prompts_drawn, repetitions // 2)
        covered, of_effects = simulated.percentages_covered(*given)
        row("percentage of a level", f"{prompts_drawn} prompts", covered)
        large = ((patched - clean).mean(dim=1) / (clean - corrupted).mean()).abs() >= 0.001
        rows("effect +- 1.96 se", f"{prompts_drawn} prompts", of_effects, large, "of 0.001 or more")
        for limit in (-0.001, 0.0):
            rejected = simulated.called_low(patched, clean, corrupted, limit, prompts_drawn, repetitions)
            row(f"effect called below {limit:g} at 5%", f"those that are not, {prompts_drawn} prompts", rejected)


PARTS: dict[str, Callable[[float], None]] = {
    "emergence": emergence,
    "edges": edges,
    "changes": changes,
    "lifetimes": lives,
    "models": models,
    "scores": scores,
}


def row(number: str, what: str, found: float | str | np.ndarray) -> None:
    """A line of the table; of many heads, the median and the extremes."""
    if isinstance(found, np.ndarray):
        found = f"{np.median(found):.1%} ({found.min():.0%} to {found.max():.0%} by head)"
    print(f"| {number} | {what} | {found if isinstance(found, str) else f'{found:.1%}'} |", flush=True)


def rows(number: str, what: str, found: np.ndarray, large: torch.Tensor, which: str) -> None:
    """Two lines: heads whose score or effect is large, and the others, where it may rest on few samples."""
    for name, among in ((which, large), ("others", ~large)):
        if among.any():
            row(number, f"{what}, {int(among.sum())} heads {name}", found[among.numpy()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the repetitions")
    parser.add_argument("--only", choices=PARTS, action="append", help="parts to run; all by default")
    arguments = parser.parse_args()
    for name in arguments.only or PARTS:
        PARTS[name](arguments.share)
    return 0


if __name__ == "__main__":
    sys.exit(main())
