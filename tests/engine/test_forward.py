"""The written-out forward pass gives the Hugging Face model's activations."""

from dataclasses import replace

import pytest
import torch

from circuits_over_time.edge_attribution_patching.model.forward import (
    Unembedding,
    embed,
    forward,
    kv_cache,
    unembed,
)
from circuits_over_time.edge_attribution_patching.model.norms import normalise
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights, read_weights
from tests.support.float64 import Float64, in_float64
from tests.support.random_models import ARCHITECTURES, VARIANTS, random_model, random_pairs

# What an architecture may have, and what a block or a model without it says.
NEUTRAL_OF_LAYER = {
    **dict.fromkeys(("rotary", "qkv_clamp", "q_norm", "k_norm", "attn_softcap", "attn_post_norm", "mlp_post_norm")),
    **dict.fromkeys(("mlp_norm", "W_gate", "b_gate")),
    "attn_scale": 1.0,
}
NEUTRAL_OF_MODEL = {"position_embed": None, "embed_scale": 1.0, "logit_softcap": None, "unembed_bias": None}

pytestmark = pytest.mark.parametrize("architecture", ARCHITECTURES)


def test_logits_equal_hugging_face(architecture: str) -> None:
    model = random_model(architecture)
    weights = read_weights(model)
    tokens, _, lengths = random_pairs(6)
    layout = PackedTokens.whole(lengths)
    logits = unembed(weights, forward(weights, layout, embed(weights, layout, layout.pack(tokens))))
    reference = layout.pack(model(tokens).logits)
    torch.testing.assert_close(logits, reference, rtol=1e-4, atol=1e-4)


def test_logits_equal_hugging_face_in_float64(architecture: str) -> None:
    """Double precision leaves no room for a difference that float32 could hide."""
    model = in_float64(random_model(architecture, seed=3))
    weights = read_weights(model)
    tokens, _, lengths = random_pairs(6)
    layout = PackedTokens.whole(lengths)
    logits = unembed(weights, forward(weights, layout, embed(weights, layout, layout.pack(tokens))))
    with Float64():
        reference = layout.pack(model(tokens).logits)
    torch.testing.assert_close(logits, reference, rtol=1e-12, atol=1e-12)


def test_bfloat16_rounds_no_more_than_hugging_face_does(architecture: str) -> None:
    errors: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(3):  # What roundings add up to is chance: of one model it varies by a tenth.
        tokens, _, lengths = random_pairs(6, seed=seed)
        layout = PackedTokens.whole(lengths)
        exact = layout.pack(random_model(architecture, seed=seed)(tokens).logits)
        model = random_model(architecture, seed=seed).bfloat16()
        weights = read_weights(model)
        logits = unembed(weights, forward(weights, layout, embed(weights, layout, layout.pack(tokens))))
        assert logits.dtype == torch.bfloat16
        for whose, x in (("ours", logits), ("theirs", layout.pack(model(tokens).logits))):
            errors[whose].append(float((x.float() - exact).norm() / exact.norm()))
    ours, theirs = (sum(of_seeds) / 3 for of_seeds in errors.values())
    assert ours < 1.2 * theirs < 0.1


def test_every_piece_of_a_block_matters(architecture: str) -> None:
    """Take away any piece that this architecture has, and its logits change: none is tested in vain."""
    weights = read_weights(random_model(architecture))
    tokens, _, lengths = random_pairs(6)
    layout = PackedTokens.whole(lengths)

    def logits(weights: ModelWeights) -> torch.Tensor:
        return unembed(weights, forward(weights, layout, embed(weights, layout, layout.pack(tokens))))

    def has(piece: object, neutral: object) -> bool:
        # A bias that the model lacks is zero.
        return bool(piece.any()) if isinstance(piece, torch.Tensor) else piece != neutral

    def without(name: str, value: object) -> ModelWeights:
        if name in NEUTRAL_OF_MODEL:
            return replace(weights, **{name: value})
        return replace(weights, layers=tuple(replace(layer, **{name: value}) for layer in weights.layers))

    reference = logits(weights)
    owners = [(weights, name, value) for name, value in NEUTRAL_OF_MODEL.items()]
    owners += [(layer, name, value) for layer in weights.layers for name, value in NEUTRAL_OF_LAYER.items()]
    present = {name: value for owner, name, value in owners if has(getattr(owner, name), value)}
    assert ("rotary" in present) != ("position_embed" in present)
    for name, value in present.items():
        assert float((logits(without(name, value)) - reference).abs().max()) > 0.01, name


