"""The steps that the circuit notebooks share, against sums over the residual stream."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.model.forward import LayerActivations, embed, forward, unembed
from circuits_over_time.edge_attribution_patching.model.norms import normalise
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights, read_weights
from circuits_over_time.notebooks.steps import effects_through_mlps, head_table, map_of, written_at_end
from circuits_over_time.utils.circuits.handle import Model
from circuits_over_time.utils.ioi.attention import name_attention
from circuits_over_time.utils.tasks import build_prompts
from circuits_over_time.utils.tasks.prompts import Prompts
from tests.support.random_models import HOOKED, random_model
from tests.support.task_tokenizers import words


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return build_prompts("ioi", words(), 6, seed=0)


@pytest.fixture(scope="module", params=HOOKED)
def weights(request: pytest.FixtureRequest) -> ModelWeights:
    return read_weights(random_model(request.param, n_layers=2, vocab=len(words())))


def end_of_run(weights: ModelWeights, prompts: Prompts, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At END: the embedding, the final residual stream, and what heads [layer, head] and MLPs [layer] write."""
    layout, heads, mlps = PackedTokens.whole(prompts.lengths), [], []

    def watch(activations: LayerActivations) -> None:
        W_O = weights.layers[activations.layer].W_O
        heads.append(torch.einsum("phd,hdm->hpm", activations.z[layout.last], W_O))
        mlps.append(activations.mlp_out[layout.last])

    start = embed(weights, layout, layout.pack(tokens))
    with torch.no_grad():
        final = forward(weights, layout, start, visit=watch)
    return start[layout.last], final[layout.last], torch.stack(heads), torch.stack(mlps)


def test_direct_effects_are_those_of_exchanged_outputs(weights: ModelWeights, prompts: Prompts) -> None:
    metric, everyone = prompts.metric("logit_diff"), torch.arange(len(prompts))
    _, final, heads, mlps = end_of_run(weights, prompts, prompts.clean)
    _, _, other_heads, other_mlps = end_of_run(weights, prompts, prompts.corrupted)
    model, task = Model("random", weights, words()), cot.task("ioi")
    direct = map_of(cot.path_effects(model, task, n_prompts=len(prompts)), model)
    asked = {"n_prompts": len(prompts), "evaluate_on": "same"}
    without = [cot.ablate(model, task, f"m{layer}->logits", **asked) for layer in range(2)]

    def effects(change: Tensor) -> Tensor:
        patched = metric(unembed(weights, final + change), everyone) - metric(unembed(weights, final), everyone)
        return patched.mean()

    expected = torch.stack([torch.stack([effects(of_head) for of_head in layer]) for layer in other_heads - heads])
    torch.testing.assert_close(direct, expected, atol=1e-5, rtol=1e-4)
    expected = torch.stack([effects(of_mlp) for of_mlp in other_mlps - mlps])
    torch.testing.assert_close(torch.tensor([one.metric - one.full for one in without]), expected, atol=1e-5, rtol=1e-4)
    assert direct.abs().max() > 1e-3
    above_nothing = effects_through_mlps(weights, prompts, "logit_diff")[1]
    if weights.parallel:  # No MLP reads the last layer's heads.
        torch.testing.assert_close(above_nothing, direct[1], atol=1e-5, rtol=1e-4)
    else:
        assert (above_nothing - direct[1]).abs().max() > 1e-3


def test_what_is_written_at_the_end_adds_up_to_the_residual_stream(weights: ModelWeights, prompts: Prompts) -> None:
    every_head = [(layer, head) for layer in range(2) for head in range(weights.n_heads)]
    written = written_at_end(weights, prompts, every_head, [0, 1])
    assert set(written) == {f"a{layer}.h{head}" for layer, head in every_head} | {"m0", "m1"}
    start, final, _, _ = end_of_run(weights, prompts, prompts.clean)
    _, inverse_scale = normalise(weights.final_norm, final)
    constant = sum(layer.b_O for layer in weights.layers)
    expected = (final - start - constant) * inverse_scale
    torch.testing.assert_close(sum(written.values()), expected, atol=1e-5, rtol=1e-4)


def test_attention_from_the_end_is_that_of_each_prompts_last_token(weights: ModelWeights, prompts: Prompts) -> None:
    end = prompts.positions["end"][:, None]
    names = torch.stack([prompts.positions[name] for name in ("io", "s1", "s2")], dim=1)
    mean = name_attention(weights, prompts.clean, prompts.lengths, end, names, batch_size=4)[0]  # [name, layer, head]
    model = Model("random", weights, words())
    each = [cot.attention(model, clean).pattern[:, :, -1] for clean, _ in prompts.texts]  # [layer, head, key]
    torch.testing.assert_close(
        torch.stack([one.sum(dim=-1) for one in each]), torch.ones(len(prompts), 2, weights.n_heads)
    )
    looked = torch.stack([one[:, :, places] for one, places in zip(each, names, strict=True)]).mean(dim=0)
    torch.testing.assert_close(mean, looked.permute(2, 0, 1))


def test_a_table_of_heads_has_a_row_for_each_even_for_none() -> None:
    values = torch.arange(6.0).view(2, 3)
    assert head_table([(1, 0), (0, 2)], {"value": values}).to_dict("list") == {
        "head": ["a1.h0", "a0.h2"],
        "value": [3.0, 2.0],
    }
    assert list(head_table([], {"value": values}).columns) == ["head", "value"]


def test_prompts_begin_with_a_start_token_where_the_model_was_trained_with_one(
    tiny_family: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(tiny_family, tmp_path / "own")
    described = json.loads((own / "family.json").read_text())
    (own / "family.json").write_text(json.dumps(described | {"prepend_bos": True}))
    assert [cot.load(family, 10).start_token is True for family in (tiny_family, own)] == [False, True]
