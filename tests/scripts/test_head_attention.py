"""What heads look at and write, against Hugging Face's attention and effects worked out from its activations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.circuits import attention
from circuits_over_time.utils.circuits.attention import attention_result, heads_on_prompt, token_text
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.tasks import build_prompts
from get_circuits_over_time import ANALYSIS
from tests.support.paths import TOY_STEPS
from tests.support.random_models import random_model
from tests.support.task_tokenizers import words

HEADS = [(0, 1), (1, 3), (2, 0), (2, 2)]


def of_hugging_face(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The patterns of HEADS, and their effects: W_U of the linear part of the final norm of what each head writes.

    What attention projects at the last token is watched; a norm after the projection scales by the root mean square of
    the whole.
    """
    core = cast(Any, model.base_model)
    layers = core.h if hasattr(core, "h") else core.layers
    final_norm = getattr(core, "ln_f", None) or getattr(core, "final_layer_norm", None) or core.norm
    seen: dict[Any, Tensor] = {}

    def watch(name: Any) -> Any:
        return lambda module, inputs: seen.update({name: inputs[0][0, -1]})

    projections, handles = [], [final_norm.register_forward_pre_hook(watch("final"))]
    for number, layer in enumerate(layers):
        block = next(part for name in ("attention", "attn", "self_attn") if (part := getattr(layer, name, None)))
        projections.append(next(p for name in ("dense", "c_proj", "o_proj") if (p := getattr(block, name, None))))
        handles.append(projections[-1].register_forward_pre_hook(watch(number)))
    with torch.no_grad():
        patterns = model(tokens[None], output_attentions=True).attentions
    for handle in handles:
        handle.remove()
    resid, centres = seen["final"], isinstance(final_norm, torch.nn.LayerNorm)
    gemma = model.config.model_type == "gemma2"  # Its gain is 1 + weight.
    gain = final_norm.weight + gemma
    eps = final_norm.eps if centres else getattr(final_norm, "variance_epsilon", getattr(final_norm, "eps", None))
    scale = (resid.var(correction=0) if centres else resid.square().mean()).add(eps).sqrt()
    effects = []
    for layer, head in HEADS:
        projection = projections[layer]
        weight = projection.weight if isinstance(projection, Conv1D) else projection.weight.T  # [d_heads, d_model]
        width = len(weight) // 4
        rows = slice(head * width, (head + 1) * width)
        written = seen[layer][rows] @ weight[rows]
        if model.config.model_type in ("gemma2", "olmo2"):
            norm, whole = layers[layer].post_attention_layernorm, seen[layer] @ weight
            written = written * (norm.weight + gemma) / whole.square().mean().add(eps).sqrt()
        written = written - written.mean() if centres else written
        logits = model.get_output_embeddings().weight @ (written / scale * gain)
        effects.append(logits - logits.mean())
    return torch.stack([patterns[layer][0, head] for layer, head in HEADS]), torch.stack(effects)


@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2", "llama-grouped", "olmo2-grouped", "gemma2"])
def test_patterns_and_effects_are_those_of_the_hugging_face_model(architecture: str) -> None:
    """Grouped heads share keys and values, and have patterns and outputs of their own."""
    model = random_model(architecture)
    tokens = torch.randint(1, 97, (11,), generator=torch.Generator().manual_seed(1))
    found = heads_on_prompt(read_weights(model), tokens, HEADS)
    for ours, theirs in zip(found, of_hugging_face(model, tokens), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_the_circuits_heads_are_kept_with_the_tokens_that_they_move_most(toy_family: Path, tmp_path: Path) -> None:
    last = TOY_STEPS[-1]
    given = [f"model={toy_family}", "task=greater_than", "n_prompts=20", "n_random=0", f"results_dir={tmp_path}"]
    assert main(ANALYSIS, [*given, f"checkpoints=[0,{last}]"]) == 0
    folder = Store(tmp_path).folder("attention", toy_family.name, "greater_than")
    edges = Store(tmp_path).folder("graphs", toy_family.name, "greater_than").read_table(last)
    heads = {end for end in {*edges["source"], *edges["target"]} if ".h" in end}
    stored, table = folder.read_json(last), folder.read_table(last)
    assert set(stored["heads"]) == heads
    for rows in stored["heads"].values():
        assert [len(row) for row in rows] == list(range(1, len(stored["tokens"]) + 1))
        assert all(sum(row) == pytest.approx(1, abs=0.01) for row in rows)
    for _, of_head in table.groupby(["layer", "head"]):
        assert (of_head["effect"] > 0).tolist() == [True] * 5 + [False] * 5
        assert of_head["effect"].abs().tolist()[:5] == sorted(of_head["effect"][:5], reverse=True)
    # Nothing is learned at step 0, so there is no circuit, and no head.
    assert folder.read_json(0)["heads"] == {}
    assert folder.read_table(0).empty


def test_heads_can_be_named_left_out_or_refused(
    word_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"model={word_family}", "task=ioi", "n_prompts=2", "n_random=0", "checkpoints=[5]", "eap.ig_steps=1"]
    for asked, heads in (("[a1.h3, a0.h0]", {"a0.h0", "a1.h3"}), ("null", set[str]())):
        results = tmp_path / asked
        assert main(ANALYSIS, [*given, f"attention={asked}", f"results_dir={results}"]) == 0
        assert set(Store(results).folder("attention", "words", "ioi").read_json(5)["heads"]) == heads
    capsys.readouterr()
    for asked, why in (
        ("[a2.h0]", "attention: the model has no head a2.h0; name some of a0.h0 to a1.h3"),
        ("[m0]", "attention: 'm0' names no head; heads are named a3.h1 (layer 3, head 1)"),
        ("[]", "attention: the list is empty"),
    ):
        for switch in ([], ["--dry-run"]):
            assert main(ANALYSIS, [*given, f"attention={asked}", f"results_dir={tmp_path / 'no'}", *switch]) == 2
            assert why in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_of_a_long_prompt_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MOST_TOKENS", 5)
    model, tokenizer = random_model(vocab=len(words())), words()
    prompts = build_prompts("ioi", tokenizer, 1, seed=0)
    checkpoint: Any = SimpleNamespace(weights=read_weights(model), tokenizer=tokenizer)
    stored = attention_result(checkpoint, prompts, ["a1.h2"]).json or {}
    n = int(prompts.lengths[0])
    assert stored["left_out"] == n - 5
    assert stored["tokens"] == [token_text(tokenizer, token) for token in prompts.clean[0, n - 5 : n].tolist()]
    pattern, _ = heads_on_prompt(checkpoint.weights, prompts.clean[0, :n], [(1, 2)])
    for query, row in enumerate(stored["heads"]["a1.h2"]):
        torch.testing.assert_close(
            torch.tensor(row), pattern[0, n - 5 + query, n - 5 : n - 4 + query], atol=6e-4, rtol=0
        )


def test_tokens_are_one_line_of_text_and_never_empty() -> None:
    texts = {0: "\n", 1: "", 2: " a\u2028b\x00", 3: " Mary"}
    tokenizer: Any = SimpleNamespace(decode=lambda ids: texts[ids[0]], convert_ids_to_tokens=lambda token: f"<{token}>")
    assert [token_text(tokenizer, token) for token in texts] == ["\\n", "<1>", " a\\u2028b\\x00", " Mary"]
