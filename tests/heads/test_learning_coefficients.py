"""Local learning coefficients against closed forms, and the engine's loss against Hugging Face's."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.heads import learning_coefficients as module
from circuits_over_time.utils.heads.learning_coefficients import EngineModel, Text, estimate, sample_losses
from circuits_over_time.utils.heads.learning_keys import SamplerKeys
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.toy.batches import TextSource
from circuits_over_time.utils.toy.keys import ModelConfig, TextConfig
from circuits_over_time.utils.toy.text import vocabulary_texts
from circuits_over_time.utils.toy.tokenizer import build_tokenizer
from circuits_over_time.utils.toy.training import mean_loss, new_model
from get_learning_coefficients_over_time import ANALYSIS
from tests.support.random_models import random_model

installed = pytest.mark.skipif(
    importlib.util.find_spec("devinterp") is None, reason="needs devinterp (requirements-devinterp.txt)"
)
TOKENS = torch.randint(1, 97, (6, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2", "llama-grouped"])
def test_the_loss_is_that_of_the_hugging_face_model_and_every_parameter_counts(architecture: str) -> None:
    model = random_model(architecture)
    own = EngineModel(read_weights(model))
    losses = own.losses(Text.joined(TOKENS))
    logits = model(TOKENS).logits[:, :-1].transpose(1, 2)
    expected = nn.functional.cross_entropy(logits, TOKENS[:, 1:], reduction="none")
    torch.testing.assert_close(losses, expected, atol=2e-5, rtol=1e-4)
    losses.mean().backward()
    assert all(parameter.grad is not None for parameter in own.parameters())


def test_a_toy_familys_text_has_the_loss_of_its_training(tmp_path: Path) -> None:
    """The trainer's own mean, which masks documents from each other and leaves out what nobody can know."""
    config, manifest = TextConfig(rows=5), tmp_path / "family.json"
    manifest.write_text(json.dumps({"steps": [0, 7], "config": {"text": config.model_dump()}}))
    tokenizer = build_tokenizer(vocabulary_texts(), 64)
    model = new_model(ModelConfig(n_layers=2, d_model=32, d_mlp=32), len(tokenizer))
    text = Text.of_family(manifest, tokenizer, 5, seed=3)
    expected = mean_loss(model, TextSource(config, tokenizer, seed=3).batch(7))
    torch.testing.assert_close(EngineModel(read_weights(model)).losses(text).mean(), expected, atol=1e-5, rtol=1e-5)
    manifest.write_text("{}")
    with pytest.raises(UserError, match="is missing, damaged, or of a toy family whose tokeni"):
        Text.of_family(manifest, tokenizer, 5, seed=3)


def test_a_head_has_its_own_rows_and_no_keys_that_it_shares() -> None:
    for architecture, rows in (("neox-parallel", [2, 6, 10]), ("llama-grouped", [2])):
        masks = EngineModel(read_weights(random_model(architecture))).head_masks(1, 2)
        assert set(masks) == {"layers/1/W_qkv", "layers/1/b_qkv", "layers/1/W_O"} & set(masks)
        assert masks["layers/1/W_qkv"].flatten(1).any(dim=1).nonzero().flatten().tolist() == rows
        assert masks["layers/1/W_O"].flatten(1).any(dim=1).nonzero().flatten().tolist() == [2]


def test_weights_that_overflow_give_a_loss_that_ends_the_chain() -> None:
    own = EngineModel(read_weights(random_model()))
    with torch.no_grad():
        own.get_parameter("layers/0/W_O").fill_(torch.inf)
    losses = own.losses(Text.joined(TOKENS))
    assert losses.shape == (6, 8)
    assert losses.isnan().all()
    losses.mean().backward()


