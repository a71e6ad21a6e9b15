"""One run over the checkpoints of its models, from the plan to the report. Read it from top to bottom:

1. plan     `plan.py` has found out what every model still lacks, without loading any checkpoint
2. open     a model: check whatever can be checked without weights, and record what was asked for
3. claim    its next checkpoint that no other process has claimed (`claims.py`)
4. load     it, once for all that is missing there, and meanwhile bring the next one into memory
5. measure  it
6. save     every measurement at once
7. report   what could not be measured

So a run that ends early, by Ctrl-C, SIGTERM, an error or a crash, loses at most the measurement at hand, and the same
command goes on from there. Any number of processes may run it on one results folder; all end when everything is done.

With a pool of workers (`ray_pool.py`) steps 4 and 5 are theirs. The tasks of a Slurm array (`slurm.py`) are processes
that run this loop as it is.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..base.errors import CheckpointUnusable, UserError, is_out_of_memory, with_way_out
from ..base.memory import release_memory
from ..base.progress import Progress, duration
from ..config.command_line import Terminated, told_how_to_go_on
from ..config.keys import BaseConfig, MemoryKeys, counts_batches
from ..results.record import EncodedResults, RunRecord, write_results
from .analysis import loaded
from .claims import ClaimedCheckpoint, Claims, WorkQueue
from .plan import Job, Measurement, Prepared, Sweep, prepare
from .self_check import disagreements
from .times import Times

if TYPE_CHECKING:
    import torch

    from ..models.checkpoint import LoadedCheckpoint
    from ..results.store import Result
    from .pool import Pool

SHORTEST, LONGEST = 0.05, 1.0
"""Seconds between two looks at what other processes measure. The longer it takes them, the less often it is looked."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be measured, or a task at none (`step` is None), and why, in one line."""

    model: str
    step: int | None
    reason: str


