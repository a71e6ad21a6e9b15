"""Weights are read as the model computes with them, and what could not be computed is refused by name."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, GPT2Config, GPTNeoXConfig, PretrainedConfig

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.architectures import (
    ARCHITECTURES,
    IRRELEVANT,
    NEUTRAL,
    Shape,
    read_fields,
    read_shape,
)
from circuits_over_time.edge_attribution_patching.model.forward import embed, forward, unembed
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_tensors, read_weights
from circuits_over_time.edge_attribution_patching.patching.runs import prepare_runs
from tests.support.loading import same_tensors
from tests.support.masked_logits import masked_logits
from tests.support.random_models import VARIANTS, random_model, random_pairs

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_variant = pytest.mark.parametrize("architecture", VARIANTS)


def logits_equal_hugging_face(model) -> bool:
    tokens, _, lengths = random_pairs(6)
    layout = PackedTokens.whole(lengths)
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
    assert read_shape(CONFIG_MAPPING["mistral"]()) == Shape(
        architecture="mistral",
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        d_head=128,
        d_model=4096,
        d_mlp=14336,
        d_vocab=32000,
        n_positions=4096,  # the sliding window; the context is longer
        parallel=False,
    )
    assert read_shape(GPTNeoXConfig()).parallel
    assert not read_shape(GPTNeoXConfig(use_parallel_residual=False)).parallel


@every_variant
def test_shapes_are_those_of_the_tensors(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    assert weights.n_layers == len(weights.layers)
    assert weights.embed.shape == (weights.d_vocab, weights.d_model)
    for layer in weights.layers:
        assert layer.W_qkv.shape == (weights.n_heads + 2 * weights.n_kv_heads, weights.d_head, weights.d_model)
        assert (layer.n_heads, layer.n_kv_heads) == (weights.n_heads, weights.n_kv_heads)
        assert layer.W_V.shape[0] == layer.b_V.shape[0] == weights.n_kv_heads
        assert layer.W_O.shape == (weights.n_heads, weights.d_head, weights.d_model)
        assert layer.W_in.shape == (weights.d_model, weights.d_mlp)


def test_a_sliding_window_counts_where_some_layer_has_one() -> None:
    gemma2, smollm3 = CONFIG_MAPPING["gemma2"], CONFIG_MAPPING["smollm3"]
    assert read_shape(gemma2(sliding_window=512)).n_positions == 512
    assert read_shape(gemma2(sliding_window=512, layer_types=["full_attention"] * 26)).n_positions == 8192
    assert read_shape(smollm3(sliding_window=512)).n_positions == 32768
    assert read_shape(smollm3(sliding_window=512, use_sliding_window=True)).n_positions == 512


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
    neutral = NEUTRAL.keys() | ARCHITECTURES[architecture].neutral.keys()
    declared = {field.name for field in fields(config_class)}
    assert read - {"head_dim"} <= declared  # a head_dim counts even where the class does not declare it
    assert declared <= read | neutral | IRRELEVANT
    assert not read & (neutral | IRRELEVANT)


@every_architecture
def test_every_field_that_the_model_code_names_is_classified(architecture: str) -> None:
    config = CONFIG_MAPPING[architecture]()
    others = {"num_labels", "head_dim"}  # of classifiers; checked by itself
    if architecture == "gemma3_text":
        others |= {"get_text_config", "image_token_id", "mm_tokens_per_image", "text_config", "vision_config"}
    named = {config.attribute_map.get(name, name) for name in source_fields(architecture)}
    read = read_fields(config, ARCHITECTURES[architecture])
    assert len(named) > 8
    assert named <= read | NEUTRAL.keys() | ARCHITECTURES[architecture].neutral.keys() | IRRELEVANT | others


def config(architecture: str, **options: Any) -> PretrainedConfig:
    return CONFIG_MAPPING[architecture](**options)


LONGROPE = {
    **{"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 2048},
    **{"short_factor": [1.0] * 64, "long_factor": [1.0] * 64},
}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}


def refused(config: PretrainedConfig) -> str:
    with pytest.raises(ValueError, match=r"^\S+=.*") as caught:
        read_shape(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_architecture_without_a_reader_is_refused_with_those_that_have_one() -> None:
    message = refused(CONFIG_MAPPING["bloom"]())
    supported = ", ".join(sorted(ARCHITECTURES))
    assert message == f"model_type=bloom: no reader for this architecture (supported: {supported})"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(add_cross_attention=True), "add_cross_attention=True: not supported for gpt2 (supported: False)"),
        (GPT2Config(activation_function="mish"), "activation_function=mish: not supported for gpt2 (supported: gelu,"),
        (GPTNeoXConfig(hidden_act="mish"), "hidden_act=mish: not supported for gpt_neox"),
        (GPTNeoXConfig(chunk_size_feed_forward=4), "chunk_size_feed_forward=4: not supported for gpt_neox"),
        (GPTNeoXConfig(head_dim=32), "head_dim=32: not supported for gpt_neox (supported: 96)"),
        (GPTNeoXConfig(quantization_config={"bits": 4}), "quantization_config={'bits': 4}: not supported"),
        (GPTNeoXConfig(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "rope_type=dynamic: unknown"),
        (
            config("llama", rope_parameters=LONGROPE),
            "rope_type=longrope: unknown rotary embedding (supported: default,",
        ),
        (
            config("llama", rope_parameters=PARTIAL),
            "rope_parameters.partial_rotary_factor=0.5: not supported for llama",
        ),
        (config("llama", num_key_value_heads=5), "num_key_value_heads=5: does not divide num_attention_heads=32"),
        (config("olmo2", attention_bias=True), "attention_bias=True: not supported for olmo2 (supported: False)"),
        (config("gemma2", use_bidirectional_attention=True), "use_bidirectional_attention=True: not supported"),
        (config("gemma3_text", attn_logit_softcapping=9.0), "attn_logit_softcapping=9.0: not supported"),
    ],
)
def test_what_changes_the_arithmetic_and_is_not_read_is_refused(config: PretrainedConfig, message: str) -> None:
    assert refused(config).startswith(message)


def test_a_field_that_nobody_has_looked_at_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(
        "circuits_over_time.edge_attribution_patching.model.architectures.IRRELEVANT", IRRELEVANT - {"is_decoder"}
    )
    assert refused(GPTNeoXConfig()) == "is_decoder=False: no reader knows this field of gpt_neox"


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


# --- tensors


class Recording(dict[str, torch.Tensor]):
    """A state that knows which of its tensors were asked for."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__(state)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


