"""What a function over time may return or be given by mistake, and results that are damaged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import circuits_over_time as cot
from tests.support.paths import TOY


def step_of(model: Any) -> int:
    """The simplest function."""
    return int(model.step)


def test_over_time_names_the_argument_that_does_not_fit(tmp_path: Path) -> None:
    def run(model: Any = TOY, steps: Any = (0,), function: Any = step_of, **keys: Any) -> pd.DataFrame:
        return cot.over_time(model, steps, function, **{"results_dir": tmp_path, **keys})

    partial = functools.partial(step_of)
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: run(model=None), TypeError, "model: NoneType is neither a name nor a folder"),
        (lambda: run(steps=0), TypeError, "steps=0: neither a schedule nor a list"),
        (lambda: run(steps=[0, 1]), ValueError, r"^steps: step 1 is not in toy \(nearest: 0"),
        (lambda: run(steps=[]), ValueError, "^steps: the list of steps is empty"),
        (lambda: run(steps="expo"), ValueError, "^steps='expo': not a schedule"),
        (lambda: run(steps=["a"]), (TypeError, ValueError), "^steps"),
        (lambda: run(function="step_of", name="x"), TypeError, "function='step_of': not a function"),
        (lambda: run(function=3), TypeError, "function=3: not a function"),
        (lambda: run(function=partial), ValueError, "pass name="),
        (lambda: run(name=3), ValueError, "name=3: must be a word"),
        (lambda: run(overwite=True), TypeError, "overwite: there is no such keyword; did you mean 'overwrite'"),
        (lambda: run(device=3), TypeError, "device=3: not text"),
        (lambda: run(dtype="float64"), ValueError, "dtype='float64': not 'float32'"),
        (lambda: run(results_dir=None), TypeError, "results_dir=None: not text"),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()
    assert not any(tmp_path.iterdir())
    assert run(steps=np.array([0]), function=partial, name="part")["value"].tolist() == [0]


def test_what_is_no_row_of_a_table_is_refused_by_name(tmp_path: Path) -> None:
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
    cases: dict[str, tuple[Any, type[Exception], str]] = {
        "stamp": ({"step": 1}, ValueError, "column 'step' is there already"),
        "twice": (twice, ValueError, "column 'a' is there already"),
        "inner": ({"a": twice}, TypeError, "'a' is DataFrame, not a number or text"),
        "listed": ({"a": [1, 2]}, TypeError, "'a' is list, not a number or text"),
    }
    for name, (value, error, text) in cases.items():
        with pytest.raises(error, match=text):
            cot.over_time(TOY, [0], lambda model, value=value: value, name=name, results_dir=tmp_path)

    def changing(model: Any) -> dict[str, int]:
        return {"a": 1} if model.step == 0 else {"b": 1}

    with pytest.raises(ValueError, match=r"changing: returned columns \['b'\]; other checkpoints have \['a'\]"):
        cot.over_time(TOY, [0, 750], changing, results_dir=tmp_path)


def test_numbers_of_torch_and_columns_of_numbers_are_kept(tmp_path: Path) -> None:
    table = cot.over_time(TOY, [0], lambda model: {1: torch.tensor(2.5)}, name="odd", results_dir=tmp_path)
    assert table["1"].tolist() == [2.5]


def test_damaged_results_are_named_with_a_way_out(tmp_path: Path) -> None:
    cot.over_time(TOY, [0], step_of, results_dir=tmp_path)
    for folder in ("a/b/c/d", "junk"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "run.json").write_text("{}")
    assert cot.results(tmp_path)["kind"].tolist() == ["step_of"]
    with pytest.raises(TypeError, match="kind=3: not text"):
        cot.results(tmp_path, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no results; run: cot.over_time\(...\)"):
        cot.results(tmp_path, "step_of", "other")
    for damaged in (b"", b"\xff\x00"):
        (tmp_path / "step_of" / "toy" / "step000000.csv").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"holds damaged results only; run: cot.over_time\(..., repair=True\)"):
            cot.results(tmp_path, "step_of")
