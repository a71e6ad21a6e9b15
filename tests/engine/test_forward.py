"""The written-out forward pass gives the Hugging Face model's activations."""

from dataclasses import replace

import pytest
import torch

from edge_attribution_patching.forward import Unembedding, embed, forward, normalise, prefix_cache, unembed
from edge_attribution_patching.layout import Layout
from edge_attribution_patching.weights import ModelWeights, read_weights
from tests.support.random_models import ARCHITECTURES, random_model, random_pairs

pytestmark = pytest.mark.parametrize("architecture", ARCHITECTURES)


def test_logits_equal_hugging_face(architecture: str) -> None:
    model = random_model(architecture)
    weights = read_weights(model)
    tokens, _, lengths = random_pairs(6)
    layout = Layout.whole(lengths)
    logits = unembed(weights, forward(weights, layout, embed(weights, layout, layout.pack(tokens))))
    reference = layout.pack(model(tokens).logits)
    torch.testing.assert_close(logits, reference, rtol=1e-5, atol=1e-5)


def test_logits_equal_hugging_face_in_float64(architecture: str) -> None:
    """In double precision nothing is left of a difference that float32 could hide."""
    model = random_model(architecture, seed=3).double()
    weights = read_weights(model)
    tokens, _, lengths = random_pairs(6)
    layout = Layout.whole(lengths)
    logits = unembed(weights, forward(weights, layout, embed(weights, layout, layout.pack(tokens))))
    # Hugging Face computes its rotary tables in float32.
    torch.testing.assert_close(logits, layout.pack(model(tokens).logits), rtol=1e-6, atol=1e-6)


def test_prefix_cache_changes_nothing(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    clean, corrupted, lengths = random_pairs(6, shared=0)
    whole = Layout.whole(lengths)
    starts = (clean != corrupted).int().argmax(dim=1)
    starts[0] = 0  # one prompt without any prefix
    layout = Layout(starts, lengths)
    for tokens in (clean, corrupted):
        reference = forward(weights, whole, embed(weights, whole, whole.pack(tokens)))
        x = embed(weights, layout, layout.pack(tokens))
        shared = forward(weights, layout, x, prefix=prefix_cache(weights, layout, clean))
        kept = whole.position >= starts[whole.prompt]
        torch.testing.assert_close(shared, reference[kept], rtol=1e-5, atol=1e-5)


def test_last_layer_at_answers_only_equals_the_whole_pass(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    tokens, _, lengths = random_pairs(6)
    layout = Layout.whole(lengths)
    x = embed(weights, layout, layout.pack(tokens))
    whole = forward(weights, layout, x)
    answers = forward(weights, layout, x, last_layer="answers")
    torch.testing.assert_close(answers, whole[layout.last], rtol=1e-5, atol=1e-5)


def test_stacked_passes_equal_single_ones(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    clean, corrupted, lengths = random_pairs(6)
    layout = Layout((clean != corrupted).int().argmax(dim=1), lengths)
    prefix = prefix_cache(weights, layout, clean)
    xs = torch.stack([embed(weights, layout, layout.pack(tokens)) for tokens in (clean, corrupted)])
    stacked = forward(weights, layout, xs, prefix=prefix)
    for x, result in zip(xs, stacked, strict=True):
        torch.testing.assert_close(forward(weights, layout, x, prefix=prefix), result, rtol=1e-5, atol=1e-5)


def test_visited_activations_add_up_to_the_residual_stream(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    tokens, _, lengths = random_pairs(4)
    layout = Layout.whole(lengths)
    x = total = embed(weights, layout, layout.pack(tokens))

    def add(layer) -> None:
        nonlocal total
        torch.testing.assert_close(layer.resid_pre, total)
        heads = torch.einsum("thd,hdm->tm", layer.z, weights.layers[layer.layer].W_O)
        after_attention = total + heads + weights.layers[layer.layer].b_O
        torch.testing.assert_close(layer.mlp_in, total if weights.parallel else after_attention)
        total = after_attention + layer.mlp_out

    torch.testing.assert_close(forward(weights, layout, x, visit=add), total)


def with_output_bias(architecture: str) -> ModelWeights:
    weights = read_weights(random_model(architecture).double())
    return replace(weights, unembed_bias=torch.randn(weights.d_vocab, dtype=weights.dtype))


def test_folded_unembedding_gives_the_logits(architecture: str) -> None:
    layer_norm = with_output_bias(architecture)
    rms_norm = replace(layer_norm, final_norm=replace(layer_norm.final_norm, center=False))
    x = torch.randn(5, layer_norm.d_model, dtype=layer_norm.dtype)
    tokens = torch.tensor([3, 90, 4])
    for weights in (layer_norm, rms_norm):
        normalised, _ = normalise(weights.final_norm, x)
        folded = Unembedding(weights)
        logits = normalised @ folded.rows(tokens).T + folded.bias(tokens)
        torch.testing.assert_close(logits, unembed(weights, x)[:, tokens])


def test_centring_over_the_vocabulary_takes_the_mean_logit_out(architecture: str) -> None:
    weights = with_output_bias(architecture)
    x = torch.randn(5, weights.d_model, dtype=weights.dtype)
    centred = Unembedding(weights, centre_vocabulary=True)
    logits = normalise(weights.final_norm, x)[0] @ centred.rows(slice(None)).T + centred.bias(slice(None))
    expected = unembed(weights, x)
    torch.testing.assert_close(logits, expected - expected.mean(dim=1, keepdim=True))


def test_layout_without_its_prefix_is_refused(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    layout = Layout(torch.tensor([1]), torch.tensor([3]))
    with pytest.raises(ValueError, match="prefix cache"):
        forward(weights, layout, torch.zeros(2, weights.d_model))
