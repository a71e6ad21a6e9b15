"""Copy scores against hand-built heads and against a slow second implementation, under both definitions."""

import pytest
import torch
from torch.nn import functional as F

from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.heads import copy_scores as module
from circuits_over_time.utils.heads.attention_and_copy import repeated_blocks
from circuits_over_time.utils.heads.copy_scores import copy_samples, mean_scores
from circuits_over_time.utils.heads.keys import Definition
from tests.support.hand_built import PERIOD, VOCAB, copying_model
from tests.support.random_models import (
    HOOKED,
    random_model,
    random_pairs,
    value_projection,
    without_biases,
)

DEFINITIONS: tuple[Definition, ...] = ("standard", "study")
both_definitions = pytest.mark.parametrize("definition", DEFINITIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@both_definitions
def test_hand_built_copying_head_scores_100_and_its_sign_flipped_twin_the_reverse(
    definition: Definition, dtype: torch.dtype
) -> None:
    tokens = repeated_blocks(torch.arange(VOCAB), 6, PERIOD, seed=0)[:, :PERIOD]
    lengths = torch.full((len(tokens),), PERIOD)
    positions = torch.tensor([[1, 3, 6]]).expand(len(tokens), 3)
    scores = mean_scores(
        copy_samples(read_weights(copying_model().to(dtype)), tokens, lengths, positions, 4, definition)
    )
    assert scores["copy"].tolist() == [[0, 0, 0], [100, 0, 0]]
    assert scores["negative_copy"].tolist() == [[0, 0, 0], [0, 100, 0]]


def read_by(norm: torch.nn.LayerNorm, x: torch.Tensor, definition: Definition) -> torch.Tensor:
    """What a LayerNorm makes of a residual stream; under the study's definition it does not divide by its scale."""
    if definition == "standard":
        return F.layer_norm(x, x.shape, norm.weight, norm.bias, norm.eps)
    return (x - x.mean()) * norm.weight + norm.bias


def slow_copy_scores(model, tokens: torch.Tensor, lengths: torch.Tensor, positions: torch.Tensor, definition):
    """One prompt, one name and one head at a time, with the model's own norms, stored weights and full logits."""
    weights = read_weights(model)
    neox = hasattr(model, "gpt_neox")
    blocks = model.gpt_neox.layers if neox else model.transformer.h
    norms = [block.input_layernorm if neox else block.ln_1 for block in blocks]
    final_norm = model.gpt_neox.final_layer_norm if neox else model.transformer.ln_f
    scores = {name: torch.zeros(weights.n_layers, weights.n_heads) for name in ("copy", "negative_copy")}
    for prompt, size, names in zip(tokens, lengths.tolist(), positions.tolist(), strict=True):
        residual = model(prompt[None, :size], output_hidden_states=True).hidden_states[1][0]
        for name in names:
            for index, norm in enumerate(norms):
                x = read_by(norm, residual[name], definition)
                x = x - norm.bias if definition == "study" else x  # It ends in the value biases, which are left out.
                for head in range(weights.n_heads):
                    W_V, b_V = value_projection(model, index, head)
                    output = (x @ W_V + (b_V if definition == "standard" else 0)) @ weights.layers[index].W_O[head]
                    for score, sign in (("copy", 1), ("negative_copy", -1)):
                        top = model.lm_head(read_by(final_norm, sign * output, definition)).topk(5).indices
                        scores[score][index, head] += 100 * float(prompt[name] in top) / positions.numel()
    return scores


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("architecture", HOOKED)
@both_definitions
def test_copy_scores_equal_the_slow_reference(
    definition: Definition, architecture: str, biases: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With few candidates most names are ranked twice: among them, then among all.
    monkeypatch.setattr(module, "_CANDIDATES", 8)
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 700)
    model = random_model(architecture, seed=2)
    if not biases:
        model = without_biases(model)
    tokens, _, lengths = random_pairs(9, seed=4)
    positions = torch.stack([torch.zeros_like(lengths), lengths // 2, lengths - 1], dim=1)
    fast = mean_scores(copy_samples(read_weights(model), tokens, lengths, positions, 4, definition))
    slow = slow_copy_scores(model, tokens, lengths, positions, definition)
    assert fast.keys() == slow.keys()
    for name, expected in slow.items():
        assert expected.max() > 0
        torch.testing.assert_close(fast[name], expected, rtol=0, atol=1e-4)


def test_without_any_bias_the_two_definitions_agree() -> None:
    """A norm's scale is positive and multiplies all logits alike, so only what is not scaled along can tell."""
    weights = read_weights(without_biases(random_model(seed=2)))
    tokens, _, lengths = random_pairs(9, seed=4)
    positions = lengths[:, None] - 1
    standard, study = (mean_scores(copy_samples(weights, tokens, lengths, positions, 4, name)) for name in DEFINITIONS)
    assert torch.equal(standard["copy"], study["copy"])
    weights = read_weights(random_model(seed=2))
    standard, study = (mean_scores(copy_samples(weights, tokens, lengths, positions, 4, name)) for name in DEFINITIONS)
    assert not torch.equal(standard["copy"], study["copy"])
