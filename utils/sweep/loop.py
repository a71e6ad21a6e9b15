"""The one loop over checkpoints: prepare, load, prefetch, measure, save, free, report.

It loads a checkpoint once for all that is missing there, and meanwhile brings the next one into memory. Whatever is
measured is saved at once. So a run that ends early, by Ctrl-C, SIGTERM, an error or a crash, loses at most the
measurement at hand, and the same command goes on from there.

A checkpoint that is missing or damaged is reported, and the sweep goes on without it.

Other processes may run the same command on the same results folder: each takes the checkpoints that no other has
claimed (`claims.py`), and all end when everything is measured.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.errors import CheckpointUnusable, UserError
from ..base.progress import Progress, duration
from ..config.command_line import Terminated, told_how_to_go_on
from ..config.keys import BaseConfig
from ..models.family import Family
from ..results.record import RunRecord
from ..results.store import Result
from .claims import Claims, Share
from .estimate import Times
from .plan import Job, Measurement, Sweep

if TYPE_CHECKING:
    from ..models.checkpoint import Description, LoadedCheckpoint
    from ..tasks.prompts import Task


@contextlib.contextmanager
def with_threads(config: BaseConfig) -> Iterator[None]:
    """Compute with `cpus_per_checkpoint` threads, and with as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    if config.cpus_per_checkpoint is not None:
        torch.set_num_threads(config.cpus_per_checkpoint)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SHORTEST, LONGEST = 0.05, 1.0
"""Seconds between two looks at what other processes measure. The longer it takes them, the less often it is looked."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be measured.

    Attributes:
        model: its family's name.
        step: its training step.
        reason: what is wrong with it, in one line.
    """

    model: str
    step: int
    reason: str


@dataclass(frozen=True, eq=False)
class Opened:
    """A model that has been begun, and is not measured to its end.

    Attributes:
        sweep: its part of the run.
        share: what this process takes of it.
        inputs: what jobs have prepared for it.
    """

    sweep: Sweep
    share: Share
    inputs: Inputs


@dataclass(frozen=True)
class Taken:
    """A checkpoint that this process has claimed.

    Attributes:
        of: the model.
        step: the training step.
        missing: what to measure there.
    """

    of: Opened
    step: int
    missing: list[Measurement]


