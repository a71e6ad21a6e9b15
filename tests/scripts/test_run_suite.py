"""A suite writes what its scripts write alone, and loads each checkpoint once."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from circuits_over_time.utils.config.keys import load_config
from circuits_over_time.utils.models.checkpoint import LoadedCheckpoint
from circuits_over_time.utils.models.family import LocalFamily
from circuits_over_time.utils.sweep.analysis import Analysis
from circuits_over_time.utils.sweep.plan import Job
from circuits_over_time.utils.sweep.runner import main, main_of_suite
from circuits_over_time.utils.sweep.suite import in_order
from get_circuits_over_time import ANALYSIS as CIRCUITS
from get_component_swaps import ANALYSIS as SWAPS
from get_full_model_components_over_time import ANALYSIS as COMPONENTS
from get_ioi_consistency import ANALYSIS as CONSISTENCY
from get_model_cspa import ANALYSIS as CSPA
from tests.support.paths import TOY

KEYS: dict[str, dict[str, Any]] = {
    "get_ioi_consistency": {
        "n_prompts": 4,
        "circuit": {"n_prompts": 4, "dtype_of": {"toy": "bfloat16"}, "eap": {"ig_steps": 2}, "search": {"sizes": [20]}},
        "components": {"n_sequences": 2, "seq_len": 18, "n_prompts": 4},
        "cspa": {"corpus": "toy", "seq_len": 12, "n_sequences": 2, "n_mean_sequences": 2, "dtype": "bfloat16"},
    },
    "get_model_cspa": {
        **{"corpus": "toy", "seq_len": 12, "n_sequences": 2, "n_mean_sequences": 2},
        "dtype": "bfloat16",
    },
    "get_circuits_over_time": {
        "task": ["ioi", "sva"],
        "dtype_of": {"toy": "bfloat16"},
        "n_prompts": 4,
        "eap": {"ig_steps": 2},
        "search": {"sizes": [20]},
    },
    "get_full_model_components_over_time": {"n_sequences": 2, "seq_len": 18, "n_prompts": 4},
}
SCRIPTS = {analysis.name: analysis for analysis in (CIRCUITS, COMPONENTS, CSPA, CONSISTENCY)}
STEPS = [0, 1350]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_suite(path: Path, **shared: Any) -> Path:
    entries = [{"script": f"{name}.py", **keys} for name, keys in KEYS.items()]
    suite = {"model": str(TOY), "checkpoints": STEPS, "device": "cpu", **shared, "analyses": entries}
    path.write_text(json.dumps(suite))  # JSON is YAML.
    return path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps: list[int] = []
    load = LocalFamily.load

    def watched(self: LocalFamily, step: int, *args: Any) -> LoadedCheckpoint:
        steps.append(step)
        return load(self, step, *args)

    monkeypatch.setattr(LocalFamily, "load", watched)
    return steps


@pytest.mark.slow
def test_a_suite_writes_the_files_of_the_single_scripts_and_loads_each_checkpoint_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[int]
) -> None:
    for name in ("single", "suite"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "single")
    for name, analysis in SCRIPTS.items():  # Consistency comes last, and finds what the others made.
        path = tmp_path / f"{name}.yml"
        path.write_text(json.dumps({"model": str(TOY), "checkpoints": STEPS, "device": "cpu", **KEYS[name]}))
        assert main(analysis, ["-c", str(path)]) == 0
    monkeypatch.chdir(tmp_path / "suite")
    loaded.clear()
    assert main_of_suite(["-c", str(write_suite(tmp_path / "suite.yml"))]) == 0
    assert loaded == STEPS
    single, suite = (files_in(tmp_path / name / "results") for name in ("single", "suite"))
    assert sorted(single) == sorted(suite)
    assert [name for name in single if single[name] != suite[name]] == []
    inputs = json.loads(suite["ioi_consistency/toy/step001350.json"])["inputs"]
    assert inputs == {"circuit": "stored", "components": "stored", "cspa": "stored"}
    formats = {name: json.loads(suite[f"{name}/toy/run.json"])["settings"]["dtype"] for name in ("cspa", "components")}
    assert formats == {"cspa": "bfloat16", "components": "float32"}


def test_circuits_by_several_methods_and_what_reads_them_are_those_of_the_single_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[int]
) -> None:
    small = {"task": "sva", "n_prompts": 4, "n_random": 0}
    of_circuits = small | {"search": {"sizes": [20]}, "attention": None}
    entries: list[tuple[Analysis, dict[str, Any]]] = [
        (
            SWAPS,
            small
            | {"task": ["sva@eap", "sva@zero+node"], "components": ["circuit"], "sources": [1350]}
            | {"n_sequences": 0},
        ),
        (CIRCUITS, of_circuits | {"eap": {"method": "eap"}}),
        (CIRCUITS, of_circuits | {"eap": {"ig_steps": 2}, "ablation": "zero", "level": "node"}),
    ]
    shared = {"model": str(TOY), "checkpoints": [1350], "device": "cpu"}
    for name in ("single", "suite"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "single")
    for analysis, keys in [*entries[1:], entries[0]]:
        (tmp_path / "one.yml").write_text(json.dumps(shared | keys))
        assert main(analysis, ["-c", str(tmp_path / "one.yml")]) == 0
    monkeypatch.chdir(tmp_path / "suite")
    loaded.clear()
    analyses = [{"script": f"{one.name}.py"} | keys for one, keys in entries]
    (tmp_path / "suite.yml").write_text(json.dumps(shared | {"analyses": analyses}))
    assert main_of_suite(["-c", str(tmp_path / "suite.yml")]) == 0
    assert loaded == [1350]
    single, suite = (files_in(tmp_path / name / "results") for name in ("single", "suite"))
    assert single == suite
    assert {"swaps/toy/sva@eap/step001350.csv", "swaps/toy/sva@zero+node/step001350.csv"} <= set(suite)


@pytest.mark.slow
def test_only_what_an_analysis_lacks_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = write_suite(tmp_path / "suite.yml", checkpoints=[0])
    assert main_of_suite(["-c", str(suite)]) == 0
    before = files_in(tmp_path / "results")
    (tmp_path / "results/cspa/toy/step000000.csv").unlink()
    loaded.clear()
    assert main_of_suite(["-c", str(suite)]) == 0
    assert loaded == [0]
    assert files_in(tmp_path / "results") == before
    loaded.clear()
    assert main_of_suite(["-c", str(suite)]) == 0
    assert loaded == []


def test_what_is_read_is_written_first() -> None:
    jobs = [Job(SCRIPTS[name], load_config(SCRIPTS[name].schema, None, [f"model={TOY}", *extra])) for name, extra in (
        ("get_ioi_consistency", []),
        ("get_model_cspa", ["corpus=toy"]),
        ("get_circuits_over_time", ["task=ioi"]),
        ("get_circuits_over_time", ["task=sva"]),
        ("get_full_model_components_over_time", []),
    )]  # fmt: skip
    assert in_order(jobs) == [*jobs[1:], jobs[0]]
    assert in_order(jobs[::-1]) == [*jobs[:0:-1], jobs[0]]


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ("[]", "analyses: [] is not a list of at least 1"),
        ("[{corpus: toy}]", "analyses[0]: names no script; write '- script: get_circuits_over_time.py'"),
        ("[{script: get_circuit.py}]", "analyses[0].script: 'get_circuit.py' is not an analysis; did you mean"),
        ("[{script: os.py}]", "analyses[0].script: 'os.py' is not an analysis; known: get_circuits_over_time.py,"),
        (
            "[{script: get_model_cspa.py, corpus: toy, seq_length: 3}]",
            "analyses[0] (get_model_cspa.py): seq_length: unknown key; did you mean 'seq_len'?",
        ),
        (
            "[{script: get_model_cspa.py, corpus: toy, device: cpu}]",
            "analyses[0] (get_model_cspa.py): device: is the same for all analyses; set it for the whole suite",
        ),
        (
            "[{script: get_model_cspa.py, corpus: toy}, {script: get_model_cspa.py, corpus: toy, seed: 1}]",
            "analyses: two entries of get_model_cspa.py would write the same results; join them",
        ),
        ("[{script: get_model_cspa.py, config: 3}]", "analyses[0] (get_model_cspa.py): config: 3 is not a path"),
        (
            "[{script: get_model_cspa.py, config: no.yml}]",
            "analyses[0] (get_model_cspa.py): config: no.yml: no such file",
        ),
    ],
)
def test_a_mistake_in_an_entry_is_told_in_one_line(
    entries: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main_of_suite([f"model={TOY}", f"analyses={entries}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_dry_run_lists_every_analysis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = write_suite(tmp_path / "suite.yml", results_dir=str(tmp_path / "results"))
    assert main_of_suite(["-c", str(suite), "--dry-run"]) == 0
    out = capsys.readouterr().out
    for name in KEYS:
        assert f"{name}: toy from {TOY}: 2 of 2 checkpoints to measure" in out
    formats = dict(re.findall(r"get_(\w+): .*\n  dtype: (.*)", out))
    assert formats == {"model_cspa": "bfloat16", "circuits_over_time": "bfloat16"} | dict.fromkeys(
        ("full_model_components_over_time", "ioi_consistency"), "float32"
    )
    assert not (tmp_path / "results").exists()


def test_a_dry_run_tells_models_and_entries_of_one_script_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(TOY, tmp_path / "other")
    tasks = ("ioi", ["greater_than", "sva"])
    entries = [{"script": "get_circuits_over_time.py", "n_prompts": 4, "task": task} for task in tasks]
    keys = {
        "model": [str(TOY), str(tmp_path / "other")],
        "checkpoints": STEPS,
        "results_dir": str(tmp_path / "results"),
    }
    (tmp_path / "suite.yml").write_text(json.dumps(keys | {"device": "cpu", "analyses": entries}))
    assert main_of_suite(["-c", str(tmp_path / "suite.yml"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    for model in ("toy", "other"):
        assert f"get_circuits_over_time ioi: {model} from " in out
        assert f"get_circuits_over_time greater_than sva: {model} from " in out
        assert f"  needs of {model}: download 0 B" in out
    assert re.search(r"\nall models: (about \S+|under a second) of a usual GPU, from the models' shapes, .*\n$", out)


def test_fetching_measures_nothing(tmp_path: Path, loaded: list[int]) -> None:
    suite = write_suite(tmp_path / "suite.yml", results_dir=str(tmp_path / "results"))
    assert main_of_suite(["-c", str(suite), "--fetch"]) == 0
    assert loaded == []
    assert not (tmp_path / "results").exists()


def test_an_error_of_later_names_the_entry_that_the_key_belongs_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [{"script": "get_full_model_components_over_time.py", "seq_len": 4000}]
    path = tmp_path / "suite.yml"
    keys = {"model": str(TOY), "device": "cpu", "results_dir": str(tmp_path / "results"), "analyses": entries}
    path.write_text(json.dumps(keys))
    assert main_of_suite(["-c", str(path)]) == 2
    where = f"{path}: analyses[0] (get_full_model_components_over_time.py): seq_len: two blocks of 4000 tokens"
    assert capsys.readouterr().err.splitlines()[-1].startswith(where)
