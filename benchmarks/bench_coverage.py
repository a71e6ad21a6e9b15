"""How often the intervals of circuits hold the truth, and how right the search is: simulations with known answers.

    python benchmarks/bench_coverage.py            # everything, eight minutes on one core
    python benchmarks/bench_coverage.py --repetitions 500

Faithfulness is a quotient of means over prompts. Samples of prompts are drawn from populations whose quotient is known:
made-up ones with ties, skew, rare prompts and a weak gap, and those of circuits of a checkpoint (300 prompts of each
task, drawn with replacement). Samples on which the task does not count as learned are left out, as in the scripts.
The table has, of each method and number of prompts, the lowest coverage over populations, where that was, and the
median width in units of Fieller's interval. Then come CPR and CMD, the interval of the size, the search against every
circuit of the checkpoints, and the sizes of random circuits.
"""

from __future__ import annotations

import argparse
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.choices import Order
from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.circuit_size import THRESHOLDS, SizeRule
from circuits_over_time.edge_attribution_patching.circuits.controls import random_circuits
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import (
    Baselines,
    CircuitEvaluator,
    FaithfulnessCurve,
)
from circuits_over_time.edge_attribution_patching.circuits.mib import MIB_SHARES, area_intervals, mib_masks
from circuits_over_time.edge_attribution_patching.circuits.search import circuit_sizes, edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.statistics import fieller_interval, quotient_interval
from circuits_over_time.utils.circuits.find import circuit_prompts, evaluator_of, score_edges
from circuits_over_time.utils.circuits.keys import CircuitSettings
from circuits_over_time.utils.tasks import TASKS

KEPT = Path("tests/data/toy")
PROMPTS = (10, 20, 30, 50, 100)
MIN_GAP = 0.01
Values = np.ndarray
Ends = tuple[Values, Values]

# Populations: a generator and a shape -> what the circuit keeps of each prompt's gap, and the gap.


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Ends:
    gap = rng.normal(3, 1, shape)
    return 0.8 * gap + rng.normal(0, 0.5, shape), gap


def _ties(rng: np.random.Generator, shape: tuple[int, ...]) -> Ends:
    return np.where(rng.random(shape) < 0.7, 1.0, 0.5), np.ones(shape)


def _ties_of_counts(rng: np.random.Generator, shape: tuple[int, ...]) -> Ends:
    gap = rng.integers(1, 4, shape).astype(float)
    return gap * rng.choice([1.0, 0.5, 0.0], p=[0.5, 0.3, 0.2], size=shape), gap


def _skewed_gap(rng: np.random.Generator, shape: tuple[int, ...]) -> Ends:
    gap = 0.3 + rng.exponential(1, shape)
    return gap * rng.beta(6, 1.5, shape), gap


def _skewed_loss(rng: np.random.Generator, shape: tuple[int, ...]) -> Ends:
    gap = rng.normal(3, 0.5, shape)
    return gap - rng.lognormal(-1.2, 1, shape), gap


def _skewed_gain(rng: np.random.Generator, shape: tuple[int, ...]) -> Ends:
    gap = rng.normal(3, 0.5, shape)
    return 0.5 * gap + rng.lognormal(-1, 1, shape), gap


def _rare(share: float, rarely: float, mostly: float = 0.9) -> Callable[[np.random.Generator, tuple[int, ...]], Ends]:
    def population(rng: np.random.Generator, shape: tuple[int, ...]) -> Ends:
        gap = rng.normal(3, 0.5, shape)
        return np.where(rng.random(shape) < share, rarely, mostly) * gap + rng.normal(0, 0.1, shape), gap

    return population


def _rare_large(rng: np.random.Generator, shape: tuple[int, ...]) -> Ends:
    rare = rng.random(shape) < 0.05
    gap = np.where(rare, 9, 1) * rng.uniform(0.8, 1.2, shape)
    return np.where(rare, 0.5, 0.9) * gap + rng.normal(0, 0.05, shape), gap


