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
from circuits_over_time.utils.algorithms.attention import name_attention
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.tasks import build_prompts
from tests.support.path_patching_reference import path_patched_logits, recomputed_after
from tests.support.paths import TOY
from tests.support.random_models import random_model
from tests.support.task_tokenizers import words

N = 3


@pytest.mark.parametrize(
    ("receivers", "through_mlps"),
    [("logits", None), ("logits", True), (["a1.h1<q>", "a1.h2<q>"], None), (["a1.h0<v>"], None), (["a1.h0<v>"], False)],
)
@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2"])
def test_path_effects_equal_brute_force_by_hooks(
    architecture: str, receivers: str | list[str], through_mlps: bool | None
) -> None:
    network = random_model(architecture, n_layers=2, vocab=len(words()))
    model = cot.load(network, tokenizer=words())
    prompts = build_prompts("ioi", words(), N, 0)
    answer = prompts.answers

    def difference(logits: torch.Tensor, i: int) -> float:
        return float(logits[answer.right[i, 0]] - logits[answer.wrong[i, 0]])

    senders = ["a1.h0", "m0", "a0.h3"] if receivers == "logits" else ["m0", "a0.h3"]
    nodes = {"a1.h0": (1, 0), "m0": (0, None), "a0.h3": (0, 3)}
    found = cot.path_effects(model, cot.task("ioi"), senders, receivers, through_mlps=through_mlps, n_prompts=N)
    assert found["sender"].tolist() == senders
    for row, sender in enumerate(nodes[name] for name in senders):
        effects = []
        for i in range(N):
            length = int(prompts.lengths[i])
            pair = prompts.clean[i, :length], prompts.corrupted[i, :length]
            if receivers == "logits":
                logits = path_patched_logits(network, *pair, sender, through_mlps=bool(through_mlps))
            else:
                heads = tuple((int(name[1]), int(name[4])) for name in receivers)
                into, ways = Receivers(heads, receivers[0][6]), through_mlps is not False
                logits = recomputed_after(network, *pair, sender, into, through_mlps=ways).logits
            effects.append(difference(logits, i) - difference(network(pair[0][None]).logits[0, -1], i))
        assert found["effect"][row] == pytest.approx(sum(effects) / N, abs=1e-5)
        # At END the first MLP of a parallel block reads the same word in both prompts.
        assert abs(found["effect"][row]) > 1e-4 or (architecture, sender) == ("neox-parallel", (0, None))


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
        (CSPA, "cspa", "copy_suppression", {"corpus": "toy", "n_sequences": 2, "n_mean_sequences": 3}),
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
    attention = cot.attention(cot.load(network, tokenizer=words()), "When Mary and John went to the store")
    tokens, pattern = attention
    assert repr(attention) == f"Attention(tokens={tokens}, pattern={list(pattern.shape)})"
    assert tokens == ["When", "Mary", "and", "John", "went", "to", "the", "store"]
    ids = torch.tensor([words().convert_tokens_to_ids(tokens)])
    own = torch.stack(network(ids, output_attentions=True).attentions)[:, 0]
    torch.testing.assert_close(pattern, own, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2"])
def test_attention_from_the_end_is_that_of_each_prompts_last_token(architecture: str) -> None:
    model = cot.load(random_model(architecture, n_layers=2, vocab=len(words())), tokenizer=words())
    prompts, weights = cot.prompts(model, cot.task("ioi"), n_prompts=6), model.weights
    end = prompts.positions["end"][:, None]
    names = torch.stack([prompts.positions[name] for name in ("io", "s1", "s2")], dim=1)
    _, means = name_attention(weights, prompts.clean, prompts.lengths, end, names, batch_size=4)
    each = [cot.attention(model, clean).pattern[:, :, -1] for clean, _ in prompts.texts]  # [layer, head, key]
    torch.testing.assert_close(
        torch.stack([one.sum(dim=-1) for one in each]), torch.ones(len(prompts), 2, weights.n_heads)
    )
    looked = torch.stack([one[:, :, places] for one, places in zip(each, names, strict=True)]).mean(dim=0)
    torch.testing.assert_close(means[0], looked.permute(2, 0, 1))


@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2"])
def test_the_direct_effect_of_an_mlp_is_that_of_its_edge_to_the_logits(architecture: str) -> None:
    model, task = (
        cot.load(random_model(architecture, n_layers=2, vocab=len(words())), tokenizer=words()),
        cot.task("ioi"),
    )
    effects = cot.path_effects(model, task, ["m0", "m1"], n_prompts=6)["effect"]
    for effect, name in zip(effects, ("m0", "m1"), strict=True):
        without = cot.ablate(model, task, f"{name}->logits", n_prompts=6, evaluate_on="same")
        assert effect == pytest.approx(without.metric - without.full, abs=1e-5)
    assert abs(effects[1]) > 1e-4


def test_logits_of_prompts_of_any_length_are_the_models_own() -> None:
    network = random_model("gpt2", n_layers=2, vocab=len(words()))
    model = cot.load(network, tokenizer=words())
    texts = ["When Mary and John", "When", "When Mary and John went to the store"]
    found = cot.logits(model, texts)
    for row, text in zip(found, texts, strict=True):
        ids = torch.tensor([words().convert_tokens_to_ids(text.split())])
        torch.testing.assert_close(row, network(ids).logits[0, -1], atol=1e-5, rtol=1e-4)
    assert torch.equal(cot.logits(model, texts[1]), cot.logits(model, texts[1:2]))
    assert cot.logits(model, []).shape == (0, len(words()))


@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2", "llama-grouped", "gemma2"])
def test_what_all_nodes_write_adds_up_to_the_logits(architecture: str) -> None:
    network = random_model(architecture, n_layers=2, vocab=len(words()))
    model, task = cot.load(network, tokenizer=words()), cot.task("ioi")
    lens = cot.logit_lens(model, task, model.graph.forward_nodes, n_prompts=N, batch_size=2)
    prompts, seen = cot.prompts(model, task, n_prompts=N), []
    names = ("gpt_neox.final_layer_norm", "transformer.ln_f", "model.norm")
    norm = next(module for name, module in network.named_modules() if name in names)
    handle = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, -1]))
    rows = zip(prompts.clean, prompts.lengths.tolist(), strict=True)
    own = torch.stack([network(tokens[None, :length]).logits[0, -1] for tokens, length in rows])
    handle.remove()
    cap = model.weights.logit_softcap
    own = own if cap is None else cap * torch.atanh(own / cap)
    # What no node writes: the biases of attention, through the final norm at the run's scale, and that norm's own.
    constant = torch.stack([layer.b_O for layer in model.weights.layers]).sum(0)
    scale = (torch.stack(seen).var(dim=1, correction=0, keepdim=True) + model.weights.final_norm.eps).sqrt()
    read = (constant - constant.mean()) / scale * norm.weight + getattr(norm, "bias", torch.zeros(()))
    biases = read @ network.get_output_embeddings().weight.T
    expected = (own - own.mean(1, keepdim=True)) - (biases - biases.mean(1, keepdim=True))
    torch.testing.assert_close(torch.stack(list(lens.values())).sum(0), expected, atol=1e-4, rtol=1e-4)
    assert all(float(values.abs().max()) > 1e-3 for values in lens.values())


def test_the_heads_and_mlps_of_another_model_are_refused_by_name() -> None:
    model, task = cot.load(random_model("gpt2", n_layers=2, vocab=len(words())), tokenizer=words()), cot.task("ioi")
    with pytest.raises(
        ValueError, match=r"senders: 'm2' is not .* of this model; heads are a0.h0, ... a1.h3, MLPs m0, ... m1"
    ):
        cot.path_effects(model, task, ["m2"])
    with pytest.raises(ValueError, match=r"receivers: 'm1' is not a head of this model"):
        cot.path_effects(model, task, receivers=["m1<q>"])
    with pytest.raises(TypeError, match="through_mlps='yes'"):
        cot.path_effects(model, task, through_mlps="yes")
    with pytest.raises(
        ValueError, match=r"nodes: the model has no 'logits'; there are input, a0.h0, ... a1.h3, m0, ... m1"
    ):
        cot.logit_lens(model, task, "logits")
    with pytest.raises(TypeError, match="nodes: 3 is not a list"):
        cot.logit_lens(model, task, 3)
    with pytest.raises(TypeError, match="prompt: 3 is not text"):
        cot.logits(model, 3)
