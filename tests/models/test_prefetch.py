"""One checkpoint ahead, and which downloads are kept."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import pytest
import torch

from circuits_over_time.utils.base.background import Prefetcher
from circuits_over_time.utils.base.errors import CheckpointUnusable
from circuits_over_time.utils.models import family as families
from circuits_over_time.utils.models.family import Family, HubFamily, Prefetched, resolve_family
from tests.support.hub_server import HubServer
from tests.support.loading import loads_weights_of, same_tensors
from tests.support.tiny_models import save_family


@pytest.fixture
def tiny(tiny_family: Path, tmp_path: Path) -> Family:
    return resolve_family(str(tiny_family), tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prefetched_checkpoint_is_the_same_to_the_bit(dtype: str, tiny: Family) -> None:
    plain = tiny.load(10, dtype, "cpu")
    tiny.prefetch(10)
    ahead = tiny.load(10, dtype, "cpu")
    assert same_tensors(plain.weights, ahead.weights)
    assert plain.provenance == ahead.provenance


def test_a_prefetched_checkpoint_is_in_memory_before_it_is_loaded(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {10: 1})
    family = resolve_family(str(folder), tmp_path)
    family.prefetch(10)
    family.describe(10)  # waits
    (folder / "step10" / "model.safetensors").unlink()
    assert loads_weights_of(family, 10, 1)


def test_no_default_of_torch_changes_while_a_checkpoint_is_read(tiny: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[torch.dtype] = []
    monkeypatch.setattr(torch, "set_default_dtype", changed.append)
    tiny.prefetch(10)
    tiny.describe(10)
    assert changed == []


def test_there_is_room_for_one(tiny: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = families.read_state

    def watched(folder: Path, stop: threading.Event) -> dict[str, torch.Tensor]:
        read.append(folder.name)
        return original(folder, stop)

    monkeypatch.setattr(families, "read_state", watched)
    tiny.prefetch(10)
    tiny.describe(10)
    tiny.prefetch(20)
    tiny.describe(20)
    assert loads_weights_of(tiny, 10, 1)
    assert read == ["step10", "step20"]


def test_what_is_dropped_stops_and_frees_its_memory() -> None:
    ahead, begun, stopped = Prefetcher(), threading.Event(), threading.Event()

    def read(step: int, stop: threading.Event) -> Prefetched:
        begun.set()
        assert stop.wait(30)
        stopped.set()
        raise CheckpointUnusable("stopped")

    ahead.start(1, read)
    assert begun.wait(30)
    ahead.drop()
    assert stopped.wait(30)
    assert ahead.take(1) is None


def test_memory_is_freed_once_a_checkpoint_is_taken(tiny: Family) -> None:
    tiny.prefetch(10)
    tiny.describe(10)
    future = tiny._ahead._future
    assert future is not None
    reference = weakref.ref(next(iter(future.result()[1].values())))
    del future
    weights = tiny.load(10, "bfloat16", "cpu").weights
    gc.collect()
    assert reference() is None
    assert weights.dtype == torch.bfloat16


def test_an_error_is_told_when_the_checkpoint_is_needed(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {10: 1, 20: 2})
    (folder / "step20" / "model.safetensors").write_bytes(b"not weights")
    family = resolve_family(str(folder), tmp_path)
    family.prefetch(20)
    assert loads_weights_of(family, 10, 1)
    family.prefetch(20)
    with pytest.raises(CheckpointUnusable, match=r"step20/model\.safetensors: cannot be read"):
        family.load(20)


def test_keeping_the_newest_deletes_the_others(pythia: HubFamily) -> None:
    for step in (0, 1000, 2000):
        pythia.fetch(step)
        pythia.release(step, 1)
    assert [pythia.is_complete(step) for step in (0, 1000, 2000)] == [False, False, True]
    assert not pythia.folder(0).exists()


def test_keeping_all_deletes_nothing(pythia: HubFamily) -> None:
    pythia.fetch(0)
    pythia.release(0, "all")
    assert pythia.is_complete(0)


def test_what_was_there_before_the_run_stays(pythia: HubFamily, tmp_path: Path) -> None:
    pythia.fetch(0)
    pythia.describe(1000)
    own = pythia.folder(2000)
    own.mkdir(parents=True)
    (own / "notes.txt").write_text("mine")
    later = resolve_family("pythia-70m", tmp_path)
    for step in (0, 1000, 2000, 3000):
        later.fetch(step)
        later.release(step, "none")
    assert pythia.is_complete(0)
    assert sorted(path.name for path in pythia.folder(1000).iterdir()) == [
        "config.json",
        "revision.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [path.name for path in own.iterdir()] == ["notes.txt"]
    assert not pythia.folder(3000).exists()


def test_a_local_familys_files_are_never_deleted(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {10: 1})
    family = resolve_family(str(folder), tmp_path)
    family.load(10, device="cpu")
    family.release(10, "none")
    assert (folder / "step10" / "model.safetensors").is_file()


def test_a_download_that_was_half_there_is_deleted_but_for_what_was_there(
    pythia: HubFamily, served: HubServer, tmp_path: Path
) -> None:
    shards = {f"model-0000{number}-of-00002.safetensors": bytes([number]) * 40 for number in (1, 2)}
    served.repositories["EleutherAI/pythia-70m"]["step1000"] = dict(shards)
    first = pythia.folder(1000) / "model-00001-of-00002.safetensors"
    first.parent.mkdir(parents=True)
    first.write_bytes(shards[first.name])
    family = resolve_family("pythia-70m", tmp_path)
    family.fetch(1000)
    family.release(1000, "none")
    assert [path.name for path in first.parent.iterdir()] == [first.name]
