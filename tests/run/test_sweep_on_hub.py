"""Sweeps over checkpoints from a hub with faults: what is measured, what is left out, what stays on the disk."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from circuits_over_time.utils.models.family import HubFamily, resolve_family
from circuits_over_time.utils.results.store import Result, Store
from circuits_over_time.utils.sweep import times
from circuits_over_time.utils.sweep.runner import main
from tests.support.demo_analysis import ANALYSIS, FIRST, results_in
from tests.support.hub_server import Fault, HubServer, read_folder
from tests.support.loading import instant_waits, point_at
from tests.support.paths import TOY, TOY_STEPS
from tests.support.tiny_models import save_checkpoint, tiny_model

Run = Callable[..., int]


@pytest.fixture
def served(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[HubServer]:
    """Steps 0, 1000, 2000, 3000 of different weights; main is the last."""
    folder = tmp_path_factory.mktemp("branches")
    for step in range(4):
        save_checkpoint(folder / f"step{step}000", step)
    branches = {f"step{step * 1000}": read_folder(folder / f"step{step}000") for step in range(4)}
    instant_waits(monkeypatch)
    caplog.set_level(logging.INFO)
    with HubServer({"EleutherAI/pythia-70m": branches | {"main": branches["step3000"]}}) as hub:
        point_at(hub.endpoint, monkeypatch)
        yield hub


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    # Paths are in run.json, so all results are seen from their own folder.
    def sweep(*overrides: str, where: str = "here", **replaced: Any) -> int:
        (tmp_path / where).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / where)
        given = ["model=pythia-70m", "task=x", "device=cpu", f"cache_dir={tmp_path}/cache"]
        return main(dataclasses.replace(ANALYSIS, **replaced), [*given, *overrides])

    return sweep


def family(tmp_path: Path) -> HubFamily:
    found = resolve_family("pythia-70m", tmp_path / "cache")
    assert isinstance(found, HubFamily)
    return found


def test_a_sweep_through_all_faults_ends_in_the_bytes_of_a_quiet_one(
    served: HubServer, run: Run, tmp_path: Path
) -> None:
    assert run("prefetch=false", f"cache_dir={tmp_path}/quiet") == 0
    quiet = results_in(tmp_path / "here" / "results")
    served.faults += [
        Fault("/refs", 429, headers={"Retry-After": "7"}),
        Fault("/revision/", 500, times=3),
        Fault("model.safetensors", 503, times=2),
    ]
    served.cuts["model.safetensors"] = [100, 900]
    served.damage["model.safetensors"] = 1
    assert run("keep_checkpoints=1", where="there", measure=ANALYSIS.measure) == 0
    noisy = results_in(tmp_path / "there" / "results")
    tables = {path for path in quiet if "step" in path}
    assert {path: noisy[path] for path in tables} == {path: quiet[path] for path in tables}
    assert [fault.times for fault in served.faults] == [0, 0, 0]


def test_missing_and_damaged_checkpoints_are_left_out_and_listed_at_the_end(
    served: HubServer, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    served.missing.add("step1000")
    files = served.repositories["EleutherAI/pythia-70m"]["step2000"]
    served.repositories["EleutherAI/pythia-70m"]["step2000"] = files | {"model.safetensors": b"no weights"}
    assert run() == 1
    assert Store("results").folder(FIRST, "pythia-70m", "x").steps() == [0, 3000]
    said = [record.getMessage() for record in caplog.records]
    assert said[-2].startswith("  pythia-70m step 1000: checkpoints: revision step1000 of")
    assert said[-1].startswith("  pythia-70m step 2000: ")
    assert "cannot be read" in said[-1]
    served.missing.clear()
    caplog.clear()
    assert run("checkpoints=[0, 1000, 3000]") == 0
    assert Store("results").folder(FIRST, "pythia-70m", "x").steps() == [0, 1000, 3000]


def test_equal_weights_stop_a_sweep_before_any_are_fetched(
    served: HubServer, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    served.repositories["EleutherAI/pythia-70m"]["step1000"] = served.repositories["EleutherAI/pythia-70m"]["step3000"]
    assert run() == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "holds the weights" in line]
    assert line.startswith("pythia-70m: step 1000 holds the weights of main and step 3000; leave these steps out")
    assert served.downloads("model.safetensors") == []
    assert run("on_duplicate_weights=skip") == 0
    assert Store("results").folder(FIRST, "pythia-70m", "x").steps() == [0, 2000, 3000]
    assert run("on_duplicate_weights=warn") == 0
    assert Store("results").folder(FIRST, "pythia-70m", "x").read_run()["equal_weights"] == [[1000, 3000]]


@pytest.mark.parametrize(
    ("keep", "kept"), [("all", [0, 1000, 2000, 3000]), ("none", [0]), ("1", [0, 3000]), ("2", [0, 2000, 3000])]
)
def test_only_downloads_of_the_run_are_deleted(
    keep: str, kept: list[int], served: HubServer, run: Run, tmp_path: Path
) -> None:
    family(tmp_path).fetch(0)
    assert run(f"keep_checkpoints={keep}") == 0
    assert [step for step in family(tmp_path).steps if family(tmp_path).is_complete(step)] == kept


def test_never_more_than_two_checkpoints_are_on_disk_if_none_is_kept(
    served: HubServer, run: Run, tmp_path: Path
) -> None:
    most: list[int] = []

    def counted(*given: Any) -> dict[str, Result]:
        most.append(len(list((tmp_path / "cache").rglob("model.safetensors"))))
        return ANALYSIS.measure(*given)

    assert run("keep_checkpoints=none", measure=counted) == 0
    assert max(most) <= 2
    assert list((tmp_path / "cache").rglob("model.safetensors")) == []


def test_the_next_checkpoint_arrives_while_one_is_measured(served: HubServer, run: Run, tmp_path: Path) -> None:
    waited: list[int] = []

    def slow(checkpoint: Any, *given: Any) -> dict[str, Result]:
        following = checkpoint.step + 1000
        if following <= 2000:  # The last of all waits for nobody.
            found = family(tmp_path)
            for _ in range(2000):
                if found.is_complete(following):
                    waited.append(following)
                    break
                signal.sigtimedwait([], 0.005)
        return ANALYSIS.measure(checkpoint, *given)

    assert run(measure=slow) == 0
    assert waited == [1000, 2000]


def test_fetching_first_lets_everything_run_offline(
    served: HubServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--fetch") == 0
    assert not Path("results").exists()
    served.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run() == 0
    assert served.requests == []
    assert Store("results").folder(FIRST, "pythia-70m", "x").steps() == [0, 1000, 2000, 3000]


def test_fetching_prepares_once_so_that_data_sets_arrive_too(served: HubServer, run: Run) -> None:
    prepared: list[int] = []

    def prepare(config: Any, tokenizer: Any, shape: Any) -> Any:
        prepared.append(shape.d_vocab)
        return ANALYSIS.prepare(config, tokenizer, shape)

    assert run("--fetch", prepare=prepare) == 0
    assert len(prepared) == 1


def test_a_dry_run_estimates_from_metadata_and_from_earlier_times(
    served: HubServer, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--dry-run") == 0
    assert served.downloads("model.safetensors") == []
    out = capsys.readouterr().out
    weights = len(served.repositories["EleutherAI/pythia-70m"]["step0"]["model.safetensors"])
    assert f"  needs: download {4 * weights / 1000:.1f} kB, peak disk {4 * weights / 1000:.1f} kB, peak memory" in out
    assert "time:" not in out
    assert run("checkpoints=[0]") == 0
    kept = times.folder() / "demo.jsonl"
    kept.write_text(re.sub(r'"seconds": [\d.]+', '"seconds": 60', kept.read_text()))
    capsys.readouterr()
    assert run("--dry-run") == 0
    assert "  time: about 03:00, as measured here before" in capsys.readouterr().out
    assert run("--dry-run", "n_prompts=7", "overwrite=true") == 0
    assert "time:" not in capsys.readouterr().out


def test_shards_and_their_hashes_are_recorded(served: HubServer, run: Run, tmp_path: Path) -> None:
    tiny_model(7).save_pretrained(tmp_path / "sharded", max_shard_size="3KB")
    branches = served.repositories["EleutherAI/pythia-70m"]
    small = {name: data for name, data in branches["step1000"].items() if name != "model.safetensors"}
    branches["step1000"] = small | read_folder(tmp_path / "sharded")
    assert run("checkpoints=[0, 1000]") == 0
    recorded = Store("results").folder(FIRST, "pythia-70m", "x").read_run()["checkpoints"]
    listing = family(tmp_path).listing(1000)
    assert len(listing.weights) > 1
    assert recorded["1000"]["shards"] == listing.weight_hashes
    assert "shards" not in recorded["0"]


def test_results_of_weights_that_the_hub_has_replaced_are_refused_from_metadata_alone(
    served: HubServer, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("checkpoints=[0, 1000]", "keep_checkpoints=none") == 0
    before = results_in(tmp_path / "here" / "results")
    branches = served.repositories["EleutherAI/pythia-70m"]
    save_checkpoint(tmp_path / "anew", 9)
    branches["step1000"] = read_folder(tmp_path / "anew")
    served.requests.clear()
    assert run("keep_checkpoints=none") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "results/first/pythia-70m/x holds results of EleutherAI/pythia-70m, this run measures other weights in "
        "EleutherAI/pythia-70m (step 1000); pass overwrite=true or another results_dir"
    )
    # One listing of branches, and one of the only commit that is new.
    assert len(served.requests) == 2
    assert results_in(tmp_path / "here" / "results") == before
    assert run("overwrite=true", "keep_checkpoints=none") == 0
    assert run("checkpoints=[0, 1000, 2000, 3000]") == 0
    found = Store("results").folder(FIRST, "pythia-70m", "x").read_run()["checkpoints"]["1000"]
    assert found["sha256"] == family(tmp_path).listing(1000).formats[0]["model.safetensors"]


def test_a_new_commit_with_the_same_weights_and_a_renamed_repository_go_on(
    served: HubServer, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branches = served.repositories["EleutherAI/pythia-70m"]
    served.repositories["old/run"] = dict(branches)
    given = ("tokens_per_step=64", "keep_checkpoints=none")
    assert run("model=old/run", "checkpoints=[0]", *given) == 0
    branches["step0"] = branches["step0"] | {"README.md": b"a new sentence"}
    served.repositories["old/run"]["step0"] = branches["step0"]
    assert run("model=old/run", "checkpoints=[0, 1000]", *given) == 0
    served.repositories["new/run"] = served.repositories["old/run"]
    served.renamed["old/run"] = "new/run"
    assert run("model=new/run", "checkpoints=[0, 1000, 2000]", *given) == 0
    assert run("model=old/run", "checkpoints=[0, 1000, 2000, 3000]", *given) == 0
    save_checkpoint(tmp_path / "other", 9)
    served.repositories["other/run"] = dict(branches, step0=read_folder(tmp_path / "other"))
    assert run("model=other/run", *given) == 2
    assert "this run measures other weights in other/run (step 0); pass overwrite=true" in capsys.readouterr().err


def test_a_download_that_the_hub_has_replaced_is_never_measured_unnoticed(
    served: HubServer, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family(tmp_path).fetch(1000)
    family(tmp_path).fetch_small(2000)
    branches = served.repositories["EleutherAI/pythia-70m"]
    for number, step in enumerate(("step1000", "step2000")):
        save_checkpoint(tmp_path / step, 8 + number)
        branches[step] = read_folder(tmp_path / step)
    assert run("checkpoints=[0, 1000]") == 2
    folder = family(tmp_path).folder(1000)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"cache_dir: {folder} holds other weights of step 1000")
    shutil.rmtree(folder)
    assert run("checkpoints=[1000, 2000]") == 0
    found = Store("results").folder(FIRST, "pythia-70m", "x").read_run()["checkpoints"]
    for step in (1000, 2000):
        assert found[str(step)]["sha256"] == family(tmp_path).listing(step).formats[0]["model.safetensors"]


@pytest.mark.slow
def test_the_toy_family_from_the_hub_gives_the_results_of_the_one_on_disk(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {path.name: path.read_bytes() for path in TOY.iterdir() if path.is_file() and path.name != "family.json"}
    branches = {f"step{step}": shared | read_folder(TOY / f"step{step}") for step in TOY_STEPS}
    given = ["task=x", "tokens_per_step=4096"]
    with HubServer({"lab/toy": branches}) as hub:
        point_at(hub.endpoint, monkeypatch)
        instant_waits(monkeypatch)
        assert run("model=lab/toy", *given, where="hub") == 0
    assert run(f"model={TOY}", *given, where="disk") == 0
    found = [
        {path: data for path, data in results_in(tmp_path / where / "results").items() if "/step" in path}
        for where in ("hub", "disk")
    ]
    tables = [{path: data for path, data in each.items() if path.endswith(".pt")} for each in found]
    assert tables[0] == tables[1]
    assert len(tables[0]) == len(TOY_STEPS)
