"""Adapters: merged into their base model by peft, as they were trained; never the base model in silence."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from circuits_over_time.edge_attribution_patching.model.forward import embed, forward, unembed
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.utils.base.errors import CheckpointUnusable
from circuits_over_time.utils.models import adapters
from circuits_over_time.utils.models.family import resolve_family
from tests.support.tiny_models import WORDS, save_checkpoint, tiny_tokenizer

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


def base_model(folder: Path, *, tied: bool) -> LlamaForCausalLM:
    """A small Llama, saved with its tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=16, tie_word_embeddings=tied, **sizes)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


@needs_peft
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"target_modules": ["q_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "use_rslora": True, "lora_alpha": 3},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=lambda keys: "-".join(map(str, keys)),
)
def test_what_is_measured_is_the_model_that_was_trained(tied: bool, keys: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = base_model(tmp_path / "base", tied=tied)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **keys))
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    adapted.eval()
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "run" / "checkpoint-10")

    family = resolve_family(str(tmp_path / "run"), tmp_path, tokens_per_step=1)
    family.prefetch(10)
    checkpoint = family.load(10, device="cpu")
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    layout = PackedTokens.whole(torch.tensor([5]))
    with torch.no_grad():
        final = forward(checkpoint.weights, layout, embed(checkpoint.weights, layout, tokens[0]))
        torch.testing.assert_close(unembed(checkpoint.weights, final), adapted(tokens).logits[0], atol=1e-4, rtol=1e-4)
    assert checkpoint.provenance["base"] == str(tmp_path / "base")
    assert len(checkpoint.tokenizer) == len(WORDS)


def adapter(folder: Path, base: str) -> Path:
    """An adapter's folder whose weights nobody reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").touch()
    return folder


def refusal(family: Path) -> str:
    with pytest.raises(CheckpointUnusable) as caught:
        resolve_family(str(family), family, tokens_per_step=1).load(10, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("beside", [False, True])
def test_without_peft_the_adapter_is_named(beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run" / "checkpoint-10"
    if beside:
        save_checkpoint(folder, 1)
    adapter(folder, "EleutherAI/pythia-160m")
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    message = refusal(tmp_path / "run")
    assert message.startswith(f"{folder}: is an adapter (adapter_config.json) of EleutherAI/pythia-160m; to merge it, ")
    assert "pip install 'peft>=0.17,<1'" in message
    assert ("to measure the weights beside it without the adapter" in message) == beside


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("EleutherAI/pythia-160m", "run: hf download EleutherAI/pythia-160m"),
        ("/gone/away/model", "correct base_model_name_or_path"),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_a_base_model_that_is_not_here_is_named(
    beside: bool, base: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run" / "checkpoint-10"
    if beside:
        save_checkpoint(folder, 1)
    adapter(folder, base)
    message = refusal(tmp_path / "run")
    assert f"its base model {base} is not on this machine; {told}" in message


@needs_peft
def test_an_adapter_that_does_not_fit_its_base_model_is_one_line(tmp_path: Path) -> None:
    base_model(tmp_path / "base", tied=False)
    folder = adapter(tmp_path / "run" / "checkpoint-10", str(tmp_path / "base"))
    about = {"peft_type": "LORA", "r": 4, "target_modules": ["query_key_value"], "task_type": "CAUSAL_LM"}
    about["base_model_name_or_path"] = str(tmp_path / "base")
    (folder / "adapter_config.json").write_text(json.dumps(about))
    assert "the adapter cannot be merged into its base model (" in refusal(tmp_path / "run")
    shutil.rmtree(tmp_path / "base")
    assert "is not on this machine" in refusal(tmp_path / "run")
