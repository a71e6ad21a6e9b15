"""CPR and CMD against the benchmark's own sums and against areas worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.faithfulness_area import MIB_SHARES, closed_curve, cmd, cpr


def mib_areas(shares: tuple[float, ...], faithfulness: list[float]) -> tuple[float, float]:
    """Area under the curve and from 1, summed as the benchmark sums them: trapezoids between its ten shares."""
    under = from_one = 0.0
    for i in range(len(shares) - 1):
        width = shares[i + 1] - shares[i]
        under += width * (faithfulness[i] + faithfulness[i + 1]) / 2
        from_one += width * (abs(1 - faithfulness[i]) + abs(1 - faithfulness[i + 1])) / 2
    return under, from_one


@given(st.lists(st.floats(-2, 3), min_size=len(MIB_SHARES) - 1, max_size=len(MIB_SHARES) - 1))
def test_areas_are_the_benchmarks_plus_its_missing_first_piece(values: list[float]) -> None:
    f = [*values, 1.0]
    under, from_one = mib_areas(MIB_SHARES, f)
    # From share 0, where the faithfulness is 0, to the benchmark's first share.
    first = MIB_SHARES[0]
    assert cpr(MIB_SHARES, f) == pytest.approx(under + first * f[0] / 2)
    assert cmd(MIB_SHARES, f) == pytest.approx(from_one + first * (1 + abs(1 - f[0])) / 2)


def test_areas_of_hand_worked_curves() -> None:
    assert cpr([0.5], [0.5]) == pytest.approx(0.5)  # the diagonal
    assert cmd([0.5], [0.5]) == pytest.approx(0.5)
    assert cpr([0.25, 0.5], [1.5, 1.0]) == pytest.approx(0.1875 + 0.3125 + 0.5)
    assert cmd([0.0, 0.5, 1.0], [1.0, 2.0, 1.0]) == pytest.approx(0.5)  # above 1 counts as far as below
    assert cpr([0.0, 0.5, 1.0], [1.0, 1.0, 1.0]) == 1
    assert cmd([0.0, 0.5, 1.0], [1.0, 1.0, 1.0]) == 0


def test_order_of_the_sizes_does_not_matter() -> None:
    shares, f = closed_curve([0.5, 0.1], [0.9, 0.2])
    assert shares.tolist() == [0, 0.1, 0.5, 1]
    assert f.tolist() == [0, 0.2, 0.9, 1]


@pytest.mark.parametrize(
    ("shares", "f", "says"),
    [
        ([0.1, 0.1], [0.5, 0.6], "stands twice"),
        ([1.1], [0.5], "outside"),
        ([0.1], [np.nan], "missing"),
        ([0.1, 0.2], [0.5], "one length"),
    ],
)
def test_bad_curves_are_refused(shares: list[float], f: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cpr(shares, f)
