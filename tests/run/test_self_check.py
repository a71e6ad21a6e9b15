"""`self_check: true` says where low precision disagrees with float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from circuits_over_time.utils.models import checkpoint
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.results.store import Result
from circuits_over_time.utils.sweep import loop
from circuits_over_time.utils.sweep.self_check import disagreements
from tests.support.devices import run_script
from tests.support.paths import TOY


def heads(values: list[float], roles: list[str], layers: list[int]) -> Result:
    table = pd.DataFrame({"level": "name_movers", "definitions": "study", "layer": layers, "head": 0, "role": roles})
    return Result(table.assign(effect=values, unit="gap"))


def test_rows_ranks_and_roles_that_differ_are_counted() -> None:
    kind = KINDS["ioi_consistency_heads"]
    low = heads([0.3, 0.2, 0.1, 0.0], ["name_mover", "", "", ""], [0, 1, 2, 3])
    exact = heads([0.3, 0.1, 0.2, 0.9], ["name_mover", "", "name_mover", ""], [0, 1, 2, 4])
    # In both are three heads: ranks 3 2 1 and 3 1 2 correlate by 1 - 6 * 2 / (3 * 8).
    expected = "3 of 5 rows in both, rank correlation of effect 0.500, 1 of 3 with another role"
    assert list(disagreements([kind], {kind.name: low}, {kind.name: exact})) == [f"{kind.name}: {expected}"]
    (same,) = disagreements([kind], {kind.name: low}, {kind.name: low})
    assert same.endswith("4 of 4 rows in both, rank correlation of effect 1.000")


def test_of_a_graph_the_scores_of_all_edges_count() -> None:
    kind = KINDS["graphs"]
    edges = pd.DataFrame({"source": ["input", "a0.h0"], "target": ["m0", "logits"], "input": "", "score": [3.0, 1.0]})
    scores = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    low, exact = Result(edges, {"scores": scores}), Result(edges[:1], {"scores": scores[:, [0, 1]] * 2 + (scores > 2)})
    (line,) = disagreements([kind], {kind.name: low}, {kind.name: exact})
    assert line == "graphs: 1 of 2 rows in both, rank correlation of all scores 1.000"


def test_a_sweep_goes_on_where_float32_gives_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop._self_checked.clear()
    load = checkpoint.load_weights

    def overflowing(folder: Path, dtype: str, *given: Any) -> Any:
        if dtype == "float32":
            raise FloatingPointError("layer 1 gives NaN or infinity in float32")
        return load(folder, dtype, *given)

    monkeypatch.setattr(checkpoint, "load_weights", overflowing)
    run_script(
        "get_model_task_performance", TOY, tmp_path, "task=sva", "n_prompts=4", "dtype=bfloat16", "self_check=true"
    )
    assert "self_check: layer 1 gives NaN or infinity in float32" in capsys.readouterr().err
    assert list(tmp_path.rglob("step*.csv"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_run_logs_it_once(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop._self_checked.clear()
    keys = ("task=sva", "n_prompts=8", "n_random=0", "eap.ig_steps=2", "search.min_gap=0", f"dtype={dtype}")
    for overwrite in ("false", "true"):
        run_script("get_circuits_over_time", TOY, tmp_path, *keys, "self_check=true", f"overwrite={overwrite}")
    said = [line for line in capsys.readouterr().err.splitlines() if "against float32" in line]
    assert len([line for line in said if "graphs: " in line]) == (dtype == "bfloat16")
    assert any("baselines: status" in line and "(float32: " in line for line in said) == (dtype == "bfloat16")
