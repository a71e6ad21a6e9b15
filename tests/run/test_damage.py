"""Results that were damaged, or follow other definitions: refused by name, and measured again where asked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.checked import Damaged
from circuits_over_time.utils.results.store import ResultsFolder, Store
from circuits_over_time.utils.sweep.runner import Analysis, main
from tests.support.demo_analysis import ANALYSIS, FIRST, SECOND, results_in
from tests.support.tiny_models import save_family


@dataclasses.dataclass
class Sweep:
    """A finished sweep, and what a second one says of it."""

    family: Path
    results: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *overrides: str, analysis: Analysis = ANALYSIS) -> int:
        self.capsys.readouterr()
        given = [f"model={self.family}", "task=[x, y]", f"results_dir={self.results}", "device=cpu"]
        return main(analysis, [*given, *overrides])

    @property
    def told(self) -> str:
        return self.capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sweep:
    made = Sweep(save_family(tmp_path / "tiny", {0: 0, 10: 1}), tmp_path / "results", capsys)
    assert made.run() == 0
    return made


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("step000010.csv", lambda data: data[: len(data) // 2]),
        ("step000010.csv", lambda data: data.replace(b"0", b"1", 1)),
        ("step000010.csv", lambda data: b""),
        ("step000010.pt", lambda data: data[:-1]),
        ("step000010.pt", lambda data: None),
    ],
    ids=["truncated table", "edited table", "empty table", "truncated tensors", "no tensors"],
)
def test_a_damaged_file_is_named_and_measured_again_with_repair(name: str, damage: object, sweep: Sweep) -> None:
    before = results_in(sweep.results)
    path = sweep.results / "first" / "tiny" / "x" / name
    data = damage(path.read_bytes())  # type: ignore[operator]
    path.unlink() if data is None else path.write_bytes(data)
    damaged = results_in(sweep.results)
    assert sweep.run() == 2
    reason = "it is gone" if data is None else "not what was written"
    assert sweep.told == f"{path} is damaged ({reason}); pass repair=true to measure again"
    assert results_in(sweep.results) == damaged
    assert sweep.run("repair=true") == 0
    after = results_in(sweep.results)
    assert [held for held in before if before[held] != after[held] and not held.endswith("run.json")] == []
    assert sweep.run() == 0


def test_a_damaged_run_json_is_named_and_its_folder_measured_again(sweep: Sweep) -> None:
    before = results_in(sweep.results)
    path = sweep.results / "second" / "tiny" / "y" / "run.json"
    odd_file = json.dumps(json.loads(path.read_bytes()) | {"files": {"notes.txt": "0"}}).encode()
    for data in (b"", path.read_bytes()[:100], b"[]", b"{}", b'{"settings": {}, "checkpoints": {"0": 3}}', odd_file):
        path.write_bytes(data)
        assert sweep.run() == 2
        assert sweep.told.startswith(f"{path} is damaged; pass repair=true")
        assert sweep.run("repair=true") == 0
        after = results_in(sweep.results)
        assert [held for held in before if before[held] != after[held] and not held.endswith("run.json")] == []


def test_a_repaired_file_is_the_only_one_measured_again(sweep: Sweep) -> None:
    (sweep.results / "first" / "tiny" / "x" / "step000010.csv").write_bytes(b"")
    measured = []

    def watched(checkpoint: object, config: object, inputs: object, task: object) -> object:
        measured.append((checkpoint.step, task.name))  # type: ignore[attr-defined]
        return ANALYSIS.measure(checkpoint, config, inputs, task)  # type: ignore[arg-type]

    assert sweep.run("repair=true", analysis=dataclasses.replace(ANALYSIS, measure=watched)) == 0  # type: ignore[arg-type]
    assert measured == [(10, "x")]


def test_results_of_another_version_of_the_definitions_are_refused(sweep: Sweep) -> None:
    later = dataclasses.replace(ANALYSIS, kinds=(dataclasses.replace(FIRST, version=2), SECOND))
    assert sweep.run(analysis=later) == 2
    assert sweep.told == (
        f"{sweep.results}/first/tiny/x holds definitions_version=1, this run asks for 2; "
        "pass overwrite=true or another results_dir"
    )
    assert sweep.run("overwrite=true", analysis=later) == 0
    run = json.loads((sweep.results / "first" / "tiny" / "x" / "run.json").read_text())
    assert run["settings"]["definitions_version"] == 2


def test_a_reader_says_that_a_table_is_of_an_older_version_and_not_that_it_is_damaged(sweep: Sweep) -> None:
    newer = dataclasses.replace(FIRST, version=FIRST.version + 1, columns={**FIRST.columns, "late": "a new column"})
    with pytest.raises(Damaged) as caught:
        ResultsFolder(sweep.results, newer, "tiny", "x").read_table(10)
    assert f"is of version {FIRST.version} of its definitions, this is {newer.version}" in str(caught.value)
    assert str(caught.value).endswith("run: cot.over_time(..., overwrite=True)")
    assert "damaged" not in str(caught.value)
    store = Store(sweep.results)
    assert store.sound(ResultsFolder(sweep.results, newer, "tiny", "x"), ResultsFolder.read_table) == {}
    with pytest.raises(UserError, match=r"holds results of another version only; run: .* overwrite=True\)$"):
        store.read_tables(newer, "tiny", "x")


def test_results_of_weights_that_were_replaced_since_are_refused_at_any_step(sweep: Sweep) -> None:
    save_family(sweep.family, {0: 5})
    assert sweep.run() == 2
    assert "this run measures other weights in" in sweep.told


def test_run_json_holds_the_hash_of_every_file_in_order(sweep: Sweep) -> None:
    held = json.loads((sweep.results / "first" / "tiny" / "x" / "run.json").read_text())["files"]
    assert list(held) == ["step000000.csv", "step000000.pt", "step000010.csv", "step000010.pt"]


def test_overwrite_is_refused_while_another_process_measures(sweep: Sweep) -> None:
    claim = sweep.results / ".claims" / ".runs" / "demo" / "tiny" / "x" / "t"
    claim.parent.mkdir(parents=True)
    claim.write_text('{"host": "node7", "pid": 12, "machine": "node7", "started": "1", "token": "t"}')
    assert sweep.run("overwrite=true") == 2
    assert sweep.told == (
        f"overwrite: process 12 on node7 is measuring demo of tiny into {sweep.results}; wait for it, or leave "
        "overwrite out to share the work"
    )
