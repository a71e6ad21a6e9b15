"""What is imported before there is anything to compute: nothing slow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT, TOY, TOY_STEPS

ROOMS = ("base", "config", "hub", "models", "integrity")
SLOW = ("torch", "transformers", "transformer_lens", "huggingface_hub", "scipy", "tqdm", "safetensors")


@pytest.mark.slow
def test_reading_configs_and_finding_checkpoints_imports_nothing_slow() -> None:
    modules = [
        f"circuits_over_time.utils.{room}.{path.stem}"
        for room in ROOMS
        for path in sorted((ROOT / "utils" / room).glob("[!_]*.py"))
    ]
    script = f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\nprint(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert told.returncode == 0, told.stderr
    assert set(modules) <= set(told.stdout.split())
    assert not set(SLOW) & set(told.stdout.split())


@pytest.mark.slow
def test_a_checkpoint_is_loaded_without_the_model_code_of_transformers_and_without_a_bridge() -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from circuits_over_time.utils.models.family import resolve_family\n"
        f"resolve_family({str(TOY)!r}, Path()).load({TOY_STEPS[0]}, device='cpu').provenance\n"
        "print(*sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert told.returncode == 0, told.stderr
    assert "torch" in told.stdout.split()
    assert not {"torch._dynamo", "transformers.modeling_utils", "transformer_lens"} & set(told.stdout.split())