def _wrong_in_the_model(rng: np.random.Generator, shape: tuple[int, ...]) -> Ends:
    wrong = rng.random(shape) < 0.1
    gap = np.where(wrong, -1, 1) * rng.uniform(0.9, 1.1, shape)
    return np.where(wrong, 0.5, 0.9) * gap, gap


def _heavy_tail(rng: np.random.Generator, shape: tuple[int, ...]) -> Ends:
    gap = rng.lognormal(0, 1, shape)
    return gap / (1 + 0.3 * gap), gap


def _weak(rng: np.random.Generator, shape: tuple[int, ...]) -> Ends:
    gap = rng.normal(1, 1, shape)
    return 0.8 * gap + rng.normal(0, 0.4, shape), gap


def _weaker(rng: np.random.Generator, shape: tuple[int, ...]) -> Ends:
    gap = rng.normal(0.7, 1, shape)
    return 0.5 * gap + rng.normal(0.1, 0.6, shape), gap


POPULATIONS = {
    "normal": _normal,
    "ties": _ties,
    "ties of counts": _ties_of_counts,
    "skewed gap": _skewed_gap,
    "skewed loss": _skewed_loss,
    "skewed gain": _skewed_gain,
    "2% lost": _rare(0.02, 0),
    "5% lost": _rare(0.05, 0),
    "10% lost": _rare(0.1, 0),
    "5% lose a third": _rare(0.05, 0.6),
    "5% gained": _rare(0.05, 1, 0.6),
    "weak gap": _weak,
    "weaker gap": _weaker,
}
EXTREME = {
    "5% reversed": _rare(0.05, -1),
    "5% with nine times the gap": _rare_large,
    "10% wrong in the model": _wrong_in_the_model,
    "7% twice the gap kept": _rare(0.07, 2, 0.7),
    "heavy tail of the gap": _heavy_tail,
}
"""Rare prompts that change more than one prompt of average gap can: nothing tells of them before one is seen."""


def of_checkpoint(
    steps: tuple[int, ...] = (1350,), n: int = 300
) -> Iterator[tuple[str, CircuitEvaluator, torch.Tensor]]:
    """The kept checkpoint on many prompts: a name, the evaluator, and the scores of all edges."""
    for step in steps:
        handle = cot.load(KEPT, step=step)
        for name, task in TASKS.items():
            n_prompts = n
            settings = CircuitSettings(n_prompts=n_prompts, evaluate_on="same", batch_size=128, eap={"ig_steps": 4})
            prompts = circuit_prompts(settings, task, handle.tokenizer, handle.weights)
            few = settings.model_copy(update={"n_prompts": 100})
            scores = score_edges(handle.weights, circuit_prompts(few, task, handle.tokenizer, handle.weights), few)
            yield f"{name} at {step}", evaluator_of(handle.weights, prompts, settings), scores.scores


# Methods: what is kept and the gap, [repetition, prompt] -> the ends of the interval of their quotient.


def _resamples(n: int, resamples: int = 399) -> Values:
    return np.random.default_rng(1).multinomial(n, np.full(n, 1 / n), size=resamples).T / n


def percentile(kept: Values, gap: Values) -> Ends:
    shares = _resamples(kept.shape[1])
    low, high = np.quantile((kept @ shares) / (gap @ shares), (0.025, 0.975), axis=1)
    return low, high


