"""A small script as the runner sees one; also run as a process of its own by the test that kills it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.model.forward import embed, forward, unembed
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.utils.config.keys import TaskConfig
from circuits_over_time.utils.models.checkpoint import LoadedCheckpoint
from circuits_over_time.utils.results.kinds import ResultSchema
from circuits_over_time.utils.results.store import Result
from circuits_over_time.utils.sweep.runner import Analysis, main
from circuits_over_time.utils.tasks import TASKS, Task

COLUMNS = {"metric": "what is measured", "value": "its value"}
FIRST = ResultSchema("first", COLUMNS, "demo.py", "demo", {".pt": "logits"})
SECOND = ResultSchema("second", COLUMNS, "demo.py", "demo")


def tasks_named(config: TaskConfig) -> list[Task]:
    """Tasks of any name, which build no prompts."""
    return [Task(name, TASKS["ioi"].pairs, "logit_diff") for name in config.task_names]


def prepare(config: TaskConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> torch.Tensor:
    """Random tokens."""
    return torch.randint(0, shape.d_vocab, (2, 6), generator=torch.Generator().manual_seed(config.seed))


def measure(checkpoint: LoadedCheckpoint, config: TaskConfig, inputs: torch.Tensor, task: Task) -> dict[str, Result]:
    """Two kinds, one with tensors; the environment can ask for a sudden end."""
    lengths = torch.tensor([6, 6])
    layout = PackedTokens.whole(lengths)
    with torch.no_grad():
        x = embed(checkpoint.weights, layout, inputs.flatten())
        logits = unembed(checkpoint.weights, forward(checkpoint.weights, layout, x))
    if os.environ.get("DEMO_KILL_AT") == f"{checkpoint.step} {task.name}":
        os.kill(os.getpid(), signal.SIGKILL)
    table = pd.DataFrame({"metric": ["mean", "max"], "value": [float(logits.mean()), float(logits.max())]})
    return {"first": Result(table, tensors={"logits": logits, "names": ["a", "b"]}), "second": Result(table)}


ANALYSIS = Analysis("demo", TaskConfig, (FIRST, SECOND), prepare, measure, tasks=tasks_named)


def results_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
