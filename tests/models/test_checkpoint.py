"""One checkpoint: its description, its weights, its bridge."""

from __future__ import annotations

import gc
import json
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXForCausalLM

from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.models import checkpoint as checkpoint_module
from circuits_over_time.utils.models.family import resolve_family
from tests.support.loading import loads_weights_of, same_tensors
from tests.support.tiny_models import save_family, tiny_model, tiny_tokenizer

TOKENS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "is missing (the folder holds "),
        ("no json", "does not name a model_type ("),
        ("[]", "does not name a model_type ("),
        ("{}", "does not name a model_type ("),
        ('{"model_type": "gpt_neox", "hidden_size": "wide"}', "cannot be read ("),
    ],
)
def test_a_config_that_cannot_be_read_is_one_clear_error(text: str | None, told: str, tmp_path: Path) -> None:
    config = save_family(tmp_path / "mine", {5: 1}) / "step5" / "config.json"
    config.unlink() if text is None else config.write_text(text)
    with pytest.raises(UserError) as caught:
        resolve_family(str(tmp_path / "mine"), tmp_path).load(5)
    assert str(caught.value).startswith(str(config))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_loaded_checkpoint_keeps_the_tokenizer_of_the_disk(tiny_family: Path, tmp_path: Path) -> None:
    checkpoint = resolve_family(str(tiny_family), tmp_path).load(10, device="cpu")
    assert checkpoint.tokenizer("Mary went")["input_ids"] == [2, 5]
    assert checkpoint.tokenizer.pad_token == tiny_tokenizer().pad_token
    assert checkpoint.device == torch.device("cpu")


@pytest.mark.parametrize("first", ["weights", "bridge"])
def test_bridge_and_weights_are_the_same_model_whichever_is_read_first(
    first: str, tiny_family: Path, tmp_path: Path
) -> None:
    checkpoint = resolve_family(str(tiny_family), tmp_path).load(10, device="cpu")
    getattr(checkpoint, first)
    with torch.no_grad():
        # Bridge and transformers add up q, k and v in another order: the last bit of the logits may differ.
        torch.testing.assert_close(checkpoint.bridge(TOKENS), tiny_model(1).eval()(TOKENS).logits, rtol=0, atol=1e-6)
    assert same_tensors(checkpoint.weights, read_weights(tiny_model(1)))
    assert not checkpoint.bridge.training


def test_changing_the_bridge_leaves_weights_and_tokenizer_as_they_are(tiny_family: Path, tmp_path: Path) -> None:
    checkpoint = resolve_family(str(tiny_family), tmp_path).load(10, device="cpu")
    with torch.no_grad():
        for parameter in checkpoint.bridge.parameters():
            parameter.zero_()
    assert same_tensors(checkpoint.weights, read_weights(tiny_model(1)))
    assert checkpoint.bridge.tokenizer is not checkpoint.tokenizer


def test_a_checkpoint_is_freed_without_collecting_garbage(tiny_family: Path, tmp_path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        checkpoint = resolve_family(str(tiny_family), tmp_path).load(10, device="cpu")
        alive = [weakref.ref(checkpoint), weakref.ref(checkpoint.weights), weakref.ref(checkpoint.weights.embed)]
        del checkpoint
        assert [reference() for reference in alive] == [None] * 3
    finally:
        gc.enable()


def test_parameters_are_counted_once_where_tensors_are_tied(tmp_path: Path) -> None:
    for name, tied in (("free", False), ("tied", True)):
        config = tiny_model(0).config
        config.tie_word_embeddings = tied
        GPTNeoXForCausalLM(config).save_pretrained(tmp_path / name / "step1")
        tiny_tokenizer().save_pretrained(tmp_path / name / "step1")
    free, tied = (
        resolve_family(str(tmp_path / name), tmp_path, tokens_per_step=1).load(1, device="cpu").provenance["parameters"]
        for name in ("free", "tied")
    )
    # Two embeddings of 12 words; in a block attention 4d^2 + 4d, an MLP twice as wide 4d^2 + 3d, norms 4d; a last norm.
    assert free == 2 * 12 * 8 + 2 * (8 * 8**2 + 11 * 8) + 2 * 8
    assert tied == free - 12 * 8


def test_the_same_tokenizer_files_give_the_same_tokenizer(tiny_family: Path, tmp_path: Path) -> None:
    family = resolve_family(str(tiny_family), tmp_path)
    assert family.describe(10).tokenizer is family.describe(30).tokenizer
    other = save_family(tmp_path / "other", {5: 1})
    settings = other / "step5" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 7}))
    tokenizer = resolve_family(str(other), tmp_path).describe(5).tokenizer
    assert tokenizer is not family.describe(10).tokenizer
    assert tokenizer.model_max_length == 7