def bca(kept: Values, gap: Values) -> Ends:
    """Bias-corrected and accelerated (Efron 1987)."""
    shares = _resamples(kept.shape[1])
    resampled = np.sort((kept @ shares) / (gap @ shares), axis=1)
    quotient = (kept.mean(1) / gap.mean(1))[:, None]
    below = (resampled < quotient).mean(1) + 0.5 * (resampled == quotient).mean(1)
    bias = stats.norm.ppf(below.clip(0.001, 0.999))
    left_out = (kept.sum(1, keepdims=True) - kept) / (gap.sum(1, keepdims=True) - gap)
    off = left_out.mean(1, keepdims=True) - left_out
    acceleration = (off**3).sum(1) / (6 * ((off**2).sum(1) + 1e-300) ** 1.5)
    ends = []
    for z in (bias - 1.96, bias + 1.96):
        level = stats.norm.cdf(bias + z / (1 - acceleration * z))
        place = (level * resampled.shape[1]).astype(int).clip(0, resampled.shape[1] - 1)
        ends.append(resampled[np.arange(len(kept)), place])
    return ends[0], ends[1]


def studentised(kept: Values, gap: Values) -> Ends:
    """With the quantiles of t that resampled prompts have (Efron and Tibshirani 1993, chapter 12)."""
    shares, n = _resamples(kept.shape[1]), kept.shape[1]
    off = kept - (kept.mean(1) / gap.mean(1))[:, None] * gap
    mean = off @ shares
    variance = (off**2 @ shares - mean**2) * n / (n - 1)
    t = np.sqrt(n) * mean / np.sqrt(np.maximum(variance, 1e-9 * off.var(1, keepdims=True) + 1e-12))
    low, high = np.quantile(t, (0.025, 0.975), axis=1)
    error = off.std(1, ddof=1) / np.sqrt(n) / gap.mean(1)
    quotient = kept.mean(1) / gap.mean(1)
    return quotient - high * error, quotient - low * error


def fieller(kept: Values, gap: Values) -> Ends:
    low, high = fieller_interval(torch.from_numpy(kept), torch.from_numpy(gap))
    return low.numpy(), high.numpy()


def ours(kept: Values, gap: Values) -> Ends:
    low, high = quotient_interval(torch.from_numpy(kept), torch.from_numpy(gap))
    return low.numpy(), high.numpy()


METHODS = {f.__name__: f for f in (percentile, bca, studentised, fieller, ours)}


def learned(gap: Values) -> Values:
    """On which samples the task counts as learned (`Baselines.learned`)."""
    error = gap.std(1, ddof=1) / np.sqrt(gap.shape[1])
    return gap.mean(1) > np.maximum(MIN_GAP, 3 * error)


def covers(ends: Ends, truth: float) -> float:
    """The share of intervals that hold the truth, of those that there are."""
    low, high = ends
    there = np.isfinite(low) & np.isfinite(high)
    return float(((low <= truth + 1e-9) & (truth - 1e-9 <= high))[there].mean()) if there.any() else np.nan


def samples(
    population: Callable[[np.random.Generator, tuple[int, ...]], Ends] | Ends, n: int, repetitions: int
) -> tuple[Values, Values, float]:
    """Samples of n prompts on which the task is learned, and the population's quotient."""
    rng = np.random.default_rng(7)
    if callable(population):
        kept, gap = population(np.random.default_rng(5), (1_000_000,))
        truth = kept.mean() / gap.mean()
        kept, gap = population(rng, (repetitions, n))
    else:
        kept, gap = population
        truth = kept.mean() / gap.mean()
        rows = rng.integers(0, len(gap), (repetitions, n))
        kept, gap = kept[rows], gap[rows]
    usable = learned(gap)
    return kept[usable], gap[usable], float(truth)


def coverage_table(populations: dict, ns: tuple[int, ...], repetitions: int) -> pd.DataFrame:
    """One row for each population, number of prompts and method."""
    rows = []
    for name, population in populations.items():
        for n in ns:
            kept, gap, truth = samples(population, n, 10 * repetitions)
            if len(kept) < 100:
                continue
            unit = np.nanmedian(np.subtract(*fieller(kept, gap)[::-1]))
            for method, interval in METHODS.items():
                few = slice(None if method in ("fieller", "ours") else repetitions)  # Resamples take long.
                low, high = interval(kept[few], gap[few])
                width = np.nanmedian(high - low) / unit
                rows.append((name, n, method, covers((low, high), truth), width))
    return pd.DataFrame(rows, columns=["population", "prompts", "method", "coverage", "width"])