@every_variant
def test_every_tensor_of_the_model_is_read(architecture: str, monkeypatch) -> None:
    model = random_model(architecture)
    state = Recording(model.state_dict())
    monkeypatch.setattr(model, "state_dict", lambda: state)
    read_weights(model)
    assert state.keys() - state.read == set()


# --- tensors of a checkpoint's files


@every_variant
@pytest.mark.parametrize("biased", [False, True])
def test_tensors_are_read_as_a_model_is(architecture: str, biased: bool) -> None:
    flags = {"attention_bias", "mlp_bias"} & ARCHITECTURES[VARIANTS[architecture][0]].reads if biased else set()
    model = random_model(architecture, **dict.fromkeys(flags, True))
    weights = read_tensors(model.config, model.state_dict())
    if architecture == "apertus":  # Its activation is learned.
        assert weights is None
    else:
        assert same_tensors(weights, read_weights(model))


@every_variant
def test_tensors_that_are_not_exactly_the_models_are_left_to_transformers(architecture: str) -> None:
    model = random_model(architecture)
    state = model.state_dict()
    for name, tensor in state.items():
        if not (model.config.tie_word_embeddings and name == "lm_head.weight"):  # It may be missing if it is tied.
            assert read_tensors(model.config, {other: state[other] for other in state if other != name}) is None
        assert read_tensors(model.config, {**state, name: torch.stack([tensor] * 2)}) is None
    assert read_tensors(model.config, {**state, "model.layers.3.mlp.up_proj.weight": torch.zeros(64, 32)}) is None


# --- memory


@every_variant
def test_only_the_folded_projections_are_new_memory(architecture: str) -> None:
    model = random_model(architecture)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    weights = read_weights(model)
    for layer in weights.layers:
        views = [layer.W_O, layer.W_in, layer.W_out, layer.W_in if layer.W_gate is None else layer.W_gate]
        assert all(tensor.untyped_storage().data_ptr() in own for tensor in views)
        assert layer.W_qkv.untyped_storage().data_ptr() not in own
        assert layer.W_qkv.untyped_storage().nbytes() == layer.W_qkv.numel() * layer.W_qkv.element_size()


def test_layers_share_the_rotary_tables_that_are_the_same() -> None:
    weights = read_weights(random_model("gemma3"))
    assert len({id(layer.rotary) for layer in weights.layers}) == 2
    rotations = PackedTokens.whole(torch.tensor([5])).rotations(weights)
    assert rotations[0] is rotations[2] is not rotations[1]
