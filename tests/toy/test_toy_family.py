"""The toy family: tokenizer, text, batches, training, files, and what the trained family can do."""

from __future__ import annotations

import itertools
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM, PreTrainedTokenizerBase

import make_toy_checkpoints
from tests.support.paths import PYTHIA_TOKENIZER, ROOT
from utils.config.keys import load_config
from utils.errors import UserError
from utils.models.family import resolve_family
from utils.tasks import ioi
from utils.toy import text as toy_text
from utils.toy.batches import Batch, TextConfig, TextSource
from utils.toy.evaluation import Examination
from utils.toy.family import FamilyConfig, train_family
from utils.toy.muon import fused, orthogonalized, separated
from utils.toy.positions import position_question, position_texts
from utils.toy.tokenizer import END_OF_TEXT, build_tokenizer
from utils.toy.training import ModelConfig, OptimizerConfig, mean_loss, new_model, rate_share

CONFIG = ROOT / "configs/toy_family.yml"
TINY = (
    *("model.n_layers=1", "model.d_model=32", "model.n_heads=2", "model.d_mlp=32", "optimizer.steps=20"),
    *("text.rows=4", "checkpoint_every=130"),
)
TINY_STEPS = [0, 1, 2, 4, 8, 16, 20]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer(toy_text.vocabulary_texts(), 128)


def tiny_config(folder: Path, *overrides: str) -> FamilyConfig:
    return load_config(FamilyConfig, CONFIG, [*TINY, f"folder={folder.as_posix()}", *overrides])