class Run:
    """One run: the loop over its sweeps."""

    def __init__(self, name: str, sweeps: Sequence[Sweep]) -> None:
        self.name, self.sweeps = name, sweeps
        self.config = sweeps[0].jobs[0].config
        self.progress = Progress(name, 0)
        self.claims = Claims(sweeps[0].jobs[0].store.root)
        self.failures: list[Failure] = []
        self.elsewhere = 0

    def execute(self) -> int:
        """Measure what is missing.

        Returns:
            The exit code: 0, or 1 if checkpoints had to be left out.

        Raises:
            UserError: on bad input. What was measured before is saved.
        """
        total = sum(sweep.size for sweep in self.sweeps)
        root = self.sweeps[0].jobs[0].store.root
        if total == 0:
            names = ", ".join(f"{sweep.family.name} ({len(sweep.steps)} checkpoints)" for sweep in self.sweeps)
            log.info("nothing to do: %s finished in %s; pass overwrite=true to measure again", names, root)
        self.progress = progress = Progress(self.name, total)
        try:
            with self.claims:
                self._measure_all()
        except (Exception, KeyboardInterrupt, Terminated) as error:
            progress.close()
            again = "run the same command " + ("without overwrite=true" if self.config.overwrite else "again")
            stopped = "stopped" if isinstance(error, Exception) else "interrupted"
            if progress.done or not isinstance(error, UserError):  # Bad input that stops a run at once is one line.
                log.warning("%s: %d of %d measured and saved; to go on, %s", stopped, progress.done, total, again)
                told_how_to_go_on(error)
            raise
        progress.close()
        if total:
            others = f", {self.elsewhere} by other processes" if self.elsewhere else ""
            log.info("finished: %d measured into %s in %s%s", progress.done, root, duration(progress.seconds), others)
        return self.report_failures()

    def _measure_all(self) -> None:
        """Measure this process's share of every model, and wait for others only once there is nothing left to take."""
        unopened, opened = list(self.sweeps), list[Opened]()
        try:
            taken = self._take(unopened, opened)
            idle = time.monotonic()
            while taken is not None or any(one.share.left for one in opened):
                if taken is None:
                    self._wait(opened, idle)
                    taken = self._take(unopened, opened)
                    continue
                following, trouble = None, None
                try:
                    following = self._take(unopened, opened, ahead=True)
                except UserError as error:  # In another model's inputs. This checkpoint can be measured all the same.
                    trouble = error
                self._measure(taken, following)
                self._close_all(opened, following)
                if trouble is not None:
                    raise trouble
                done, taken = taken, following or self._take(unopened, opened)
                idle = time.monotonic()
                done.of.share.give_back(done.step)  # Only now: whoever has no claim at all, others take to be gone.
            self._close_all(opened)
        finally:
            for one in opened:
                one.sweep.family.stop()  # Nothing is left behind that still downloads.

    def _take(self, unopened: list[Sweep], opened: list[Opened], *, ahead: bool = False) -> Taken | None:
        """Claim the next checkpoint that can be had, of the first model that has one. Opens models as they are needed.

        Args:
            unopened: models that are still to come.
            opened: models that have been begun and not closed.
            ahead: for later, while another is measured. Then as many of the last steps are left as other processes have
                none ahead: none is kept waiting while another has nothing to do.
        """
        at_work = [one for one in opened if one.share.left]
        holders = [one.share.holders() for one in at_work]
        leave = 0
        if ahead and not unopened:
            claims = Counter(owner.token for held in holders for owner in held.values() if owner is not None)
            leave = sum(number == 1 for number in claims.values())
        for one, held in zip(at_work, holders, strict=True):
            if (found := one.share.take(held, ahead=ahead, leave=leave)) is not None:
                return Taken(one, *found)
        while unopened:
            sweep = unopened.pop(0)
            inputs = Inputs()
            one = Opened(sweep, Share(sweep, self.begin(sweep, inputs), self.claims), inputs)
            opened.append(one)
            if (found := one.share.take(ahead=ahead)) is not None:
                return Taken(one, *found)
        return None

    def _wait(self, opened: list[Opened], since: float) -> None:
        """Give other processes some time for what they measure; `since` when there has been nothing else to do."""
        self._close_all(opened)
        if waiting := [one for one in opened if one.share.left]:
            left = sum(len(one.share.left) for one in waiting)
            self.progress.say(f"{waiting[0].sweep.family.name}: waiting for {left} that others measure")
            time.sleep(min(LONGEST, SHORTEST + 0.1 * (time.monotonic() - since)))

    def _close_all(self, opened: list[Opened], following: Taken | None = None) -> None:
        """Close the models of which all is measured, and leave them out of the opened ones."""
        for one in list(opened):
            if not one.share.left and (following is None or following.of is not one):
                opened.remove(one)
                one.sweep.family.stop()
                self._close(one.sweep, one.share)

    def _close(self, sweep: Sweep, share: Share) -> None:
        self.elsewhere += share.elsewhere
        self.progress.drop(share.elsewhere)
        self.finish(sweep)

    def finish(self, sweep: Sweep) -> None:
        """Let each job that has results of a model sum them up."""
        for job in sweep.jobs:
            measured = any(record.folder.steps() for record in job.records(sweep.family.name))
            if job.analysis.finish is not None and measured:
                job.analysis.finish(job.config, job.store, sweep.family.name)

    def _measure(self, taken: Taken, following: Taken | None) -> None:
        """Measure a claimed checkpoint, unless it cannot be had."""
        sweep, step = taken.of.sweep, taken.step
        try:
            self._checkpoint(taken, following)
        except CheckpointUnusable as error:
            self.fail(sweep, step, str(error), len(taken.missing))
        sweep.family.release(step, self.config.keep_checkpoints)

    def begin(self, sweep: Sweep, inputs: Inputs | None = None) -> list[int]:
        """Check everything that can be checked without weights, then record what each job was asked for.

        Returns:
            The unfinished steps, without those at the start whose small files are missing or damaged.
        """
        inputs = inputs or Inputs()
        steps = list(sweep.missing)
        jobs = [job for job in sweep.jobs if sweep.missing_of(job)]
        while steps:
            try:
                described = sweep.family.describe(steps[0])
            except CheckpointUnusable as error:
                step = steps.pop(0)
                self.fail(sweep, step, str(error), len(sweep.missing[step]))
                continue
            for job in jobs:
                self._prepare(sweep, job, inputs, described)
            if self.config.overwrite:
                self._require_alone(sweep)
            for job in jobs:
                for record in job.records(sweep.family.name):
                    record.begin(job.analysis.name, job.config, sweep.family, sweep.steps_of(job))
            break
        return steps

    def _require_alone(self, sweep: Sweep) -> None:
        for job in sweep.jobs:
            if others := self.claims.others(f"{job.analysis.name}/{sweep.family.name}"):
                raise UserError(
                    f"overwrite: {others[0]} is measuring {job.analysis.name} of {sweep.family.name} into "
                    f"{job.store.root}; wait for it, or leave overwrite out to share the work"
                )

    def _prepare(self, sweep: Sweep, job: Job, inputs: Inputs, described: Description) -> object:
        self.progress.say(f"{sweep.family.name}: preparing")
        return inputs.of(job, described)

    def _checkpoint(self, taken: Taken, following: Taken | None) -> None:
        """Load a checkpoint once, and measure and save all that is missing there."""
        sweep, step, missing = taken.of.sweep, taken.step, taken.missing
        family = sweep.family
        described = family.describe(step)
        prepared = {one.job: self._prepare(sweep, one.job, taken.of.inputs, described) for one in missing}
        self.progress.say(f"{family.name} step {step}: loading")
        checkpoint = load(family, step, missing[0].job)
        if following is not None and self.config.prefetch:
            following.of.sweep.family.prefetch(following.step)
        for one in missing:
            self.progress.say(label(family, step, one.task, one.job, named=len(sweep.jobs) > 1))
            start = time.monotonic()
            results = measure(checkpoint, one, prepared[one.job])
            save(family.name, one, encode(checkpoint, one, results))
            self.progress.advance()
            times_of(one.job).add(family.name, step, task_name(one), time.monotonic() - start)
        del checkpoint
        free_memory()

    def fail(self, sweep: Sweep, step: int, reason: str, lost: int) -> None:
        """Report a checkpoint that cannot be measured, and with it `lost` measurements."""
        self.progress.drop(lost)
        self.failures.append(Failure(sweep.family.name, step, reason))
        log.warning("%s step %d is left out: %s", sweep.family.name, step, reason)

    def report_failures(self) -> int:
        """List what could not be measured.

        Returns:
            The exit code: 0, or 1 if there is something to list.
        """
        if not self.failures:
            return 0
        log.warning("checkpoints that could not be measured: %d", len(self.failures))
        for failure in self.failures:
            log.warning("  %s step %d: %s", failure.model, failure.step, failure.reason)
        return 1


