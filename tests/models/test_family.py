"""Families and checkpoints: from a local folder, and from a hub served on this machine."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM

from edge_attribution_patching.weights import read_weights
from tests.support.hub_server import Files, HubServer, read_folder
from tests.support.paths import ROOT
from tests.support.tiny_models import WORDS, save_checkpoint, save_family, tiny_model, tiny_tokenizer
from utils.errors import UserError
from utils.files import file_sha256
from utils.models import local
from utils.models.family import Family, HubFamily, LocalFamily, resolve_device, resolve_family
from utils.models.schedules import PYTHIA_STEPS

TOKENS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """Steps 0, 1000, 2000, 3000; 2000 and 3000 hold the same weights, and main those of another model."""
    folder = tmp_path_factory.mktemp("branches")
    seeds = {"main": 9, "step0": 0, "step1000": 1, "step2000": 2, "step3000": 2}
    for name, seed in seeds.items():
        save_checkpoint(folder / name, seed)
    return {name: read_folder(folder / name) for name in seeds}


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def served(branches: dict[str, Files], monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    repositories = {"EleutherAI/pythia-70m": dict(branches), "lab/run": dict(branches), "lab/plain": {"main": {}}}
    with HubServer(repositories) as hub:
        point_at(hub.endpoint, monkeypatch)
        yield hub


@pytest.fixture
def pythia(served: HubServer, tmp_path: Path) -> HubFamily:
    family = resolve_family("pythia-70m", tmp_path)
    assert isinstance(family, HubFamily)
    return family


def loads_weights_of(family: Family, step: int, seed: int) -> bool:
    """Whether every tensor of a checkpoint, folded ones included, is that of the seed's weights."""
    return same_tensors(family.load(step, device="cpu").weights, read_weights(tiny_model(seed)))


