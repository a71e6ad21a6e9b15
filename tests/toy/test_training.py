"""The loss, the optimizer and its learning rate."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from circuits_over_time.utils.toy.batches import TextSource
from circuits_over_time.utils.toy.keys import ModelConfig, OptimizerConfig, TextConfig
from circuits_over_time.utils.toy.muon import fused, orthogonalized, separated
from circuits_over_time.utils.toy.training import mean_loss, new_model, rate_share


def test_a_packed_document_is_read_as_if_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    model = new_model(ModelConfig(n_layers=2, d_model=32, n_heads=2, d_mlp=32), len(tokenizer))
    batch = TextSource(TextConfig(rows=3), tokenizer, seed=0).batch(0)
    total, count = 0.0, 0
    with torch.no_grad():
        for number in batch.documents.unique().tolist():
            inside = batch.documents == number
            learned = batch.learned[inside]
            if number >= 0 and learned.any():
                logits = model(batch.tokens[inside][None]).logits[0, :-1]
                losses = torch.nn.functional.cross_entropy(logits, batch.tokens[inside][1:], reduction="none")
                total += losses[learned[1:]].sum().item()
                count += int(learned.sum())
        assert count == batch.learned.sum()
        assert mean_loss(model, batch).item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("shape", [(5, 24, 24), (3, 16, 48), (3, 48, 16)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalized(matrices))
    # A square random matrix has singular values near zero, which five rounds do not lift all the way.
    assert values.max() < 1.3
    assert values.median() > 0.65
    aligned = orthogonalized(matrices).mT @ matrices
    assert (torch.diagonal(aligned, dim1=-2, dim2=-1).sum(-1) > 0).all()


def test_separated_takes_query_key_and_value_apart() -> None:
    heads, d_head, d_model = 3, 4, 12
    weight = torch.arange(3 * d_model * d_model).float().view(3 * d_model, d_model)
    by_head = weight.view(heads, 3, d_head, d_model)  # As GPT-NeoX reads its fused projection.
    parts = separated(weight, heads, 3)
    for part in range(3):
        assert torch.equal(parts[part], by_head[:, part].reshape(d_model, d_model))
    assert torch.equal(fused(parts, heads), weight)


def test_the_learning_rate_warms_up_and_falls_to_its_last_share() -> None:
    config = OptimizerConfig(steps=100, warmup_steps=10, final_share=0.1)
    shares = [rate_share(config, step) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == 1.0
    assert shares[100] == pytest.approx(0.1)
    assert all(after <= before for before, after in itertools.pairwise(shares[9:]))
