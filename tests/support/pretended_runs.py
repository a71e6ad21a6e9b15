"""Every script, and every architecture's engine, on the CPU and on the pretended device, compared.

    python -m tests.support.pretended_runs OUTPUT.json

The device has no float64, as Apple's GPUs: what runs there runs on one that has. A process of its own: PyTorch's
autograd knows only the devices that were registered before its first backward pass.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.utils.heads import streamed_kl
from circuits_over_time.utils.models import family
from circuits_over_time.utils.sweep.runner import main
from tests.support.paths import TOY, TOY_IOI, TOY_IOI_STEP, TOY_STEPS
from tests.support.pretend_device import Counts, device, pretended_device
from tests.support.random_models import ARCHITECTURES, random_model, random_pairs

SCRIPTS = {
    "circuits": ("get_circuits_over_time", ["task=[sva, greater_than]", "n_prompts=20", "search.mib=true"]),
    "consistency": ("get_ioi_consistency", ["n_prompts=20", "cspa.corpus=toy", "cspa.n_sequences=5"]),
    "components": ("get_full_model_components_over_time", []),
    "cspa": ("get_model_cspa", ["corpus=toy", "n_sequences=5"]),
    "successor": ("get_new_successor_head_scores_over_time", []),
    "performance": ("get_model_task_performance", ["task=all"]),
}


@contextmanager
def scripts_on_the_device() -> Iterator[Callable[[], Counts]]:
    """Scripts take the pretended device for this machine's own."""
    with (
        mock.patch.object(family, "resolve_device", return_value=device()),
        pretended_device(float64=False) as counting,
    ):
        yield counting.restart


def run_script(script: str, overrides: list[str]) -> dict[str, bytes]:
    """The files that it writes for one checkpoint; run.json aside, which names the device."""
    # CPUs sum over the vocabulary in blocks of another size, in float64, and some with other exponentials: not here.
    as_gpu: dict[str, Any] = {"CPU_BLOCK": streamed_kl.GPU_BLOCK, "WITHOUT_FLOAT64": ("cpu", device().type)}
    as_gpu["_in_bits"] = lambda _, heads: [False] * len(heads)
    model = TOY_IOI if script == "get_ioi_consistency" else TOY
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(streamed_kl, **as_gpu):
        given = [
            f"model={model}",
            f"checkpoints=[{TOY_IOI_STEP if model == TOY_IOI else TOY_STEPS[-1]}]",
            f"results_dir={folder}",
            *overrides,
        ]
        assert main(importlib.import_module(script).ANALYSIS, given) == 0, script
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != "run.json")
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run_engine(architecture: str, where: torch.device) -> list[Tensor]:
    """Scores of a random model's edges, in folds, and the metric under some of its circuits."""
    weights = read_weights(random_model(architecture).to(where))
    pairs = TokenPairs(*(one.to(where) for one in random_pairs(6)))

    def metric(logits: Tensor, index: Tensor) -> Tensor:
        return logits[:, 5] - logits[:, 7] + 0 * index

    folds = attribute(weights, pairs, metric, torch.arange(6) % 2, steps=2, batch_size=4)
    evaluator = CircuitEvaluator(weights, pairs, metric, batch_size=4)
    order = edge_order(folds.scores, evaluator.graph, "top_n")
    return [folds.sums, evaluator.full, evaluator.corrupted, evaluator.prefixes_of(order)([0, 5, 40, len(order)])]


def compared() -> dict[str, dict[str, Any]]:
    """What differs between the two, by script and architecture, and the scripts' counts."""
    found: dict[str, dict[str, Any]] = {}
    for name, (script, overrides) in SCRIPTS.items():
        on_cpu = run_script(script, overrides)
        with scripts_on_the_device() as counts:
            there = run_script(script, overrides)
        made = counts()
        found[name] = {
            "differs": sorted(file for file in on_cpu | there if on_cpu.get(file) != there.get(file)),
            "files": len(on_cpu),
            "counts": [made.kernels, made.waits, made.transfers],
            "most": made.by_name.most_common(20),
        }
    for architecture in ARCHITECTURES:
        on_cpu_tensors = run_engine(architecture, torch.device("cpu"))
        with pretended_device(float64=False):
            there_tensors = [one.cpu() for one in run_engine(architecture, device())]
        same = [bool(here.equal(one)) for here, one in zip(on_cpu_tensors, there_tensors, strict=True)]
        found[architecture] = {"differs": [number for number, good in enumerate(same) if not good]}
    return found


if __name__ == "__main__":
    device()
    torch.set_num_threads(1)
    Path(sys.argv[1]).write_text(json.dumps(compared()))
