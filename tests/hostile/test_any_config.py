"""Whatever a config holds, a script runs or ends with exit code 2 and a line for each mistake, never a traceback."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import check_checkpoints
import compare_circuits
from circuits_over_time.utils.comparison.keys import ComparisonConfig
from circuits_over_time.utils.config.command_line import read_command_line, script
from circuits_over_time.utils.config.explain import all_keys
from circuits_over_time.utils.config.keys import TaskConfig
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.sweep.runner import main, main_of_suite
from circuits_over_time.utils.sweep.suite import SuiteConfig, find_analysis
from circuits_over_time.utils.toy.keys import FamilyConfig
from tests.support.demo_analysis import ANALYSIS
from tests.support.word_family import save_word_family

# Ray and Slurm are tested for real in test_executors.py; here every try would start a cluster.
KEYS = sorted({*TaskConfig.model_fields, *SuiteConfig.model_fields, "eap", "sede", ""} - {"executor", "ray_address"})
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["tiny", "all", "cpu", "x", "ioi", "results", "step0", "float32", "nowhere/at/all", "\0", "../tiny"]
    ),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
# What has broken programs before: numbers at and beyond the ends of types, names that are paths, lists of nothing.
HOSTILE = st.sampled_from(
    [
        *(-1, 0, 1, 10**6, 10**9, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, 10**400),
        *(float("inf"), 1e308, -1e308, 1e-320, -0.5, 1.5, 500.0),
        *("", "  ", ".x", "..", "a/../b", "x\\y", "~", "~/x", "~nobody_/x", "/", "/proc/x/y", "/dev/null", "a\nb"),
        *("x" * 300, "\ud800", "\0", "*", "cuda:99", "train[:0]", "(?P<step>", "(?P<step>x)", "tiny/step0/config.json"),
        *([], {}, [[]], [None], [0], [5], [5, 5], [0, -1], [2**64], ["a", "a"], ["ov", "ov"], [0.9], [0.9, 2.0]),
        *({"a": 1}, {"": []}, {"a": ["x", "x"]}),
    ]
)
WORKING: dict[str, Any] = {"model": "tiny", "task": "x", "device": "cpu", "checkpoints": [0]}
# The models of `tiny` read 64 tokens.
SHORT = {"seq_len": 20}
SCRIPTS = [
    {"script": "get_model_cspa.py", "corpus": "toy"},
    {"script": "get_full_model_components_over_time.py", **SHORT},
]


@script
def toy_config(argv: Sequence[str]) -> int:
    """make_toy_checkpoints.py, up to the training."""
    read_command_line("make_toy_checkpoints.py", FamilyConfig, [argument for argument in argv if argument[:2] != "--"])
    return 0


def without_dry_run(start: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    return lambda argv: start([argument for argument in argv if argument != "--dry-run"])


Script = tuple[Callable[[list[str]], int], type[BaseModel], dict[str, Any]]
"""How it is started, its keys, and a config that works."""


def every_script() -> dict[str, Script]:
    of_model = {"model": "tiny", "device": "cpu", "checkpoints": [0]}
    needed = {
        "get_circuits_over_time.py": {"task": "ioi"},
        "get_model_task_performance.py": {"task": "all"},
        "get_model_cspa.py": {"corpus": "toy"},
        "get_full_model_components_over_time.py": SHORT,
        "get_ioi_consistency.py": {"components": SHORT},
        "get_component_swaps.py": {"task": "ioi", **SHORT},
        "get_head_signatures.py": {"task": "ioi"},
        "get_learning_coefficients_over_time.py": {"corpus": "toy"},
    }
    found: dict[str, Script] = {}
    for name in dict.fromkeys(kind.script for kind in KINDS.values()):
        analysis = find_analysis(name)
        start = lambda argv, analysis=analysis: main(analysis, argv)  # noqa: E731
        found[name] = (start, analysis.schema, of_model | needed.get(name, {}))
    found["run_suite.py"] = (main_of_suite, SuiteConfig, of_model | {"analyses": SCRIPTS})
    found["make_toy_checkpoints.py"] = (toy_config, FamilyConfig, {"folder": "family"})
    # Without results they compare and check nothing, but say so.
    found["compare_circuits.py"] = (without_dry_run(compare_circuits.main), ComparisonConfig, {})
    check = without_dry_run(check_checkpoints.main)
    found["check_checkpoints.py"] = (check, check_checkpoints.CheckConfig, {"model": "nowhere/at/all"})
    return found


EVERY_SCRIPT = every_script()


def ends_well(code: int, told: str) -> None:
    assert code in (0, 1, 2)
    assert "Traceback" not in told
    if code == 2:
        assert told.strip()


def run(start: Any, arguments: list[str]) -> tuple[int, str]:
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = start(arguments)
    return code, told.getvalue()


@functools.cache
def family() -> tempfile.TemporaryDirectory[str]:
    """One to copy, until the tests end."""
    folder = tempfile.TemporaryDirectory()
    save_word_family(Path(folder.name), (0,))
    return folder


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder with a family `tiny` in it, which a config may write into."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            shutil.copytree(family().name, "tiny")
            yield Path(folder)
        finally:
            os.chdir(before)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
@example({"results_dir": "tiny/step0/config.json"})
@example({"cpus_per_checkpoint": 1, "repair": True, "overwrite": True})
@example({"results_dir": "\0"})
@example({"model": "\0"})
@example({"cache_dir": "\0"})
def test_any_keys_and_values_run_or_are_refused(changed: dict[str, Any]) -> None:
    with workplace() as folder:
        path = folder / "config.yml"
        path.write_text(yaml.safe_dump(WORKING | changed, allow_unicode=True), encoding="utf-8")
        ends_well(*run(lambda arguments: main(ANALYSIS, arguments), ["-c", str(path)]))


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.text(max_size=60), st.binary(max_size=60)))
@example("model: &a [*a]")
@example("model: !!python/object/apply:os.getcwd []")
@example("? [a]\n: b")
def test_any_text_runs_or_is_refused(text: str | bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yml"
        path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
        for start in (lambda arguments: main(ANALYSIS, arguments), main_of_suite):
            code, told = run(start, ["-c", str(path), "--dry-run"])
            assert code == 2  # None of these names a model.
            ends_well(code, told)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        VALUES,
        st.lists(
            st.one_of(
                st.sampled_from(SCRIPTS),
                st.fixed_dictionaries(
                    {"script": st.sampled_from(["get_model_cspa.py", "get_circuits_over_time.py", "x.py", 3])},
                    optional={"config": SCALARS, "task": VALUES, "seed": VALUES, "corpus": VALUES, "eap": VALUES},
                ),
            ),
            max_size=3,
        ),
    )
)
def test_any_list_of_analyses_runs_or_is_refused(analyses: Any) -> None:
    with workplace() as folder:
        path = folder / "suite.yml"
        path.write_text(json.dumps({"model": "tiny", "device": "cpu", "analyses": analyses}), encoding="utf-8")
        ends_well(*run(main_of_suite, ["-c", str(path), "--dry-run"]))


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a key, `eap.ig_steps` in its block."""
    *blocks, name = key.split(".")
    for block in blocks:
        if not isinstance(config.get(block), dict):
            config[block] = {}
        config = config[block]
    config[name] = value


