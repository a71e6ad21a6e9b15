"""What there is to do: which measurements every model's checkpoints still lack, found without loading any.

A run is a list of jobs. A script's run is one job; a suite's are several, which share each loaded checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..base.errors import UserError
from ..config.keys import BaseConfig, errors_named, for_model
from ..config.schedules import select_steps
from ..models.checkpoint import Description
from ..models.family import Family, family_of
from ..results.checked import DamagedRecord
from ..results.record import RunRecord, input_hashes
from ..results.store import ResultsFolder, Store
from ..tasks.prompts import Task
from .analysis import Analysis


@dataclass(frozen=True, eq=False)
class Job:
    """An analysis and its config. Two jobs are never equal."""

    analysis: Analysis
    config: BaseConfig
    where: str = ""  # how errors name its entry in a suite

    def resolved_for(self, family: Family) -> Job:
        """The job for one model: what depends on it is resolved."""
        return replace(self, config=for_model(self.config, family.prepend_bos, family.name, family.source))

    @cached_property
    def store(self) -> Store:
        return Store(self.config.results_dir)

    @cached_property
    def tasks(self) -> list[Task | None]:
        """The tasks that its config asks for; [None] if scores have no task. Two may not write to the same folder."""
        if self.analysis.tasks is None:
            return [None]
        tasks = self.analysis.tasks(self.config)
        names = [task.name for task in tasks]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"task: two tasks would both write to the folder '{repeated[0]}'; rename one")
        return list(tasks)

    def folders(self, model: str) -> list[ResultsFolder]:
        return [folder for task in self.tasks for folder in Measurement(self, model, task).folders]

    def outdated(self, model: str) -> set[tuple[str, int]]:
        """The tasks and steps whose results no longer hold all that the config asks for."""
        if self.analysis.outdated is None or self.config.overwrite:
            return set()
        return self.analysis.outdated(self.config, self.store, model)


@dataclass(frozen=True)
class Prepared:
    """What a job has prepared for a checkpoint."""

    described: Description
    value: Any
    hashes: dict[str | None, dict[str, str]]  # name of a task -> SHA-256 of the files that were read for it

    @property
    def unfit(self) -> dict[str, UserError]:
        """The tasks whose prompts do not fit the model, if the others are to be measured all the same, and why."""
        inputs = self.value.items() if isinstance(self.value, Mapping) else ()
        return {task: why for task, why in inputs if isinstance(why, UserError)}


def prepare(job: Job, described: Description, kept: dict[Job, Prepared]) -> Prepared:
    """A job's inputs for a checkpoint; those `kept`, if they were prepared for the same tokenizer and shape."""

    def hashes_now() -> dict[str | None, dict[str, str]]:
        names = [None if task is None else task.name for task in job.tasks]
        return {name: input_hashes(job.config, name) for name in names}

    before = kept.get(job)
    if before is None or before.described != described:
        hashes = before.hashes if before is not None else hashes_now()
        with errors_named(f"{job.where}: " if job.where else "", job.analysis.schema):
            value = job.analysis.prepare(job.config, described.tokenizer, described.shape)
        if hashes_now() != hashes:
            raise UserError(
                f"{job.analysis.name}: a prompts CSV or corpus was edited while this run reads it; run again with "
                "overwrite=true, or into another results_dir"
            )
        kept[job] = Prepared(described, value, hashes)
    return kept[job]


@dataclass(frozen=True, eq=False)
class Measurement:
    """One job's measurement of one task in a model. One object stands for it at all of the model's checkpoints."""

    job: Job
    model: str
    task: Task | None

    @property
    def task_name(self) -> str | None:
        return None if self.task is None else self.task.name

    @cached_property
    def folders(self) -> list[ResultsFolder]:
        """Where its results go, one folder for each kind."""
        return [self.job.store.folder(kind, self.model, self.task_name) for kind in self.job.analysis.kinds]

    def done(self, step: int) -> bool:
        return all(folder.has(step) for folder in self.folders)

    def label(self, step: int, *, named: bool) -> str:
        """What the progress bar says of it; `named` if there are several analyses."""
        name = self.job.analysis.name.removeprefix("get_") if named else None
        return " ".join(part for part in (self.model, "step", str(step), name, self.task_name) if part)