def worst(table: pd.DataFrame) -> pd.DataFrame:
    """Of each method and number of prompts the population that it covers least, and the median width."""
    lowest = table.loc[table.groupby(["method", "prompts"], sort=False)["coverage"].idxmin()].drop(columns="width")
    return lowest.merge(table.groupby(["method", "prompts"])["width"].median().round(2).reset_index())


def circuits_of_checkpoint(evaluator: CircuitEvaluator, scores: torch.Tensor) -> dict[str, Ends]:
    """Populations of the kept share: circuits that keep about 50, 80, 95 and 99%."""
    graph, gap = evaluator.graph, (evaluator.full - evaluator.corrupted).double().numpy()
    order = edge_order(scores, graph)
    sizes = np.unique(np.geomspace(3, graph.n_edges, 30).astype(int)).tolist()
    kept = (evaluator(top_n_masks(order, graph, sizes)) - evaluator.corrupted).double().numpy()
    shares = kept.mean(1) / gap.mean()
    places = {int(np.abs(shares - target).argmin()) for target in (0.5, 0.8, 0.95, 0.99)}
    return {f"{sizes[place]} edges": (kept[place], gap) for place in places if shares[place] != 1}


def areas_coverage(evaluator: CircuitEvaluator, scores: torch.Tensor, ns: tuple[int, ...], repetitions: int) -> list:
    """The coverage of CPR and CMD on samples of prompts: (number, prompts, coverage)."""
    masks = [mib_masks(scores, evaluator.graph, share) for share in MIB_SHARES]
    metrics = torch.stack([evaluator(mask) for mask in masks], dim=1).double()
    full, corrupted = evaluator.full.double(), evaluator.corrupted.double()
    curves = (metrics.mean(2) - corrupted.mean()) / (full.mean() - corrupted.mean())
    cpr = np.trapezoid(curves[0].numpy(), MIB_SHARES)
    cmd = np.trapezoid(np.abs(1 - curves[1].numpy()), MIB_SHARES)
    rows = []
    for n in ns:
        drawn = np.random.default_rng(3).integers(0, len(full), (repetitions, n))
        ends = np.array([area_intervals(metrics[:, :, one], full[one], corrupted[one]) for one in drawn])
        for number, truth, place in (("CPR", cpr, 0), ("CMD", cmd, 1)):
            rows.append((number, n, covers((ends[:, place, 0], ends[:, place, 1]), float(truth))))
    return rows


SIZES = ("prompts", "coverage", "width", "ends", "inclusion", "smallest", "tried")


def sizes_coverage(
    evaluator: CircuitEvaluator, order: torch.Tensor, ns: tuple[int, ...], repetitions: int
) -> list[tuple[float, ...]]:
    """The size, a row of `SIZES` for each number of prompts.

    Coverage of its interval; the median width of that over the size; how often the ends, the sizes of lower thresholds
    (which make the inclusion of edges) and the size itself are those that every size would give; how many are tried.
    """
    graph, rule = evaluator.graph, SizeRule(0.8)
    lower = [replace(rule, threshold=threshold) for threshold in THRESHOLDS if threshold < rule.threshold]
    starts = circuit_sizes(order, graph)
    every = torch.cat((evaluator.corrupted[None], evaluator(top_n_masks(order, graph, starts))))
    population = FaithfulnessCurve(evaluator.full, evaluator.corrupted, dict(zip(starts, every[1:], strict=True)))
    truth = rule.select(starts, rule.values(population), starts)
    assert truth is not None
    rows = []
    for n in ns:
        found = []
        for drawn in np.random.default_rng(3).integers(0, evaluator.n_prompts, (repetitions, n)):
            values, ends = every[:, drawn], (evaluator.full[drawn], evaluator.corrupted[drawn])
            if not Baselines.of(*ends).learned(MIN_GAP):
                continue
            curve = FaithfulnessCurve(*ends)
            size = rule.search(curve, lambda sizes: values[[bisect_right(starts, one) for one in sizes]], starts)  # noqa: B023
            whole = FaithfulnessCurve(*ends, dict(zip(starts, values[1:], strict=True)))
            of_all, of_tried = rule.values(whole), rule.values(curve)
            low, high = rule.interval(curve, starts)
            found.append(
                (
                    (low or 0) <= truth <= (high or np.inf),
                    ((high or np.nan) - (low or np.nan)) / truth,
                    (low, high) == rule.interval(whole, starts),
                    all(
                        one.select(curve.sizes, of_tried, starts) == one.select(starts, of_all, starts) for one in lower
                    ),
                    size == rule.select(starts, of_all, starts),
                    len(curve.sizes),
                )
            )
        columns = np.array(found, dtype=float).T
        rows.append((n, columns[0].mean(), float(pd.Series(columns[1]).median()), *columns[2:].mean(axis=1)))
    return rows


