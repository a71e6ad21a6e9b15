"""Nominal 95% intervals hold the truth at least 93 times in 100: small simulations of benchmarks/bench_coverage.py."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.bench_coverage import POPULATIONS, covers, ours, percentile, samples
from circuits_over_time.edge_attribution_patching.circuits.mib import MIB_SHARES, area_intervals
from circuits_over_time.edge_attribution_patching.statistics import fieller_interval, prompts_needed, quotient_interval


@pytest.mark.parametrize("n_prompts", [5, 20, 50, 100])
def test_intervals_of_a_quotient_hold_the_truth_with_ties_skew_rare_prompts_and_a_weak_gap(n_prompts: int) -> None:
    covered = {}
    for name, population in POPULATIONS.items():
        kept, gap, truth = samples(population, n_prompts, 4000)
        covered[name] = covers(ours(kept, gap), truth)
    assert min(covered.values()) >= 0.93, covered


def test_percentiles_of_resamples_do_not() -> None:
    """So the simulations tell methods apart."""
    for name, most in (("2% lost", 0.6), ("5% lost", 0.75), ("skewed loss", 0.9), ("skewed gap", 0.92)):
        kept, gap, truth = samples(POPULATIONS[name], 20, 600)
        assert covers(percentile(kept, gap), truth) < most, name


def curves(n_prompts: int, repetitions: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, np.ndarray]]:
    """Metrics of the ten circuits by score and by |score|, the whole model's metric, and the true faithfulness."""
    rng = np.random.default_rng(0)
    shares = np.array(
        [[0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.97, 1.08, 1.04, 1], [0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 1.02, 0.98, 1]]
    )
    for _ in range(repetitions):
        gap = rng.exponential(1, n_prompts) + 0.5
        noise = rng.normal(0, 0.3, (2, 1, n_prompts)) + rng.normal(0, 0.1, (2, 10, n_prompts))
        metrics = shares[:, :, None] * gap + noise
        metrics[:, -1] = gap
        yield torch.from_numpy(metrics), torch.from_numpy(gap), shares


def test_intervals_of_cpr_and_cmd_hold_the_truth() -> None:
    for n_prompts in (20, 100):
        covered = np.zeros(2)
        for metrics, gap, shares in curves(n_prompts, 300):
            truths = np.trapezoid(shares[0], MIB_SHARES), np.trapezoid(np.abs(1 - shares[1]), MIB_SHARES)
            ends = area_intervals(metrics, gap, torch.zeros(n_prompts))
            covered += [low <= truth <= high for truth, (low, high) in zip(truths, ends, strict=True)]
        assert (covered / 300 >= 0.93).all(), (n_prompts, covered)


def test_an_interval_is_there_from_as_many_prompts_on_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        gap = torch.from_numpy(rng.normal(rng.uniform(0.3, 3), 1, int(rng.integers(2, 30))))
        kept = 0.5 * gap + torch.from_numpy(rng.normal(0, 0.2, len(gap)))
        needed = prompts_needed(gap)
        assert needed is not None
        there = len(gap) >= needed
        assert bool(quotient_interval(kept, gap)[0].isnan()) is not there


def test_the_ends_of_fiellers_interval_are_where_the_t_test_just_rejects() -> None:
    """The interval without the prompt more is that of the textbook; the one of ours is never narrower."""
    rng = np.random.default_rng(1)
    for n in (5, 30):
        gap = rng.normal(3, 0.5, n)
        kept = 0.7 * gap + rng.normal(0, 0.5, n)
        ends = [float(end) for end in fieller_interval(torch.from_numpy(kept), torch.from_numpy(gap))]
        for quotient in ends:
            assert stats.ttest_1samp(kept - quotient * gap, 0).pvalue == pytest.approx(0.05, rel=1e-6)
        low, high = (float(end) for end in quotient_interval(torch.from_numpy(kept), torch.from_numpy(gap)))
        assert low < ends[0] < kept.mean() / gap.mean() < ends[1] < high
        more = np.append(kept, 0.0), np.append(gap, gap.mean())
        assert stats.ttest_1samp(more[0] - low * more[1], 0).pvalue == pytest.approx(0.05, rel=1e-6)


def test_two_prompts_have_no_interval_however_alike_they_are() -> None:
    for gap in ([3.0, 3.0], [3.0, 3.1]):
        values = torch.tensor(gap)
        assert prompts_needed(values) == 3
        assert all(bool(end.isnan()) for end in quotient_interval(0.8 * values, values))
