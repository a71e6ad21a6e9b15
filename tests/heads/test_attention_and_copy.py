"""Attention scores against hand-built models and a slow second implementation, and the script that writes all five."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from circuits_over_time.edge_attribution_patching.model import forward as engine
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.heads.attention_and_copy import (
    attention_samples,
    chance_levels,
    ordinary_tokens,
    repeated_blocks,
    study_blocks,
)
from circuits_over_time.utils.heads.copy_scores import copy_samples, mean_scores
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.tasks import build_prompts
from get_full_model_components_over_time import ANALYSIS
from tests.support.hand_built import PERIOD, VOCAB, attention_model
from tests.support.paths import TOY_STEPS
from tests.support.random_models import HOOKED, random_model, tiny_tokenizer
from tests.support.task_tokenizers import words
from tests.support.word_family import word_model

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


# Under the study's definition the last token of the first block counts too. From there the uniform heads attend to the
# first token as to any other, the duplicate-token head as to any but its own, and the induction head not at all.
STUDY_INDUCTION = {
    (0, 0): 0.0,
    (0, 1): 1 / (PERIOD - 1) / (PERIOD + 1),
    (0, 2): harmonic(PERIOD, 2 * PERIOD) / (PERIOD + 1),
    (1, 0): PERIOD / (PERIOD + 1),
    (1, 1): harmonic(PERIOD, 2 * PERIOD) / (PERIOD + 1),
    (1, 2): harmonic(PERIOD, 2 * PERIOD) / (PERIOD + 1),
}


@pytest.mark.parametrize("score", CHANCE)
def test_hand_built_heads_have_their_closed_form_attention_scores(score: str) -> None:
    scores = mean_scores(attention_samples(read_weights(attention_model()), BLOCKS, batch_size=4))[score]
    for (layer, head), expected in EXPECTED.items():
        assert scores[layer, head].item() == pytest.approx(expected[score], abs=1e-3), (layer, head)


def test_hand_built_heads_have_their_closed_form_induction_scores_under_the_studys_definition() -> None:
    weights = read_weights(attention_model())
    standard, study = (mean_scores(attention_samples(weights, BLOCKS, 4, name)) for name in ("standard", "study"))
    for (layer, head), expected in STUDY_INDUCTION.items():
        assert study["induction"][layer, head].item() == pytest.approx(expected, abs=1e-3), (layer, head)
    # The other two diagonals lie within the queries that count anyway.
    assert torch.equal(study["previous_token"], standard["previous_token"])
    assert torch.equal(study["duplicate_token"], standard["duplicate_token"])


def test_chance_is_what_hand_built_uniform_heads_score() -> None:
    for definition in ("standard", "study"):
        levels = chance_levels(2 * PERIOD, VOCAB, definition)
        scores = mean_scores(attention_samples(read_weights(attention_model()), BLOCKS, 4, definition))
        for name in CHANCE:
            assert levels[name] == pytest.approx(scores[name][1, 2].item(), abs=1e-5), (definition, name)


def test_the_hand_built_induction_model_predicts_the_second_block() -> None:
    """The hand-built induction head is a real one: it makes the model repeat what came."""
    logits = attention_model()(BLOCKS).logits
    assert torch.equal(logits[:, PERIOD:-1].argmax(-1), BLOCKS[:, PERIOD + 1 :])


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


def slow_diagonal_means(model, tokens: torch.Tensor, period: int) -> dict[str, torch.Tensor]:
    """The study's scores: whole diagonals, entry by entry."""
    patterns = model(tokens, output_attentions=True).attentions
    scores = {}
    for name, back in (("induction", period - 1), ("duplicate_token", period), ("previous_token", 1)):
        queries = range(back, tokens.shape[1])
        entries = [[pattern[:, :, query, query - back] for query in queries] for pattern in patterns]
        scores[name] = torch.stack([torch.stack(layer).mean(dim=(0, 1)) for layer in entries])
    return scores


