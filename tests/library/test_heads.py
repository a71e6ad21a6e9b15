"""Heads in the library: path patching against hooks, scores against the scripts, attention against Hugging Face."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.patching.paths import Receivers
from circuits_over_time.get_full_model_components_over_time import ANALYSIS as COMPONENTS
from circuits_over_time.get_model_cspa import ANALYSIS as CSPA
from circuits_over_time.get_new_successor_head_scores_over_time import ANALYSIS as SUCCESSOR
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.tasks import build_prompts
from tests.support.path_patching_reference import path_patched_logits, recomputed_after
from tests.support.paths import TOY
from tests.support.random_models import random_model
from tests.support.task_tokenizers import words

N = 3


@pytest.mark.parametrize("receivers", ["logits", ["a1.h1<q>", "a1.h2<q>"], ["a1.h0<v>"]])
@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2"])
def test_path_effects_equal_brute_force_by_hooks(architecture: str, receivers: str | list[str]) -> None:
    network = random_model(architecture, n_layers=2, vocab=len(words()))
    model = cot.load(network, tokenizer=words())
    prompts = build_prompts("ioi", words(), N, 0)
    answer = prompts.answers

    def difference(logits: torch.Tensor, i: int) -> float:
        return float(logits[answer.right[i, 0]] - logits[answer.wrong[i, 0]])

    senders = ["a0.h0", "a0.h3"]
    found = cot.path_effects(model, cot.task("ioi"), senders, receivers, n_prompts=N)
    for row, sender in enumerate([(0, 0), (0, 3)]):
        effects = []
        for i in range(N):
            length = int(prompts.lengths[i])
            pair = prompts.clean[i, :length], prompts.corrupted[i, :length]
            if receivers == "logits":
                logits = path_patched_logits(network, *pair, sender)
            else:
                heads = tuple((int(name[1]), int(name[4])) for name in receivers)
                logits = recomputed_after(network, *pair, sender, Receivers(heads, receivers[0][6])).logits
            effects.append(difference(logits, i) - difference(network(pair[0][None]).logits[0, -1], i))
        assert found["effect"][row] == pytest.approx(sum(effects) / N, abs=1e-5)
        assert abs(found["effect"][row]) > 1e-4


def test_the_head_that_writes_the_answer_is_found_and_its_share_is_of_the_drop() -> None:
    model = cot.load(TOY, step=1350)
    table = cot.path_effects(model, cot.task("ioi"), n_prompts=20)
    assert table["sender"].tolist() == [f"a{layer}.h{head}" for layer in range(4) for head in range(4)]
    drop = cot.performance(model, cot.task("ioi"), n_prompts=20).set_index(["metric", "run"])["value"]["logit_diff"]
    assert table["share"][13] == pytest.approx(table["effect"][13] / (drop["clean"] - drop["corrupted"]), rel=1e-4)
    assert table.nsmallest(1, "effect")["sender"].item() == "a3.h1"


@pytest.mark.parametrize(
    ("analysis", "kind", "score", "keys"),
    [
        (COMPONENTS, "components", "induction", {"n_sequences": 4, "n_prompts": 5}),
        (COMPONENTS, "components", "negative_copy", {"n_sequences": 4, "n_prompts": 5}),
        (SUCCESSOR, "successor", "succession", {}),
        (CSPA, "cspa", "cspa", {"corpus": "toy", "n_sequences": 2, "n_mean_sequences": 3}),
    ],
)
def test_head_scores_are_the_scripts(analysis, kind: str, score: str, keys: dict, tmp_path: Path) -> None:
    given = [f"{key}={value}" for key, value in keys.items()]
    assert main(analysis, [f"model={TOY}", "checkpoints=[1350]", f"results_dir={tmp_path}", "device=cpu", *given]) == 0
    stored = Store(tmp_path).read_tables(kind).drop(columns=["model", "step", "tokens"])
    if "score" in stored and kind == "components":
        stored = stored[stored["score"] == score].drop(columns="score").reset_index(drop=True)
    found = cot.head_scores(cot.load(TOY, step=1350), score, **keys)
    assert list(found.columns) == list(stored.columns)
    for column in ("layer", "head", "value", "score"):
        if column in found:
            assert found[column].tolist() == pytest.approx(stored[column].tolist(), abs=1e-7)


@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2", "llama-grouped"])
def test_attention_is_the_models_own(architecture: str) -> None:
    network = random_model(architecture, n_layers=2, vocab=len(words()))
    tokens, pattern = cot.attention(cot.load(network, tokenizer=words()), "When Mary and John went to the store")
    assert tokens == ["When", "Mary", "and", "John", "went", "to", "the", "store"]
    ids = torch.tensor([words().convert_tokens_to_ids(tokens)])
    own = torch.stack(network(ids, output_attentions=True).attentions)[:, 0]
    torch.testing.assert_close(pattern, own, atol=1e-6, rtol=1e-5)
