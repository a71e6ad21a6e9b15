"""The benchmark of a device, on the CPU and a model small enough for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.support.paths import ROOT


@pytest.mark.endurance
def test_the_benchmark_measures_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import bench_device

    monkeypatch.setitem(bench_device.SHAPES, "70m", (4, 8, 64))
    monkeypatch.setattr(bench_device, "PRECISIONS", {"float32": (torch.float32, "highest")})
    monkeypatch.setattr(bench_device, "LEAST", 1e-9)
    command = ["bench_device.py", "--device", "cpu", "--minutes", "10", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert bench_device.main() == 0
    stages = json.loads((tmp_path / "device.json").read_text())["stages"]
    plain = ["plain forward and backward, 16", "plain forward and backward, 100"]
    assert [one["stage"] for one in stages] == [
        *(*plain, "attribution, 16", "attribution, 100", "one circuit of 1,000 edges, 16", "40 sizes, 16"),
        *("head scores, 100", *plain, "IOI consistency, 70"),
    ]
    assert all(one["seconds"] > 0 and one["in_plain"] > 0 for one in stages)
    assert [bool(one["flop"]) for one in stages] == [True] * 9 + [False]
    # The plain pass: two products a parameter and token forward, and two backward, to inputs alone.
    plain = stages[0]["flop"] / 16
    in_blocks, output = 4 * 12 * 64**2, 50304 * 64
    assert plain == pytest.approx(4 * (18 * in_blocks + output), rel=0.2)
    assert (tmp_path / "device.md").read_text() == capsys.readouterr().out
