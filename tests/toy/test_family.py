"""A family on disk: its files, and what is resumed, found again or refused."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM

import make_toy_checkpoints
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.config.keys import load_config
from circuits_over_time.utils.models.family import resolve_family
from circuits_over_time.utils.toy import family
from circuits_over_time.utils.toy.evaluation import Examination
from circuits_over_time.utils.toy.family import train_family
from circuits_over_time.utils.toy.keys import FamilyConfig
from tests.support.paths import ROOT

CONFIG = ROOT / "configs/toy_family.yml"
TINY = (
    *("model.n_layers=1", "model.d_model=32", "model.n_heads=2", "model.d_mlp=32", "optimizer.steps=20"),
    *("text.rows=4", "checkpoint_every=130"),
)
TINY_STEPS = [0, 1, 2, 4, 8, 16, 20]
# The script, in a process that has no time to put anything in order before step 6.
KILLED = """
import os, signal, sys
import make_toy_checkpoints
from circuits_over_time.utils.toy import family

class Killed(family.Trainer):
    def step(self, step, batch):
        if step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        super().step(step, batch)

family.Trainer = Killed
make_toy_checkpoints.main(sys.argv[1:])
"""

pytestmark = pytest.mark.trained


def tiny_config(folder: Path, *overrides: str) -> FamilyConfig:
    return load_config(FamilyConfig, CONFIG, [*TINY, f"folder={folder.as_posix()}", *overrides])


@pytest.fixture(scope="module")
def tiny_trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of a few steps. Do not change it."""
    return train_family(tiny_config(tmp_path_factory.mktemp("toy") / "tiny"))


def stop_training(config: FamilyConfig, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, and stop when the checkpoint of step `at` is about to be written."""
    save = family._Training._save_checkpoint

    def save_or_stop(training, step: int, trainer) -> None:
        if step == at:
            raise KeyboardInterrupt
        save(training, step, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(family._Training, "_save_checkpoint", save_or_stop)
        with pytest.raises(KeyboardInterrupt):
            train_family(config)


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("step*/model.safetensors")}


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


def test_the_saved_weights_have_the_skills_the_evaluation_tells(tiny_trained: Path) -> None:
    table = pd.read_csv(tiny_trained / "evaluation.csv")
    for step in (0, 20):
        model = GPTNeoXForCausalLM.from_pretrained(tiny_trained / f"step{step}")
        examination = Examination(AutoTokenizer.from_pretrained(tiny_trained / f"step{step}"))
        told = table[table["step"] == step].set_index("skill")["value"].to_dict()
        assert examination.results(model) == pytest.approx(told, abs=1e-5)


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
    local = resolve_family(str(tiny_trained), Path("unused"))
    assert list(local.steps) == TINY_STEPS
    checkpoint = local.load(20, "float32", "cpu")
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


@pytest.mark.slow
def test_a_killed_training_resumes_and_ends_with_the_same_bytes(tiny_trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    arguments = ["-c", str(CONFIG), *TINY, f"folder={folder.as_posix()}"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert sorted(weights_of(folder)) == ["step0", "step1", "step2", "step4"]
    assert not (folder / "family.json").exists()
    (folder / ".step8.tmp").mkdir()  # What a training leaves that is killed while it writes.
    (folder / ".step8.tmp" / "config.json").write_text("{")
    assert make_toy_checkpoints.main(arguments) == 0
    assert weights_of(folder) == weights_of(tiny_trained)
    assert (folder / "evaluation.csv").read_bytes() == (tiny_trained / "evaluation.csv").read_bytes()
    assert not list(folder.glob(".step*"))


def test_a_training_that_stops_before_a_checkpoint_is_renamed_writes_it_on_resuming(
    tiny_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path / "stopped")
    stop_training(config, 8, monkeypatch)
    assert not (config.folder / "step8").exists()
    assert weights_of(train_family(config)) == weights_of(tiny_trained)


def test_a_finished_family_is_found_again(
    tiny_trained: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuits_over_time.utils.toy.family.Trainer", None)  # Nothing may be trained.
    with caplog.at_level("INFO"):
        assert train_family(tiny_config(tiny_trained)) == tiny_trained
    assert [record.message for record in caplog.records] == [f"{tiny_trained}: found, 7 checkpoints up to step 20"]


def test_a_family_of_another_config_is_refused_with_the_way_out(tiny_trained: Path) -> None:
    with pytest.raises(UserError) as refused:
        train_family(tiny_config(tiny_trained, "seed=5", "optimizer.clip=2.0"))
    assert str(refused.value) == (
        f"{tiny_trained} holds a family with seed=0 (this run asks for 5), optimizer.clip=1.0 (this run asks for 2.0); "
        "pass overwrite=true or another folder (folder=...)"
    )


def test_a_family_trained_on_other_text_is_refused(tiny_trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "circuits_over_time.utils.toy.text.SHORT_IOI_TEMPLATES", ("When {first} and {second} met, {subject} thanked",)
    )
    with pytest.raises(UserError, match=r"holds a family with text=\w+ \(this run asks for \w+\)"):
        train_family(tiny_config(tiny_trained))


def test_an_unfinished_training_of_another_config_is_refused_and_overwritten_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path / "stopped")
    stop_training(config, 4, monkeypatch)
    other = ("seed=1", "optimizer.steps=2")
    with pytest.raises(UserError, match=r"holds an unfinished training with seed=0 \(this run asks for 1\)"):
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


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.betas=[0.9]", "command line: optimizer.betas[1]: missing; optimizer.betas is a list of 2"),
        ("optimizer.betas=[0.9, 1.0]", "command line: optimizer.betas[1]: 1.0 is not a number < 1"),
        ("model.n_heads=3", "command line: model.d_model: 32 is not a multiple of n_heads=3; make it one"),
        ("text.ioi=3", "command line: text.ioi: 3 is not a number > 0 and <= 1 (default: 0.32); it is a share"),
        ("threads=1000", f"command line: threads: 1000 is more than the {os.cpu_count()} cores here"),
        ("folder=/", "command line: folder: '/' is the root of the file system; name a folder in it"),
        (
            "folder=/proc/x/y",
            "folder: /proc/x/y cannot be written to (No such file or directory); name another folder",
        ),
    ],
)
def test_a_training_that_cannot_be_is_refused_in_one_line(
    override: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = () if override.startswith("folder") else (f"folder={tmp_path.as_posix()}",)
    assert make_toy_checkpoints.main(["-c", str(CONFIG), *TINY, *where, override]) == 2
    assert capsys.readouterr().err == f"{told}\n"


def test_shapes_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model: training it needs about \d+ GB; toy models may take 16; make d_model"):
        tiny_config(tmp_path, "model.d_model=100000", "model.n_layers=100")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tokens_per_step": 960}', '{"settings": 3, "steps": [1]}'])
def test_a_manifest_of_a_family_from_elsewhere_is_left_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / "family.json").write_text(content)
    with pytest.raises(UserError, match=r"family\.json is damaged, or of a family from elsewhere; pass another folder"):
        train_family(tiny_config(tmp_path))
    assert (tmp_path / "family.json").read_text() == content


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(Path("x")), pickle.dumps([1])])
def test_a_state_that_cannot_be_read_names_the_way_out(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "training_state.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"training_state\.pt is damaged; pass overwrite=true to train again"):
        train_family(tiny_config(tmp_path))
