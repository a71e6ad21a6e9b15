"""Head scores against hand-built models and against a slow second implementation."""

import weakref
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from edge_attribution_patching import forward as engine
from edge_attribution_patching.weights import read_weights
from get_full_model_components_over_time import ANALYSIS
from tests.support.hand_built import PERIOD, VOCAB, attention_model, copying_model
from tests.support.paths import TOY_STEPS
from tests.support.random_models import (
    HOOKED,
    random_model,
    random_pairs,
    tiny_tokenizer,
    value_projection,
    without_biases,
)
from tests.support.task_tokenizers import words
from tests.support.word_family import word_model
from utils.errors import UserError
from utils.heads import attention_and_copy as head_scores
from utils.heads.attention_and_copy import attention_scores, copy_scores, ordinary_tokens, repeated_blocks
from utils.results.store import Store
from utils.runner import main
from utils.tasks import build_prompts

BLOCKS = repeated_blocks(torch.arange(VOCAB), 6, PERIOD, seed=0)


def harmonic(first: int, last: int) -> float:
    """1/first + ... + 1/last: attention summed over queries that see first..last keys and attend to all alike."""
    return sum(1 / n for n in range(first, last + 1))


# --- hand-built attention

CHANCE = {
    "induction": harmonic(PERIOD + 1, 2 * PERIOD) / PERIOD,
    "duplicate_token": harmonic(PERIOD + 1, 2 * PERIOD) / PERIOD,
    "previous_token": harmonic(2, 2 * PERIOD) / (2 * PERIOD - 1),
}
# In the first block nothing repeats: there the duplicate-token head attends to all positions but its own alike, and the
# induction head to all but position 0.
EXPECTED = {
    (0, 0): {"induction": 0.0, "duplicate_token": 0.0, "previous_token": 1.0},
    (0, 1): {
        "induction": 0.0,
        "duplicate_token": 1.0,
        "previous_token": harmonic(1, PERIOD - 1) / (2 * PERIOD - 1),
    },
    (0, 2): CHANCE,
    (1, 0): {
        "induction": 1.0,
        "duplicate_token": 0.0,
        "previous_token": harmonic(2, PERIOD - 1) / (2 * PERIOD - 1),
    },
    (1, 1): CHANCE,
    (1, 2): CHANCE,
}


@pytest.mark.parametrize("score", CHANCE)
def test_hand_built_heads_have_their_closed_form_attention_scores(score: str) -> None:
    scores = attention_scores(read_weights(attention_model()), BLOCKS, batch_size=4)[score]
    for (layer, head), expected in EXPECTED.items():
        assert scores[layer, head].item() == pytest.approx(expected[score], abs=1e-3), (layer, head)


def test_the_hand_built_induction_model_predicts_the_second_block() -> None:
    """The hand-built induction head is a real one: it makes the model repeat what came."""
    logits = attention_model()(BLOCKS).logits
    assert torch.equal(logits[:, PERIOD:-1].argmax(-1), BLOCKS[:, PERIOD + 1 :])


# --- hand-built copying


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hand_built_copying_head_scores_100_and_its_sign_flipped_twin_the_reverse(dtype: torch.dtype) -> None:
    tokens = BLOCKS[:, :PERIOD]
    lengths = torch.full((len(tokens),), PERIOD)
    positions = torch.tensor([[1, 3, 6]]).expand(len(tokens), 3)
    scores = copy_scores(read_weights(copying_model().to(dtype)), tokens, lengths, positions, batch_size=4)
    assert scores["copy"].tolist() == [[0, 0, 0], [100, 0, 0]]
    assert scores["negative_copy"].tolist() == [[0, 0, 0], [0, 100, 0]]


# --- a slow second implementation


def slow_attention_scores(model, tokens: torch.Tensor, period: int) -> dict[str, torch.Tensor]:
    """Straight from the definitions: a loop over layers, heads, sequences and queries."""
    patterns = model(tokens, output_attentions=True).attentions
    shape = (len(patterns), patterns[0].shape[1])
    scores = {name: torch.zeros(shape) for name in ("induction", "duplicate_token", "previous_token")}
    for layer, pattern in enumerate(patterns):
        for head in range(shape[1]):
            values: dict[str, list[float]] = {name: [] for name in scores}
            for row in range(len(tokens)):
                attention = pattern[row, head]
                for query in range(period, 2 * period):
                    first = next(i for i in range(query) if tokens[row, i] == tokens[row, query])
                    values["duplicate_token"].append(attention[query, first].item())
                    values["induction"].append(attention[query, first + 1].item())
                values["previous_token"] += [attention[query, query - 1].item() for query in range(1, 2 * period)]
            for name, attended in values.items():
                scores[name][layer, head] = sum(attended) / len(attended)
    return scores


