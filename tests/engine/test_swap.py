"""Swapped components against Hugging Face models whose parameters were copied by hand, and identities."""

import random
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.forward import embed, forward, unembed
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.swap import PARTS, moved_together, swapped
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights, read_weights
from tests.support.random_models import ARCHITECTURES, GROUPED, random_model

TOKENS = torch.randint(0, 97, (3, 9), generator=torch.Generator().manual_seed(1))


def logits_of(weights: ModelWeights) -> Tensor:
    layout = PackedTokens.whole(torch.full((len(TOKENS),), TOKENS.shape[1]))
    with torch.inference_mode():
        return unembed(weights, forward(weights, layout, embed(weights, layout, TOKENS.flatten())))


def pair(architecture: str) -> tuple[ModelWeights, ModelWeights]:
    return read_weights(random_model(architecture, seed=1)), read_weights(random_model(architecture, seed=2))


def every_node(weights: ModelWeights) -> list[str]:
    return [*Graph.of(weights).forward_nodes, "logits"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_nodes_make_the_other_model(architecture: str) -> None:
    into, source = pair(architecture)
    assert torch.equal(logits_of(swapped(into, source, every_node(into))), logits_of(source))
    assert not torch.equal(logits_of(into), logits_of(source))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_field_stays_behind(architecture: str) -> None:
    """Also those that a forward pass does not read, such as what undoes the folding of norms."""
    into, source = pair(architecture)
    made = swapped(into, source, every_node(into))
    for one, other in [(made, source), *zip(made.layers, source.layers, strict=True)]:
        for field in fields(one):
            held, wanted = getattr(one, field.name), getattr(other, field.name)
            if isinstance(held, Tensor):
                assert torch.equal(held, wanted), field.name
            elif field.name.endswith("norm") and held is not None:
                assert torch.equal(held.gain, wanted.gain), field.name
                assert torch.equal(held.bias, wanted.bias), field.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_into_itself_changes_no_bit(architecture: str) -> None:
    into, _ = pair(architecture)
    logits, nodes = logits_of(into), every_node(into)
    for number in range(4):
        some = random.Random(number).sample(nodes, 5)
        assert torch.equal(logits_of(swapped(into, into, some)), logits)


@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2", "olmo2-grouped", "gemma2"])
def test_the_order_of_nodes_and_parts_does_not_matter(architecture: str) -> None:
    into, source = pair(architecture)
    nodes = ["a0.h2", "a1.h0", "a1.h1", "m1", "a2.h3"]  # No whole layer: what its heads share would move too.
    at_once = logits_of(swapped(into, source, nodes))
    assert torch.equal(logits_of(swapped(into, source, nodes[::-1], PARTS[::-1])), at_once)
    one_by_one = into
    for node in nodes[::-1]:
        one_by_one = swapped(one_by_one, source, [node])
    assert torch.equal(logits_of(one_by_one), at_once)
    part_by_part = into
    for part in ("o", "v", "q", "k"):
        # Heads that share keys move together, so parts are named for all of them.
        part_by_part = swapped(part_by_part, source, moved_together(nodes, into), [part])
    assert torch.equal(logits_of(part_by_part), at_once)


def test_heads_against_parameters_copied_by_hand() -> None:
    """Head 2 of layer 1 in GPT-2: columns of c_attn, rows of c_proj. The norms, which are folded in, are the same."""
    models = [random_model("gpt2", seed=seed) for seed in (1, 2)]
    d_head = 32 // 4
    for block, theirs in zip(models[1].transformer.h, models[0].transformer.h, strict=True):
        block.ln_1.load_state_dict(theirs.ln_1.state_dict())
    into, source = (read_weights(model) for model in models)
    entries = torch.arange(2 * d_head, 3 * d_head)
    own, theirs = models[0].transformer.h[1].attn, models[1].transformer.h[1].attn
    moved = swapped(into, source, ["a1.h2"], ["q", "v", "o"])
    own.c_attn.weight.requires_grad_(requires_grad=False)
    own.c_attn.bias.requires_grad_(requires_grad=False)
    own.c_proj.weight.requires_grad_(requires_grad=False)
    for offset in (0, 64):  # q and v; k stays.
        own.c_attn.weight[:, offset + entries] = theirs.c_attn.weight[:, offset + entries]
        own.c_attn.bias[offset + entries] = theirs.c_attn.bias[offset + entries]
    own.c_proj.weight[entries] = theirs.c_proj.weight[entries]
    with torch.no_grad():
        expected = models[0](TOKENS).logits.flatten(0, 1)
    torch.testing.assert_close(logits_of(moved), expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(logits_of(into), expected, atol=1e-3)


def test_an_mlp_against_parameters_copied_by_hand() -> None:
    models = [random_model("gemma2", seed=seed) for seed in (1, 2)]
    moved = swapped(*(read_weights(model) for model in models), ["m1"])
    own, theirs = (model.model.layers[1] for model in models)
    for name in ("mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
        getattr(own, name).load_state_dict(getattr(theirs, name).state_dict())
    with torch.no_grad():
        expected = models[0](TOKENS).logits.flatten(0, 1)
    torch.testing.assert_close(logits_of(moved), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", GROUPED)
def test_heads_that_share_keys_move_together(architecture: str) -> None:
    into, source = pair(architecture)
    assert moved_together(["a1.h2"], into) == ["a1.h2", "a1.h3"]
    assert moved_together(["a1.h2"], into, ["q", "o"]) == ["a1.h2"]
    assert torch.equal(
        logits_of(swapped(into, source, ["a1.h2"])), logits_of(swapped(into, source, ["a1.h3", "a1.h2"]))
    )


def test_what_heads_share_moves_with_the_last_of_them() -> None:
    into, source = pair("gemma2")
    three, four = ([f"a1.h{head}" for head in range(number)] for number in (2, 4))
    layers = [swapped(into, source, nodes).layers[1] for nodes in (three, four)]
    assert layers[0].attn_post_norm is into.layers[1].attn_post_norm
    assert layers[1].attn_post_norm is source.layers[1].attn_post_norm


def test_what_cannot_be_swapped_is_refused() -> None:
    into, source = pair("gpt2")
    with pytest.raises(ValueError, match=r"a9\.h9 is not a node of the model"):
        swapped(into, source, ["a9.h9"])
    with pytest.raises(ValueError, match="cannot take weights of"):
        swapped(into, read_weights(random_model("gpt2", n_layers=2)), ["m0"])
