"""Every command that the report suggests runs as it stands: it is not refused, and there is something to do."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from circuits_over_time.plotting.make_report import main as make_report
from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.plotting.report.advice import Advice, also_possible, unfinished
from circuits_over_time.utils.results.commands import how_to_compare, how_to_make
from circuits_over_time.utils.results.store import Store
from tests.support.commands import run_command as run
from tests.support.paths import ROOT, TOY
from tests.support.tiny_models import save_family

OWN_RESULTS = "my results"
QUICK = ["n_prompts=4", "eap.ig_steps=2", "search.sizes=[10,40]", "n_random=0"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout: the toy family measured with its config, and a user's own model on an own task."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "model_cache").mkdir()
    (folder / "model_cache/toy").symlink_to(TOY)
    save_family(folder / "own/tiny", {0: 0, 10: 1, 20: 2})
    prompts = [
        ("When Mary and John went to the store", "When John and Mary went to the store", "Mary", "John"),
        ("Mary and John gave John a", "John and Mary gave John a", "drink", "store"),
        ("Mary went to the store and John gave", "John went to the store and Mary gave", "John", "Mary"),
        ("John went to the store and Mary gave", "Mary went to the store and John gave", "Mary", "John"),
    ]
    rows = ["clean,corrupted,answers,wrong_answers", *(f"{a},{b}, {c}, {d}" for a, b, c, d in prompts)]
    (folder / "own/drinks.csv").write_text("\n".join(rows) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toy = "python get_circuits_over_time.py -c configs/toy.yml 'task=[ioi, sva]'"
        assert run(toy, "checkpoints=[0,1350]", *QUICK) == 0
        own = f"python get_circuits_over_time.py model=own/tiny task=own/drinks.csv results_dir='{OWN_RESULTS}'"
        assert run(own, "metric=logit_diff", *QUICK, "n_prompts=2", "seed=3") == 0
    return folder


@pytest.mark.parametrize(("results_dir", "n_suggested"), [("results", 8), (OWN_RESULTS, 2)])
def test_every_suggested_command_finds_something_to_do(
    project: Path, results_dir: str, n_suggested: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(project)
    results = Results(Store(results_dir), in_report=True)
    suggested = also_possible(results)
    assert unfinished(results) == []
    assert len(suggested) == n_suggested  # Where no circuit was found there is none for other checkpoints.
    for advice in suggested:
        _does_something(advice, capsys)


def test_checkpoints_and_transfers_that_were_asked_for_are_named_with_the_command_that_goes_on(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(project)
    results_dir = f"results_dir={tmp_path}"
    with_transfer = "python get_circuits_over_time.py -c configs/toy.yml task=sva transfer=all"
    assert run(with_transfer, "checkpoints=[0,1350]", results_dir, *QUICK) == 0
    scores = "python get_full_model_components_over_time.py -c configs/components_toy.yml checkpoints=[0,1350]"
    assert run(scores, results_dir, "n_sequences=2", "n_prompts=2") == 0
    results = Results(Store(tmp_path), in_report=True)
    assert unfinished(results) == []
    results.store.folder("components", "toy").delete(1350)
    results.store.folder("transfer", "toy", "sva").delete(0)
    transfer, heads = unfinished(results)
    assert "toy, Subject-verb agreement: 1 of 2 checkpoints" in transfer.what
    assert "toy: 1 of 2 checkpoints" in heads.what
    for advice in (transfer, heads):
        _does_something(advice, capsys)
    assert run(heads.command) == run(transfer.command) == 0
    assert unfinished(results) == []


def test_results_of_older_definitions_are_measured_again_with_overwrite(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    scores = "python get_full_model_components_over_time.py -c configs/components_toy.yml checkpoints=[0,1350]"
    assert run(scores, f"results_dir={tmp_path}", "n_sequences=2", "n_prompts=2") == 0
    folder = Results(Store(tmp_path)).store.folder("components", "toy")
    folder.delete(1350)
    record = json.loads((folder.path / "run.json").read_text())
    record["settings"]["definitions_version"] -= 1
    (folder.path / "run.json").write_text(json.dumps(record))
    (advice,) = unfinished(Results(Store(tmp_path), in_report=True))
    for command in (advice.command, how_to_make(tmp_path, "components", "toy")):
        assert command.endswith(" overwrite=true")
    assert run(advice.command.removesuffix(" overwrite=true")) == 2, "as the run says"
    assert run(advice.command) == 0
    assert unfinished(Results(Store(tmp_path))) == []


def _does_something(advice: Advice, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    assert run(advice.command, "--dry-run") == 0, (advice, capsys.readouterr().err)
    told = capsys.readouterr()
    todo = [line for line in told.out.splitlines() if " checkpoints to measure" in line or "compared, " in line]
    assert todo, advice
    assert not all(": 0 of " in line or ", 0 missing" in line for line in todo), (advice, todo)
    assert "is not read" not in told.err


def test_a_command_repeats_what_was_run_and_nothing_else(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    toy = how_to_make(Path("results"), "baselines", "toy", "sva")
    assert toy.startswith("python get_circuits_over_time.py -c configs/toy.yml ")
    assert {"task=sva", "'checkpoints=[0,1350]'", "n_prompts=4"} <= set(shlex.split(toy, posix=False))
    own = shlex.split(how_to_make(Path(OWN_RESULTS), "task_performance", "tiny", "drinks"))
    assert own[:2] == ["python", "get_model_task_performance.py"]
    assert sorted(own[2:]) == sorted(
        [
            *("model=own/tiny", "task=own/drinks.csv", "metric=logit_diff", "n_prompts=2", "seed=3"),
            *(f"results_dir={OWN_RESULTS}", "prepend_bos=false"),
        ]
    )
    assert how_to_compare(Path(OWN_RESULTS)) == f"python compare_circuits.py 'results_dir={OWN_RESULTS}'"


def test_what_was_not_asked_for_is_no_fault_and_nothing_is_said_twice(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(project)
    caplog.set_level("INFO")
    assert make_report(["-r", OWN_RESULTS, "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not finished" not in page
    for advice in also_possible(Results(Store(OWN_RESULTS), in_report=True)):
        assert page.count(advice.command.replace("'", "&#x27;")) == 1
    assert not [record.getMessage() for record in caplog.records if "run: python" in record.getMessage()]
