"""What there is to do: which measurements every model's checkpoints still lack, found without loading any.

A run is a list of jobs. A script's run is one job; a suite's are several, which share each loaded checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import yaml

from ..base.errors import UserError
from ..config.keys import BaseConfig, with_start_token
from ..config.schedules import select_steps
from ..integrity.screening import steps_to_leave_out
from ..models.family import Family, family_of
from ..results.kinds import ResultSchema
from ..results.record import RunRecord
from ..results.store import DamagedRecord, ResultsFolder, Store
from .analysis import Analysis

if TYPE_CHECKING:
    from ..tasks.prompts import Task


@dataclass(frozen=True, eq=False)
class Job:
    """An analysis and its config. Two jobs are never equal."""

    analysis: Analysis
    config: BaseConfig

    def resolved_for(self, family: Family) -> Job:
        """The job for one model: what depends on it is resolved."""
        return replace(self, config=with_start_token(self.config, family.prepend_bos))

    @cached_property
    def store(self) -> Store:
        """Where its results go."""
        return Store(self.config.results_dir)

    @cached_property
    def tasks(self) -> list[Task | None]:
        """The tasks that its config asks for; [None] if scores have no task.

        Raises:
            UserError: if there is no such task, or two would write to the same folder.
        """
        tasks = list(self.analysis.tasks_in(self.config))
        names = [task.name for task in tasks if task is not None]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"task: two tasks would both write to the folder '{repeated[0]}'; rename one")
        return tasks

    def folder(self, kind: ResultSchema, model: str, task: Task | None) -> ResultsFolder:
        """Where results of a kind go."""
        return self.store.folder(kind, model, None if task is None else task.name)

    def folders(self, model: str, task: Task | None) -> list[ResultsFolder]:
        """Where the results of a task go, one folder for each kind."""
        return [self.folder(kind, model, task) for kind in self.analysis.kinds]

    def records(self, model: str) -> list[RunRecord]:
        """The run.json of every folder that it writes to."""
        return [RunRecord(self.folder(kind, model, task)) for kind in self.analysis.kinds for task in self.tasks]

    def has(self, model: str, step: int, task: Task | None) -> bool:
        """Whether a checkpoint's results for a task are all there."""
        return all(folder.has(step) for folder in self.folders(model, task))


@dataclass(frozen=True, eq=False)
class Measurement:
    """One job's measurement of one task, at a checkpoint. One object stands for it at all checkpoints of a model."""

    job: Job
    task: Task | None

    def done(self, model: str, step: int) -> bool:
        """Whether its results are there."""
        return self.job.has(model, step, self.task)


@dataclass(frozen=True)
class Sweep:
    """One model's part of a run.

    Attributes:
        family: the model's checkpoints.
        given: what to measure, in order, as the configs have it for all models.
        jobs: the same, with what depends on the model resolved (`prepend_bos: auto`).
        asked: the steps that each job asks for.
        missing: step -> what is missing there, in order; only the unfinished steps, sorted.
    """

    family: Family
    given: tuple[Job, ...]
    jobs: tuple[Job, ...]
    asked: tuple[tuple[int, ...], ...]
    missing: dict[int, list[Measurement]]

    @property
    def steps(self) -> list[int]:
        """Every step asked for, sorted."""
        return sorted({step for steps in self.asked for step in steps})

    @property
    def size(self) -> int:
        """How many measurements there are to make."""
        return sum(len(left) for left in self.missing.values())

    def steps_of(self, job: Job) -> list[int]:
        """The steps that a job asks for."""
        return list(self.asked[self.jobs.index(job)])

    def missing_of(self, job: Job) -> list[int]:
        """The steps at which a job lacks something."""
        return [step for step, left in self.missing.items() if any(one.job is job for one in left)]