# The unit of work: one loaded checkpoint, and everything that a run still lacks of it.


class Inputs:
    """What jobs prepare for one model: once, and again only for a checkpoint with another tokenizer or shape."""

    def __init__(self) -> None:
        self._prepared: dict[Job, tuple[Description, Any]] = {}

    def of(self, job: Job, described: Description) -> Any:
        """A job's inputs for a checkpoint.

        Raises:
            UserError: on bad input.
        """
        held = self._prepared.get(job)
        if held is None or held[0] != described:
            held = described, job.analysis.prepare(job.config, described.tokenizer, described.shape)
            self._prepared[job] = held
        return held[1]


def measure(checkpoint: LoadedCheckpoint, what: Measurement, inputs: Any) -> dict[str, Result]:
    """One measurement.

    Raises:
        UserError: if a batch does not fit on the device, or as the analysis does.
    """
    import torch

    analysis, config = what.job.analysis, what.job.config
    try:
        results = analysis.measure(checkpoint, config, inputs, what.task)
    except torch.OutOfMemoryError:
        size = config.batch_size
        raise UserError(
            f"batch_size: {size} does not fit on {checkpoint.device} ({checkpoint.name} step {checkpoint.step}); "
            f"pass a smaller one, for example batch_size={max(size // 2, 1)}"
        ) from None
    kinds = {kind.name for kind in analysis.kinds}
    if set(results) != kinds:
        raise ValueError(f"{analysis.name} measured {sorted(results)}, its kinds are {sorted(kinds)}")
    return results