def slow_copy_scores(model, tokens: torch.Tensor, lengths: torch.Tensor, positions: torch.Tensor):
    """One prompt, one name and one head at a time, with the model's own norms and unembedding."""
    weights = read_weights(model)
    body = model.transformer if hasattr(model, "transformer") else model.gpt_neox
    final_norm = body.ln_f if hasattr(body, "ln_f") else body.final_layer_norm
    scores = {name: torch.zeros(weights.n_layers, weights.n_heads) for name in ("copy", "negative_copy")}
    for prompt, size, names in zip(tokens, lengths.tolist(), positions.tolist(), strict=True):
        residual = model(prompt[None, :size], output_hidden_states=True).hidden_states[1][0]
        for name in names:
            for index, layer in enumerate(weights.layers):
                norm = layer.attn_norm
                x = F.layer_norm(residual[name], (weights.d_model,), norm.gain, norm.bias, norm.eps)
                for head in range(weights.n_heads):
                    W_V, b_V = value_projection(model, index, head)
                    output = (x @ W_V + b_V) @ layer.W_O[head]
                    for score, sign in (("copy", 1), ("negative_copy", -1)):
                        top = model.lm_head(final_norm(sign * output)).topk(5).indices
                        scores[score][index, head] += 100 * float(prompt[name] in top) / positions.numel()
    return scores


