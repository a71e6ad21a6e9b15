"""EAP-IG scores against autograd through expanded inputs, and against exact patching where that is the same number."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import (
    attribute,
    quadrature_points,
)
from tests.support import eap_reference
from tests.support.float64 import Float64, in_float64
from tests.support.random_models import ARCHITECTURES, GROUPED, HOOKED, random_model, random_pairs

QUADRATURES = ("left", "right", "midpoint", "gauss-legendre")


@pytest.mark.parametrize(
    ("architecture", "quadrature"),
    [
        *((architecture, "left") for architecture in ARCHITECTURES),
        *(("neox-parallel", rule) for rule in QUADRATURES[1:]),
    ],
)
def test_attribution_equals_autograd_with_expanded_inputs(architecture: str, quadrature: str) -> None:
    model = in_float64(random_model(architecture))
    clean, corrupted, lengths = random_pairs(2)
    metric = eap_reference.logit_diff_metric(97, 2)
    scores = attribute(
        read_weights(model), TokenPairs(clean, corrupted, lengths), metric, steps=3, quadrature=quadrature
    ).scores
    with Float64():
        reference = eap_reference.attribute(model, clean, corrupted, lengths, metric, *quadrature_points(quadrature, 3))
    assert ((scores - reference).abs().max() / reference.abs().max()) < 2e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_of_the_input_add_up_to_its_integrated_gradients(architecture: str) -> None:
    """sum over v of score(input -> v) is the integrated gradient of the embeddings, by Hugging Face's own autograd."""
    model = in_float64(random_model(architecture))
    clean, corrupted, lengths = random_pairs(3)
    metric = eap_reference.logit_diff_metric(97, 3)
    alphas, step_weights = quadrature_points("midpoint", 2)
    scores = attribute(
        read_weights(model), TokenPairs(clean, corrupted, lengths), metric, steps=2, quadrature="midpoint"
    ).scores
    total = 0.0
    embed = model.get_input_embeddings()
    for prompt, n in enumerate(lengths.tolist()):
        ends = [embed(tokens[prompt, :n]) for tokens in (clean, corrupted)]
        for alpha, weight in zip(alphas, step_weights, strict=True):
            x = (ends[1] + alpha * (ends[0] - ends[1])).detach().requires_grad_(True)
            with Float64():
                logits = model(inputs_embeds=x[None]).logits[0, -1]
            (gradient,) = torch.autograd.grad(metric(logits[None], torch.tensor([prompt]))[0], x)
            total += weight * float((gradient * (ends[0] - ends[1])).sum())
    close = 2e-6 * float(scores[0].abs().sum())
    assert float(scores[0].double().sum()) == pytest.approx(total / len(lengths), abs=close)


@pytest.mark.parametrize("architecture", GROUPED)
def test_scores_of_a_groups_heads_add_up_to_those_of_their_key_value_head(architecture: str) -> None:
    """Against the same model written with one k and v input per key-value head: its autograd adds the group up."""
    model = in_float64(random_model(architecture))
    clean, corrupted, lengths = random_pairs(2)
    metric = eap_reference.logit_diff_metric(97, 2)
    weights = read_weights(model)
    scores = attribute(weights, TokenPairs(clean, corrupted, lengths), metric, steps=2, quadrature="midpoint").scores
    with Float64():
        reference = eap_reference.attribute(
            model, clean, corrupted, lengths, metric, *quadrature_points("midpoint", 2), grouped=True
        )
    graph, group = Graph.of(weights), weights.layers[0].group
    for layer in range(graph.n_layers):
        for letter in ("k", "v"):
            for first in range(0, graph.n_heads, group):
                members = [graph.head_input(layer, first + member, letter) for member in range(group)]
                together = scores[:, members].double().sum(1)
                torch.testing.assert_close(
                    together, reference[:, members[0]], rtol=0, atol=2e-6 * float(reference.abs().max())
                )


@pytest.mark.parametrize("architecture", [*HOOKED, "llama-grouped", "qwen3", "olmo2-grouped", "gemma2"])
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
    expected = attribute(weights, pairs, metric, steps=4).scores
    scores = attribute(weights, pairs, metric, steps=4, **options).scores
    # float32 sums in another order; processors differ by some units in the last place.
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_exist_on_edges_only(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    scores = attribute(weights, TokenPairs(*random_pairs(3)), eap_reference.logit_diff_metric(97, 3), steps=2).scores
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


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"memory_budget_gb": 1e-7}])
@pytest.mark.parametrize("architecture", ["neox-parallel", "llama-grouped", "olmo2-grouped"])
def test_a_fold_scores_what_its_prompts_score_alone(architecture: str, options: dict) -> None:
    weights = read_weights(random_model(architecture))
    pairs = TokenPairs(*random_pairs(7))
    metric = eap_reference.logit_diff_metric(97, 7)
    fold_of = torch.tensor([2, 0, 1, 0, 2, 2, 1])
    folds = attribute(weights, pairs, metric, fold_of, steps=3, **options)
    assert folds.sizes.tolist() == [2, 2, 3]
    for fold, size in enumerate(folds.sizes.tolist()):
        index = (fold_of == fold).nonzero()[:, 0]
        alone = TokenPairs(pairs.clean[index], pairs.corrupted[index], pairs.lengths[index])
        expected = attribute(weights, alone, lambda logits, at, index=index: metric(logits, index[at]), steps=3).scores
        atol = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(folds.sums[fold] / size, expected, rtol=0, atol=atol)
    total = folds.sums.double().sum(0) / 7
    assert torch.equal(folds.scores, total.float())
    unfolded = attribute(weights, pairs, metric, steps=3, **options).scores
    assert float((folds.scores - unfolded).abs().max() / unfolded.abs().max()) < 1e-6


def test_sums_in_the_models_format_are_rounded_after_every_batch_and_step() -> None:
    weights = read_weights(random_model(seed=3).to(torch.bfloat16))
    pairs, metric = TokenPairs(*random_pairs(12, seed=5)), eap_reference.logit_diff_metric(97, 12)
    folds = torch.arange(12) % 3
    how = {"batch_size": 2, "quadrature": "right"}
    found = attribute(weights, pairs, metric, folds, steps=1, accumulate="model", **how)
    total = torch.zeros_like(found.scores, dtype=torch.bfloat16)
    for batch in pairs.batches(2):
        some = TokenPairs(pairs.clean[batch.index], pairs.corrupted[batch.index], pairs.lengths[batch.index])
        alone = attribute(weights, some, lambda logits, rows, of=batch.index: metric(logits, of[rows]), steps=1, **how)
        total += (2 * alone.scores).to(torch.bfloat16)
    torch.testing.assert_close(12 * found.scores, total.float(), rtol=1e-5, atol=1e-7)
    precise = attribute(weights, pairs, metric, folds, steps=1, **how)
    assert (found.scores - precise.scores).abs().max() > 1e-4 * precise.scores.abs().max()
    # The spread over folds is the same.
    torch.testing.assert_close(found.standard_error, precise.standard_error, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("method", ["eap_ig", "ceap", "eap_ig_activations"])
def test_in_float32_the_models_format_changes_nothing(method) -> None:
    weights = read_weights(random_model(seed=3))
    pairs, metric = TokenPairs(*random_pairs(5, seed=5)), eap_reference.logit_diff_metric(97, 5)
    one, other = (
        attribute(weights, pairs, metric, method=method, steps=3, batch_size=2, accumulate=accumulate).scores
        for accumulate in ("float32", "model")
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