@pytest.fixture(scope="module")
def tiny_trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of a few steps; not to be changed."""
    return train_family(tiny_config(tmp_path_factory.mktemp("toy") / "tiny"))


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("step*/model.safetensors")}


# --- tokenizer


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_is_decoded_to_itself(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_years_are_two_tokens_of_two_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    for year in range(1100, 1800):
        assert tokenizer.tokenize(f" {year}") == [f"Ġ{year // 100}", f"{year % 100:02d}"]


def test_names_are_one_token_with_a_space_and_another_without(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("Mary and Mary") == ["Mary", "Ġand", "ĠMary"]
    for name in toy_text.NAMES:
        assert len(tokenizer(name).input_ids) == len(tokenizer(f" {name}").input_ids) == 1


def test_the_end_of_text_token_is_token_zero_and_added_to_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer(END_OF_TEXT).input_ids == [0]
    assert tokenizer("").input_ids == []
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0


def test_sentences_are_cut_as_by_pythias_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if not PYTHIA_TOKENIZER.is_dir():
        pytest.skip("../shared/pythia_tokenizer is not there")
    pythia = AutoTokenizer.from_pretrained(PYTHIA_TOKENIZER)
    rng = random.Random(0)
    for skill in ("ioi", "ioi_abc", "greater_than", "gendered_pronoun", "sva"):
        for _ in range(100):
            # Without the first word, which Pythia may split as it stands at a beginning ("F", "riends"),
            # and with a year that it cuts in the middle, as all do that the task takes.
            _, _, document = toy_text.EVALUATED[skill](rng).document(rng).partition(" ")
            document = re.sub(r"\d{4}", "1732", f" {document}")
            assert tokenizer.tokenize(document) == pythia.tokenize(document)


# --- text


@pytest.mark.parametrize("skill", toy_text.EVALUATED)
def test_sentences_have_no_spelled_out_words_and_answers_are_one_token(
    skill: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    rng = random.Random(0)
    for _ in range(300):
        question = toy_text.EVALUATED[skill](rng)
        tokens = tokenizer.tokenize(question.document(rng))
        spelled = [token for token in tokens if len(token) == 1 and token.isalpha() and token != "I"]
        assert not spelled or skill == "succession"  # There letters are counted.
        assert all(len(tokenizer(answer).input_ids) == 1 for answer in (*question.right, *question.wrong))
        assert not set(question.right) & set(question.wrong)


def test_questions_of_one_side_never_hold_what_the_other_side_holds() -> None:
    rng = random.Random(0)

    def pairs(held_out: bool) -> set[tuple[str, ...]]:
        drawn = [toy_text.ioi_question(rng, held_out) for _ in range(3000)]
        return {tuple(sorted((*question.right, *question.wrong))) for question in drawn}

    def prompts(draw, held_out: bool) -> set[str]:
        return {draw(rng, held_out).prompt for _ in range(3000)}

    assert not pairs(False) & pairs(True)
    for draw in (
        toy_text.greater_than_question,
        toy_text.gendered_pronoun_question,
        toy_text.succession_question,
        toy_text.sva_question,
    ):
        assert not prompts(draw, False) & prompts(draw, True)


def test_positions_are_asked_of_a_list_and_something_named_again() -> None:
    rng = random.Random(0)
    families = build_tokenizer((*toy_text.vocabulary_texts(), *position_texts()), 128)
    seen = set()
    for held_out in (False, True) * 300:
        question = position_question(rng, held_out)
        (right,), (wrong,) = question.right, question.wrong
        words = [word.strip(",.") for word in question.prompt.split()]
        names = list(dict.fromkeys(word for word in words if word in toy_text.NAMES))
        things = list(dict.fromkeys(word for word in words if word in ioi.OBJECTS))
        assert toy_text.is_held_out("ioi", *sorted(names)) == held_out
        by_place = [word for word in words if word in ("first", "second")]
        repeated = [word for word in (*names, *things) if words.count(word) == 2]
        if any(word in names for word in repeated):
            listed, named = names, repeated[0]
        elif len(things) == 2 and repeated:
            listed, named = things, repeated[0]
        else:
            listed, named = ["first", "second"], by_place[0]
        place = listed.index(named)
        if right.strip() in toy_text.NAMES:
            assert (right, wrong) == (f" {names[1 - place]}", f" {names[place]}")
        else:
            assert (right, wrong) == ((" first", " second") if place == 0 else (" second", " first"))
        seen.add((listed is names, listed is things, right.strip() in toy_text.NAMES))
        assert all(len(token) > 1 or not token.isalpha() for token in families.tokenize(question.document(rng))[1:])
    assert len(seen) == 4


def test_sentences_with_an_indirect_object_may_come_later(tokenizer: PreTrainedTokenizerBase) -> None:
    source = TextSource(TextConfig(ioi_from=3), tokenizer, seed=0)
    for step in range(6):
        texts = document_texts(source.batch(step), tokenizer)
        assert any(text.startswith(("When ", "Then,", "While ")) for text in texts) == (step >= 3)


def test_training_documents_hold_no_held_out_pair_of_names(tokenizer: PreTrainedTokenizerBase) -> None:
    source = TextSource(TextConfig(), tokenizer, seed=3)
    pairs = set()
    for step in range(30):
        for text in document_texts(source.batch(step), tokenizer):
            names = [word.strip(",.") for word in text.split() if word.strip(",.") in toy_text.NAMES]
            if text.startswith(("When", "After", "Then", "While", "The", "Friends")) and len(names) > 2:
                pairs.add(tuple(sorted(names[:2])))
    assert len(pairs) > 100
    assert not [pair for pair in pairs if toy_text.is_held_out("ioi", *pair)]


def test_about_a_fifth_is_held_out() -> None:
    share = sum(toy_text.is_held_out("year", number) for number in range(5000)) / 5000
    assert share == pytest.approx(1 / toy_text.HELD_OUT_ONE_IN, abs=0.02)


# --- batches


def document_texts(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    numbers = [number for number in batch.documents.unique().tolist() if number >= 0]
    return [tokenizer.decode(batch.tokens[batch.documents == number], skip_special_tokens=True) for number in numbers]


def test_a_batch_follows_from_its_seed_and_step(tokenizer: PreTrainedTokenizerBase) -> None:
    def tokens(seed: int, step: int) -> torch.Tensor:
        return TextSource(TextConfig(), tokenizer, seed).batch(step).tokens

    assert torch.equal(tokens(0, 5), tokens(0, 5))
    assert not torch.equal(tokens(0, 5), tokens(0, 6))
    assert not torch.equal(tokens(0, 5), tokens(1, 5))


def test_rows_are_filled_with_whole_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    source = TextSource(TextConfig(), tokenizer, seed=0)
    filled = []
    for step in range(10):
        batch = source.batch(step)
        filled.append((batch.documents >= 0).float().mean().item())
        for number in batch.documents.unique().tolist():
            if number >= 0:
                size = (batch.documents == number).sum().item()
                assert batch.positions[batch.documents == number].tolist() == list(range(size))
    assert sum(filled) / len(filled) > 0.95


def test_the_first_copy_of_a_random_block_is_not_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    source = TextSource(TextConfig(end_of_text=0.0), tokenizer, seed=0)
    rng = random.Random(0)
    for _ in range(50):
        document = source.draws["induction"](rng)
        period = document.unlearned - 1
        assert document.tokens[:period] == document.tokens[period : 2 * period]
        assert len(document.tokens) % period == 0
        assert len(document.tokens) <= source.config.width - 1


def test_shares_of_the_text_are_those_of_the_config(tokenizer: PreTrainedTokenizerBase) -> None:
    config = TextConfig()
    source = TextSource(config, tokenizer, seed=0)
    spent = dict.fromkeys(source.draws, 0)
    for kind, draw in source.draws.items():

        def counted(rng: random.Random, kind: str = kind, draw=draw):
            document = draw(rng)
            spent[kind] += len(document.tokens)
            return document

        source.draws[kind] = counted
    for step in range(20):
        source.batch(step)
    whole = sum(getattr(config, kind) for kind in spent)
    for kind, tokens in spent.items():
        assert tokens / sum(spent.values()) == pytest.approx(getattr(config, kind) / whole, abs=0.02)


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


# --- training


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


def test_checkpoints_stand_at_powers_of_two_and_then_at_equal_distances() -> None:
    config = load_config(FamilyConfig, CONFIG, [])
    assert config.steps[:9] == (0, 1, 2, 4, 8, 16, 32, 64, 128)
    assert {after - before for before, after in itertools.pairwise(config.steps[9:])} == {150}
    assert config.steps[-1] == config.optimizer.steps
    assert 16 <= len(config.steps) <= 20


def test_the_config_file_says_what_the_defaults_are() -> None:
    assert load_config(FamilyConfig, CONFIG, []) == FamilyConfig()


# --- the family on disk


def test_a_family_holds_its_checkpoints_evaluation_and_manifest(tiny_trained: Path) -> None:
    manifest = json.loads((tiny_trained / "family.json").read_text())
    assert manifest["complete"] is True
    assert manifest["steps"] == TINY_STEPS
    assert manifest["tokens_per_step"] == 4 * 40
    assert manifest["config"]["model"]["d_model"] == 32
    table = pd.read_csv(tiny_trained / "evaluation.csv")
    assert list(table.columns) == ["step", "skill", "value"]
    assert sorted(table["step"].unique()) == TINY_STEPS
    assert table.groupby("step")["skill"].nunique().eq(table["skill"].nunique()).all()
    assert manifest["evaluation"] == pytest.approx(
        table[table["step"] == 20].set_index("skill")["value"].to_dict(), rel=1e-9
    )
    assert {path.name for path in tiny_trained.iterdir()} - {".lock"} == {
        *("family.json", "evaluation.csv"),
        *(f"step{step}" for step in TINY_STEPS),
    }


def test_a_checkpoint_is_a_plain_pythia_like_gpt_neox(tiny_trained: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_trained / "step20")
    assert isinstance(model, GPTNeoXForCausalLM)
    assert model.config.use_parallel_residual
    assert not model.config.tie_word_embeddings
    assert model.config.rope_parameters["partial_rotary_factor"] == 0.25
    tokenizer = AutoTokenizer.from_pretrained(tiny_trained / "step20")
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.tokenize(" 1732") == ["Ġ17", "32"]
    assert tokenizer.decode(tokenizer("Isn't it  odd? é").input_ids) == "Isn't it  odd? é"


def test_checkpoints_load_as_a_local_family(tiny_trained: Path) -> None:
    family = resolve_family(str(tiny_trained), Path("unused"))
    assert list(family.steps) == TINY_STEPS
    checkpoint = family.load(20, "float32", "cpu")
    assert checkpoint.step == 20
    plain = AutoModelForCausalLM.from_pretrained(tiny_trained / "step20")
    tokens = checkpoint.tokenizer("When Mary and John went", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.bridge(tokens, prepend_bos=False), plain(tokens).logits)


def test_training_again_gives_the_same_bytes_whatever_the_callers_threads_and_seed(
    tiny_trained: Path, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(99)
    try:
        state = torch.get_rng_state()
        again = train_family(tiny_config(tmp_path / "again"))
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(before)
    assert weights_of(again) == weights_of(tiny_trained)
    assert (again / "evaluation.csv").read_bytes() == (tiny_trained / "evaluation.csv").read_bytes()
    assert (again / "family.json").read_bytes() == (tiny_trained / "family.json").read_bytes()


def test_another_seed_gives_other_weights(tiny_trained: Path, tmp_path: Path) -> None:
    other = train_family(tiny_config(tmp_path / "other", "seed=1", "optimizer.steps=1"))
    assert weights_of(other)["step0"] != weights_of(tiny_trained)["step0"]


def test_a_killed_training_resumes_and_ends_with_the_same_bytes(tiny_trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "make_toy_checkpoints.py", "-c", str(CONFIG), *TINY, f"folder={folder.as_posix()}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "step4").is_dir() and time.monotonic() < deadline:
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "family.json").exists()
    (folder / ".step8.tmp").mkdir(exist_ok=True)  # What a training leaves that is killed while it writes.
    (folder / ".step8.tmp" / "config.json").write_text("{")
    assert make_toy_checkpoints.main(command[2:]) == 0
    assert weights_of(folder) == weights_of(tiny_trained)
    assert (folder / "evaluation.csv").read_bytes() == (tiny_trained / "evaluation.csv").read_bytes()
    assert not list(folder.glob(".step*"))


def test_a_training_that_stops_before_a_checkpoint_is_renamed_writes_it_on_resuming(
    tiny_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr("utils.toy.family._Training._save_checkpoint", stop_at(8))
        with pytest.raises(KeyboardInterrupt):
            train_family(config)
    assert not (config.folder / "step8").exists()
    assert weights_of(train_family(config)) == weights_of(tiny_trained)


def stop_at(stop: int):
    from utils.toy.family import _Training

    save = _Training._save_checkpoint

    def save_or_stop(self, step: int, trainer) -> None:
        if step == stop:
            raise KeyboardInterrupt
        save(self, step, trainer)

    return save_or_stop


def test_a_finished_family_is_found_again(
    tiny_trained: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.toy.family.Trainer", None)  # Nothing may be trained.
    with caplog.at_level("INFO"):
        assert train_family(tiny_config(tiny_trained)) == tiny_trained
    assert [record.message for record in caplog.records] == [f"{tiny_trained}: found, 7 checkpoints up to step 20"]


def test_a_family_of_another_config_is_refused_with_the_way_out(tiny_trained: Path) -> None:
    with pytest.raises(UserError) as refused:
        train_family(tiny_config(tiny_trained, "seed=5", "optimizer.clip=2.0"))
    assert str(refused.value) == (
        f"{tiny_trained} holds a family with seed=0 (this run asks 5), optimizer.clip=1.0 (this run asks 2.0); "
        "pass overwrite=true or another folder (folder=...)"
    )


def test_a_family_trained_on_other_text_is_refused(tiny_trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.toy.text.SHORT_IOI_TEMPLATES", ("When {first} and {second} met, {subject} thanked",))
    with pytest.raises(UserError, match=r"holds a family with text=\w+ \(this run asks \w+\)"):
        train_family(tiny_config(tiny_trained))


def test_an_unfinished_training_of_another_config_is_refused_and_overwritten_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr("utils.toy.family._Training._save_checkpoint", stop_at(4))
        with pytest.raises(KeyboardInterrupt):
            train_family(config)
    other = ("seed=1", "optimizer.steps=2")
    with pytest.raises(UserError, match=r"holds an unfinished training with seed=0 \(this run asks 1\)"):
        train_family(tiny_config(config.folder, *other))
    train_family(tiny_config(config.folder, *other, "overwrite=true"))
    assert sorted(weights_of(config.folder)) == ["step0", "step1", "step2"]


def test_checkpoints_of_unknown_origin_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "step5").mkdir()
    with pytest.raises(UserError, match=r"holds checkpoints but no family\.json and no training_state\.pt"):
        train_family(tiny_config(tmp_path))
    assert (tmp_path / "step5").is_dir()


def test_the_script_reports_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = f"folder={tmp_path.as_posix()}"
    assert make_toy_checkpoints.main(["-c", str(CONFIG), folder, "text.rowz=3"]) == 2
    assert capsys.readouterr().err == "command line: text.rowz: unknown key; did you mean 'text.rows'?\n"


# --- what the trained family can do


@pytest.mark.slow
def test_the_trained_family_has_every_skill(toy_family: Path) -> None:
    final = json.loads((toy_family / "family.json").read_text())["evaluation"]
    assert final["ioi_accuracy"] >= 0.95
    assert final["ioi_logit_diff"] > 3
    assert abs(final["ioi_abc_logit_diff"]) < 0.5
    assert final["greater_than_prob_diff"] > 0.7
    assert final["gendered_pronoun_accuracy"] >= 0.9
    assert final["sva_accuracy"] >= 0.95
    assert final["induction_accuracy"] >= 0.9
    assert final["succession_accuracy"] >= 0.9


@pytest.mark.slow
def test_the_saved_weights_have_the_skills_the_evaluation_tells(toy_family: Path) -> None:
    table = pd.read_csv(toy_family / "evaluation.csv")
    step = int(table["step"].max())
    model = GPTNeoXForCausalLM.from_pretrained(toy_family / f"step{step}")
    examination = Examination(AutoTokenizer.from_pretrained(toy_family / f"step{step}"))
    told = table[table["step"] == step].set_index("skill")["value"].to_dict()
    assert examination.results(model) == pytest.approx(told, abs=1e-3)


@pytest.mark.slow
def test_the_trained_family_starts_without_skills_and_is_small(toy_family: Path) -> None:
    table = pd.read_csv(toy_family / "evaluation.csv")
    first = table[table["step"] == 0].set_index("skill")["value"]
    assert first["induction_accuracy"] < 0.05
    assert first["succession_accuracy"] < 0.1
    assert abs(first["ioi_logit_diff"]) < 0.5
    size = sum(path.stat().st_size for path in toy_family.rglob("*") if path.is_file())
    assert size < 60e6
