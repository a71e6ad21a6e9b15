"""Sweeps in processes that are killed: forked from this one, whose libraries are imported, so that each starts at
once."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from circuits_over_time.utils.config.keys import load_config
from circuits_over_time.utils.models.checkpoint import LoadedCheckpoint
from circuits_over_time.utils.results.store import Result
from circuits_over_time.utils.sweep.runner import run
from tests.support.demo_analysis import ANALYSIS, results_in

FORK = multiprocessing.get_context("fork")


def slow(seconds: float, diary: Path | None = None) -> Any:
    """The demo analysis, taking a while for each task, so that a kill finds it at work; it notes what it measures."""

    def measure(checkpoint: LoadedCheckpoint, config: Any, inputs: Any, task: Any) -> dict[str, Result]:
        time.sleep(seconds)
        if diary is not None:
            with diary.open("a") as file:
                file.write(f"{checkpoint.step} {task.name}\n")
        return ANALYSIS.measure(checkpoint, config, inputs, task)

    return replace(ANALYSIS, measure=measure)


def renew_locks(bar: type[tqdm]) -> None:
    """Give every kind of bar a lock of this process. Forks share theirs, and one that is killed would keep it."""
    bar.set_lock(threading.RLock())
    for kind in bar.__subclasses__():
        renew_locks(kind)


def start(folder: Path, family: Path, analysis: Any = ANALYSIS, *overrides: str) -> ForkProcess:
    """Start a sweep in a process of its own, in `folder`, with results in `folder/results`."""

    def work() -> None:
        renew_locks(tqdm)
        os.chdir(folder)
        torch.set_num_threads(1)
        logging.disable()
        config = load_config(analysis.schema, None, [f"model={family}", "task=[x, y]", "device=cpu", *overrides])
        os._exit(run(analysis, config))

    folder.mkdir(parents=True, exist_ok=True)
    process = FORK.Process(target=work)
    process.start()
    return process


def kill(process: ForkProcess) -> None:
    """kill -9."""
    process.kill()
    process.join()


def finished(process: ForkProcess) -> int | None:
    """The exit code of a sweep that may end by itself."""
    process.join(60)
    return process.exitcode


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a results folder, locks apart; a claim or a half-written file would be in it."""
    return {name: data for name, data in results_in(folder / "results").items() if not name.endswith(".lock")}


def without_config(found: dict[str, bytes]) -> dict[str, Any]:
    """The same, but run.json without the keys that say how a sweep was run."""
    kept: dict[str, Any] = {}
    for name, data in found.items():
        kept[name] = data
        if name.endswith("run.json"):
            kept[name] = json.loads(data) | {"config": None}
    return kept