@dataclass(frozen=True)
class Sweep:
    """One model's part of a run."""

    model: str  # as the config names it
    family: Family
    asked: dict[Job, list[int]]  # the jobs, with what depends on the model resolved, and the steps each asks for
    missing: dict[int, list[Measurement]]  # step -> what is missing there, in order; the unfinished steps, sorted

    @property
    def jobs(self) -> list[Job]:
        return list(self.asked)

    @property
    def steps(self) -> list[int]:
        """Every step asked for, sorted."""
        return sorted({step for steps in self.asked.values() for step in steps})

    @property
    def size(self) -> int:
        """How many measurements there are to make."""
        return sum(len(left) for left in self.missing.values())

    def missing_of(self, job: Job) -> list[int]:
        return [step for step, left in self.missing.items() if any(one.job is job for one in left)]

    def leave_out(self, job: Job, task: str) -> int:
        """Take a job's task out of what is missing; returns how many measurements that were."""
        before = self.size
        for step, left in list(self.missing.items()):
            self.missing[step] = [one for one in left if one.job is not job or one.task_name != task]
            if not self.missing[step]:
                del self.missing[step]
        return before - self.size


def plan(jobs: Sequence[Job], *, outdated: bool = True) -> list[Sweep]:
    """Find out what each model still needs. The jobs agree in the keys that say which model and where results go.

    With `outdated`, results that lack something by now (`Analysis.outdated`) count as missing. It is a UserError if a
    model, step or task does not exist, two models share a results folder, or a folder holds results of another config
    or damaged ones.
    """
    config = jobs[0].config
    for job in jobs:
        _ = job.tasks  # Unknown tasks are told before any model is looked up.
    sweeps: dict[str, Sweep] = {}
    for model in config.models:
        family = family_of(config, model)
        if family.name in sweeps:
            raise UserError(
                f"model: {sweeps[family.name].family.source} and {family.source} would both write to the folder "
                f"'{family.name}'; run them with two results_dir"
            )
        asked = {
            job.resolved_for(family): list(
                select_steps(job.config.checkpoints, family.steps, family.name, family.within)
            )
            for job in jobs
        }
        missing: dict[int, list[Measurement]] = {}
        for job, steps in asked.items():
            if job.analysis.check is not None:
                job.analysis.check(job.config, job.store, family.name, steps)
            again = job.outdated(family.name) if outdated else set()
            for task in job.tasks:
                what = Measurement(job, family.name, task)
                for step in _missing(what, steps, family, again):
                    missing.setdefault(step, []).append(what)
        sweeps[family.name] = Sweep(model, family, asked, dict(sorted(missing.items())))
    return list(sweeps.values())


def _missing(what: Measurement, steps: list[int], family: Family, outdated: set[tuple[str, int]]) -> list[int]:
    """The steps that a measurement lacks. Results of another config, or damaged ones, are refused."""
    config = what.job.config
    if config.overwrite:
        return steps
    again = {step for task, step in outdated if task == what.task_name}
    for folder in what.folders:
        record = RunRecord(folder)
        try:
            record.check(what.job.analysis.name, config, family)
            damaged = record.damaged(steps)
        except DamagedRecord:
            if not config.repair:
                raise
            return steps
        if damaged and not config.repair:
            more = f" and {len(damaged) - 1} more files are" if len(damaged) > 1 else " is"
            _, first = damaged[0]
            raise UserError(f"{first.path}{more} damaged ({first.reason}); pass repair=true to measure again")
        again.update(step for step, _ in damaged)
    return [step for step in steps if step in again or not what.done(step)]


def describe(jobs: Sequence[Job], sweeps: Sequence[Sweep]) -> str:
    """What `--dry-run` says after the config: what is finished, and what is missing."""
    lines = []
    names = [job.analysis.name for job in jobs]
    for sweep in sweeps:
        name = sweep.family.name
        for (job, steps), given in zip(sweep.asked.items(), jobs, strict=True):
            left = sweep.missing_of(job)
            what = f"{job.analysis.name}: " if len(jobs) > 1 else ""
            if names.count(job.analysis.name) > 1:  # Its tasks tell it from the others.
                what = " ".join([job.analysis.name, *(task.name for task in job.tasks if task is not None)]) + ": "
            lines.append(f"{what}{name} from {sweep.family.source}: {len(left)} of {len(steps)} checkpoints to measure")
            if len({one.config.dtype for one in jobs}) > 1 or given.config.dtype_of:
                lines.append(f"  dtype: {job.config.dtype}")
            if job.config != for_model(given.config, not sweep.family.prepend_bos, name, sweep.family.source):
                lines.append(f"  prepend_bos: auto is {'true' if sweep.family.prepend_bos else 'false'}")
            if left:
                lines.append(f"  measure: {', '.join(map(str, left))}")
            if done := [step for step in steps if step not in left]:
                lines.append(f"  finished: {', '.join(map(str, done))}")
            folders = [job.store.folder(kind, name).path for kind in job.analysis.kinds]
            # A key of a kind's name asks for its rows; its tables are written in any case.
            unasked = [kind.name for kind in job.analysis.kinds if getattr(job.config, kind.name, None) is False]
            empty = f" (no rows in {', '.join(unasked)}: nobody asks for them)" if unasked else ""
            lines.append(f"  results: {', '.join(map(str, folders))}{empty}")
    return "".join(f"{line}\n" for line in lines)
