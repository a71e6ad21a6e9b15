"""Where a model is linear, attribution patching is not an approximation: it equals patching every edge by itself."""

from dataclasses import replace

import pytest
import torch

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights, read_weights
from circuits_over_time.edge_attribution_patching.patching.forward import evaluate_metric
from circuits_over_time.edge_attribution_patching.patching.runs import prepare_runs, run_metric
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from tests.support.random_models import HOOKED, random_model, random_pairs


def linear_weights(architecture: str) -> ModelWeights:
    """No scale in any LayerNorm (a huge eps that the gain undoes), no activation function, uniform attention."""
    model = random_model(architecture, n_layers=2, n_heads=2, d_model=16).double()
    eps = 1e12
    state = model.state_dict()
    for name, tensor in state.items():
        if ("layernorm" in name or "layer_norm" in name or ".ln_" in name) and name.endswith("weight"):
            tensor.mul_(eps**0.5)
        if name.endswith("attention.query_key_value.weight") or name.endswith("attention.query_key_value.bias"):
            tensor.view(2, 3, 8, -1)[:, :2] = 0
        if name.endswith("attn.c_attn.weight") or name.endswith("attn.c_attn.bias"):
            tensor[..., :32] = 0
    for key in ("layer_norm_eps", "layer_norm_epsilon"):
        if hasattr(model.config, key):
            setattr(model.config, key, eps)
    weights = read_weights(model)
    return replace(weights, layers=tuple(replace(layer, activation=lambda x: x) for layer in weights.layers))


def logit_difference(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return logits[:, 5] - logits[:, 7]


@pytest.mark.parametrize("architecture", HOOKED)
@pytest.mark.parametrize(("quadrature", "steps"), [("right", 1), ("left", 3)])
def test_eap_equals_exact_single_edge_patching_on_a_linear_model(
    architecture: str, quadrature: str, steps: int
) -> None:
    weights = linear_weights(architecture)
    graph = Graph.of(weights)
    pairs = TokenPairs(*random_pairs(3))
    scores = attribute(weights, pairs, logit_difference, steps=steps, quadrature=quadrature).scores

    edges = graph.edge_mask.nonzero()
    masks = graph.edge_mask.repeat(len(edges), 1, 1)
    masks[torch.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    (batch,) = pairs.batches(8)
    runs = prepare_runs(weights, batch)
    full, _ = run_metric(weights, runs, logit_difference)
    without = evaluate_metric(weights, runs, masks, logit_difference)
    exact = (full - without).mean(1)
    approximate = scores[edges[:, 0], edges[:, 1]]
    assert exact.abs().max() > 0.01
    torch.testing.assert_close(approximate, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