def n_entries(value: Any) -> int:
    """How many entries a value has, those of its parts included."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(1 + n_entries(part) for part in parts)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with workplace() as folder:
        yield folder


def any_change_is_refused_or_runs(name: str, place: Path, n: int) -> None:
    """Change up to two keys of a working config, n times."""
    start, schema, working = EVERY_SCRIPT[name]
    keys = sorted({key for key, _ in all_keys(schema)} - {"executor", "ray_address"})

    @settings(max_examples=n, suppress_health_check=list(HealthCheck), derandomize=n < 100, database=None)
    @given(st.dictionaries(st.sampled_from(keys), HOSTILE | VALUES, min_size=1, max_size=2))
    def check(changes: dict[str, Any]) -> None:
        config = json.loads(json.dumps(working))
        for key, value in changes.items():
            put(config, key, copy.deepcopy(value))
        # As JSON, which is YAML: PyYAML writes infinity in words of YAML 1.1.
        text = json.dumps(config).replace("Infinity", "1e999").replace("NaN", ".nan")
        (place / "config.yml").write_text(text, encoding="utf-8")
        code, told = run(start, ["-c", "config.yml", "--dry-run"])
        ends_well(code, told)
        if code == 2:
            lines = [line for line in told.splitlines() if line.strip()]
            assert len(lines) <= 2 * n_entries(changes) + 2, told

    check()


@pytest.mark.parametrize("name", EVERY_SCRIPT)
def test_any_change_of_a_working_config_is_refused_or_runs(name: str, place: Path) -> None:
    any_change_is_refused_or_runs(name, place, 60)


@pytest.mark.endurance
@pytest.mark.parametrize("name", EVERY_SCRIPT)
def test_thousands_of_changes_are_refused_or_run(name: str, place: Path) -> None:
    any_change_is_refused_or_runs(name, place, 250)


@pytest.mark.parametrize("name", EVERY_SCRIPT)
def test_the_working_config_works(name: str, place: Path) -> None:
    start, _, working = EVERY_SCRIPT[name]
    (place / "config.yml").write_text(json.dumps(working))
    code, told = run(start, ["-c", "config.yml", "--dry-run"])
    nothing_there = name in ("compare_circuits.py", "check_checkpoints.py")
    nothing_there |= "learning_coefficients" in name and importlib.util.find_spec("devinterp") is None
    assert code == (2 if nothing_there else 0), told