def test_draws_of_a_quadratic_loss_have_half_its_dimensions() -> None:
    """exp(-n_beta L) with L = |w|^2 / 2 is normal, and L a sum of squares: LLC = d / 2."""
    n_beta, d = 50.0, 6
    w = torch.randn(4, 20_000, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / n_beta**0.5
    found = estimate(1.5 + w.square().sum(dim=2) / 2, 1.5, n_beta)
    assert found["llc"] == pytest.approx(d / 2, abs=4 * found["llc_se"])
    assert found["llc_se"] < 0.02
    assert found["r_hat"] == pytest.approx(1, abs=1e-3)
    assert found["reason"] is None


def test_a_singular_loss_has_less_than_half_of_its_dimensions() -> None:
    """L = w1^2 w2^2 in a square: LLC = 1/2 less 1 / log n, where d / 2 is 1; the density is summed on a grid."""
    n_beta = 1e8
    w = torch.logspace(-9, 0, 2001, dtype=torch.float64)
    loss = (w[:, None] * w[None]).square().flatten()
    density = torch.exp(-n_beta * loss) * (w[:, None] * w[None]).flatten()  # The grid is even in log w.
    draws = loss[torch.multinomial(density, 40_000, replacement=True, generator=torch.Generator().manual_seed(0))]
    found = estimate(draws.view(4, -1), 0.0, n_beta)
    assert found["llc"] == pytest.approx(
        float(n_beta * (loss * density).sum() / density.sum()), abs=4 * found["llc_se"]
    )
    assert 0.4 < found["llc"] < 0.5


@pytest.mark.parametrize(
    ("trace", "reason"),
    [
        ([[1.0, 1.1, 1.2, 1.1], [1.0, *[torch.nan] * 3]], "1 of 2 chains diverged; lower sampler.lr"),
        (
            [[0.5, 0.6, 0.7, 0.6], [0.5, 0.6, 0.7, 0.6]],
            "negative: the checkpoint is no minimum, or sampler.lr is too high",
        ),
        ([[1.1, 1.2, 1.2, 1.1], [3.1, 3.2, 3.2, 3.1]], "chains have not converged (R-hat 16.3"),
        # Chains that drift together differ from nothing but themselves.
        ([[1.1, 1.2, 3.1, 3.2], [1.2, 1.1, 3.2, 3.1]], "chains have not converged (R-hat 16.3"),
    ],
)
def test_chains_that_do_not_converge_say_so(trace: list[list[float]], reason: str) -> None:
    found = estimate(torch.tensor(trace, dtype=torch.float64), 1.0, 10.0)
    assert found["reason"].startswith(reason)
    assert (found["llc"] != found["llc"]) == ("diverged" in reason)


def test_without_devinterp_one_line_says_how_to_install_it(
    word_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise module.importlib.metadata.PackageNotFoundError(name)

    given = [f"model={word_family}", "corpus=toy", f"results_dir={tmp_path / 'r'}"]
    with monkeypatch.context() as patch:
        patch.setattr(module.importlib.metadata, "version", missing)
        with pytest.raises(UserError, match="devinterp is not installed; run: pip install -r requirements-dev"):
            module.require_devinterp()
    if importlib.util.find_spec("devinterp") is None:
        for switch in ([], ["--dry-run"]):
            assert main(ANALYSIS, [*given, *switch]) == 2
            assert (
                "devinterp is not installed; run: pip install -r requirements-devinterp.txt" in capsys.readouterr().err
            )
        assert not (tmp_path / "r").exists()


class Quadratic(nn.Module):
    """|w|^2 / 2, and what the text adds whatever the weights are: its tokens, of which the first is not predicted."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))

    def losses(self, text: Text) -> torch.Tensor:
        return self.w.square().sum() / 2 + text.tokens[:, 1:]


@installed
def test_devinterps_chains_find_that_of_a_quadratic_loss() -> None:
    """With localization g the draws' precision is n_beta + g, and d / 2 comes out as n_beta / (n_beta + g) of it."""
    keys = SamplerKeys(lr=2e-3, n_beta=100, localization=25, num_draws=2000, num_burnin_steps=200, batch_size=2)
    text = Text.joined(torch.ones(4, 3, dtype=torch.long))
    trace, initial = sample_losses(Quadratic(), text, keys, None, 0)  # type: ignore[arg-type]
    assert trace.shape == (3, 2000)
    assert initial == 1
    found: dict[str, Any] = estimate(trace, initial, keys.n_beta)
    assert found["llc"] == pytest.approx(2 * 100 / 125, rel=0.15)


@installed
def test_sequences_that_differ_do_not_hide_that_chains_drift() -> None:
    """Steps too small to arrive anywhere: R-hat of the batches' losses themselves would be below 1."""
    keys = SamplerKeys(lr=1e-5, n_beta=100, localization=25, num_draws=200, num_burnin_steps=0, batch_size=2)
    text = Text.joined(torch.arange(12).view(4, 3))
    trace, initial = sample_losses(Quadratic(), text, keys, None, 0)  # type: ignore[arg-type]
    assert initial == pytest.approx(text.tokens[:, 1:].double().mean())
    found = estimate(trace, initial, keys.n_beta)
    assert 0 < found["llc"] < 0.5
    assert found["reason"].startswith("chains have not converged")


@installed
def test_the_whole_model_and_heads_are_measured(word_family: Path, tmp_path: Path) -> None:
    given = [f"model={word_family}", "corpus=toy", "checkpoints=[5]", f"results_dir={tmp_path}", "heads=[a1.h2]"]
    small = ["n_sequences=4", "seq_len=8", "sampler.batch_size=2", "sampler.num_draws=4", "sampler.num_burnin_steps=2"]
    assert main(ANALYSIS, [*given, *small]) == 0
    folder = Store(tmp_path).folder("learning_coefficients", "words")
    table = folder.read_table(5)
    assert table["layer"].isna().tolist() == [True, False]
    assert table[["layer", "head"]].iloc[1].tolist() == [1, 2]
    assert folder.read_json(5)["sample"]["num_draws"] == 4