def test_prefix_cache_changes_nothing(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    clean, corrupted, lengths = random_pairs(6, shared=0)
    whole = PackedTokens.whole(lengths)
    starts = (clean != corrupted).int().argmax(dim=1)
    starts[0] = 0  # one prompt without any prefix
    layout = PackedTokens(starts, lengths)
    for tokens in (clean, corrupted):
        reference = forward(weights, whole, embed(weights, whole, whole.pack(tokens)))
        x = embed(weights, layout, layout.pack(tokens))
        shared = forward(weights, layout, x, prefix=kv_cache(weights, layout, clean))
        kept = whole.position >= starts[whole.prompt]
        torch.testing.assert_close(shared, reference[kept], rtol=1e-5, atol=1e-5)


def test_last_layer_at_answers_only_equals_the_whole_pass(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    tokens, _, lengths = random_pairs(6)
    layout = PackedTokens.whole(lengths)
    x = embed(weights, layout, layout.pack(tokens))
    whole = forward(weights, layout, x)
    answers = forward(weights, layout, x, last_layer="answers")
    torch.testing.assert_close(answers, whole[layout.last], rtol=1e-5, atol=1e-5)


def test_stacked_passes_equal_single_ones(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    clean, corrupted, lengths = random_pairs(6)
    layout = PackedTokens((clean != corrupted).int().argmax(dim=1), lengths)
    prefix = kv_cache(weights, layout, clean)
    xs = torch.stack([embed(weights, layout, layout.pack(tokens)) for tokens in (clean, corrupted)])
    stacked = forward(weights, layout, xs, prefix=prefix)
    for x, result in zip(xs, stacked, strict=True):
        torch.testing.assert_close(forward(weights, layout, x, prefix=prefix), result, rtol=1e-5, atol=1e-5)


def test_visited_activations_add_up_to_the_residual_stream(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    tokens, _, lengths = random_pairs(4)
    layout = PackedTokens.whole(lengths)
    x = total = embed(weights, layout, layout.pack(tokens))

    def add(layer) -> None:
        nonlocal total
        torch.testing.assert_close(layer.resid_pre, total)
        block = weights.layers[layer.layer]
        written = torch.einsum("thd,hdm->thm", layer.z, block.W_O)
        if block.attn_post_norm is not None:  # Each head's share is scaled with the norm of the sum of all.
            written = written * layer.post_inverse_scale[:, None] * block.attn_post_norm.gain
        after_attention = total + written.sum(1) + block.b_O
        torch.testing.assert_close(layer.mlp_in, total if weights.parallel else after_attention, rtol=1e-5, atol=1e-5)
        total = after_attention + layer.mlp_out

    torch.testing.assert_close(forward(weights, layout, x, visit=add), total)


def test_keys_and_values_are_computed_once_for_a_group(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    tokens, _, lengths = random_pairs(4)
    layout = PackedTokens.whole(lengths)

    def check(layer) -> None:
        n_heads, n_kv_heads = weights.n_heads, weights.n_kv_heads
        assert layer.qkv.shape[-2] == n_heads + 2 * n_kv_heads
        assert layer.k.shape[-2] == layer.v.shape[-2] == n_kv_heads
        assert layer.q.shape[-2] == layer.z.shape[-2] == n_heads

    forward(weights, layout, embed(weights, layout, layout.pack(tokens)), visit=check)


def with_output_bias(architecture: str) -> ModelWeights:
    weights = read_weights(random_model(architecture).double())
    weights = replace(weights, logit_softcap=None)  # which no folded direction can have
    return replace(weights, unembed_bias=torch.randn(weights.d_vocab, dtype=weights.dtype))


def test_folded_unembedding_gives_the_logits(architecture: str) -> None:
    layer_norm = with_output_bias(architecture)
    norm = layer_norm.final_norm
    rms_norm = replace(layer_norm, final_norm=replace(norm, center=False, bias=torch.zeros_like(norm.bias)))
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
    layout = PackedTokens(torch.tensor([1]), torch.tensor([3]))
    with pytest.raises(ValueError, match="prefix cache"):
        forward(weights, layout, torch.zeros(2, weights.d_model))


def test_prompts_beyond_the_context_or_the_window_are_refused(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    n_positions = weights.n_positions
    assert n_positions == (48 if "sliding_window" in VARIANTS[architecture][1] else 64)
    layout = PackedTokens.whole(torch.tensor([n_positions + 1]))
    x = torch.zeros(n_positions + 1, weights.d_model)
    with pytest.raises(
        ValueError, match=f"a prompt has {n_positions + 1} tokens; the model takes at most {n_positions}"
    ):
        forward(weights, layout, x)


def test_the_longest_prompt_is_what_hugging_face_makes_of_it(architecture: str) -> None:
    """No sliding window cuts anything off a prompt that is let through."""
    model = random_model(architecture)
    weights = read_weights(model)
    tokens = torch.randint(0, 97, (1, weights.n_positions), generator=torch.Generator().manual_seed(0))
    layout = PackedTokens.whole(torch.tensor([weights.n_positions]))
    logits = unembed(weights, forward(weights, layout, embed(weights, layout, tokens[0])))
    torch.testing.assert_close(logits, model(tokens).logits[0], rtol=1e-4, atol=1e-4)
