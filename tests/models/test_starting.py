"""What is imported before there is anything to compute: nothing slow."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

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
        "from transformers.utils import import_utils; import transformers.models as models\n"
        "scan = import_utils.create_import_structure_from_path\n"
        "before, own = scan.cache_info().misses, scan(models.__file__)\n"  # A look at all files again, by this name.
        "print(before, scan.cache_info().misses, own == scan(Path(models.__file__).parent))\n"
        "print(*sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert told.returncode == 0, told.stderr
    before, after, equal, *modules = told.stdout.split()
    assert int(after) > 1.9 * int(before), "transformers had looked through its files once"
    assert equal == "True"
    assert "torch" in modules
    assert not {"transformers.modeling_utils", "transformer_lens"} & set(modules)
    if tuple(map(int, version("transformers").split(".")[:2])) >= (5, 23):  # 5.14 imports it to read a config.
        assert "torch._dynamo" not in modules
