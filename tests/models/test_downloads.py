"""Downloads from a hub with faults: what is tried again, what resumes, what is given up, what is told."""

from __future__ import annotations

import email.utils
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, hf_hub_download

from circuits_over_time.utils.base.errors import CheckpointUnusable, UserError, without_secrets
from circuits_over_time.utils.hub import download
from circuits_over_time.utils.hub.download import WAITS, Listing
from circuits_over_time.utils.hub.listing import AT_ONCE, HubUnreachable, in_parallel
from circuits_over_time.utils.models.family import HubFamily, fetch, resolve_family
from tests.support.hub_server import Fault, HubServer
from tests.support.loading import loads_weights_of, point_at
from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_model

TOKEN = "hf_plantedSecretToken0123456789"


@pytest.mark.parametrize("place", ["/refs", "/revision/", "config.json", "model.safetensors"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_is_waited_out(
    place: str, status: int, served: HubServer, waits: list[float], tmp_path: Path
) -> None:
    served.faults.append(Fault(place, status, times=2))
    assert loads_weights_of(resolve_family("pythia-70m", tmp_path), 1000, 1)
    assert served.faults[0].times == 0
    assert waits == sorted(waits)
    assert sum(waits) >= WAITS[0] + WAITS[1]


def test_waits_grow_until_the_last_attempt(served: HubServer, waits: list[float], pythia: HubFamily) -> None:
    served.faults.append(Fault("/revision/", 500, times=-1))
    with pytest.raises(HubUnreachable) as caught:
        pythia.fetch(1000)
    told = "model: the hub answered 500 for revision step1000 of EleutherAI/pythia-70m; try again later"
    assert str(caught.value) == told
    assert waits == list(WAITS)


@pytest.mark.parametrize("asked", ["40", "date"])
def test_the_hubs_own_wait_is_obeyed(asked: str, served: HubServer, waits: list[float], pythia: HubFamily) -> None:
    after = email.utils.formatdate(time.time() + 40, usegmt=True) if asked == "date" else asked
    served.faults.append(Fault("/revision/", 429, headers={"Retry-After": after}))
    pythia.describe(1000)
    assert len(waits) == 1
    assert 35 <= waits[0] <= 40


def test_what_cannot_pass_is_not_tried_again(served: HubServer, waits: list[float], pythia: HubFamily) -> None:
    served.faults.append(Fault("/revision/", 403, times=-1))
    with pytest.raises(CheckpointUnusable):
        pythia.fetch(1000)
    assert waits == []


def test_a_connection_that_breaks_again_and_again_still_delivers(served: HubServer, pythia: HubFamily) -> None:
    chunk = constants.DOWNLOAD_CHUNK_SIZE
    weights = bytes(range(256)) * (3 * chunk // 256) + b"the rest"
    served.repositories["EleutherAI/pythia-70m"]["step1000"] = {"model.safetensors": weights}
    served.cuts["model.safetensors"] = [chunk + 3, chunk + 5, 7, chunk]
    folder = pythia.fetch(1000).folder
    assert (folder / "model.safetensors").read_bytes() == weights
    assert served.resumed_at == [chunk, 2 * chunk, 2 * chunk, 3 * chunk]


def test_a_download_that_failed_resumes_in_the_next_run(served: HubServer, pythia: HubFamily, tmp_path: Path) -> None:
    chunk = constants.DOWNLOAD_CHUNK_SIZE
    weights = bytes(chunk) + b"the rest"
    served.repositories["EleutherAI/pythia-70m"]["step1000"] = {"model.safetensors": weights}
    served.cuts["model.safetensors"] = [chunk + 3]
    fault = Fault("model.safetensors", 500, times=0)
    served.faults.append(fault)
    served.on_cut = lambda: setattr(fault, "times", -1)
    with pytest.raises(HubUnreachable):
        pythia.fetch(1000)
    served.faults.clear()
    served.resumed_at.clear()
    again = resolve_family("pythia-70m", tmp_path)
    folder = again.fetch(1000).folder
    assert served.resumed_at == [chunk]
    assert (folder / "model.safetensors").read_bytes() == weights
    assert [path.name for path in folder.glob(".*.part")] == []


def test_a_file_damaged_on_its_way_is_downloaded_once_more(served: HubServer, pythia: HubFamily) -> None:
    served.damage["model.safetensors"] = 1
    assert loads_weights_of(pythia, 1000, 1)
    assert len(served.downloads("model.safetensors")) == 2


def test_a_file_that_is_stored_short_is_told(served: HubServer, pythia: HubFamily) -> None:
    served.truncated.add("model.safetensors")
    with pytest.raises(CheckpointUnusable) as caught:
        pythia.fetch(1000)
    size = len(served.repositories["EleutherAI/pythia-70m"]["step1000"]["model.safetensors"])
    commit = served.commit("EleutherAI/pythia-70m", "step1000")
    assert str(caught.value) == (
        f"model: model.safetensors of EleutherAI/pythia-70m at commit {commit} is shorter than the hub says "
        f"({size // 2} of {size} bytes); leave that step out"
    )


def test_a_listed_revision_that_is_gone_is_unusable(served: HubServer, pythia: HubFamily) -> None:
    served.missing.add("step1000")
    with pytest.raises(CheckpointUnusable) as caught:
        pythia.load(1000)
    told = "checkpoints: revision step1000 of EleutherAI/pythia-70m is not on the hub; leave that step out"
    assert str(caught.value) == told


def test_a_renamed_repository_delivers_and_is_recorded_by_its_new_name(served: HubServer, tmp_path: Path) -> None:
    served.repositories["lab/new"] = served.repositories.pop("lab/run")
    served.renamed["lab/run"] = "lab/new"
    checkpoint = resolve_family("lab/run", tmp_path, tokens_per_step=1).load(1000, device="cpu")
    assert checkpoint.provenance["repository"] == "lab/new"


def test_a_second_sweep_asks_for_names_and_for_no_listing_again(served: HubServer, tmp_path: Path) -> None:
    for step in (0, 1000):
        family = resolve_family("pythia-70m", tmp_path)
        assert isinstance(family, HubFamily)
        family.listing(step)
    served.requests.clear()
    family = resolve_family("pythia-70m", tmp_path)
    assert isinstance(family, HubFamily)
    family.listing(0)
    family.describe(1000)
    listings = [path for _, path in served.requests if "/revision/" in path]
    assert listings == []


def test_fetching_only_brings_everything_and_then_no_network_is_needed(
    served: HubServer, pythia: HubFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch(pythia, [0, 1000]) == {}
    served.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    family = resolve_family("pythia-70m", tmp_path)
    assert loads_weights_of(family, 1000, 1)
    assert served.requests == []
    with pytest.raises(CheckpointUnusable, match="the hub cannot be reached"):
        family.load(2000)


def test_fetching_goes_on_after_a_checkpoint_that_cannot_be_had(served: HubServer, pythia: HubFamily) -> None:
    served.missing.add("step1000")
    failed = fetch(pythia, [0, 1000, 2000])
    assert list(failed) == [1000]
    assert "is not on the hub" in failed[1000]
    assert [pythia.is_complete(step) for step in (0, 1000, 2000)] == [True, False, True]


def test_listings_are_asked_for_several_at_a_time(served: HubServer, tmp_path: Path) -> None:
    branches = served.repositories["lab/run"]
    branches |= {f"step{step}": branches["step0"] for step in range(5000, 5020)}
    served.delay = 0.02
    family = resolve_family("lab/run", tmp_path, tokens_per_step=1)
    assert isinstance(family, HubFamily)
    advanced: list[int] = []
    found = family.listings(family.steps, lambda: advanced.append(1))
    assert list(found) == list(family.steps)
    assert len(advanced) == len(found)
    assert 1 < served.busiest <= AT_ONCE


def test_the_users_hub_cache_is_used_and_left_alone(
    served: HubServer, pythia: HubFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    commit = served.commit("EleutherAI/pythia-70m", "step1000")
    held = Path(hf_hub_download("EleutherAI/pythia-70m", "model.safetensors", revision=commit, cache_dir=home))
    content = held.read_bytes()
    served.requests.clear()
    assert loads_weights_of(pythia, 1000, 1)
    assert served.downloads("model.safetensors") == []
    pythia.release(1000, "none")
    assert not pythia.folder(1000).exists()
    assert held.read_bytes() == content


def test_a_token_goes_to_the_hub_and_nowhere_else(
    served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    served.on_cdn = True
    served.faults += [Fault("/revision/", 500), Fault("model.safetensors", 503), Fault("/refs", 429)]
    served.missing.add("step2000")
    errors = []
    with caplog.at_level(logging.DEBUG):
        family = resolve_family("pythia-70m", tmp_path)
        assert loads_weights_of(family, 1000, 1)
        for step in (2000, 3000):
            served.status = None if step == 2000 else 401
            with pytest.raises(UserError) as caught:
                family.load(step)
            errors.append(str(caught.value))
    assert {host for host, _, _ in served.sent_tokens} == {"127.0.0.1"}
    assert {token for _, _, token in served.sent_tokens} == {f"Bearer {TOKEN}"}
    assert any(path.endswith("model.safetensors") for path in served.downloads(""))
    assert TOKEN not in caplog.text + "".join(errors)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_token_that_no_header_can_hold_is_not_told(
    served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\u20acmore")
    with pytest.raises(UserError) as caught:
        resolve_family("lab/run", tmp_path, tokens_per_step=1)
    assert str(caught.value) == (
        "HF_TOKEN: the token holds characters that none can have; set it again (hf auth login)"
    )


def test_texts_lose_tokens_passwords_and_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    text = f"GET https://me:pass@hub/file?X-Sig=abc failed with Authorization: Bearer other and {TOKEN}"
    shown = without_secrets(text)
    assert shown == "GET https://***@hub/file failed with Authorization: Bearer *** and ***"


@pytest.mark.endurance
def test_hub_settings_of_the_environment_are_respected(served: HubServer, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from circuits_over_time.utils.models.family import resolve_family; "
        "resolve_family('lab/run', Path('cache'), tokens_per_step=1).describe(1000)"
    )
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(TOKEN)
    settings = {"HF_ENDPOINT": served.endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    cleared = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=cleared | settings, check=True)
    assert {token for _, _, token in served.sent_tokens} == {f"Bearer {TOKEN}"}
    offline = subprocess.run(
        [sys.executable, "-c", code.replace("1000", "2000")],
        cwd=tmp_path,
        env=cleared | settings | {"HF_HUB_OFFLINE": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert "offline mode is enabled" in offline.stderr


def test_torch_files_are_read_ahead_like_safetensors(pythia: HubFamily, served: HubServer, tmp_path: Path) -> None:
    torch.save(tiny_model(5).state_dict(), tmp_path / "weights")
    files = served.repositories["EleutherAI/pythia-70m"]["step2000"]
    only_old = {name: data for name, data in files.items() if name != "model.safetensors"}
    served.repositories["EleutherAI/pythia-70m"]["step2000"] = only_old | {
        "pytorch_model.bin": (tmp_path / "weights").read_bytes()
    }
    pythia.prefetch(2000)
    assert loads_weights_of(pythia, 2000, 5)


@pytest.mark.parametrize(("answered", "n_waits"), [(True, len(WAITS)), (False, 2)])
def test_a_hub_that_has_gone_is_waited_for_and_one_that_never_answered_is_not(
    answered: bool, n_waits: int, waits: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not answered:
        download._answered.clear()
    point_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(HubUnreachable):
        resolve_family("lab/run", tmp_path)
    assert waits == list(WAITS[:n_waits])


def test_once_the_hub_is_gone_all_that_is_not_known_is_told_the_same(served: HubServer, pythia: HubFamily) -> None:
    first = pythia.listing(0)

    def listing(step: int) -> Listing:
        if step == 0:
            return first
        raise HubUnreachable("gone")

    found = in_parallel(listing, range(AT_ONCE + 1))
    assert isinstance(found[0], Listing | HubUnreachable)
    assert all(isinstance(found[step], HubUnreachable) for step in range(1, AT_ONCE + 1))


def test_an_error_of_the_code_is_not_hidden_by_the_threads() -> None:
    def wrong(step: int) -> Listing:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_parallel(wrong, [0])


@pytest.mark.slow
def test_a_download_that_was_killed_resumes(served: HubServer, tmp_path: Path) -> None:
    chunk = constants.DOWNLOAD_CHUNK_SIZE
    weights = bytes(chunk) + b"the rest"
    served.repositories["lab/run"]["step1000"] = {"model.safetensors": weights}
    served.cuts["model.safetensors"] = [chunk + 3]
    code = (
        "from pathlib import Path; from circuits_over_time.utils.models.family import resolve_family; "
        "resolve_family('lab/run', Path('cache'), tokens_per_step=1).fetch(1000)"
    )
    settings = {"HF_ENDPOINT": served.endpoint, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if any(part.stat().st_size == chunk for part in (tmp_path / "cache").rglob(".*.part")):
                break
            time.sleep(0.01)
        process.kill()

    served.on_cut = kill
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | settings)
    assert process.wait(120) == -signal.SIGKILL
    served.on_cut = lambda: None
    folder = resolve_family("lab/run", tmp_path / "cache", tokens_per_step=1).fetch(1000).folder
    assert served.resumed_at == [chunk]
    assert (folder / "model.safetensors").read_bytes() == weights
