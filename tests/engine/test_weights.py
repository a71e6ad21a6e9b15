"""Weights are read as the model computes with them, and what could not be computed is refused by name."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields

import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, GPT2Config, GPTNeoXConfig, PretrainedConfig

from edge_attribution_patching.architectures import (
    ARCHITECTURES,
    IRRELEVANT,
    NEUTRAL,
    Shape,
    read_fields,
    read_shape,
)
from edge_attribution_patching.forward import embed, forward, unembed
from edge_attribution_patching.graph import Graph
from edge_attribution_patching.layout import Layout
from edge_attribution_patching.pairs import TokenPairs
from edge_attribution_patching.patching_runs import prepare_runs
from edge_attribution_patching.weights import read_weights
from tests.support.masked_logits import masked_logits
from tests.support.random_models import random_model, random_pairs

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def logits_equal_hugging_face(model) -> bool:
    tokens, _, lengths = random_pairs(6)
    layout = Layout.whole(lengths)
    weights = read_weights(model)
    logits = unembed(weights, forward(weights, layout, embed(weights, layout, layout.pack(tokens))))
    return torch.allclose(logits, layout.pack(model(tokens).logits), rtol=1e-5, atol=1e-5)


# --- shapes


def test_shapes_come_from_the_config_alone() -> None:
    config = GPT2Config(n_layer=3, n_head=4, n_embd=32, vocab_size=97, n_positions=64)
    assert read_shape(config) == Shape(
        architecture="gpt2",
        n_layers=3,
        n_heads=4,
        n_kv_heads=4,
        d_head=8,
        d_model=32,
        d_mlp=128,
        d_vocab=97,
        n_positions=64,
        parallel=False,
    )
    assert read_shape(GPTNeoXConfig()).parallel
    assert not read_shape(GPTNeoXConfig(use_parallel_residual=False)).parallel


@pytest.mark.parametrize("architecture", ["neox-parallel", "neox-sequential", "gpt2"])
def test_shapes_are_those_of_the_tensors(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    shape = weights.shape
    assert shape.n_layers == len(weights.layers)
    assert weights.embed.shape == (shape.d_vocab, shape.d_model)
    for layer in weights.layers:
        assert layer.W_qkv.shape == (3, shape.n_heads, shape.d_head, shape.d_model)
        assert layer.W_O.shape == (shape.n_heads, shape.d_head, shape.d_model)
        assert layer.W_in.shape == (shape.d_model, shape.d_mlp)


def test_prompts_end_where_a_sliding_window_would_begin_to_cut() -> None:
    shape = read_shape(GPT2Config())
    assert shape.longest_prompt == shape.n_positions == 1024


# --- what a config may say


def source_fields(architecture: str) -> set[str]:
    """Every field of the config that transformers' code of the architecture names."""
    source = inspect.getsource(sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[architecture]].__module__])
    named = re.findall(r"\bconfig\.([a-z]\w+)|getattr\((?:self\.)?config, *['\"](\w+)['\"]", source)
    return {first or second for first, second in named}


@every_architecture
def test_every_field_of_the_config_class_is_classified(architecture: str) -> None:
    """A field that a new version of transformers adds fails here, until someone has looked at what it does."""
    config_class = CONFIG_MAPPING[architecture]
    config = config_class()
    read = read_fields(config, ARCHITECTURES[architecture])
    declared = {field.name for field in fields(config_class)}
    assert read <= declared
    assert declared <= read | NEUTRAL.keys() | IRRELEVANT
    assert not read & (NEUTRAL.keys() | IRRELEVANT)


@every_architecture
def test_every_field_that_the_model_code_names_is_classified(architecture: str) -> None:
    config = CONFIG_MAPPING[architecture]()
    # Not fields, or fields of other heads than the language model's.
    others = {"num_labels", "get_text_config", "head_dim"}
    named = {config.attribute_map.get(name, name) for name in source_fields(architecture)}
    read = read_fields(config, ARCHITECTURES[architecture])
    assert len(named) > 8
    assert named <= read | NEUTRAL.keys() | IRRELEVANT | others


def refused(config: PretrainedConfig) -> str:
    with pytest.raises(ValueError, match=r"^\S+=.*") as caught:
        read_shape(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_architecture_without_a_reader_is_refused_with_those_that_have_one() -> None:
    message = refused(CONFIG_MAPPING["bloom"]())
    assert message == "model_type=bloom: no reader for this architecture (supported: gpt2, gpt_neox)"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(add_cross_attention=True), "add_cross_attention=True: not supported for gpt2 (supported: False)"),
        (GPT2Config(activation_function="mish"), "activation_function=mish: unknown activation"),
        (GPTNeoXConfig(hidden_act="mish"), "hidden_act=mish: unknown activation"),
        (GPTNeoXConfig(chunk_size_feed_forward=4), "chunk_size_feed_forward=4: not supported for gpt_neox"),
        (GPTNeoXConfig(head_dim=32), "head_dim=32: not supported for gpt_neox (supported: 96)"),
        (GPTNeoXConfig(quantization_config={"bits": 4}), "quantization_config={'bits': 4}: not supported"),
        (GPTNeoXConfig(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "rope_type=dynamic: unknown"),
    ],
)
def test_what_changes_the_arithmetic_and_is_not_read_is_refused(config: PretrainedConfig, message: str) -> None:
    assert refused(config).startswith(message)


def test_a_field_that_nobody_has_looked_at_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("edge_attribution_patching.architectures.IRRELEVANT", IRRELEVANT - {"is_decoder"})
    assert refused(GPTNeoXConfig()) == "is_decoder=False: a field of gpt_neox that no reader knows"


def test_what_transformers_does_not_know_either_is_ignored() -> None:
    assert read_shape(GPTNeoXConfig(trained_by="me")) == read_shape(GPTNeoXConfig())


def test_weights_are_refused_for_the_same_reasons() -> None:
    model = random_model("gpt2")
    model.config.add_cross_attention = True
    with pytest.raises(ValueError, match="add_cross_attention=True"):
        read_weights(model)


# --- GPT-2's attention scale


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("by_width", [False, True])
def test_gpt2_attention_scales_equal_hugging_face(by_layer: bool, by_width: bool) -> None:
    model = random_model("gpt2", scale_attn_by_inverse_layer_idx=by_layer, scale_attn_weights=by_width)
    assert logits_equal_hugging_face(model)


def test_patched_passes_scale_attention_as_the_model_does() -> None:
    model = random_model("gpt2", scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False)
    weights = read_weights(model)
    clean, corrupted, lengths = random_pairs(4)
    (batch,) = TokenPairs(clean, corrupted, lengths).batches(4)
    mask = Graph.of(weights).edge_mask[None]
    logits = masked_logits(weights, prepare_runs(weights, batch), mask, shortcuts=False)[0]
    reference = model(clean).logits[torch.arange(4), lengths - 1]
    torch.testing.assert_close(logits, reference[batch.index], rtol=1e-4, atol=1e-4)


# --- memory


@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2"])
def test_only_the_folded_projections_are_new_memory(architecture: str) -> None:
    model = random_model(architecture)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    weights = read_weights(model)
    for layer in weights.layers:
        views = (layer.W_O, layer.W_in, layer.W_out, layer.attn_norm.gain, layer.mlp_norm.gain)
        assert all(tensor.untyped_storage().data_ptr() in own for tensor in views)
        assert layer.W_qkv.untyped_storage().data_ptr() not in own
        assert layer.W_qkv.untyped_storage().nbytes() == layer.W_qkv.numel() * layer.W_qkv.element_size()
