"""A Slurm job array, through submitit: every task is a plain process that measures its share, by claims.

The results folder and the working folder must be on a file system that all nodes share. The script that submits waits
for the tasks. It can be stopped: the tasks go on, and the same command later finds what they wrote.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import UserError
from ..base.progress import Progress, configure_logging
from ..config.command_line import Terminated, told_how_to_go_on
from ..config.keys import BaseConfig
from .loop import Failure, SweepLoop, report
from .plan import Job, Sweep, plan
from .worker import import_library, import_path

LOGS = ".slurm"
DEFAULT_TASKS = 4

log = logging.getLogger(__name__)


def run_array(name: str, jobs: Sequence[Job], sweeps: Sequence[Sweep]) -> int:
    """Submit the array, wait for it, and say what came of it; returns the exit code as `run_jobs` does.

    Bad input, in a task too, is a UserError; so is a machine without Slurm.
    """
    config = jobs[0].config
    executor = _executor(config)
    loop = SweepLoop(name, sweeps)
    with loop.claims:  # Bad input ends here, and overwrite deletes once, not in every task.
        for sweep in sweeps:
            loop.open(sweep)
    failures = set(loop.failures)
    tasks_config = {"executor": "local", "overwrite": False, "repair": False}
    plain = [Job(job.analysis, job.config.model_copy(update=tasks_config)) for job in jobs]
    progress = Progress(name, sum(sweep.size for sweep in sweeps))

    def left() -> list[Sweep]:
        """What is missing by now, without the tasks that do not fit a model: no task of the array measures those."""
        sweeps = plan(plain, outdated=False)
        for sweep in sweeps:
            for job in sweep.jobs:
                for model, analysis, task in loop.unfit:
                    if (model, analysis) == (sweep.family.name, job.analysis.name):
                        sweep.leave_out(job, task)
        return sweeps

    try:
        for _ in range(config.retries + 1):
            missing = sum(sweep.size for sweep in left())
            if not missing:
                break
            number = min(config.workers or DEFAULT_TASKS, missing)
            with _importable(), executor.batch():
                submitted = [executor.submit(run_share, name, plain, Path.cwd()) for _ in range(number)]
            names = [str(job.job_id) for job in submitted]
            # Without Slurm, tasks are processes of this machine, and their names the numbers of these.
            stop = f"scancel {names[0].partition('_')[0]}"
            if config.slurm.cluster == "local":
                stop = f"kill {' '.join(names)}"
            log.info("submitted %d tasks (%s); to stop them: %s", number, ", ".join(names), stop)
            lost = _await(submitted, progress, left)
            failures.update(one for job in submitted if not lost[job.job_id] for one in job.result())
            if not any(lost.values()):
                break
            log.warning("%d of %d tasks were lost; what they had claimed is tried again", sum(lost.values()), number)
    except (KeyboardInterrupt, Terminated) as error:
        progress.close()
        told_how_to_go_on(error)
        log.warning("interrupted: the tasks go on; the same command later finds what they wrote")
        raise
    progress.close()
    told = {(one.model, one.step) for one in failures}
    for sweep in left():
        lost_steps = [step for step in sweep.missing if (sweep.family.name, step) not in told]
        failures.update(Failure(sweep.family.name, step, "its tasks were lost; run again") for step in lost_steps)
    return report(sorted(failures, key=lambda one: (one.model, one.step or 0)))


def run_share(name: str, jobs: Sequence[Job], folder: Path) -> list[Failure]:
    """What a task of the array does: measure what no other has claimed; returns what could not be measured."""
    import torch

    os.chdir(folder)
    configure_logging()
    if jobs[0].config.cpus_per_checkpoint is not None:
        torch.set_num_threads(jobs[0].config.cpus_per_checkpoint)
    loop = SweepLoop(name, plan(jobs, outdated=False))
    loop.run()
    return loop.failures


def _executor(config: BaseConfig) -> Any:
    submitit, asked = import_library("submitit"), config.slurm
    folder = (config.results_dir / LOGS).absolute()
    try:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=asked.cluster)
        executor.update_parameters(
            name="circuits",
            timeout_min=asked.minutes,
            cpus_per_task=config.cpus_per_checkpoint or 1,
            gpus_per_node=int(config.gpus_per_checkpoint or 0),
            **({} if asked.memory_gb is None else {"mem_gb": asked.memory_gb}),
            **({} if asked.partition is None else {"slurm_partition": asked.partition}),
            **({} if asked.account is None else {"slurm_account": asked.account}),
            slurm_setup=[f"export PYTHONPATH={shlex.quote(import_path())}", *asked.setup],
        )
    except RuntimeError as error:
        raise UserError(f"executor: no Slurm here ({error}); run on a login node, or try slurm.cluster=local") from None
    return executor


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = import_path()
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _await(submitted: Sequence[Any], progress: Progress, left: Callable[[], list[Sweep]]) -> dict[str, bool]:
    """Wait for tasks; returns task -> whether it was lost. Bad input that one was given is a UserError here."""
    while not all(job.done() for job in submitted):
        progress.reach(progress.total - sum(sweep.size for sweep in left()))
        time.sleep(1)
    lost = {}
    for job in submitted:
        error = job.exception()
        if isinstance(error, UserError):
            raise error
        if error is not None and "UserError: " in str(error):
            raise UserError(str(error).rpartition("UserError: ")[2].strip().splitlines()[0])
        lost[job.job_id] = error is not None
        if error is not None:
            log.warning("task %s was lost; its log: %s", job.job_id, job.paths.stderr)
    return lost
