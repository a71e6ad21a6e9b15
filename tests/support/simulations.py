"""Simulations with a known truth behind the intervals, errors and rates that comparisons and head scores come with.

Tests run few repetitions of each; `benchmarks/bench_comparisons.py` runs many and prints the rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from scipy.optimize import brentq
from torch import Tensor

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.scores.folds import FoldScores, KeptFolds, assign_folds
from circuits_over_time.edge_attribution_patching.statistics import quotient_errors, standard_errors
from circuits_over_time.utils.algorithms.shares import Scale, p_mean_above
from circuits_over_time.utils.comparison.emergence import crossings, find_emergence
from circuits_over_time.utils.comparison.floors import SelectionRule, change_test
from circuits_over_time.utils.comparison.lifetimes import RedrawnLives, lifetimes
from circuits_over_time.utils.comparison.scale import correlations
from circuits_over_time.utils.comparison.similarity import Edges
from circuits_over_time.utils.comparison.statistics import normal_resamples

# --- emergence


def errors_of_curve(
    rng: np.random.Generator,
    n: int,
    error: float | np.ndarray,
    shared: float = 0.0,
    drift: float = 0.0,
    alike: int = 1,
) -> np.ndarray:
    """Errors of n checkpoints.

    Args:
        error: their standard deviation, one or of each checkpoint.
        shared: share of the variance that is the same at all of them, as with the same prompts.
        drift: correlation of the rest between neighbours (an autoregressive process).
        alike: so many neighbours have the same error.
    """
    own = rng.normal(size=n)
    for at in range(1, n if drift else 0):
        own[at] = drift * own[at - 1] + np.sqrt(1 - drift**2) * own[at]
    own = own[np.arange(n) // alike]
    return error * (np.sqrt(1 - shared) * own + np.sqrt(shared) * rng.normal())


def onsets_covered(
    seeds: range, n: int, error: float, shared: float = 0.0, steepness: float = 20.0
) -> tuple[float, float, float]:
    """Share of the intervals of emergence that hold the true checkpoint, how many checkpoints late onsets are, and the
    share of curves that emerge beyond chance at 5%.

    Logistic curves that rise from 0 to 1 in the middle, the steeper the higher `steepness`.
    """
    truth = 1 / (1 + np.exp(-(np.arange(n) - n / 2) * steepness / n))
    crossing = int(crossings(truth[None], 0.5, 2)[0])
    covered, late, emerged = [], [], []
    for seed in seeds:
        values = truth + errors_of_curve(np.random.default_rng(seed), n, error, shared)
        found = find_emergence(values, normal_resamples(values, np.full(n, error), seed + 1, 200), 0.5, 2)
        low, high = found.interval
        covered.append(low <= crossing <= high)
        late.append(found.index - crossing)
        emerged.append(found.p_value <= 0.05)
    return float(np.mean(covered)), float(np.mean(late)), float(np.mean(emerged))


def crossings_covered(seeds: range, anywhere: bool) -> float:
    """The same for the time at which a smooth curve crosses half of its end, anywhere or at a checkpoint."""
    at, covered = np.arange(17.0), []

    def smooth(at: np.ndarray | float, middle: float) -> np.ndarray:
        return 1 / (1 + np.exp(-0.75 * (at - middle)))

    def short_of_half(middle: float, crossing: float) -> float:
        return float(smooth(crossing, middle) - 0.5 * smooth(at[-1], middle))

    for seed in seeds:
        rng = np.random.default_rng(seed)
        crossing = rng.uniform(5, 11) if anywhere else float(rng.integers(5, 12))
        values = smooth(at, brentq(short_of_half, 0, 16, args=(crossing,))) + 0.06 * rng.normal(size=len(at))
        resampled = normal_resamples(values, np.full(len(at), 0.06), seed, 200)
        low, high = find_emergence(values, resampled, 0.5, 2).interval
        covered.append(low <= crossing <= high)
    return float(np.mean(covered))


def noise_that_emerges(
    seeds: range, n: int, *, sizes: bool = False, growth: float = 1.0, **correlated: float
) -> tuple[float, float]:
    """Share of curves of pure noise that emerge, and of those that cross their level at all.

    Args:
        sizes: of absolute values, as sizes of effects are.
        growth: by what the error of a checkpoint is larger than that of the one before.
        correlated: how errors of checkpoints are (`errors_of_curve`).
    """
    emerged, crossed, errors = [], [], 0.1 * growth ** np.arange(1.0 - n, 1.0)
    for seed in seeds:
        signed = errors_of_curve(np.random.default_rng(seed), n, errors, **correlated)  # type: ignore[arg-type]
        resampled = normal_resamples(signed, errors, seed + 1, 200)
        found = (
            find_emergence(np.abs(signed), np.abs(resampled), 0.5, 2, signed_errors=errors)
            if sizes
            else find_emergence(signed, resampled, 0.5, 2)
        )
        crossed.append(found.index < n)
        emerged.append(found.index < n and found.p_value <= 0.05)
    return float(np.mean(emerged)), float(np.mean(crossed))


# --- changes of circuits


def folds_of(means: Tensor, graph: Graph, edges: Edges, prompts: int = 10) -> KeptFolds:
    """Folds of so many prompts each, with these mean scores."""
    return KeptFolds(graph, edges.flat, means, torch.full((len(means),), prompts), 1.0)


def of_two_draws(
    rng: np.random.Generator, noise: float, exchanged: int, trial: int, prompts: tuple[int, int] = (10, 10)
) -> dict[str, float]:
    """p-values of two draws, circuits of 20 edges; of the second, some edges in the circuit get the scores of others.

    Args:
        rng: of scores and noise.
        noise: standard deviation of a fold of ten prompts over the mean |score|; that of ten folds is a third of it.
        exchanged: how many edges of the circuit change.
        trial: the seed of the test.
        prompts: in each fold of either draw.
    """
    graph = Graph(3, 3, True)
    edges = Edges.all_of(graph)
    first = rng.normal(size=len(edges.flat)) * np.exp(1.2 * rng.normal(size=len(edges.flat)))
    second = first.copy()
    if exchanged:
        true = torch.from_numpy(first)[None].float()
        held = SelectionRule().grower(folds_of(true, graph, edges)).circuits(true, 20)[0].numpy()
        inside, outside = np.flatnonzero(held), np.flatnonzero(~held)
        leave = rng.choice(inside, min(exchanged, len(inside)), replace=False)
        join = rng.choice(outside, len(leave), replace=False)
        second[leave], second[join] = first[join], first[leave]
    sd = noise * np.abs(first).mean()
    sides = [
        folds_of(torch.from_numpy(mean + sd * sqrt(10 / n) * rng.normal(size=(10, len(mean)))).float(), graph, edges, n)
        for mean, n in zip((first, second), prompts, strict=True)
    ]
    return change_test(sides[0], sides[1], {"at": (20, 20)}, SelectionRule(), trial, 99)


def changes_found(noise: float, exchanged: int, trials: int, prompts: tuple[int, int] = (10, 10)) -> pd.Series:
    """Share of the trials with a p-value of at most 5%, by measure."""
    rows = [of_two_draws(np.random.default_rng(trial), noise, exchanged, trial, prompts) for trial in range(trials)]
    return (pd.DataFrame(rows) <= 0.05).mean()


# --- scores of edges


def made_up_scores(skew: str, graph: Graph, n: int = 5000) -> Float[Tensor, "prompt n_forward n_backward"]:
    """Scores of mean 3 and spread 1: `normal`, `exponential`, or `lognormal`, which is skewed more."""
    rng = np.random.default_rng(0)
    drawn = getattr(rng, skew)(size=(n, *graph.edge_mask.shape))
    return torch.from_numpy(3 + (drawn - drawn.mean(axis=0)) / drawn.std(axis=0)).float() * graph.edge_mask


def edges_called(
    population: Float[Tensor, "prompt n_forward n_backward"], graph: Graph, idle: float, n: int, trials: int
) -> tuple[float, float, float]:
    """Of edges with a q-value of at most 5%, the share that has no effect; the share of the others that is found; and
    how often the interval of Student's t over folds holds a score's mean over the population.

    Args:
        idle: share of the edges whose scores are moved to a mean of 0, others in each trial.
        n: prompts of a trial, in ten folds.
    """
    generator, mean = torch.Generator().manual_seed(0), population.double().mean(dim=0)
    edges = graph.edge_mask & (population.std(dim=0) > 0)
    wrong, found, covered = [], [], []
    for trial, drawn in enumerate(subsets(len(population), n, trials)):
        none = torch.rand(mean.shape, generator=generator) < idle
        truth = mean.where(~none, 0)
        fold_of = assign_folds(n, 10, trial)
        scores = population[drawn] - (mean - truth).float()
        folds = FoldScores(graph, torch.zeros(10, *mean.shape).index_add_(0, fold_of, scores), fold_of.bincount())
        called = folds.q_values <= 0.05
        wrong.append(float((called & none).sum() / called.sum().clamp(min=1)))
        found.append(float(called[edges & ~none].float().mean()))
        off = (folds.scores - truth).abs() / folds.standard_error
        covered.append(float((off[edges] <= stats.t.ppf(0.975, 9)).float().mean()))
    return float(np.mean(wrong)), float(np.mean(found)), float(np.mean(covered))


# --- lifetimes


def median_lifetimes(seed: int, draws: int, noise: float = 0.2) -> tuple[float, float]:
    """The spread of the median lifetime over draws of the prompts, and the mean standard error that a draw gives.

    Circuits of the 25 strongest of 300 edges at 18 checkpoints; scores of five folds.

    Args:
        noise: standard error of a score; scores are of size 1.
    """
    rng = np.random.default_rng(seed)
    at_end, at_start = rng.standard_t(3, size=(2, 300))
    turned = np.linspace(0, 0.8, 18)[:, None]
    truth = (1 - turned) * at_start + 2 * turned * at_end
    medians, errors = [], []
    for _ in range(draws):
        # Most of a fold's noise is the same at all checkpoints: they are measured on the same prompts.
        of_folds = np.sqrt(0.7) * rng.normal(size=(1, 5, 300)) + np.sqrt(0.3) * rng.normal(size=(18, 5, 300))
        folds = truth[:, None] + noise * np.sqrt(5) * of_folds
        weights = rng.multinomial(5, [0.2] * 5, size=50) / 5
        lives = RedrawnLives(50, 300)
        for of_fold in folds:
            mean = of_fold.mean(axis=0)
            lives.add(strongest(mean + np.sqrt(5 / 4) * (weights @ of_fold - mean)))
        errors.append(lives.errors()[1])
        table = lifetimes(strongest(folds.mean(axis=1)), list(range(18)))
        medians.append(table["median_lifetime"].fillna(19).iloc[0])
    return float(np.std(medians, ddof=1)), float(np.mean(errors))


def strongest(scores: np.ndarray) -> np.ndarray:
    """Which scores of each row are among its 25 largest."""
    present = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(present, np.argsort(-np.abs(scores), axis=-1)[..., :25], True, axis=-1)
    return present


# --- models


def correlations_covered(correlation: float, logarithmic: bool, repetitions: int) -> float:
    """Share of the intervals of a correlation with the size of five models, as of Pythia, that hold the true one."""
    x = np.array([70e6, 160e6, 410e6, 1e9, 1.4e9])
    x = np.log(x) if logarithmic else x
    z, rng = (x - x.mean()) / x.std(), np.random.default_rng(0)
    covered = []
    for _ in range(repetitions):
        pearson, _ = correlations(x, correlation * z + np.sqrt(1 - correlation**2) * rng.normal(size=5))
        covered.append(pearson.low <= correlation <= pearson.high)
    return float(np.mean(covered))


# --- scores and effects, on populations of a trained model's own prompts


def means_covered(population: Float[Tensor, "head sample"], n: int, repetitions: int) -> np.ndarray:
    """By head, share of mean +- 1.96 standard errors of n samples that holds the mean over the population."""
    population = population.double()
    # Rounding is no error: a head that is the same on every sample always holds.
    truth, covered = population.mean(dim=1), torch.zeros(len(population))
    for samples in subsets(population.shape[1], n, repetitions):
        drawn = population[:, samples]
        covered += (drawn.mean(dim=1) - truth).abs() <= 1.96 * standard_errors(drawn) + 1e-12
    return (covered / repetitions).numpy()


def quotients_covered(above: Tensor, below: Tensor, n: int, repetitions: int) -> np.ndarray:
    """The same for quotients of two means, +- t errors of `quotient_errors`; [head, sample]."""
    truth, covered, t = above.mean(dim=1) / below.mean(dim=1), torch.zeros(len(above)), stats.t.ppf(0.975, n - 1)
    for samples in subsets(above.shape[1], n, repetitions):
        a, b = above[:, samples], below[:, samples]
        covered += (a.mean(dim=1) / b.mean(dim=1) - truth).abs() <= t * quotient_errors(a, b)
    return (covered / repetitions).numpy()


def percentages_covered(
    patched: Float[Tensor, "head prompt"], clean: Tensor, corrupted: Tensor, held: Tensor, n: int, repetitions: int
) -> tuple[float, np.ndarray]:
    """Shares of the intervals of a level's percentage, and by head of effect +- 1.96 errors, that hold the truth."""
    everywhere = torch.ones(len(patched), dtype=torch.bool)
    whole = Scale(clean, clean - corrupted, 0).effects(patched)
    truth = 100 * whole.sum(held) / whole.sum(everywhere)
    of_percentage, of_effects = 0, torch.zeros(len(patched))
    for number, samples in enumerate(subsets(len(clean), n, repetitions)):
        scale = Scale(clean[samples], (clean - corrupted)[samples], number)
        effects = scale.effects(patched[:, samples])
        _, low, high = scale.percentage(effects, held, everywhere)
        of_percentage += low <= truth <= high
        errors = scale.bootstrap.error(effects.resampled)
        of_effects += (effects.values - whole.values).abs() <= 1.96 * errors
    return of_percentage / repetitions, (of_effects / repetitions).numpy()


def called_low(
    patched: Float[Tensor, "head prompt"], clean: Tensor, corrupted: Tensor, limit: float, n: int, repetitions: int
) -> np.ndarray:
    """By head, how often an effect is called below a limit at 5% although it is not.

    Effects that are below it are moved up to it; heads that never change are left out.
    """
    change, divisor = (patched - clean).double(), (clean - corrupted).double()
    change = change[change.std(dim=1) > 1e-6]
    too_low = (limit * divisor.mean() - change.mean(dim=1, keepdim=True)).clamp(min=0)
    above, rejected = change + too_low - limit * divisor, np.zeros(len(change))
    for samples in subsets(len(clean), n, repetitions):
        rejected += p_mean_above(-above[:, samples]) <= 0.05
    return rejected / repetitions


def subsets(total: int, n: int, repetitions: int) -> Iterator[Tensor]:
    """Samples of a population, with replacement, as it stands for one that is endless."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(repetitions):
        yield torch.randint(total, (n,), generator=generator)