def plan(jobs: Sequence[Job]) -> list[Sweep]:
    """Find out what each model still needs.

    Args:
        jobs: at least one. They agree in the keys that say which model and where results go.

    Raises:
        UserError: if a model, step or task does not exist, two models share a results folder, or a folder holds results
            of another config or damaged ones.
    """
    config = jobs[0].config
    for job in jobs:
        _ = job.tasks  # Unknown tasks are told before any model is looked up.
    sweeps: list[Sweep] = []
    for model in config.models:
        family = family_of(config, model)
        for other in sweeps:
            if other.family.name == family.name:
                raise UserError(
                    f"model: {other.family.source} and {family.source} would both write to the folder "
                    f"'{family.name}'; run them with two results_dir"
                )
        asked = tuple(tuple(select_steps(job.config.checkpoints, family.steps, family.name)) for job in jobs)
        resolved = tuple(job.resolved_for(family) for job in jobs)
        missing: dict[int, list[Measurement]] = {}
        for job, steps in zip(resolved, asked, strict=True):
            for task in job.tasks:
                what = Measurement(job, task)
                for step in _missing(job, task, steps, family):
                    missing.setdefault(step, []).append(what)
        sweeps.append(Sweep(family, tuple(jobs), resolved, asked, dict(sorted(missing.items()))))
    return sweeps


def _missing(job: Job, task: Task | None, steps: Sequence[int], family: Family) -> list[int]:
    """The steps that a task lacks.

    Raises:
        UserError: if a folder holds results of another config, or damaged ones that are not to be repaired.
    """
    if job.config.overwrite:
        return list(steps)
    damaged: set[int] = set()
    for folder in job.folders(family.name, task):
        record = RunRecord(folder)
        try:
            record.check(job.analysis.name, job.config, family)
            found = record.damaged(steps)
        except DamagedRecord:
            if not job.config.repair:
                raise
            return list(steps)
        if found and not job.config.repair:
            more = f" and {len(found) - 1} more files are" if len(found) > 1 else " is"
            raise UserError(f"{found[0]}{more} damaged (not what was written); pass repair=true to measure again")
        damaged.update(int(path.stem.removeprefix("step")) for path in found)
    return [step for step in steps if step in damaged or not job.has(family.name, step, task)]


def describe(sweeps: Sequence[Sweep]) -> str:
    """What `--dry-run` says after the config: what is finished, and what is missing."""
    return "".join(_describe_job(sweep, job, named=len(sweep.jobs) > 1) for sweep in sweeps for job in sweep.jobs)


def shown_config(config: BaseConfig) -> str:
    """A config with all of its keys, as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _describe_job(sweep: Sweep, job: Job, *, named: bool) -> str:
    name, left = sweep.family.name, sweep.missing_of(job)
    steps = sweep.steps_of(job)
    what = f"{job.analysis.name}: " if named else ""
    lines = [f"{what}{name} from {sweep.family.source}: {len(left)} of {len(steps)} checkpoints to measure\n"]
    if any(one.config != given.config for one, given in zip(sweep.jobs, sweep.given, strict=True)):
        lines.append(f"  prepend_bos: auto is {'true' if sweep.family.prepend_bos else 'false'}\n")
    if left:
        lines.append(f"  measure: {', '.join(str(step) for step in left)}\n")
    if done := [step for step in steps if step not in left]:
        lines.append(f"  finished: {', '.join(str(step) for step in done)}\n")
    folders = [job.folder(kind, name, None).path for kind in job.analysis.kinds]
    lines.append(f"  results: {', '.join(str(folder) for folder in folders)}\n")
    return "".join(lines)


# Before a sweep: are the weights what they claim to be? Metadata tells, and only a sweep with work to do asks.


def screened(sweep: Sweep) -> Sweep:
    """A sweep without the checkpoints that `on_duplicate_weights: skip` leaves out.

    Raises:
        UserError: if it is `error`, and checkpoints to measure hold another step's weights.
    """
    if not sweep.missing:
        return sweep
    from tqdm.auto import tqdm

    family, config = sweep.family, sweep.jobs[0].config
    with tqdm(total=len(family.steps), disable=None, dynamic_ncols=True, leave=False) as bar:
        bar.set_description_str(f"{family.name}: comparing weights")
        left_out = steps_to_leave_out(family, list(sweep.missing), config.on_duplicate_weights, bar.update)
    if not left_out:
        return sweep
    return replace(sweep, missing={step: left for step, left in sweep.missing.items() if step not in left_out})