class SweepLoop:
    """One run of `sweeps`, what each model lacks. With a `pool`, its workers measure; without, this process does."""

    def __init__(self, name: str, sweeps: Sequence[Sweep], pool: Pool | None = None) -> None:
        self.name, self.sweeps, self.pool = name, sweeps, pool
        self.config, self.root = sweeps[0].jobs[0].config, sweeps[0].jobs[0].store.root
        self.inputs: dict[Job, Prepared] = {}
        self.progress = Progress(name, 0)
        self.claims = Claims(self.root)
        self.failures: list[Failure] = []
        self.unfit = set[tuple[str, str, str]]()  # (model, analysis, task) whose prompts do not fit.
        self.elsewhere = 0
        self._unopened, self._queues = list(sweeps), list[WorkQueue]()
        self._named = len(sweeps[0].jobs) > 1

    def run(self) -> int:
        """Measure this process's share of every model, and wait for others only once there is nothing left to take.

        Returns the exit code: 0, or 1 if checkpoints had to be left out. Bad input is a UserError; what was measured
        before is saved.
        """
        running, done = list[ClaimedCheckpoint](), list[ClaimedCheckpoint]()
        trouble: UserError | None = None
        idle = time.monotonic()
        with self._telling_the_end(), self.pool or contextlib.nullcontext(), self.claims:
            while True:
                # Claim. Without a pool: one checkpoint, and the next, which is brought into memory meanwhile.
                while trouble is None and len(running) < (self.pool.room() if self.pool else 2):
                    try:
                        claimed = self._claim(ahead=self.pool is None and bool(running))
                    except UserError as error:  # In the next model's inputs. What is at work is measured all the same.
                        trouble = error
                        break
                    if claimed is None:
                        break
                    running.append(claimed)
                    if self.pool is not None:
                        self.pool.submit(claimed)
                for one in done:  # Only now: whoever has no claim at all, others take to be gone.
                    one.queue.give_back(one.step)
                self._close_finished({one.queue for one in running})
                # Load, measure and save.
                done = []
                if running:
                    done = self._take_in(self.pool, len(running)) if self.pool else self._measure(*running)
                    running = [one for one in running if one not in done]
                    idle = time.monotonic()
                elif trouble is not None:
                    raise trouble
                elif self._queues:
                    left = sum(len(queue.left) for queue in self._queues)
                    self.progress.say(f"{self._queues[0].sweep.family.name}: waiting for {left} that others measure")
                    time.sleep(min(LONGEST, SHORTEST + 0.1 * (time.monotonic() - idle)))
                else:
                    break
        return report(self.failures)

    @contextlib.contextmanager
    def _telling_the_end(self) -> Iterator[None]:
        """Show a bar, and say at the end what was measured and how to go on."""
        if (total := sum(sweep.size for sweep in self.sweeps)) == 0:
            names = ", ".join(f"{sweep.family.name} ({len(sweep.steps)} checkpoints)" for sweep in self.sweeps)
            log.info("nothing to do: %s finished in %s; pass overwrite=true to measure again", names, self.root)
        self.progress = progress = Progress(self.name, total)
        try:
            yield
        except (Exception, KeyboardInterrupt, Terminated) as error:
            progress.close()
            again = "run the same command " + ("without overwrite=true" if self.config.overwrite else "again")
            stopped = "stopped" if isinstance(error, Exception) else "interrupted"
            if progress.done or not isinstance(error, UserError):  # Bad input that stops a run at once is one line.
                log.warning("%s: %d of %d measured and saved; to go on, %s", stopped, progress.done, total, again)
                told_how_to_go_on(error)
            raise
        finally:
            for queue in self._queues:
                queue.sweep.family.stop()  # Nothing is left behind that still downloads.
        progress.close()
        if total:
            took = duration(progress.seconds) + (f", {self.elsewhere} by other processes" if self.elsewhere else "")
            log.info("finished: %d measured into %s in %s", progress.done, self.root, took)

    def _claim(self, *, ahead: bool) -> ClaimedCheckpoint | None:
        """Claim the next checkpoint that can be had, of the first model that has one. Opens models as they are needed.

        `ahead`: for later, while another is measured. Then as many of the last steps are left as other processes have
        none ahead: none is kept waiting while another has nothing to do.
        """
        queues = [queue for queue in self._queues if queue.left]
        holders = [queue.holders() for queue in queues]
        leave = 0
        if ahead and not self._unopened:
            claims = Counter(owner.token for held in holders for owner in held.values() if owner is not None)
            leave = sum(number == 1 for number in claims.values())
        for queue, held in zip(queues, holders, strict=True):
            if (claimed := queue.take(held, ahead=ahead, leave=leave)) is not None:
                return claimed
        while self._unopened:
            sweep = self._unopened.pop(0)
            queue = WorkQueue(sweep, self.open(sweep), self.claims)
            self._queues.append(queue)
            if (claimed := queue.take(queue.holders(), ahead=ahead)) is not None:
                return claimed
        return None

    def open(self, sweep: Sweep) -> list[int]:
        """Check everything that can be checked without weights, then record what each job was asked for.

        Returns the unfinished steps, without those at the start whose small files are missing or damaged.
        """
        family, steps = sweep.family, list(sweep.missing)
        jobs = [job for job in sweep.jobs if sweep.missing_of(job)]
        while steps:
            try:
                described = family.describe(steps[0])
                break
            except CheckpointUnusable as error:
                step = steps.pop(0)
                self._leave_out(family.name, step, sweep.missing[step], error)
        if not steps:
            return []
        self.progress.say(f"{family.name}: preparing")
        unfit = {(job, task): why for job in jobs for task, why in prepare(job, described, self.inputs).unfit.items()}
        for (job, task), why in unfit.items():
            self.progress.drop(sweep.leave_out(job, task))
            self.failures.append(Failure(family.name, None, str(why)))
            self.unfit.add((family.name, job.analysis.name, task))
        for job in jobs:
            for task, step in job.outdated(family.name):
                if step in sweep.asked[job]:
                    for kind in job.analysis.kinds:
                        job.store.folder(kind, family.name, task).delete(step)
            for folder in (one for one in job.folders(family.name) if (job, one.task) not in unfit):
                run = f"{job.analysis.name}/{family.name}/{folder.task or ''}"
                enter, others = partial(self.claims.enter, run), partial(self.claims.entered, run)
                RunRecord(folder).begin(job.analysis.name, job.config, family, sweep.asked[job], enter, others)
        return [step for step in steps if step in sweep.missing]

    def _measure(
        self, claimed: ClaimedCheckpoint, following: ClaimedCheckpoint | None = None
    ) -> list[ClaimedCheckpoint]:
        """Load a checkpoint once, and measure and save all that is missing there; returns it as done with."""
        family, step = claimed.family, claimed.step
        try:
            described = family.describe(step)
            self.progress.say(f"{family.name} step {step}: preparing")
            prepared = {what.job: prepare(what.job, described, self.inputs) for what in claimed.missing}
            self.progress.say(f"{family.name} step {step}: loading")
            placed = self.config.device, self.config.device_map
            checkpoint = family.load(step, claimed.missing[0].job.config.dtype, *placed)
            if following is not None and self.config.prefetch:
                following.family.prefetch(following.step)
            for what in claimed.missing:
                self.progress.say(what.label(step, named=self._named))
                start = time.monotonic()
                checkpoint = checkpoint.in_format(what.job.config.dtype)
                self._save({what: [measure(checkpoint, what, prepared[what.job])]})
                Times(what.job).add(family, step, what.task_name, time.monotonic() - start)
            del checkpoint
            release_memory()
        except CheckpointUnusable as error:
            self._leave_out(family.name, step, claimed.missing, error)
        family.release(step, self.config.keep_checkpoints)
        return [claimed]

    def _take_in(self, pool: Pool, running: int) -> list[ClaimedCheckpoint]:
        """Save what comes back from a pool, all of it before bad input ends the run; returns what is done with."""
        self.progress.say(f"{running} checkpoints at work")
        outcomes = pool.wait()
        found: dict[Measurement, list[EncodedResults]] = {}
        for outcome in outcomes:
            for what, results in outcome.measured:
                found.setdefault(what, []).append(results)
        self._save(found)
        for outcome in outcomes:
            if outcome.unusable:
                self._leave_out(outcome.of.family.name, outcome.of.step, outcome.of.missing, outcome.unusable)
        for outcome in outcomes:
            if outcome.refused:
                raise UserError(outcome.refused)
        return [outcome.of for outcome in outcomes]

    def _save(self, found: Mapping[Measurement, Sequence[EncodedResults]]) -> None:
        """Write results. What comes together is written together."""
        for what, several in found.items():
            write_results(what.folders, several)
            for results in several:
                self.progress.say(what.label(results.step, named=self._named))
                self.progress.advance()

    def _close_finished(self, at_work: set[WorkQueue]) -> None:
        """Forget the models of which all is measured."""
        for queue in [queue for queue in self._queues if not queue.left and queue not in at_work]:
            self._queues.remove(queue)
            queue.sweep.family.stop()
            self.elsewhere += queue.elsewhere
            self.progress.drop(queue.elsewhere)

    def _leave_out(self, model: str, step: int, missing: Sequence[Measurement], reason: object) -> None:
        self.progress.drop(sum(not what.done(step) for what in missing))
        self.failures.append(Failure(model, step, str(reason)))
        log.warning("%s step %d is left out: %s", model, step, reason)


