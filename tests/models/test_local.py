"""Families in folders on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.base import files
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.base.files import file_sha256
from circuits_over_time.utils.models.family import LocalFamily, resolve_family
from tests.support.loading import error_of, loads_weights_of, same_tensors
from tests.support.tiny_models import WORDS, save_checkpoint, save_family, tiny_model, tiny_tokenizer


def test_a_local_family_loads_its_steps(tiny_family: Path, tmp_path: Path) -> None:
    family = resolve_family(str(tiny_family), tmp_path)
    assert (family.name, family.steps) == ("tiny", (0, 10, 20, 30))
    assert isinstance(family, LocalFamily)
    assert family.tokens[30] == 30 * 64
    assert loads_weights_of(family, 10, 1)


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(files, "file_sha256", lambda path: hashed.append(path) or file_sha256(path))
    family = resolve_family(str(save_family(tmp_path / "mine", {5: 1})), tmp_path)
    assert isinstance(family, LocalFamily)
    first = family.sha256(5)
    assert family.load(5, device="cpu").provenance["sha256"] == family.sha256(5) == first
    assert [path.name for path in hashed].count("model.safetensors") == 1
    tiny_model(2).save_pretrained(tmp_path / "mine" / "step5")
    assert family.load(5, device="cpu").provenance["sha256"] != first
    assert [path.name for path in hashed].count("model.safetensors") == 2


def test_a_tokenizer_may_lie_beside_the_steps(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "shared", {5: 1})
    for file in (folder / "step5").glob("tokenizer*"):
        shutil.move(file, folder / file.name)
    tokenizer = resolve_family(str(folder), tmp_path).describe(5).tokenizer
    assert tokenizer.vocab_size == len(WORDS)


def test_a_local_family_without_family_json_counts_steps_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_family(tmp_path / "mine", {5: 1, 9: 2})
    (folder / "family.json").unlink()
    caplog.set_level("INFO")
    assert resolve_family(str(folder), tmp_path).tokens == {5: None, 9: None}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{folder}: nobody says how many tokens a step has, so figures count steps")
    (folder / "family.json").write_text("{}")
    assert resolve_family(str(folder), tmp_path).tokens[5] is None
    assert resolve_family(str(folder), tmp_path, tokens_per_step=8).tokens[5] == 40


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no json", "is not JSON"),
        (json.dumps({"tokens_per_step": "many"}), "tokens_per_step: 'many' is not a whole number > 0"),
        (json.dumps({"tokens_per_step": 0}), "tokens_per_step: 0 is not a whole number > 0"),
    ],
)
def test_a_family_json_without_a_count_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "mine" / "step1").mkdir(parents=True)
    (tmp_path / "mine" / "family.json").write_text(text)
    message = error_of(str(tmp_path / "mine"), tmp_path)
    assert message == f'{tmp_path}/mine/family.json: {told}; write {{"tokens_per_step": N}} into it'


@pytest.mark.parametrize(
    "names",
    [
        {5: "checkpoint-5", 10: "checkpoint-10"},
        {5: "iter_0000005", 10: "iter_0000010"},
        {5: "global_step5", 10: "global_step10"},
        {5: "step5", 10: "checkpoint-10"},
    ],
)
def test_folders_named_as_trainers_name_them_are_a_family(names: dict[int, str], tmp_path: Path) -> None:
    for step, name in names.items():
        save_checkpoint(tmp_path / "mine" / name, step)
    family = resolve_family(str(tmp_path / "mine"), tmp_path, tokens_per_step=64)
    assert (family.name, family.steps, family.tokens[10]) == ("mine", (5, 10), 640)
    assert loads_weights_of(family, 10, 10)
    assert family.load(5, device="cpu").provenance["revision"] == names[5]


def test_what_the_trainer_of_transformers_saves_is_a_family(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments, default_data_collator

    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=4, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8
    Trainer(
        tiny_model(0), arguments, default_data_collator, train_dataset=rows, processing_class=tiny_tokenizer()
    ).train()
    family = resolve_family(str(tmp_path / "run"), tmp_path, tokens_per_step=8 * 3)
    assert family.steps == (2, 4)
    checkpoint = family.load(4, device="cpu")
    assert checkpoint.tokens == 96
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-4")
    assert same_tensors(checkpoint.weights, read_weights(saved))


def test_folders_of_other_names_are_read_by_a_rule(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "mine" / "after-7-steps", 7)
    family = resolve_family(str(tmp_path / "mine"), tmp_path, 1, revisions=r"after-(?P<step>\d+)-steps")
    assert loads_weights_of(family, 7, 7)
    with pytest.raises(UserError) as caught:
        resolve_family(str(tmp_path / "mine"), tmp_path, 1, revisions=r"at-(?P<step>\d+)")
    told = rf"revisions: no folder in {tmp_path}/mine is named like 'at-(?P<step>\d+)' (it holds after-7-steps)"
    assert str(caught.value) == told


def test_a_folder_without_steps_is_refused(tmp_path: Path) -> None:
    assert error_of(str(tmp_path), tmp_path) == (
        f"model: {tmp_path} holds no folders that name a step (step{{n}}, checkpoint-{{n}}, iter_{{n}}, "
        r"global_step{n}); name a folder of checkpoints, or pass revisions='...(?P<step>\d+)' for other names"
    )


def test_one_checkpoint_is_no_family(tiny_family: Path, tmp_path: Path) -> None:
    assert error_of(str(tiny_family / "step10"), tmp_path) == (
        f"model: {tiny_family}/step10 is one checkpoint; name the folder above it, "
        "which has a folder for each checkpoint"
    )


def test_checkpoints_in_a_format_of_their_own_are_refused(tmp_path: Path) -> None:
    for name in ("model_000500.pt", "meta_000500.json", "optim_000500.pt"):
        (tmp_path / name).touch()
    assert error_of(str(tmp_path), tmp_path).startswith(
        f"model: {tmp_path}: is nanochat's (it holds model_000500.pt); "
    )


def test_a_step_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for name in ("step1", "step001"):
        (tmp_path / name).mkdir()
    assert error_of(str(tmp_path), tmp_path) == f"model: {tmp_path} holds step 1 twice: step001 and step1; keep one"


def test_hashes_of_a_local_family_follow_its_weights(twin_family: Path, tmp_path: Path) -> None:
    family = resolve_family(str(twin_family), tmp_path)
    assert isinstance(family, LocalFamily)
    hashes = [family.sha256(step) for step in family.steps]
    assert hashes[2] == hashes[3]
    assert len(set(hashes)) == 3
