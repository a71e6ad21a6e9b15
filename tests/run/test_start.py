"""What a script imports before it has anything to compute."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from circuits_over_time.utils.sweep.analysis import Analysis, Lazy, loaded
from tests.support.paths import ROOT, TOY

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if 'if __name__ == "__main__"' in path.read_text())
HEAVY = ("torch", "transformers", "transformer_lens", "datasets", "huggingface_hub", "pandas", "scipy")
RUN = """
import importlib, io, json, sys
sys.path.insert(0, ROOT)
from circuits_over_time.utils.sweep import runner

found = {}
for name, arguments in CALLS:
    script = importlib.import_module(f"circuits_over_time.{name}")
    main = runner.main_of_suite if name == "run_suite" else getattr(script, "main", None)
    given = [arguments] if name == "run_suite" or not hasattr(script, "ANALYSIS") else [script.ANALYSIS, arguments]
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    try:
        code = main(*given)
    except SystemExit as end:  # As argparse ends after its help.
        code = end.code
    said = sys.stdout.getvalue() + sys.stderr.getvalue()
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    found[f"{name} {' '.join(arguments)}"] = [code, said, sorted(set(HEAVY) & set(sys.modules)), len(sys.modules)]
print(json.dumps(found))
"""


def started(calls: list[tuple[str, list[str]]], folder: Path) -> dict[str, Any]:
    """Each call's exit code and text, and what it and those before it have imported, in one new process."""
    code = RUN.replace("ROOT", repr(str(ROOT))).replace("HEAVY", repr(HEAVY)).replace("CALLS", repr(calls))
    env = {**os.environ, "XDG_CACHE_HOME": str(folder)}  # without times of earlier measurements
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_help_and_wrong_keys_import_no_library_that_computes(tmp_path: Path) -> None:
    assert len(SCRIPTS) == 14
    calls = [(name, [argument]) for name in SCRIPTS for argument in ("--help", "no_such_key=1")]
    for call, (code, said, heavy, modules) in started(calls, tmp_path).items():
        assert (call, heavy) == (call, [])
        assert modules < 450
        assert code == (0 if "--help" in call else 2)
        assert ("usage: " if "--help" in call else "no_such_key: unknown key") in said


@pytest.mark.slow
def test_a_dry_run_of_a_local_model_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    keys = [f"model={TOY}", "--dry-run"]
    more = {"get_model_cspa": ["corpus=toy"], "get_circuits_over_time": ["task=[ioi, sva]", "transfer=all"]}
    more |= {"get_model_task_performance": ["task=all"], "get_component_swaps": ["task=sva"]}
    more |= {"get_head_signatures": ["task=sva"], "get_learning_coefficients_over_time": ["corpus=toy"]}
    calls = [(name, [*keys, *more.get(name, [])]) for name in SCRIPTS if name.startswith("get_")]
    (tmp_path / "suite.yml").write_text("analyses: [{script: get_circuits_over_time.py, task: ioi}]\n")
    calls.append(("run_suite", ["-c", "suite.yml", *keys]))
    for call, (code, said, heavy, _) in started(calls, tmp_path).items():
        assert (call, heavy) in ((call, []), (call, ["pandas"]))
        if "devinterp is not installed" in said:
            assert (code, call.split()[0]) == (2, "get_learning_coefficients_over_time")
            continue
        assert code == 0, said
        assert "3 of 3 checkpoints to measure" in said
        assert "from the model's shape, without loading\n    a checkpoint: " in said


@pytest.mark.slow
def test_a_dry_run_refuses_prompts_that_the_run_refuses_without_torch(tmp_path: Path) -> None:
    rows = [f"So {name} is,So Mary is, he, she" for name in ("James", "John", "Paul")]
    header = "clean,corrupted,answers,wrong_answers\n"
    (tmp_path / "few.csv").write_text(header + "\n".join(rows))
    (tmp_path / "unfit.csv").write_text(header + "\n".join([*rows, "So Mark is,So Mary is, he she, she"]))
    (tmp_path / "long.csv").write_text(header + f"{'So ' * 300}James is,{'So ' * 300}Mary is, he, she")
    (tmp_path / "few.txt").write_text("So James is here.\n")
    keys = [f"model={TOY}", "--dry-run"]
    told = {
        (
            "get_circuits_over_time",
            "task=few.csv n_prompts=3",
        ): "it can make only 3; pass n_prompts=1 or evaluate_on=same",
        ("get_circuits_over_time", "task=unfit.csv"): "unfit.csv: row 4 (line 5): ' he she' is 2 tokens after",
        ("get_circuits_over_time", "task=long.csv evaluate_on=same"): "task: long: a prompt has 900 tokens",
        ("get_model_task_performance", "task=few.csv n_prompts=4"): "it can make only 3; pass n_prompts=3",
        ("get_model_task_performance", "task=unfit.csv"): "unfit.csv: row 4 (line 5): ' he she' is 2 tokens after",
        ("get_full_model_components_over_time", "seq_len=300"): "seq_len: two blocks of 300 tokens need 600 positions",
        ("get_model_cspa", "corpus=toy seq_len=600"): "seq_len: 600 tokens; the model has 512 positions; lower seq_len",
        (
            "get_model_cspa",
            "corpus=toy start_layer=4",
        ): "start_layer: 4; the model has layers 0 to 3; lower start_layer",
        ("get_model_cspa", "corpus=few.txt"): "few.txt gives 0 sequences of 61 tokens, but 117 are needed",
        ("get_ioi_consistency", "components.seq_len=300"): "components.seq_len: two blocks of 300 tokens",
        ("get_ioi_consistency", "cspa.corpus=toy cspa.seq_len=600"): "cspa.seq_len: 600 tokens; the model has 512",
    }
    calls = [(name, [*keys, *more.split()]) for name, more in told]
    for (call, (code, said, heavy, _)), text in zip(started(calls, tmp_path).items(), told.values(), strict=True):
        assert (call, heavy) in ((call, []), (call, ["pandas"]))
        assert (call, code) == (call, 2)
        assert text in said
    calls = [
        ("get_circuits_over_time", [*keys, "task=few.csv"]),
        ("get_model_task_performance", [*keys, "task=few.csv"]),
    ]
    assert [code for code, *_ in started(calls, tmp_path).values()] == [0, 0]


def functions_of(analysis: Analysis) -> list[Any]:
    """Whatever it names to be imported later, in the analysis that follows it too."""
    values = [getattr(analysis, field.name) for field in dataclasses.fields(analysis)]
    found = [value for value in values if isinstance(value, Lazy)]
    return found + [value for after in analysis.then for value in functions_of(after)]


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name.startswith("get_")])
def test_what_a_script_names_is_there(script: str) -> None:
    named = functions_of(importlib.import_module(f"circuits_over_time.{script}").ANALYSIS)
    assert len(named) >= 2
    assert all(callable(loaded(function)) for function in named)
