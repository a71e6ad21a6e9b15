"""Signatures of heads: attention by role against loops, the rest against the tables it was taken from, and the cost."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from circuits_over_time.edge_attribution_patching.model.forward import embed, forward
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.heads import signatures
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.tasks import build_prompts
from get_circuits_over_time import ANALYSIS as CIRCUITS
from get_head_signatures import ANALYSIS
from tests.support.paths import TOY, TOY_STEPS
from tests.support.random_models import random_model
from tests.support.task_tokenizers import words

LAST = TOY_STEPS[-1]
GIVEN = [f"model={TOY}", "task=ioi", "n_prompts=20", "device=cpu", f"checkpoints=[{LAST}]"]


@pytest.mark.parametrize("architecture", ["neox-parallel", "llama-grouped"])
def test_attention_by_role_is_that_of_a_loop_over_queries_and_keys(architecture: str) -> None:
    weights = read_weights(random_model(architecture, vocab=len(words())))
    prompts = build_prompts("ioi", words(), 5, seed=0)
    found, patterns = signatures.attention_roles(weights, prompts, batch_size=2, n_patterns=3)
    layout, attended = PackedTokens.whole(prompts.lengths), list[torch.Tensor]()
    with torch.no_grad():
        x = embed(weights, layout, layout.pack(prompts.clean))
        forward(weights, layout, x, visit=lambda layer: attended.append(layer.pattern))
    pattern = torch.stack(attended, dim=1)  # [prompt, layer, head, query, key]
    for number, (tokens, length) in enumerate(zip(prompts.clean.tolist(), prompts.lengths.tolist(), strict=True)):
        keys_of = {
            "first": lambda q: [0] if q else [],
            "previous": lambda q: [q - 1] if q else [],
            "self": lambda q: [q],
            "same": lambda q: [k for k in range(q) if tokens[k] == tokens[q]],  # noqa: B023
            "induction": lambda q: [k for k in range(1, q) if tokens[k - 1] == tokens[q]],  # noqa: B023
        }
        for role, keys in keys_of.items():
            sums = [pattern[number, :, :, q, keys(q)].sum(-1) for q in range(length) if keys(q)]
            expected = torch.stack(sums).mean(0) if sums else torch.full(pattern.shape[1:3], torch.nan)
            torch.testing.assert_close(found[role][..., number], expected, equal_nan=True)
        io = int(prompts.positions["io"][number])
        torch.testing.assert_close(found["end_io"][..., number], pattern[number, :, :, length - 1, io])
        if number < 3:
            first = pattern[number, :, :, :length, :length]
            torch.testing.assert_close(patterns[number].sum(-1), first.sum((-1, -2)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("signatures")
    given = [*GIVEN, f"results_dir={root}"]
    assert main(CIRCUITS, [*given, "n_random=0", "eap.ig_steps=3"]) == 0
    assert main(ANALYSIS, given) == 0
    return Store(root)


def test_effect_and_sensitivities_are_scores_of_edges(store: Store) -> None:
    """Of one head's inputs the sensitivities to all roles add up to the edges from all other heads."""
    table = store.folder("signatures", TOY.name, "ioi").read_table(LAST).set_index(["score", "layer", "head"])["value"]
    circuit, _ = store.folder("graphs", TOY.name, "ioi").read_circuit(LAST)
    graph, scores = circuit.graph, circuit.scores
    heads = [graph.head(layer, head) for layer in range(graph.n_layers) for head in range(graph.n_heads)]
    for layer in range(graph.n_layers):
        for head in range(graph.n_heads):
            effect = float(scores[graph.head(layer, head), graph.logits])
            assert table["effect", layer, head] == pytest.approx(effect, rel=2e-3, abs=1e-4)
            inputs = [graph.head_input(layer, head, letter) for letter in "qkv"]  # type: ignore[arg-type]
            expected = float(scores[heads][:, inputs].sum())
            total = sum(table[f"sensitivity_{role}", layer, head] for role in signatures.ROLES)
            assert total == pytest.approx(expected, rel=2e-3, abs=1e-3)


def test_means_and_errors_are_those_of_the_folds(store: Store) -> None:
    folder = store.folder("signatures", TOY.name, "ioi")
    table, stored = folder.read_table(LAST), folder.read_tensors(LAST)
    for number, name in enumerate(stored["fold_scores"]):
        folds = pd.DataFrame(stored["folds"][..., number].flatten(1).numpy())
        rows = table[table["score"] == name]
        assert rows["value"].tolist() == pytest.approx(folds.mean().tolist(), rel=1e-4, abs=1e-6)
        assert rows["se"].tolist() == pytest.approx(folds.sem().tolist(), rel=1e-3, abs=1e-6)


def test_a_checkpoint_costs_one_forward_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than each prompt once, in any function that runs a model."""
    n_tokens = list[int]()

    def counted(weights, layout, x, **options):  # type: ignore[no-untyped-def]
        n_tokens.append(len(x))
        return forward(weights, layout, x, **options)

    monkeypatch.setattr(signatures, "forward", counted)
    monkeypatch.setattr("circuits_over_time.edge_attribution_patching.model.forward.forward", counted)
    assert main(ANALYSIS, [*GIVEN, f"results_dir={tmp_path}"]) == 0
    from transformers import AutoTokenizer

    prompts = build_prompts("ioi", AutoTokenizer.from_pretrained(TOY / f"step{LAST}"), 20, seed=0)
    assert sum(n_tokens) == int(prompts.lengths.sum())


def test_signatures_are_made_again_when_what_they_were_made_of_has_changed(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*GIVEN, f"results_dir={tmp_path}"]
    folder = Store(tmp_path).folder("signatures", TOY.name, "ioi")
    assert main(ANALYSIS, given) == 0
    assert "effect" not in set(folder.read_table(LAST)["score"])
    assert main(CIRCUITS, [*given, "n_random=0", "eap.ig_steps=2"]) == 0
    assert main(ANALYSIS, given) == 0
    assert "made with other results than are there now" in capsys.readouterr().err
    assert "effect" in set(folder.read_table(LAST)["score"])


def test_folds_that_do_not_fit_are_refused_with_a_way_out(store: Store, tmp_path: Path) -> None:
    assert main(ANALYSIS, [*GIVEN, f"results_dir={store.root}", "n_folds=4", "overwrite=true"]) == 2
    assert main(ANALYSIS, [*GIVEN, f"results_dir={tmp_path}", "n_folds=5"]) == 2
    assert main(ANALYSIS, [*GIVEN, f"results_dir={tmp_path}", "n_prompts=6"]) == 2
    assert not list(tmp_path.rglob("*.csv"))
    with pytest.raises(UserError, match="n_folds: 10 folds of 6 prompts of ioi"):
        signatures.require_folds(signatures.SignaturesConfig(model="m", task="ioi"), "ioi", 6)
