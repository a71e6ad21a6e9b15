"""Checkpoints from a hub served on this machine."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.base.files import combine
from circuits_over_time.utils.config.schedules import PYTHIA_STEPS
from circuits_over_time.utils.models.family import HubFamily, resolve_family
from tests.support.hub_server import HubServer
from tests.support.loading import error_of, loads_weights_of, point_at
from tests.support.tiny_models import tiny_model


def test_each_revision_loads_its_own_weights(pythia: HubFamily) -> None:
    for step, seed in {0: 0, 1000: 1, 2000: 2}.items():
        assert loads_weights_of(pythia, step, seed)
    assert not loads_weights_of(pythia, 0, 1)


def test_published_steps_are_the_hubs_branches(pythia: HubFamily) -> None:
    assert pythia.steps == (0, 1000, 2000, 3000)
    assert pythia.tokens[1000] == 1000 * 2_097_152
    assert pythia.name == "pythia-70m"
    assert pythia.source == "EleutherAI/pythia-70m"


def test_provenance_names_repository_revision_commit_and_hash(pythia: HubFamily, served: HubServer) -> None:
    provenance = pythia.load(1000, device="cpu").provenance
    assert provenance["repository"] == "EleutherAI/pythia-70m"
    assert provenance["revision"] == "step1000"
    assert provenance["commit"] == served.commit("EleutherAI/pythia-70m", "step1000")
    assert len(provenance["sha256"]) == 64


def test_equal_weights_have_equal_hashes(pythia: HubFamily) -> None:
    hashes = [combine(pythia.fetch(step).hashes()) for step in (1000, 2000, 3000)]
    assert hashes[1] == hashes[2] != hashes[0]


def test_a_complete_download_needs_no_network(pythia: HubFamily, served: HubServer) -> None:
    pythia.fetch(1000)
    served.requests.clear()
    served.status = 503
    assert loads_weights_of(pythia, 1000, 1)
    assert served.requests == []


def test_loading_asks_the_hub_nothing_beyond_the_files(pythia: HubFamily, served: HubServer) -> None:
    pythia.fetch(1000)
    served.requests.clear()
    pythia.load(1000, device="cpu")
    assert served.requests == []


def test_describing_a_checkpoint_fetches_its_small_files_only(pythia: HubFamily, served: HubServer) -> None:
    description = pythia.describe(1000)
    assert description.shape.n_layers == 2
    assert description.tokenizer("Mary went")["input_ids"] == [2, 5]
    assert sorted(path.rpartition("/")[2] for path in served.downloads("")) == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert loads_weights_of(pythia, 1000, 1)
    assert len(served.downloads("")) == 4


def test_checkpoints_of_equal_small_files_have_equal_descriptions(pythia: HubFamily, served: HubServer) -> None:
    files = served.repositories["EleutherAI/pythia-70m"]["step3000"]
    config = json.loads(files["config.json"]) | {"max_position_embeddings": 16}
    served.repositories["EleutherAI/pythia-70m"]["step3000"] = files | {"config.json": json.dumps(config).encode()}
    assert pythia.describe(1000) == pythia.describe(2000) != pythia.describe(3000)
    assert pythia.describe(3000).tokenizer is pythia.describe(1000).tokenizer


@pytest.mark.parametrize("how", ["describe", "load", "prefetch"])
def test_an_architecture_without_a_reader_is_refused_before_weights_are_fetched(
    how: str, pythia: HubFamily, served: HubServer
) -> None:
    files = served.repositories["EleutherAI/pythia-70m"]["step1000"]
    served.repositories["EleutherAI/pythia-70m"]["step1000"] = files | {"config.json": b'{"model_type": "mamba"}'}
    if how == "prefetch":
        pythia.prefetch(1000)
        how = "load"
    with pytest.raises(UserError) as caught:
        getattr(pythia, how)(1000)
    told = f"{pythia.folder(1000)}/config.json: model_type=mamba: no reader for this architecture (supported: "
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
    assert served.downloads("model.safetensors") == []


def test_a_config_field_that_is_not_read_is_refused_before_weights_are_fetched(
    pythia: HubFamily, served: HubServer
) -> None:
    files = served.repositories["EleutherAI/pythia-70m"]["step1000"]
    config = json.loads(files["config.json"]) | {"add_cross_attention": True}
    served.repositories["EleutherAI/pythia-70m"]["step1000"] = files | {"config.json": json.dumps(config).encode()}
    with pytest.raises(UserError) as caught:
        pythia.load(1000)
    assert str(caught.value).startswith(f"{pythia.folder(1000)}/config.json: add_cross_attention=True: not supported")
    assert served.downloads("model.safetensors") == []


def test_prefetch_downloads_in_the_background_and_load_waits_for_it(pythia: HubFamily, served: HubServer) -> None:
    pythia.prefetch(2000)
    assert loads_weights_of(pythia, 2000, 2)
    assert len(served.downloads("model.safetensors")) == 1


def test_a_failed_prefetch_is_told_when_the_checkpoint_is_loaded(pythia: HubFamily, served: HubServer) -> None:
    del served.repositories["EleutherAI/pythia-70m"]["step2000"]
    pythia.prefetch(2000)
    with pytest.raises(UserError) as caught:
        pythia.load(2000)
    told = "checkpoints: revision step2000 of EleutherAI/pythia-70m is not on the hub; leave that step out"
    assert str(caught.value) == told


def test_an_interrupted_download_goes_on_where_it_stopped(pythia: HubFamily, served: HubServer) -> None:
    chunk = constants.DOWNLOAD_CHUNK_SIZE
    weights = bytes(chunk) + b"the rest"
    served.repositories["EleutherAI/pythia-70m"]["step1000"] = {"model.safetensors": weights}
    served.cuts["model.safetensors"] = [chunk + 3]
    files = pythia.fetch(1000)
    assert served.resumed_at == [chunk]
    assert (files.folder / "model.safetensors").read_bytes() == weights
    assert combine(files.hashes()) == hashlib.sha256(weights).hexdigest()


def test_a_damaged_download_is_deleted_and_told(pythia: HubFamily, served: HubServer) -> None:
    served.damage["model.safetensors"] = -1
    with pytest.raises(UserError) as caught:
        pythia.fetch(1000)
    file = pythia.folder(1000) / "model.safetensors"
    assert str(caught.value) == f"{file}: arrived damaged (SHA-256 differs from the hub's); it is deleted, run again"
    served.damage.clear()
    assert loads_weights_of(pythia, 1000, 1)


def test_freed_checkpoints_leave_the_disk_and_can_be_fetched_again(pythia: HubFamily) -> None:
    folder = pythia.fetch(1000).folder
    pythia.fetch(2000)
    pythia.release(1000, "none")
    assert not folder.exists()
    assert (pythia.folder(2000) / "model.safetensors").is_file()
    assert loads_weights_of(pythia, 1000, 1)


def test_a_branch_without_weights_is_refused(pythia: HubFamily, served: HubServer) -> None:
    served.repositories["EleutherAI/pythia-70m"]["step1000"] = {"config.json": b"{}"}
    with pytest.raises(UserError) as caught:
        pythia.fetch(1000)
    told = "model: revision step1000 of EleutherAI/pythia-70m holds no weights; leave that step out"
    assert str(caught.value) == told


def test_a_branch_with_an_adapter_says_how_to_measure_it(pythia: HubFamily, served: HubServer) -> None:
    branch = served.repositories["EleutherAI/pythia-70m"]["step1000"]
    served.repositories["EleutherAI/pythia-70m"]["step1000"] = {**branch, "adapter_config.json": b"{}"}
    with pytest.raises(UserError) as caught:
        pythia.fetch(1000)
    told = "revision step1000 of EleutherAI/pythia-70m is an adapter (adapter_config.json); to measure it, run: hf "
    assert told + "download EleutherAI/pythia-70m --revision step1000 --local-dir DIR/step1000" in str(caught.value)


def test_only_weights_that_are_loaded_are_fetched(pythia: HubFamily, served: HubServer) -> None:
    more = dict.fromkeys(("model.fp16.safetensors", "optimizer.bin", "flax_model.msgpack", "README.md"), b"unused")
    files = served.repositories["EleutherAI/pythia-70m"]["step1000"]
    served.repositories["EleutherAI/pythia-70m"]["step1000"] = files | more
    assert loads_weights_of(pythia, 1000, 1)
    assert not any(served.downloads(name) for name in more)


def test_torch_weights_are_taken_only_where_there_are_no_safetensors(
    pythia: HubFamily, served: HubServer, tmp_path: Path
) -> None:
    both = served.repositories["EleutherAI/pythia-70m"]["step1000"]
    torch.save(tiny_model(5).state_dict(), tmp_path / "weights")
    old_format = (tmp_path / "weights").read_bytes()
    served.repositories["EleutherAI/pythia-70m"]["step1000"] = both | {"pytorch_model.bin": old_format}
    only_old = {name: data for name, data in both.items() if name != "model.safetensors"}
    served.repositories["EleutherAI/pythia-70m"]["step2000"] = only_old | {"pytorch_model.bin": old_format}
    assert loads_weights_of(pythia, 1000, 1)
    assert loads_weights_of(pythia, 2000, 5)
    assert len(served.downloads("pytorch_model.bin")) == 1


def test_without_the_hub_pythia_has_its_154_steps(
    served: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served.status = 503
    with caplog.at_level(logging.WARNING):
        family = resolve_family("pythia-70m", tmp_path)
    assert family.steps == PYTHIA_STEPS
    assert "the hub answered 503 for EleutherAI/pythia-70m" in caplog.text


def test_an_unreachable_hub_is_one_clear_error(
    waits: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    message = error_of("lab/run", tmp_path)
    assert message.startswith("model: lab/run: the hub cannot be reached (")
    assert message.endswith("; connect, or measure checkpoints that you have")


def test_offline_mode_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert error_of("lab/run", tmp_path).startswith("model: lab/run: the hub cannot be reached (")


def test_a_repository_that_is_not_there_is_one_clear_error(served: HubServer, tmp_path: Path) -> None:
    assert error_of("lab/none", tmp_path) == (
        "model: lab/none is not on the hub (or private); check the name, or name a folder of step{n} folders"
    )


def test_small_files_that_checkpoints_share_are_downloaded_once(pythia: HubFamily, served: HubServer) -> None:
    files = served.repositories["EleutherAI/pythia-70m"]["step3000"]
    changed = files["config.json"] + b"\n"
    served.repositories["EleutherAI/pythia-70m"]["step3000"] = files | {"config.json": changed}
    for step in pythia.steps:
        pythia.describe(step)
    assert len(served.downloads("tokenizer.json")) == 1
    assert len(served.downloads("config.json")) - len(served.downloads("tokenizer_config.json")) == 2
    assert (pythia.folder(2000) / "config.json").read_bytes() == files["config.json"]
    assert (pythia.folder(3000) / "config.json").read_bytes() == changed
    pythia.release(0, "none")
    pythia.describe(0)
    assert len(served.downloads("tokenizer.json")) == 1


def test_without_the_hub_a_family_has_the_steps_that_it_listed_before(
    served: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = resolve_family("lab/run", tmp_path, tokens_per_step=1)
    before.fetch(1000)
    served.status = 503
    with caplog.at_level(logging.WARNING):
        family = resolve_family("lab/run", tmp_path, tokens_per_step=1)
    assert family.steps == before.steps
    assert "taking the branches and tags that it listed before" in caplog.text
    assert loads_weights_of(family, 1000, 1)


def test_a_tokenizer_with_code_of_its_own_is_run_only_if_the_config_says_so(served: HubServer, tmp_path: Path) -> None:
    code = (
        "from transformers import PreTrainedTokenizerFast\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n"
        "    marked = 'own code'\n"
    )
    files = served.repositories["lab/run"]["step1000"]
    settings = json.loads(files["tokenizer_config.json"]) | {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]},
    }
    served.repositories["lab/run"]["step1000"] = files | {
        "tokenizer_config.json": json.dumps(settings).encode(),
        "own.py": code.encode(),
    }
    family = resolve_family("lab/run", tmp_path, tokens_per_step=1)
    assert not hasattr(family.describe(1000).tokenizer, "marked")
    assert served.downloads("own.py") == []
    trusting = resolve_family("lab/run", tmp_path, tokens_per_step=1, trust_remote_code=True)
    assert getattr(trusting.describe(1000).tokenizer, "marked", None) == "own code"
    assert len(served.downloads("own.py")) == 1


def test_a_tokenizer_that_is_nothing_without_its_code_says_what_to_pass(served: HubServer, tmp_path: Path) -> None:
    files = dict(served.repositories["lab/run"]["step1000"])
    del files["tokenizer.json"]
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    files["tokenizer_config.json"] = json.dumps(settings).encode()
    served.repositories["lab/run"]["step1000"] = files
    with pytest.raises(UserError) as caught:
        resolve_family("lab/run", tmp_path, tokens_per_step=1).describe(1000)
    assert str(caught.value).endswith(
        "the tokenizer needs code of its own; read it, and if you trust it pass trust_remote_code=true"
    )
