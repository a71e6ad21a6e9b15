"""Scripts and engine on an accelerator: the CPU's results but for rounding, in every number format.

`pytest -m gpu` runs what needs a CUDA device. The same functions run everywhere, with a stand-in for the device
(`tests/support/devices.py`).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from circuits_over_time.utils.models.checkpoint import resolve_device
from circuits_over_time.utils.tasks import build_prompts
from tests.support.devices import (
    DEVICES,
    GPU_MARKS,
    SCRIPTS,
    checkpoint_of,
    run_engine,
    run_script,
    shaken,
    table_differences,
)
from tests.support.random_models import ARCHITECTURES
from tests.support.task_tokenizers import words

CPU = torch.device("cpu")
SLOW_ON_CPU = (pytest.param("cpu", marks=pytest.mark.endurance), *DEVICES[1:])
IN_LOW_PRECISION = (
    pytest.param("bfloat16", "cpu", marks=pytest.mark.endurance),
    *(pytest.param(dtype, "cuda", marks=GPU_MARKS) for dtype in ("bfloat16", "float16")),
)
# Rounding of one number, times what a few layers make of it.
TOLERANCE = {torch.bfloat16: 0.15, torch.float16: 0.03}


@pytest.mark.parametrize("device", SLOW_ON_CPU)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_writes_what_it_writes_on_the_cpu(name: str, device: str, tmp_path: Path) -> None:
    script, overrides = SCRIPTS[name]
    family, step = checkpoint_of(script)
    run_script(script, family, tmp_path / "cpu", "device=cpu", *overrides)
    model = shaken(family, step, tmp_path / "shaken") if device == "cpu" else family
    run_script(script, model, tmp_path / "there", f"device={device}", *overrides)
    assert table_differences(tmp_path / "cpu", tmp_path / "there") == []


@pytest.mark.parametrize(("dtype", "device"), IN_LOW_PRECISION)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_measures_in_low_precision(name: str, dtype: str, device: str, tmp_path: Path) -> None:
    script, overrides = SCRIPTS[name]
    model, _ = checkpoint_of(script)
    for folder, number_format in (("exact", "float32"), ("rounded", dtype)):
        run_script(script, model, tmp_path / folder, f"device={device}", f"dtype={number_format}", *overrides)
    found = table_differences(tmp_path / "exact", tmp_path / "rounded", tolerance=0.2)
    # An edge or a head more is another table; its kinds and columns stay.
    if script in ("get_circuits_over_time", "get_ioi_consistency"):
        found = [line for line in found if line.startswith("files")]
    assert found == []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_gives_the_cpus_numbers(architecture: str, device: str) -> None:
    expected, order = run_engine(architecture, CPU)
    precision = torch.float64 if device == "cpu" else torch.float32
    found, _ = run_engine(architecture, torch.device(device), precision, order)
    for here, there in zip(expected, found, strict=True):
        assert there.device == CPU
        torch.testing.assert_close(there, here, rtol=0, atol=1e-4 * float(here.abs().max()), check_dtype=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_low_precision_stays_close_to_float32(architecture: str, dtype: torch.dtype, device: str) -> None:
    expected, order = run_engine(architecture, CPU)
    found, _ = run_engine(architecture, torch.device(device), dtype, order)
    for here, there in zip(expected, found, strict=True):
        assert there.dtype == torch.float32  # What is reported is never rounded to the weights' format.
        assert float((there - here).norm() / here.norm()) < TOLERANCE[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", ["logit_diff", "prob_diff", lambda logits, prompts: logits.square().mean(-1)])
def test_metrics_of_low_precision_are_those_of_the_same_logits_in_float32(metric: object, device: str) -> None:
    prompts = build_prompts("ioi", words(), 8, seed=0).to(device)
    logits = (20 * torch.randn(8, len(words()), generator=torch.Generator().manual_seed(0))).to(device, torch.bfloat16)
    every = torch.arange(8, device=device)
    found = prompts.metric(metric)(logits, every)
    assert found.dtype == torch.float32
    assert found.equal(prompts.metric(metric)(logits.float(), every))


@pytest.mark.parametrize("device", DEVICES[1:])
def test_auto_takes_the_gpu(device: str) -> None:
    assert resolve_device("auto").type == device


def test_tables_that_differ_are_told(tmp_path: Path) -> None:
    table = pd.DataFrame({"head": ["a0.h0", "a0.h1"], "score": [1.0, float("nan")]})
    changed = {
        "same": table,
        "number": table.assign(score=[1.01, float("nan")]),
        "gap": table.assign(score=[1.0, 0.5]),
        "text": table.assign(head=["a0.h0", "m0"]),
        "rows": table[:1],
    }
    for name, one in {"here": table, **changed}.items():
        (tmp_path / name).mkdir()
        one.to_csv(tmp_path / name / "step1.csv", index=False)
    found = {name: table_differences(tmp_path / "here", tmp_path / name) for name in changed}
    assert found["same"] == []
    assert [len(found[name]) for name in changed] == [0, 1, 1, 1, 1]
    assert "score: 1.0 and 1.01 (1 of 2 rows)" in found["number"][0]
    assert "files" in table_differences(tmp_path / "here", tmp_path / "empty")[0]