def same_tensors(first: object, second: object) -> bool:
    """Whether two dataclasses of tensors are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(same_tensors(*pair) for pair in zip(first, second, strict=True))
    if dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first)]
        return all(same_tensors(getattr(first, name), getattr(second, name)) for name in names)
    return first == second


def error_of(model: str, cache_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        resolve_family(model, cache_dir)
    return str(caught.value)


def test_each_revision_loads_its_own_weights(pythia: HubFamily) -> None:
    for step, seed in {0: 0, 1000: 1, 2000: 2}.items():
        assert loads_weights_of(pythia, step, seed)
    assert not loads_weights_of(pythia, 0, 1)


def test_published_steps_are_the_hubs_branches(pythia: HubFamily) -> None:
    assert pythia.steps == (0, 1000, 2000, 3000)
    assert pythia.tokens_at(1000) == 1000 * 2_097_152
    assert pythia.name == "pythia-70m"
    assert pythia.source == "EleutherAI/pythia-70m"


def test_provenance_names_repository_revision_commit_and_hash(pythia: HubFamily, served: HubServer) -> None:
    provenance = pythia.load(1000, device="cpu").provenance
    assert provenance["repository"] == "EleutherAI/pythia-70m"
    assert provenance["revision"] == "step1000"
    assert provenance["commit"] == served.commit("EleutherAI/pythia-70m", "step1000")
    assert len(provenance["sha256"]) == 64


def test_equal_weights_have_equal_hashes(pythia: HubFamily) -> None:
    hashes = [pythia.fetch(step).sha256() for step in (1000, 2000, 3000)]
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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "is missing; save the checkpoint again with save_pretrained"),
        ("no json", "names no model_type ("),
        ("[]", "names no model_type ("),
        ("{}", "names no model_type ("),
        ('{"model_type": "gpt_neox", "hidden_size": "wide"}', "cannot be read ("),
    ],
)
def test_a_config_that_cannot_be_read_is_one_clear_error(text: str | None, told: str, tmp_path: Path) -> None:
    config = save_family(tmp_path / "mine", {5: 1}) / "step5" / "config.json"
    config.unlink() if text is None else config.write_text(text)
    with pytest.raises(UserError) as caught:
        resolve_family(str(tmp_path / "mine"), tmp_path).load(5)
    assert str(caught.value).startswith(str(config))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


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
    served.break_off["model.safetensors"] = chunk + 3
    files = pythia.fetch(1000)
    assert served.resumed_at == [chunk]
    assert (files.folder / "model.safetensors").read_bytes() == weights
    assert files.sha256() == hashlib.sha256(weights).hexdigest()


def test_a_damaged_download_is_deleted_and_told(pythia: HubFamily, served: HubServer) -> None:
    served.damage.add("model.safetensors")
    with pytest.raises(UserError) as caught:
        pythia.fetch(1000)
    file = pythia.folder(1000) / "model.safetensors"
    assert str(caught.value) == f"{file}: arrived damaged (SHA-256 differs from the hub's); deleted, run again"
    served.damage.clear()
    assert loads_weights_of(pythia, 1000, 1)


def test_freed_checkpoints_leave_the_disk_and_can_be_fetched_again(pythia: HubFamily) -> None:
    folder = pythia.fetch(1000).folder
    pythia.fetch(2000)
    pythia.free(1000)
    assert not folder.exists()
    assert (pythia.folder(2000) / "model.safetensors").is_file()
    assert loads_weights_of(pythia, 1000, 1)


def test_a_branch_without_weights_is_refused(pythia: HubFamily, served: HubServer) -> None:
    served.repositories["EleutherAI/pythia-70m"]["step1000"] = {"config.json": b"{}"}
    with pytest.raises(UserError) as caught:
        pythia.fetch(1000)
    told = "model: revision step1000 of EleutherAI/pythia-70m holds no weights; leave that step out"
    assert str(caught.value) == told


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


def test_an_unreachable_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    message = error_of("lab/run", tmp_path)
    assert message.startswith("model: lab/run: the hub cannot be reached (")
    assert message.endswith("; connect, or measure checkpoints that are here")


def test_offline_mode_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert error_of("lab/run", tmp_path).startswith("model: lab/run: the hub cannot be reached (")


def test_a_repository_that_is_not_there_is_one_clear_error(served: HubServer, tmp_path: Path) -> None:
    assert error_of("lab/none", tmp_path) == (
        "model: lab/none is not on the hub (or private); check the name, or name a folder of step{n} folders"
    )


def test_a_repository_without_checkpoints_is_refused(served: HubServer, tmp_path: Path) -> None:
    assert error_of("lab/plain", tmp_path) == (
        "model: lab/plain has no step{n} branches on the hub; name a repository of checkpoints"
    )


def test_a_hub_family_that_does_not_say_its_tokens_needs_the_key(served: HubServer, tmp_path: Path) -> None:
    assert error_of("lab/run", tmp_path) == (
        "tokens_per_step: lab/run does not say how many tokens a step has; pass tokens_per_step=N"
    )
    assert resolve_family("lab/run", tmp_path, tokens_per_step=10).tokens_at(3000) == 30_000


def test_branch_names_that_tell_tokens_are_read(served: HubServer, branches: dict[str, Files], tmp_path: Path) -> None:
    names = [
        "step1000-tokens4B",
        "stage1-step1000-tokens4B",
        "stage1-step2000-tokens8B",
        "stage2-step7-tokens1B",
        "main",
    ]
    served.repositories["lab/olmo"] = dict.fromkeys(names, branches["step0"])
    family = resolve_family("lab/olmo", tmp_path)
    assert isinstance(family, HubFamily)
    assert family.tokens == {1000: 4 * 10**9, 2000: 8 * 10**9}
    assert family.revisions == {1000: "step1000-tokens4B", 2000: "stage1-step2000-tokens8B"}


@pytest.mark.parametrize(
    "name", ["pythia-14m", "pythia-6.9b-deduped", "pythia-160m-seed3", "pythia-410m-data-seed1", "EleutherAI/pythia-1b"]
)
def test_pythia_names_are_eleutherais_repositories(name: str, served: HubServer, tmp_path: Path) -> None:
    served.status = 503
    assert resolve_family(name, tmp_path).source == f"EleutherAI/{name.removeprefix('EleutherAI/')}"


def test_a_misspelt_pythia_name_gets_a_suggestion(tmp_path: Path) -> None:
    assert error_of("pythia-16om", tmp_path) == (
        "model: 'pythia-16om' is no Pythia name, no hub id (organisation/name) and no folder; "
        "did you mean 'pythia-160m'?"
    )


def test_a_local_family_loads_its_steps(tiny_family: Path, tmp_path: Path) -> None:
    family = resolve_family(str(tiny_family), tmp_path)
    assert (family.name, family.steps, family.is_local) == ("tiny", (0, 10, 20, 30), True)
    assert family.tokens_at(30) == 30 * 64
    assert loads_weights_of(family, 10, 1)


def test_a_loaded_checkpoint_keeps_the_tokenizer_of_the_disk(tiny_family: Path, tmp_path: Path) -> None:
    checkpoint = resolve_family(str(tiny_family), tmp_path).load(10, device="cpu")
    assert checkpoint.tokenizer("Mary went")["input_ids"] == [2, 5]
    assert checkpoint.tokenizer.pad_token == tiny_tokenizer().pad_token
    assert checkpoint.device == torch.device("cpu")


@pytest.mark.parametrize("first", ["weights", "bridge"])
def test_bridge_and_weights_are_the_same_model_whichever_is_read_first(
    first: str, tiny_family: Path, tmp_path: Path
) -> None:
    checkpoint = resolve_family(str(tiny_family), tmp_path).load(10, device="cpu")
    getattr(checkpoint, first)
    with torch.no_grad():
        # Bridge and transformers add up q, k and v in another order: the last bit of the logits may differ.
        torch.testing.assert_close(checkpoint.bridge(TOKENS), tiny_model(1).eval()(TOKENS).logits, rtol=0, atol=1e-6)
    assert same_tensors(checkpoint.weights, read_weights(tiny_model(1)))
    assert not checkpoint.bridge.training


def test_changing_the_bridge_leaves_weights_and_tokenizer_as_they_are(tiny_family: Path, tmp_path: Path) -> None:
    checkpoint = resolve_family(str(tiny_family), tmp_path).load(10, device="cpu")
    with torch.no_grad():
        for parameter in checkpoint.bridge.parameters():
            parameter.zero_()
    assert same_tensors(checkpoint.weights, read_weights(tiny_model(1)))
    assert checkpoint.bridge.tokenizer is not checkpoint.tokenizer


@pytest.mark.slow
def test_loading_imports_no_bridge(tiny_family: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from utils.models.family import resolve_family; "
        f"resolve_family({str(tiny_family)!r}, Path('none')).load(10, device='cpu').provenance; "
        "sys.exit('transformer_lens' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_checkpoint_is_freed_without_collecting_garbage(tiny_family: Path, tmp_path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        checkpoint = resolve_family(str(tiny_family), tmp_path).load(10, device="cpu")
        alive = [weakref.ref(checkpoint), weakref.ref(checkpoint.weights), weakref.ref(checkpoint.weights.embed)]
        del checkpoint
        assert [reference() for reference in alive] == [None] * 3
    finally:
        gc.enable()


def test_parameters_are_counted_once_where_tensors_are_tied(tmp_path: Path) -> None:
    for name, tied in (("free", False), ("tied", True)):
        config = tiny_model(0).config
        config.tie_word_embeddings = tied
        GPTNeoXForCausalLM(config).save_pretrained(tmp_path / name / "step1")
        tiny_tokenizer().save_pretrained(tmp_path / name / "step1")
    free, tied = (
        resolve_family(str(tmp_path / name), tmp_path, tokens_per_step=1).load(1, device="cpu").provenance["parameters"]
        for name in ("free", "tied")
    )
    # Two embeddings of 12 words; in a block attention 4d^2 + 4d, an MLP twice as wide 4d^2 + 3d, norms 4d; a last norm.
    assert free == 2 * 12 * 8 + 2 * (8 * 8**2 + 11 * 8) + 2 * 8
    assert tied == free - 12 * 8


def test_the_same_tokenizer_files_give_the_same_tokenizer(tiny_family: Path, tmp_path: Path) -> None:
    family = resolve_family(str(tiny_family), tmp_path)
    assert family.tokenizer(10) is family.tokenizer(30)
    other = save_family(tmp_path / "other", {5: 1})
    settings = other / "step5" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 7}))
    tokenizer = resolve_family(str(other), tmp_path).tokenizer(5)
    assert tokenizer is not family.tokenizer(10)
    assert tokenizer.model_max_length == 7


def test_weights_that_change_while_they_are_loaded_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_family(tmp_path / "mine", {5: 1})
    weights = folder / "step5" / "model.safetensors"
    read = AutoModelForCausalLM.from_pretrained

    def meanwhile(*arguments: object, **options: object) -> object:
        model = read(*arguments, **options)
        os.utime(weights)
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", meanwhile)
    checkpoint = resolve_family(str(folder), tmp_path).load(5, device="cpu")
    with pytest.raises(UserError) as caught:
        _ = checkpoint.provenance
    assert str(caught.value) == f"{weights}: changed while it was read; run again once the checkpoint is complete"


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(local, "file_sha256", lambda path: hashed.append(path) or file_sha256(path))
    family = resolve_family(str(save_family(tmp_path / "mine", {5: 1})), tmp_path)
    assert isinstance(family, LocalFamily)
    first = family.sha256(5)
    assert family.load(5, device="cpu").provenance["sha256"] == family.sha256(5) == first
    assert len(hashed) == 1
    tiny_model(2).save_pretrained(tmp_path / "mine" / "step5")
    assert family.load(5, device="cpu").provenance["sha256"] != first
    assert len(hashed) == 2


def test_dtype_is_the_one_asked_for(tiny_family: Path, tmp_path: Path) -> None:
    checkpoint = resolve_family(str(tiny_family), tmp_path).load(10, "bfloat16", "cpu")
    assert checkpoint.weights.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in checkpoint.bridge.parameters()} == {torch.bfloat16}


def test_a_tokenizer_may_lie_beside_the_steps(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "shared", {5: 1})
    for file in (folder / "step5").glob("tokenizer*"):
        shutil.move(file, folder / file.name)
    tokenizer = resolve_family(str(folder), tmp_path).tokenizer(5)
    assert tokenizer.vocab_size == len(WORDS)


def test_a_local_family_without_family_json_needs_tokens_per_step(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1})
    (folder / "family.json").unlink()
    assert error_of(str(folder), tmp_path) == (
        f'{folder}/family.json is missing; write {{"tokens_per_step": N}} into it, or pass tokens_per_step=N'
    )
    assert resolve_family(str(folder), tmp_path, tokens_per_step=8).tokens_at(5) == 40


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "does not say tokens_per_step"),
        ("no json", "does not say tokens_per_step"),
        (json.dumps({"tokens_per_step": "many"}), "tokens_per_step: 'many' is not a whole number > 0"),
        (json.dumps({"tokens_per_step": 0}), "tokens_per_step: 0 is not a whole number > 0"),
    ],
)
def test_a_family_json_without_a_count_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "mine" / "step1").mkdir(parents=True)
    (tmp_path / "mine" / "family.json").write_text(text)
    message = error_of(str(tmp_path / "mine"), tmp_path)
    assert message == f'{tmp_path}/mine/family.json: {told}; write {{"tokens_per_step": N}} into it'


def test_a_folder_without_steps_is_refused(tmp_path: Path) -> None:
    assert (
        error_of(str(tmp_path), tmp_path)
        == f"model: {tmp_path} holds no step{{n}} folders; name a folder of checkpoints"
    )


def test_a_step_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for name in ("step1", "step001"):
        (tmp_path / name).mkdir()
    assert error_of(str(tmp_path), tmp_path) == f"model: {tmp_path} holds step 1 twice: step001 and step1; keep one"


@pytest.mark.parametrize("model", ["model_cache/toy", "./toy", "a/b/c"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(
    model: str, served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of(model, Path("model_cache")).startswith(f"model: the folder {model} does not exist; train a small")
    assert served.requests == []


def test_cut_weights_are_one_clear_error(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1})
    weights = folder / "step5" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError) as caught:
        resolve_family(str(folder), tmp_path).load(5)
    assert str(caught.value).startswith(f"{folder}/step5: the checkpoint cannot be loaded (")
    assert str(caught.value).endswith("); delete the folder and fetch or train it again")
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_replaced_by_random_ones(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1})
    weights = folder / "step5" / "model.safetensors"
    tensors = load_file(weights)
    name = "gpt_neox.final_layer_norm.weight"
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        resolve_family(str(folder), tmp_path).load(5)
    told = f"{folder}/step5: weights are missing ({name}); delete the folder and fetch or train it again"
    assert str(caught.value) == told


def test_weights_that_the_config_has_no_place_for_are_refused(tmp_path: Path) -> None:
    weights = save_family(tmp_path / "mine", {5: 1}) / "step5" / "model.safetensors"
    tensors = load_file(weights)
    old = {f"gpt_neox.layers.0.attention.{name}": torch.ones(1) for name in ("bias", "masked_bias")}
    save_file(tensors | old | {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(1)}, weights)
    assert loads_weights_of(resolve_family(str(tmp_path / "mine"), tmp_path), 5, 1)
    name = "gpt_neox.layers.0.attention.q_norm.weight"
    save_file(tensors | {name: torch.ones(4)}, weights)
    with pytest.raises(UserError) as caught:
        resolve_family(str(tmp_path / "mine"), tmp_path).load(5)
    assert str(caught.value) == (
        f"{weights.parent}: holds weights that its config.json has no place for ({name}); mend config.json"
    )


def test_a_model_that_does_not_fit_names_the_way_out(
    tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(UserError) as caught:
        resolve_family(str(tiny_family), tmp_path).load(10, "float32", "cpu")
    told = f"device: {tiny_family}/step10 as float32 does not fit on cpu; pass dtype=bfloat16 or another device"
    assert str(caught.value) == told


def test_hashes_of_a_local_family_follow_its_weights(tiny_family: Path, tmp_path: Path) -> None:
    family = resolve_family(str(tiny_family), tmp_path)
    assert isinstance(family, LocalFamily)
    hashes = [family.sha256(step) for step in family.steps]
    assert hashes[2] == hashes[3]
    assert len(set(hashes)) == 3


def test_auto_is_a_device_of_this_machine() -> None:
    torch.zeros(1, device=resolve_device("auto"))


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(UserError, match=rf"^device: '{device}' is not here; this machine has .*cpu"):
        resolve_device(device)
