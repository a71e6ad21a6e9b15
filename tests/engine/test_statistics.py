"""Standard errors and the bootstrap against the textbook; test_faithfulness.py has the coverage of an interval."""

import math

import pytest
import torch

from circuits_over_time.edge_attribution_patching.statistics import (
    Bootstrap,
    percentile_interval,
    quotient_errors,
    standard_error,
    standard_errors,
)
from tests.support.simulations import quotients_covered


def test_standard_error_is_that_of_the_mean() -> None:
    assert standard_error(torch.tensor([1.0, 2.0, 3.0, 6.0])) == pytest.approx(math.sqrt(14 / 3) / 2)
    assert math.isnan(standard_error(torch.tensor([1.0])))


def test_standard_errors_are_those_of_each_row() -> None:
    values = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    errors = standard_errors(values)
    assert errors.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert errors[i, j] == pytest.approx(standard_error(values[i, j]))
    assert standard_errors(values[..., :1]).isnan().all()


def test_intervals_of_a_quotient_hold_it_also_where_few_pairs_make_most_of_it() -> None:
    """Plain errors (Cochran's) hold the quotient of lognormal pairs in 84 of 100 samples of 17."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(1, 20_000, generator=generator, dtype=torch.float64)
    for spread, most in ((0.2, 0.995), (1.2, 0.985)):
        below = torch.exp(spread * torch.randn(1, 20_000, generator=generator, dtype=torch.float64))
        for n in (17, 100):
            assert 0.93 <= float(quotients_covered(shares * below, below, n, 2000)[0]) <= most


def test_the_error_of_a_quotient_has_room_for_three_more_like_the_pair_furthest_off() -> None:
    above, below = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([4.0, 4.0, 6.0, 6.0])  # mean 4 / mean 5
    off = [(a - 0.8 * b) / 5 for a, b in zip(above.tolist(), below.tolist(), strict=True)]
    squares = [one**2 for one in off]
    expected = math.sqrt((sum(squares) + 3 * max(squares)) / (4 * 3))
    assert float(quotient_errors(above, below)) == pytest.approx(expected)


def test_a_quotient_that_is_the_same_everywhere_has_no_error() -> None:
    below = 1 + torch.rand(20, generator=torch.Generator().manual_seed(0))
    assert float(quotient_errors(0.4 * below, below)) == pytest.approx(0, abs=1e-8)
    assert quotient_errors(below[:1], below[:1]).isnan()


def test_resamples_hold_whole_prompts_and_are_seeded() -> None:
    shares = Bootstrap.of(7, seed=3, resamples=50).shares
    counts = shares * 7
    torch.testing.assert_close(counts, counts.round())
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(50, dtype=torch.float64))
    assert torch.equal(shares, Bootstrap.of(7, seed=3, resamples=50).shares)
    assert not torch.equal(shares, Bootstrap.of(7, seed=4, resamples=50).shares)


def test_means_are_those_of_the_prompts_drawn() -> None:
    bootstrap = Bootstrap.of(5, seed=0, resamples=20)
    values = torch.randn(3, 5)
    together = bootstrap.means(values)
    assert together.shape == (20, 3)
    for resample, counts in enumerate((bootstrap.shares * 5).round().long()):
        drawn = values.repeat_interleave(counts, dim=1).double()
        torch.testing.assert_close(together[resample], drawn.mean(dim=1))
    torch.testing.assert_close(bootstrap.means(values[1]), together[:, 1])


def test_the_same_resamples_pair_quantities() -> None:
    bootstrap = Bootstrap.of(30, seed=0)
    value = torch.randn(30) + 5
    ratio = bootstrap.means(2 * value) / bootstrap.means(value)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0))


def test_error_of_a_mean_is_its_standard_error() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    bootstrap = Bootstrap.of(200, seed=0, resamples=4000)
    assert float(bootstrap.error(bootstrap.means(values))) == pytest.approx(standard_error(values), rel=0.05)
    alone = Bootstrap.of(1, seed=0)
    assert math.isnan(alone.error(alone.means(values[:1])))


def test_95_percent_intervals_cover_the_truth_about_95_percent_of_the_time() -> None:
    """500 trials of a skewed distribution's mean, and of a paired ratio with a known value."""
    generator = torch.Generator().manual_seed(0)
    covered = {"mean": 0, "ratio": 0}
    for trial in range(500):
        bootstrap = Bootstrap.of(100, seed=trial)
        full = 4 + torch.randn(100, generator=generator)
        kept = 0.8 * full + 0.3 * torch.randn(100, generator=generator)
        skewed = -torch.rand(100, generator=generator).log()
        for name, resampled, truth in (
            ("mean", bootstrap.means(skewed), 1.0),
            ("ratio", bootstrap.means(kept) / bootstrap.means(full), 0.8),
        ):
            low, high = percentile_interval(resampled)
            covered[name] += bool(low <= truth <= high)
    for name, count in covered.items():
        assert 0.92 <= count / 500 <= 0.98, name


def test_interval_leaves_out_resamples_without_a_value() -> None:
    resampled = torch.arange(101, dtype=torch.float64)
    missing = torch.cat((resampled, torch.full((50,), float("nan"), dtype=torch.float64)))
    assert percentile_interval(missing, (0.1, 0.9)) == percentile_interval(resampled, (0.1, 0.9)) == (10, 90)