def test_weights_that_change_while_they_are_loaded_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_family(tmp_path / "mine", {5: 1})
    weights = folder / "step5" / "model.safetensors"
    read = checkpoint_module.read_state

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        state = read(*arguments, **options)
        os.utime(weights)
        return state

    monkeypatch.setattr(checkpoint_module, "read_state", meanwhile)
    checkpoint = resolve_family(str(folder), tmp_path).load(5, device="cpu")
    with pytest.raises(UserError) as caught:
        _ = checkpoint.provenance
    assert str(caught.value) == f"{weights}: changed while it was read; run again once the checkpoint is complete"


def test_dtype_is_the_one_asked_for(tiny_family: Path, tmp_path: Path) -> None:
    checkpoint = resolve_family(str(tiny_family), tmp_path).load(10, "bfloat16", "cpu")
    assert checkpoint.weights.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in checkpoint.bridge.parameters()} == {torch.bfloat16}


def test_cut_weights_are_one_clear_error(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1})
    weights = folder / "step5" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError) as caught:
        resolve_family(str(folder), tmp_path).load(5)
    assert str(caught.value).startswith(f"{weights}: cannot be read (")
    assert str(caught.value).endswith("); copy or fetch that file again")
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_replaced_by_random_ones(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1})
    weights = folder / "step5" / "model.safetensors"
    tensors = load_file(weights)
    name = "gpt_neox.final_layer_norm.weight"
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        resolve_family(str(folder), tmp_path).load(5)
    assert str(caught.value).startswith(f"{folder}/step5: weights that its config.json asks for are missing ({name}; ")


def test_weights_that_the_config_has_no_place_for_are_refused(tmp_path: Path) -> None:
    weights = save_family(tmp_path / "mine", {5: 1}) / "step5" / "model.safetensors"
    tensors = load_file(weights)
    old = {f"gpt_neox.layers.0.attention.{name}": torch.ones(1) for name in ("bias", "masked_bias")}
    save_file(tensors | old | {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(1)}, weights)
    assert loads_weights_of(resolve_family(str(tmp_path / "mine"), tmp_path), 5, 1)
    name = "gpt_neox.layers.0.attention.q_norm.weight"
    save_file(tensors | {name: torch.ones(4)}, weights)
    with pytest.raises(UserError) as caught:
        resolve_family(str(tmp_path / "mine"), tmp_path).load(5)
    assert str(caught.value) == (
        f"{weights.parent}: holds weights that its config.json has no place for ({name}); correct it"
    )


@pytest.mark.parametrize("ahead", [False, True])
def test_a_model_that_does_not_fit_names_the_way_out(
    ahead: bool, tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    family = resolve_family(str(tiny_family), tmp_path)
    if ahead:
        family.prefetch(10)
        family.describe(10)  # waits
    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(UserError) as caught:
        family.load(10, "float32", "cpu")
    told = f"device: {tiny_family}/step10 as float32 does not fit on cpu; pass dtype=bfloat16 or another device"
    assert str(caught.value) == told
