"""EAP-IG scores against autograd through expanded inputs, and against exact patching where that is the same number."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_attribution_patching.attribution import attribute, quadrature_points
from edge_attribution_patching.graph import Graph
from edge_attribution_patching.pairs import TokenPairs
from edge_attribution_patching.weights import read_weights
from tests.support import eap_reference
from tests.support.random_models import HOOKED, random_model, random_pairs

QUADRATURES = ("left", "right", "midpoint", "gauss-legendre")


@pytest.mark.parametrize(
    ("architecture", "quadrature"),
    [
        *((architecture, "left") for architecture in HOOKED),
        *(("neox-parallel", rule) for rule in QUADRATURES[1:]),
    ],
)
def test_attribution_equals_autograd_with_expanded_inputs(architecture: str, quadrature: str) -> None:
    model = random_model(architecture).double()
    clean, corrupted, lengths = random_pairs(3)
    metric = eap_reference.logit_diff_metric(97, 3)
    scores = attribute(
        read_weights(model), TokenPairs(clean, corrupted, lengths), metric, steps=3, quadrature=quadrature
    )
    reference = eap_reference.attribute(model, clean, corrupted, lengths, metric, *quadrature_points(quadrature, 3))
    assert ((scores - reference).abs().max() / reference.abs().max()) < 1e-5


@pytest.mark.parametrize("architecture", HOOKED)
@pytest.mark.parametrize(
    "options",
    [
        {"share_prefix": False},
        {"batch_size": 2},
        {"memory_budget_gb": 1e-7},  # one step and one token at a time
        {"memory_budget_gb": 4e-4},
    ],
)
def test_batching_prefix_and_memory_budget_change_nothing(architecture: str, options: dict) -> None:
    weights = read_weights(random_model(architecture))
    pairs = TokenPairs(*random_pairs(5))
    metric = eap_reference.logit_diff_metric(97, 5)
    expected = attribute(weights, pairs, metric, steps=4)
    scores = attribute(weights, pairs, metric, steps=4, **options)
    # float32 sums in another order; processors differ by some units in the last place.
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("architecture", HOOKED)
def test_scores_exist_on_edges_only(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    scores = attribute(weights, TokenPairs(*random_pairs(3)), eap_reference.logit_diff_metric(97, 3), steps=2)
    mask = Graph.of(weights).edge_mask
    assert (scores[~mask] == 0).all()
    assert (scores[mask] != 0).float().mean() > 0.9


@given(st.sampled_from(QUADRATURES), st.integers(1, 40))
def test_quadrature_weights_add_up_and_points_stay_inside(quadrature: str, steps: int) -> None:
    points, weights = quadrature_points(quadrature, steps)
    assert len(points) == len(weights) == steps
    assert sum(weights) == pytest.approx(1)
    assert all(0 <= point <= 1 for point in points)


@given(st.sampled_from(("midpoint", "gauss-legendre")), st.integers(1, 20))
def test_symmetric_quadratures_integrate_lines_exactly(quadrature: str, steps: int) -> None:
    points, weights = quadrature_points(quadrature, steps)
    assert np.dot(points, weights) == pytest.approx(0.5)


def test_one_right_step_is_plain_eap() -> None:
    assert quadrature_points("right", 1) == ([1.0], [1.0])


def test_unknown_quadrature_and_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="quadrature=simpson: unknown"):
        quadrature_points("simpson", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ig_steps=0"):
        quadrature_points("left", 0)