def control_sizes(n_circuits: int) -> tuple[int, int]:
    """Random circuits: how many, and how many have another number of edges than the circuit."""
    total = other = 0
    for seed in range(n_circuits):
        graph = [Graph(4, 4, True), Graph(3, 2, False), Graph(6, 8, True)][seed % 3]
        order: Order = "greedy" if seed % 2 else "top_n"
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(graph.n_forward, graph.n_backward, generator=generator) ** 3 * graph.edge_mask
        for size in (5, 20, 60):
            mask = top_n_masks(edge_order(scores, graph, order), graph, [min(size, graph.n_edges)])[0]
            if mask.any():
                masks = random_circuits(Circuit(graph, scores, mask), 10, seed, order)
                total += len(masks)
                other += int((masks.flatten(1).sum(1) != mask.sum()).sum())
    return total, other


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pd.set_option("display.width", 160)

    print("Faithfulness, nominal 95%: lowest coverage of", len(POPULATIONS), "made-up populations")
    print(worst(coverage_table(POPULATIONS, (5, *PROMPTS), arguments.repetitions)).to_string(index=False), flush=True)
    print("and where rare prompts change more than any prompt of average gap can")
    extreme = coverage_table(EXTREME, (*PROMPTS, 200), arguments.repetitions)
    print(extreme[extreme["method"] == "ours"].to_string(index=False), flush=True)
    measured: dict[str, Ends] = {}
    areas, sizes = [], []
    for name, evaluator, scores in of_checkpoint():
        measured |= {f"{name}, {key}": one for key, one in circuits_of_checkpoint(evaluator, scores).items()}
        areas += [(name, *row) for row in areas_coverage(evaluator, scores, (20, 50, 100), arguments.repetitions)]
        for order in ("greedy", "top_n"):
            ranked = edge_order(scores, evaluator.graph, order)
            sizes += [
                (name, order, *row)
                for row in sizes_coverage(evaluator, ranked, (20, 50, 100), arguments.repetitions // 2)
            ]
    print("Faithfulness: lowest coverage of", len(measured), "circuits of the kept checkpoint")
    print(worst(coverage_table(measured, PROMPTS, arguments.repetitions)).to_string(index=False))
    table = pd.DataFrame(areas, columns=["circuits", "number", "prompts", "coverage"])
    print("CPR and CMD: lowest coverage")
    print(table.loc[table.groupby(["number", "prompts"])["coverage"].idxmin()].to_string(index=False))
    table = pd.DataFrame(sizes, columns=["of", "order", *SIZES])
    print("Size: coverage, width in units of the size; how often its ends, the sizes of lower thresholds and the size")
    print("itself are those that every size would give; how many sizes are tried")
    print(table.round(3).to_string(index=False), flush=True)
    total, other = control_sizes(60)
    print(f"random circuits: {other} of {total} have another number of edges than the circuit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