@pytest.mark.parametrize("architecture", HOOKED)
def test_attention_scores_of_the_study_equal_the_means_of_whole_diagonals(architecture: str) -> None:
    model = random_model(architecture, seed=1)
    generator = torch.Generator().manual_seed(3)
    block = torch.randint(1, 20, (5, 12), generator=generator)  # few tokens, so that some repeat within a block
    tokens = torch.cat((block, block), dim=1)
    fast = mean_scores(attention_samples(read_weights(model), tokens, 2, "study"))
    for name, expected in slow_diagonal_means(model, tokens, 12).items():
        torch.testing.assert_close(fast[name], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", HOOKED)
def test_attention_scores_equal_the_slow_reference(architecture: str) -> None:
    model = random_model(architecture, seed=1)
    tokens = repeated_blocks(torch.arange(1, 97), 5, 12, seed=3)
    fast = mean_scores(attention_samples(read_weights(model), tokens, batch_size=2))
    slow = slow_attention_scores(model, tokens, 12)
    assert fast.keys() == slow.keys()
    for name, expected in slow.items():
        torch.testing.assert_close(fast[name], expected, rtol=0, atol=1e-5)


# --- memory and input


def test_no_more_attention_than_one_batch_of_one_layer_is_held(monkeypatch) -> None:
    """When a layer begins to attend, the patterns of earlier layers and batches are gone."""
    made: list[weakref.ref] = []
    attend = engine.attend

    def watched(*args, **options):
        assert [pattern() for pattern in made if pattern() is not None] == []
        z, pattern = attend(*args, **options)
        assert pattern.shape[0] <= 2
        made.append(weakref.ref(pattern))
        return z, pattern

    monkeypatch.setattr(engine, "attend", watched)
    mean_scores(
        attention_samples(read_weights(random_model()), repeated_blocks(torch.arange(97), 6, 10, seed=0), batch_size=2)
    )
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


def test_blocks_of_the_study_are_drawn_with_replacement_from_its_ids() -> None:
    blocks = study_blocks(torch.arange(50_000), 300, 100, seed=1)
    assert blocks.shape == (300, 200)
    assert torch.equal(blocks[:, :100], blocks[:, 100:])
    assert 100 <= blocks.min() < 200
    assert 19_900 < blocks.max() <= 19_999
    # In a fifth of all blocks two of the 100 tokens are the same.
    repeating = sum(len(set(block.tolist())) < 100 for block in blocks)
    assert 30 < repeating < 120
    assert torch.equal(blocks[:2], study_blocks(torch.arange(50_000), 2, 100, seed=1))
    assert not torch.equal(blocks[:2], study_blocks(torch.arange(50_000), 2, 100, seed=2))


def test_blocks_of_the_study_take_what_a_small_vocabulary_has_of_its_ids() -> None:
    assert set(study_blocks(torch.arange(103), 20, 5, seed=0).flatten().tolist()) == {100, 101, 102}
    with pytest.raises(
        UserError, match="head_scores: study draws ids from 100 up, but the tokenizer has none; use standard"
    ):
        study_blocks(torch.arange(100), 1, 5, seed=0)


def test_special_tokens_and_padding_of_the_embedding_are_not_ordinary(tmp_path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, vocab=30)
    assert ordinary_tokens(tokenizer, d_vocab=64).tolist() == list(range(1, 30))
    assert ordinary_tokens(tokenizer, d_vocab=20).tolist() == list(range(1, 20))


def test_blocks_longer_than_the_vocabulary_are_refused() -> None:
    with pytest.raises(UserError, match="seq_len: a block of 11 different tokens asked for, the tokenizer has 10"):
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
    assert list(table) == ["model", "step", "tokens", "score", "layer", "head", "value", "se", "chance"]
    assert len(table) == len(SCORES) * 2 * 4
    weights, tokenizer = read_weights(word_model(5)), words()
    tokens = repeated_blocks(ordinary_tokens(tokenizer, len(tokenizer)), 3, 10, seed=7)
    prompts = build_prompts("ioi", tokenizer, 8, seed=7)
    positions = torch.stack([prompts.positions[name] for name in ("io", "s1", "s2")], dim=1)
    expected = mean_scores(attention_samples(weights, tokens, 3)) | mean_scores(
        copy_samples(weights, prompts.clean, prompts.lengths, positions, 8)
    )
    assert tuple(expected) == SCORES
    for row in table.itertuples():
        assert row.value == pytest.approx(expected[row.score][row.layer, row.head].item(), abs=1e-5)
    seen = [sum(1 / n for n in range(first, 21)) / (21 - first) for first in (11, 2)]  # 1 / tokens that queries see
    chance = {"induction": seen[0], "duplicate_token": seen[0], "previous_token": seen[1]}
    for score, of_score in table.groupby("score")["chance"]:
        assert of_score.tolist() == pytest.approx([chance.get(score, 500 / weights.d_vocab)] * 8)
    # Errors come from the blocks, and for the copy scores from the prompts, each measured by itself.
    blocks = [mean_scores(attention_samples(weights, block[None], 1)) for block in tokens]
    alone = [
        mean_scores(
            copy_samples(weights, prompts.clean[i : i + 1], prompts.lengths[i : i + 1], positions[i : i + 1], 1)
        )
        for i in range(len(prompts))
    ]
    assert (table["se"] > 0).any()
    for row in table.itertuples():
        parts = alone if row.score in ("copy", "negative_copy") else blocks
        samples = np.array([part[row.score][row.layer, row.head].item() for part in parts])
        assert row.value == pytest.approx(samples.mean(), abs=1e-5)
        assert row.se == pytest.approx(samples.std(ddof=1) / len(samples) ** 0.5, abs=1e-5)


def test_the_script_writes_the_studys_scores(word_family: Path, tmp_path: Path) -> None:
    assert run(word_family, tmp_path, "seed=7", "head_scores=study", "checkpoints=[5]") == 0
    table = Store(tmp_path).folder("components", "words").read_table(5)
    weights, tokenizer = read_weights(word_model(5)), words()
    blocks = study_blocks(ordinary_tokens(tokenizer, len(tokenizer)), 3, 10, seed=7)
    prompts = build_prompts("ioi", tokenizer, 8, seed=7, prompt_set="study")
    positions = torch.stack([prompts.positions[name] for name in ("io", "s1", "s2")], dim=1)
    expected = mean_scores(attention_samples(weights, blocks, 3, "study"))
    expected |= mean_scores(copy_samples(weights, prompts.clean, prompts.lengths, positions, 8, "study"))
    for row in table.itertuples():
        assert row.value == pytest.approx(expected[row.score][row.layer, row.head].item(), abs=1e-5)


def test_results_of_the_two_definitions_are_not_mixed(
    word_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(word_family, tmp_path, "checkpoints=[0]") == 0
    assert run(word_family, tmp_path, "head_scores=study") == 2
    assert "holds head_scores=standard, this run asks for study" in capsys.readouterr().err


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
        ("n_prompts=1000000", "command line: n_prompts: 1000000 is not a number > 0 and <= 100000"),
        ("n_sequences=0", "command line: n_sequences: "),
        (
            "head_scores=studies",
            "command line: head_scores: 'studies' is not 'standard' or 'study'; did you mean 'study'",
        ),
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
