"""Whatever a config holds, a script runs or ends with exit code 2 and a line for each mistake, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from circuits_over_time.utils.config.keys import TaskConfig
from circuits_over_time.utils.sweep.runner import main, main_of_suite
from circuits_over_time.utils.sweep.suite import SuiteConfig
from tests.support.demo_analysis import ANALYSIS
from tests.support.tiny_models import save_family

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
WORKING: dict[str, Any] = {"model": "tiny", "task": "x", "device": "cpu", "checkpoints": [0]}
SCRIPTS = [{"script": "get_model_cspa.py", "corpus": "toy"}, {"script": "get_full_model_components_over_time.py"}]


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


@contextlib.contextmanager
def workplace() -> Any:
    """A folder with a family `tiny` in it, which a config may write into."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            save_family(Path("tiny"), {0: 0})
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