def report(failures: Sequence[Failure]) -> int:
    """List what could not be measured; returns the exit code: 0, or 1 if there is something to list."""
    if not failures:
        return 0
    for what, told in (
        ("checkpoints that could not be measured", [one for one in failures if one.step is not None]),
        ("tasks that do not fit the model and were left out", [one for one in failures if one.step is None]),
    ):
        if told:
            log.warning("%s: %d", what, len(told))
        for one in told:
            log.warning("  %s%s: %s", one.model, "" if one.step is None else f" step {one.step}", one.reason)
    return 1


def measure(checkpoint: LoadedCheckpoint, what: Measurement, inputs: Prepared) -> EncodedResults:
    """Make one measurement, and encode its files. Where memory runs out, batches are halved, here and from now on.

    Activations that are not finite are a CheckpointUnusable, and so is a single prompt that does not fit on the device.
    """
    analysis = what.job.analysis
    run = analysis.name, checkpoint.name, what.task_name
    results, asked = None, _fitting.get(run, 1.0)
    part = asked
    while results is None:
        config = _smaller(what.job.config, part, checkpoint.weights.devices)
        try:
            results = loaded(analysis.measure)(checkpoint, config, inputs.value, what.task)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        except FloatingPointError as error:
            raise CheckpointUnusable(with_way_out(error)) from None
        if results is None:  # Out of the handler, so that the error no longer keeps what had been computed.
            release_memory(thoroughly=True)
            budget = config.budget_gb(*checkpoint.weights.devices) if isinstance(config, MemoryKeys) else 0.0
            if (config.batch_size == 1 or counts_batches(config)) and budget < LEAST_BUDGET_GB:
                way_out = "pass dtype=bfloat16, shorter prompts, or a device with more memory"
                raise CheckpointUnusable(f"batch_size: not even 1 fits on {checkpoint.device}; {way_out}")
            part /= 2
    if part < asked:
        _fitting[run] = part
        label = what.label(checkpoint.step, named=True)
        given = f"batch_size={config.batch_size}"
        if isinstance(config, MemoryKeys):
            given += f", memory_budget_gb={config.memory_budget_gb:.3g}"
        log.warning("%s: did not fit on %s; from here on with %s", label, checkpoint.device, given)
    kinds = {kind.name for kind in analysis.kinds}
    if set(results) != kinds:
        raise ValueError(f"{analysis.name} measured {sorted(results)}, its kinds are {sorted(kinds)}")
    if what.job.config.self_check and what.job.config.dtype != "float32" and run not in _self_checked:
        _self_checked.add(run)
        _self_check(checkpoint, what, config, inputs, results)
    files = [folder.encode(checkpoint.step, results[folder.kind.name], checkpoint.tokens) for folder in what.folders]
    return EncodedResults(checkpoint.step, checkpoint.provenance, inputs.hashes[what.task_name], tuple(files))


