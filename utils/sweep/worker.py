"""Measuring a checkpoint in another process, which writes no results: it returns the bytes of their files.

The worker's results folder is a temporary one. What analyses read from the store goes there: the driver sends what it
has, and what the worker measures at the same checkpoint is added. So get_ioi_consistency.py finds the circuit of the
same checkpoint in a worker as it does in a single process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import CheckpointUnusable, UserError
from ..models.family import Family, family_of
from ..results.record import RunRecord
from . import loop as unit
from .plan import Job, Measurement, Sweep

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Shared:
    """What all units of a run have in common.

    Attributes:
        token: names the run.
        jobs: as in `plan`.
        folder: the working folder of the driver, which paths in configs are relative to.
        threads: with how many threads to compute.
    """

    token: str
    jobs: tuple[Job, ...]
    folder: Path
    threads: int


@dataclass(frozen=True)
class Unit:
    """What to measure at one checkpoint.

    Attributes:
        model: as the config names it.
        name: the family's name.
        step: training step.
        missing: numbers of the job and of its task.
        found: files of the results folder that the jobs may read: path in it -> bytes.
    """

    model: str
    name: str
    step: int
    missing: tuple[tuple[int, int], ...]
    found: dict[str, bytes]


@dataclass(frozen=True)
class Outcome:
    """What became of a unit.

    Attributes:
        name: the family's name.
        step: its training step.
        measured: the files, one for each of `Unit.missing`; empty if there is an error.
        unusable: why the checkpoint could not be measured, in one line.
        refused: bad input, in one line; it ends the run.
    """

    name: str
    step: int
    measured: tuple[unit.Measured, ...] = ()
    unusable: str = ""
    refused: str = ""


def unit_of(sweep: Sweep, number: int, step: int, missing: Sequence[Measurement]) -> Unit:
    """What to send to a worker.

    Args:
        sweep: the model's part of the run.
        number: which of the config's models it is.
        step: the checkpoint.
        missing: what is missing there.
    """
    job, name = sweep.jobs[0], sweep.family.name
    places = tuple((sweep.jobs.index(one.job), one.job.tasks.index(one.task)) for one in missing)
    found: dict[str, bytes] = {}
    for kind in {kind.name: kind for one in missing for kind in one.job.analysis.reads}.values():
        for task in [None, *job.store.tasks(kind, name)]:
            folder = job.store.folder(kind, name, task)
            if folder.has(step):
                paths = [folder.path / "run.json"]
                paths += [folder.file(step, suffix) for suffix in (".csv", *kind.companions)]
                there = [path for path in paths if path.exists()]
                found |= {path.relative_to(job.store.root).as_posix(): path.read_bytes() for path in there}
    return Unit(job.config.models[number], name, step, places, found)


class Worker:
    """A process that measures units of one run. Raises UserError if the driver's folder is not there."""

    def __init__(self, shared: Shared) -> None:
        try:
            os.chdir(shared.folder)
        except OSError as error:
            raise UserError(
                f"{shared.folder} is not there on {os.uname().nodename} ({error.strerror}); start the run in a folder "
                "that all machines share"
            ) from None
        import torch

        torch.set_num_threads(shared.threads)
        self._scratch = tempfile.TemporaryDirectory(prefix="circuits-")
        here = {"results_dir": Path(self._scratch.name), "overwrite": False, "repair": False}
        self.jobs = [Job(job.analysis, job.config.model_copy(update=here)) for job in shared.jobs]
        self._families: dict[str, Family] = {}
        self._jobs: dict[str, list[Job]] = {}
        self._inputs: dict[str, unit.Inputs] = {}

    def measure(self, what: Unit) -> Outcome:
        """Load a checkpoint, measure all that is missing there, and return it."""
        try:
            return Outcome(what.name, what.step, tuple(self._measure(what)))
        except CheckpointUnusable as error:
            return Outcome(what.name, what.step, unusable=str(error))
        except UserError as error:
            return Outcome(what.name, what.step, refused=str(error))

    def _measure(self, what: Unit) -> list[unit.Measured]:
        family = self._family(what.model)
        jobs = self._jobs.setdefault(what.model, [job.resolved_for(family) for job in self.jobs])
        missing = [Measurement(jobs[job], jobs[job].tasks[task]) for job, task in what.missing]
        inputs = self._inputs.setdefault(what.model, unit.Inputs())
        described = family.describe(what.step)
        prepared = {one.job: inputs.of(one.job, described) for one in missing}
        read = {kind.name for one in missing for kind in one.job.analysis.reads}
        self._receive(what.found)
        checkpoint = unit.load(family, what.step, missing[0].job)
        measured = []
        for one in missing:
            found = unit.encode(checkpoint, one, unit.measure(checkpoint, one, prepared[one.job]))
            measured.append(found)
            if read & {kind.name for kind in one.job.analysis.kinds}:
                for folder in one.job.folders(what.name, one.task):
                    RunRecord(folder).begin(one.job.analysis.name, one.job.config, family, [what.step])
                unit.save(what.name, one, found)
        del checkpoint
        unit.free_memory()
        family.release(what.step, self.jobs[0].config.keep_checkpoints)
        return measured

    def _family(self, model: str) -> Family:
        if model not in self._families:
            self._families[model] = family_of(self.jobs[0].config, model)
        return self._families[model]

    def _receive(self, found: dict[str, bytes]) -> None:
        root = Path(self._scratch.name)
        for path in root.rglob("step*"):
            path.unlink()
        for name, data in found.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def import_path() -> str:
    """For PYTHONPATH: this repository, and the other folders that this process imports from, packages apart."""
    packages = (sys.prefix, sys.base_prefix)
    own = [path for path in sys.path if path and not path.startswith(packages)]
    return os.pathsep.join(dict.fromkeys([str(ROOT), *own]))


_workers: dict[str, Worker] = {}


def run_unit(shared: Shared, what: Unit) -> Outcome:
    """Measure a unit in this process, which stays warm: what it prepared serves its next units of the same run."""
    if shared.token not in _workers:
        _workers.clear()
        try:
            _workers[shared.token] = Worker(shared)
        except UserError as error:
            return Outcome(what.name, what.step, refused=str(error))
    return _workers[shared.token].measure(what)