@pytest.mark.parametrize("architecture", HOOKED)
def test_attention_scores_equal_the_slow_reference(architecture: str) -> None:
    model = random_model(architecture, seed=1)
    tokens = repeated_blocks(torch.arange(1, 97), 5, 12, seed=3)
    fast = attention_scores(read_weights(model), tokens, batch_size=2)
    slow = slow_attention_scores(model, tokens, 12)
    assert fast.keys() == slow.keys()
    for name, expected in slow.items():
        torch.testing.assert_close(fast[name], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("architecture", HOOKED)
def test_copy_scores_equal_the_slow_reference(architecture: str, biases: bool, monkeypatch) -> None:
    # With few candidates most names are ranked twice: among them, then among all.
    monkeypatch.setattr(head_scores, "_CANDIDATES", 8)
    monkeypatch.setattr(head_scores, "_LOGITS_AT_ONCE", 700)
    model = random_model(architecture, seed=2)
    if not biases:
        model = without_biases(model)
    tokens, _, lengths = random_pairs(9, seed=4)
    positions = torch.stack([torch.zeros_like(lengths), lengths // 2, lengths - 1], dim=1)
    fast = copy_scores(read_weights(model), tokens, lengths, positions, batch_size=4)
    slow = slow_copy_scores(model, tokens, lengths, positions)
    assert fast.keys() == slow.keys()
    for name, expected in slow.items():
        assert expected.max() > 0
        torch.testing.assert_close(fast[name], expected, rtol=0, atol=1e-4)


# --- memory and input


def test_no_more_attention_than_one_batch_of_one_layer_is_held(monkeypatch) -> None:
    """When a layer begins to attend, the patterns of earlier layers and batches are gone."""
    made: list[weakref.ref] = []
    attend = engine.attend

    def watched(*args):
        assert [pattern() for pattern in made if pattern() is not None] == []
        z, pattern = attend(*args)
        assert pattern.shape[0] <= 2
        made.append(weakref.ref(pattern))
        return z, pattern

    monkeypatch.setattr(engine, "attend", watched)
    attention_scores(read_weights(random_model()), repeated_blocks(torch.arange(97), 6, 10, seed=0), batch_size=2)
    assert len(made) == 3 * 3  # layers x batches


def test_blocks_repeat_and_hold_no_token_twice() -> None:
    blocks = repeated_blocks(torch.arange(5, 40), 20, 30, seed=1)
    assert blocks.shape == (20, 60)
    assert torch.equal(blocks[:, :30], blocks[:, 30:])
    assert all(len(set(block.tolist())) == 30 for block in blocks[:, :30])
    assert blocks.min() >= 5


def test_blocks_depend_on_the_seed_and_do_not_change_when_more_are_drawn() -> None:
    tokens = torch.arange(40)
    blocks = repeated_blocks(tokens, 4, 10, seed=1)
    assert torch.equal(blocks, repeated_blocks(tokens, 9, 10, seed=1)[:4])
    assert not torch.equal(blocks, repeated_blocks(tokens, 4, 10, seed=2))


def test_special_tokens_and_padding_of_the_embedding_are_not_ordinary(tmp_path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, vocab=30)
    assert ordinary_tokens(tokenizer, d_vocab=64).tolist() == list(range(1, 30))
    assert ordinary_tokens(tokenizer, d_vocab=20).tolist() == list(range(1, 20))


def test_blocks_longer_than_the_vocabulary_are_refused() -> None:
    with pytest.raises(UserError, match="seq_len: 11 different tokens a block asked for, the tokenizer has 10"):
        repeated_blocks(torch.arange(10), 1, 11, seed=0)


# --- the script

SCORES = ("induction", "previous_token", "duplicate_token", "copy", "negative_copy")


def run(family: Path, results: Path, *overrides: str) -> int:
    given = [f"model={family}", f"results_dir={results}", "device=cpu", "n_sequences=3", "seq_len=10", "n_prompts=8"]
    return main(ANALYSIS, [*given, *overrides])


def test_the_script_writes_five_scores_of_every_head(word_family: Path, tmp_path: Path) -> None:
    assert run(word_family, tmp_path, "seed=7") == 0
    store = Store(tmp_path)
    assert store.folder("components", "words").steps() == [0, 5]
    table = store.folder("components", "words").read_table(5)
    assert list(table) == ["model", "step", "tokens", "score", "layer", "head", "value"]
    assert len(table) == len(SCORES) * 2 * 4
    weights, tokenizer = read_weights(word_model(5)), words()
    tokens = repeated_blocks(ordinary_tokens(tokenizer, len(tokenizer)), 3, 10, seed=7)
    prompts = build_prompts("ioi", tokenizer, 8, seed=7)
    positions = torch.stack([prompts.positions[name] for name in ("io", "s1", "s2")], dim=1)
    expected = attention_scores(weights, tokens, 3) | copy_scores(weights, prompts.clean, prompts.lengths, positions, 8)
    assert tuple(expected) == SCORES
    for row in table.itertuples():
        assert row.value == pytest.approx(expected[row.score][row.layer, row.head].item(), abs=1e-5)


def test_a_second_run_adds_only_the_missing_checkpoints(word_family: Path, tmp_path: Path) -> None:
    assert run(word_family, tmp_path, "checkpoints=[5]") == 0
    path = Store(tmp_path).folder("components", "words").file(5)
    before = path.stat().st_mtime_ns
    assert run(word_family, tmp_path) == 0
    assert Store(tmp_path).folder("components", "words").steps() == [0, 5]
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seq_len=33", "seq_len: two blocks of 33 tokens need 66 positions, the model has 64; use seq_len=32 or less"),
        ("seq_len=5000", "seq_len: two blocks of 5000 tokens need 10000 positions, the model has 64; use"),
        ("n_prompts=1000000000", "n_prompts: 1000000000 prompts of ioi asked for, but it can make only"),
        ("n_sequences=0", "command line: n_sequences: "),
    ],
)
def test_bad_input_is_refused_in_one_line(
    word_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, says: str
) -> None:
    assert run(word_family, tmp_path, override) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(says)
    assert not list(tmp_path.rglob("*.csv"))


# --- the trained toy family


def test_the_toy_family_ends_with_induction_and_copying_heads_and_begins_with_none(
    toy_family: Path, tmp_path: Path
) -> None:
    last = TOY_STEPS[-1]
    given = [f"model={toy_family}", f"results_dir={tmp_path}", "device=cpu", "seq_len=18", f"checkpoints=[0, {last}]"]
    assert main(ANALYSIS, given) == 0
    best = Store(tmp_path).read_tables("components", "toy").groupby(["score", "step"])["value"].max()
    assert best["induction", 0] < 0.1
    assert best["induction", last] > 0.5
    assert best["previous_token", 0] < 0.15
    assert best["previous_token", last] > 0.5
    assert best["copy", 0] < 10
    assert best["copy", last] > 50