_fitting: dict[tuple[str, str, str | None], float] = {}
"""By analysis, model and task: the part of the batches asked for that fits into memory, where less than all does."""

_self_checked: set[tuple[str, str, str | None]] = set()

LEAST_BUDGET_GB = 0.01
"""With a smaller budget no pass gets any smaller."""


def _self_check(
    checkpoint: LoadedCheckpoint, what: Measurement, config: BaseConfig, inputs: Prepared, found: Mapping[str, Result]
) -> None:
    """Measure again with float32 weights, and log where that disagrees, or why it cannot be done."""
    label = what.label(checkpoint.step, named=True)
    log.info("%s: self_check: once more, in float32", label)
    try:
        config = config.model_copy(update={"dtype": "float32"})
        exact = loaded(what.job.analysis.measure)(checkpoint.in_format("float32"), config, inputs.value, what.task)
    except (UserError, FloatingPointError) as error:
        log.warning("%s: self_check: %s", label, error)
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        log.warning("%s: self_check: too little memory", label)
        return
    for line in disagreements(what.job.analysis.kinds, found, exact):
        log.info("%s: %s against float32: %s", label, what.job.config.dtype, line)


def _smaller(config: BaseConfig, part: float, devices: Sequence[torch.device]) -> BaseConfig:
    """A config with a part of its batches and of its budget of memory."""
    if part == 1:
        return config
    changed: dict[str, float] = {}
    if not counts_batches(config):
        changed["batch_size"] = max(1, int(config.batch_size * part))
    if isinstance(config, MemoryKeys):
        changed["memory_budget_gb"] = config.budget_gb(*devices) * part
    return config.model_copy(update=changed)
