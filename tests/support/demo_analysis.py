"""A small script as the runner sees one; also run as a process of its own by the test that kills it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pandas as pd
import torch

from utils.config.keys import TaskConfig
from utils.models.family import LoadedCheckpoint
from utils.runner import Analysis, Result, main


def measure(checkpoint: LoadedCheckpoint, config: TaskConfig, task: str | None) -> dict[str, Result]:
    """Two kinds, one with tensors; the environment can ask for a sudden end."""
    tokens = torch.randint(0, 12, (2, 6), generator=torch.Generator().manual_seed(config.seed))
    logits = checkpoint.weights.embed[tokens] @ checkpoint.weights.unembed.T
    if os.environ.get("DEMO_KILL_AT") == f"{checkpoint.step} {task}":
        os.kill(os.getpid(), signal.SIGKILL)
    table = pd.DataFrame({"metric": ["mean", "max"], "value": [float(logits.mean()), float(logits.max())]})
    return {"graphs": Result(table, tensors={"logits": logits, "names": ["a", "b"]}), "baselines": Result(table)}


ANALYSIS = Analysis("demo", TaskConfig, ("graphs", "baselines"), measure, tasks=lambda config: list(config.tasks))


def results_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
