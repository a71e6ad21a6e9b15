"""Measuring a checkpoint in another process, which writes no results: it returns the bytes of their files.

The worker's results folder is a temporary one. What analyses read from the store goes there: the driver sends what it
has, and what the worker measures at the same checkpoint is added. So get_ioi_consistency.py finds the circuit of the
same checkpoint in a worker as it does in a single process.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import UserError
from ..base.memory import release_memory
from ..models.family import Family, family_of
from ..results.record import EncodedResults, RunRecord, write_results
from .claims import ClaimedCheckpoint
from .loop import measure
from .plan import Job, Measurement, Prepared, prepare

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class WorkerSetup:
    """What all work of a run has in common."""

    token: str
    jobs: tuple[Job, ...]
    folder: Path  # the driver's, which paths in configs are relative to
    threads: int


@dataclass(frozen=True)
class WorkItem:
    """What to measure at one checkpoint."""

    model: str  # as the config names it
    step: int
    missing: tuple[tuple[int, int], ...]  # numbers of the job and of its task
    found: dict[str, bytes]  # files of the results folder that the jobs may read: path in it -> bytes


def work_item(claimed: ClaimedCheckpoint) -> WorkItem:
    sweep, name = claimed.queue.sweep, claimed.family.name
    numbers = tuple((sweep.jobs.index(what.job), what.job.tasks.index(what.task)) for what in claimed.missing)
    found: dict[str, bytes] = {}
    store = sweep.jobs[0].store
    for kind in {kind.name: kind for what in claimed.missing for kind in what.job.analysis.reads}.values():
        for task in [None, *store.tasks(kind, name)]:
            folder = store.folder(kind, name, task)
            if folder.has(claimed.step):
                paths = [folder.path / "run.json"]
                paths += [folder.file(claimed.step, suffix) for suffix in (".csv", *kind.companions)]
                there = [path for path in paths if path.is_file()]
                found |= {path.relative_to(store.root).as_posix(): path.read_bytes() for path in there}
    return WorkItem(sweep.model, claimed.step, numbers, found)


class Worker:
    """A process that measures for one run. Raises UserError if the driver's folder is not there."""

    def __init__(self, setup: WorkerSetup) -> None:
        import torch

        try:
            os.chdir(setup.folder)
        except OSError as error:
            raise UserError(
                f"{setup.folder} is not there on {os.uname().nodename} ({error.strerror}); start the run in a folder "
                "that all machines share"
            ) from None
        torch.set_num_threads(setup.threads)
        self._scratch = tempfile.TemporaryDirectory(prefix="circuits-")
        here = {"results_dir": Path(self._scratch.name), "overwrite": False, "repair": False}
        self.jobs = [Job(job.analysis, job.config.model_copy(update=here)) for job in setup.jobs]
        self._families: dict[str, tuple[Family, list[Job]]] = {}
        self._inputs: dict[Job, Prepared] = {}

    def measure(self, item: WorkItem) -> list[EncodedResults]:
        """Load a checkpoint, measure all that is missing there, and return its files."""
        if item.model not in self._families:
            family = family_of(self.jobs[0].config, item.model)
            self._families[item.model] = family, [job.resolved_for(family) for job in self.jobs]
        family, jobs = self._families[item.model]
        missing = [Measurement(jobs[job], family.name, jobs[job].tasks[task]) for job, task in item.missing]
        described = family.describe(item.step)
        prepared = {what.job: prepare(what.job, described, self._inputs) for what in missing}
        read = {kind.name for what in missing for kind in what.job.analysis.reads}
        root = Path(self._scratch.name)
        for path in root.rglob("step*"):  # of the checkpoint before
            path.unlink()
        for name, data in item.found.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        config = self.jobs[0].config
        checkpoint = family.load(item.step, missing[0].job.config.dtype, config.device, config.device_map)
        measured = []
        for what in missing:
            checkpoint = checkpoint.in_format(what.job.config.dtype)
            results = measure(checkpoint, what, prepared[what.job])
            measured.append(results)
            if read & {kind.name for kind in what.job.analysis.kinds}:  # Another job of this checkpoint reads it.
                for folder in what.folders:
                    RunRecord(folder).begin(what.job.analysis.name, what.job.config, family, [item.step])
                write_results(what.folders, [results])
        del checkpoint
        release_memory(thoroughly=True)
        family.release(item.step, config.keep_checkpoints)
        return measured


def import_library(name: str) -> Any:
    """A library that an executor needs; a UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"executor: {name} is not installed; run: pip install -r requirements-cluster.txt") from None


def import_path() -> str:
    """For PYTHONPATH: this repository, and the other folders that this process imports from, packages apart."""
    packages = (sys.prefix, sys.base_prefix)
    own = [path for path in sys.path if path and not path.startswith(packages)]
    return os.pathsep.join(dict.fromkeys([str(ROOT), *own]))


_workers: dict[str, Worker] = {}


def work_on(setup: WorkerSetup, item: WorkItem) -> list[EncodedResults]:
    """Measure in this process, which stays warm: what it prepared serves its next items of the same run."""
    if setup.token not in _workers:
        _workers.clear()
        _workers[setup.token] = Worker(setup)
    return _workers[setup.token].measure(item)