@dataclass(frozen=True)
class Measured:
    """What was measured, ready to be written.

    Attributes:
        step: the checkpoint's.
        provenance: of its weights.
        files: for each kind of the analysis, suffix -> bytes.
    """

    step: int
    provenance: dict[str, Any]
    files: tuple[dict[str, bytes], ...]


def encode(checkpoint: LoadedCheckpoint, what: Measurement, results: dict[str, Result]) -> Measured:
    """The files of one measurement."""
    folders = what.job.folders(checkpoint.name, what.task)
    files = [folder.encode(checkpoint.step, results[folder.kind.name], checkpoint.tokens) for folder in folders]
    return Measured(checkpoint.step, checkpoint.provenance, tuple(files))


def save(model: str, what: Measurement, measured: Measured) -> None:
    """Write one measurement; see `save_all`."""
    save_all(model, what, [measured])


def save_all(model: str, what: Measurement, found: Sequence[Measured]) -> None:
    """Write one measurement of several checkpoints.

    Provenance comes first, then what goes with the tables, and the tables last: a table says that all is complete.
    """
    folders = what.job.folders(model, what.task)
    equal: dict[int, set[int]] = {}
    for place, folder in enumerate(folders):
        added = RunRecord(folder).add_all({one.step: (one.provenance, one.files[place]) for one in found})
        for step, others in added.items():
            equal.setdefault(step, set()).update(others)
        for one in found:
            for suffix, data in one.files[place].items():
                if suffix != ".csv":
                    folder.write(one.step, suffix, data)
    for place, folder in enumerate(folders):
        for one in found:
            folder.write(one.step, ".csv", one.files[place][".csv"], sync_folder=one is found[-1])
    for step, same in equal.items():
        if same:
            steps = ", ".join(str(other) for other in sorted(same))
            log.warning("%s: step %d holds the same weights as step %s; recorded in run.json", model, step, steps)


def load(family: Family, step: int, job: Job) -> LoadedCheckpoint:
    """Load a checkpoint as a job's config says. All jobs of a run agree in it.

    Raises:
        CheckpointUnusable: if this checkpoint is missing or damaged.
        UserError: if it does not fit on the device, or the device does not exist.
    """
    return family.load(step, job.config.dtype, job.config.device)


def free_memory() -> None:
    """Give the GPU memory of a checkpoint that is no longer used back to the device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def label(family: Family, step: int, task: Task | None, job: Job, *, named: bool) -> str:
    """What the progress bar says of a measurement; `named` if there are several jobs."""
    parts = [family.name, "step", str(step)]
    if named:
        parts.append(job.analysis.name.removeprefix("get_"))
    if task is not None:
        parts.append(task.name)
    return " ".join(parts)


def times_of(job: Job) -> Times:
    """How long a job's measurements took on this machine."""
    return Times(job.analysis.name, job.config)


def task_name(what: Measurement) -> str | None:
    """The name of a measurement's task; None if it has none."""
    return None if what.task is None else what.task.name
