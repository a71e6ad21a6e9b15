"""The same computation on two devices: what scripts write, and what the engine finds in random models.

On the CPU alone, rounding of another kind stands in for another device: weights that differ by a rounding (scripts), or
double precision (the engine).
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.utils.sweep.runner import main

from .paths import TOY, TOY_IOI, TOY_IOI_STEP, TOY_STEPS
from .random_models import random_model, random_pairs

GPU_MARKS = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ("cpu", pytest.param("cuda", marks=GPU_MARKS))
"""For `parametrize`: a test that needs a GPU runs on the CPU all the same."""

_STEPS = ["eap.ig_steps=20"]  # Only the first takes as many as it needs, in rounds that each launch and wait anew.
SCRIPTS = {
    "circuits": ("get_circuits_over_time", ["task=[sva, greater_than]", "n_prompts=20", "search.mib=true"]),
    "ablated": (
        "get_circuits_over_time",
        ["task=sva", "n_prompts=8", "n_random=2", "ablation=mean_positional", *_STEPS],
    ),
    "tested": ("get_circuits_over_time", ["task=sva", "n_prompts=20", "n_random=5", "hypothesis_tests=true", *_STEPS]),
    "consistency": (
        "get_ioi_consistency",
        ["n_prompts=20", "cspa.corpus=toy", "cspa.n_sequences=5", "circuit.eap.ig_steps=20"],
    ),
    "greater_than": ("get_greater_than_consistency", ["circuit.heads=all"]),
    "components": ("get_full_model_components_over_time", []),
    "cspa": ("get_model_cspa", ["corpus=toy", "n_sequences=5"]),
    "successor": ("get_new_successor_head_scores_over_time", []),
    "signatures": ("get_head_signatures", ["task=[sva, ioi]", "n_prompts=20"]),
    "swaps": (
        "get_component_swaps",
        ["task=sva", "n_prompts=20", "components=[heads, [a1.h2, m0]]", f"sources=[{TOY_STEPS[-1]}]"],
    ),
    "performance": ("get_model_task_performance", ["task=all"]),
}
"""Every script that measures one checkpoint, small: its module and its overrides."""


def checkpoint_of(script: str) -> tuple[Path, int]:
    """The kept toy family that a script measures in tests, and the step."""
    return (TOY_IOI, TOY_IOI_STEP) if script == "get_ioi_consistency" else (TOY, TOY_STEPS[-1])


def run_script(script: str, model: Path, results: Path, *overrides: str) -> None:
    """Measure one checkpoint of a toy family into a folder."""
    given = [f"model={model}", f"checkpoints=[{checkpoint_of(script)[1]}]", f"results_dir={results}", *overrides]
    assert main(importlib.import_module(script).ANALYSIS, given) == 0, script


def shaken(family: Path, step: int, target: Path) -> Path:
    """A copy of one step of a family whose weights differ by a rounding."""
    target = target / family.name
    shutil.copytree(family / f"step{step}", target / f"step{step}")
    shutil.copy(family / "family.json", target)
    file, generator = target / f"step{step}" / "model.safetensors", torch.Generator().manual_seed(1)
    tensors = {
        name: tensor * (1 + 2e-7 * torch.randn(tensor.shape, generator=generator))
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    return target


def table_differences(here: Path, there: Path, tolerance: float = 1e-3) -> list[str]:
    """What differs between the tables below two folders: files, texts, and numbers, by a share of the largest."""
    tables = [
        {path.relative_to(folder): pd.read_csv(path) for path in folder.rglob("*.csv")} for folder in (here, there)
    ]
    if not tables[0] or tables[0].keys() != tables[1].keys():
        return [f"files: {sorted(map(str, tables[0]))} and {sorted(map(str, tables[1]))}"]
    found = []
    for path, one in tables[0].items():
        other = tables[1][path]
        if list(one) != list(other) or len(one) != len(other):
            found.append(f"{path}: {len(one)} rows of {list(one)}, {len(other)} of {list(other)}")
            continue
        for name in one:
            if one[name].dtype.kind in "fi" and other[name].dtype.kind in "fi":
                a, b = (table[name].to_numpy(float) for table in (one, other))
                alike = np.isclose(a, b, rtol=0, atol=tolerance * np.nanmax([*np.abs(a), 1e-30]), equal_nan=True)
            else:
                alike = (one[name].fillna("").astype(str) == other[name].fillna("").astype(str)).to_numpy()
            if not alike.all():
                row = int(np.argmin(alike))
                found.append(
                    f"{path}: {name}: {one[name][row]} and {other[name][row]} ({(~alike).sum()} of {len(alike)} rows)"
                )
    return found


def run_engine(
    architecture: str,
    where: torch.device,
    dtype: torch.dtype = torch.float32,
    order: Int[Tensor, "edge 2"] | None = None,
) -> tuple[list[Tensor], Int[Tensor, "edge 2"]]:
    """Scores of a random model's edges, in folds, and the metric under some of its circuits; and the edges' order.

    Args:
        order: of the edges, where circuits shall not depend on this run's scores.
    """
    weights = read_weights(random_model(architecture).to(where, dtype))
    pairs = TokenPairs(*(one.to(where) for one in random_pairs(6)))

    def metric(logits: Tensor, index: Tensor) -> Tensor:
        return logits[:, 5] - logits[:, 7] + 0 * index

    folds = attribute(weights, pairs, metric, torch.arange(6) % 2, steps=2, batch_size=4)
    evaluator = CircuitEvaluator(weights, pairs, metric, batch_size=4)
    if order is None:
        order = edge_order(folds.scores, evaluator.graph, "top_n")
    evaluated = evaluator.prefixes_of(order)([0, 5, 40, len(order)])
    return [folds.sums, evaluator.full, evaluator.corrupted, evaluated], order
