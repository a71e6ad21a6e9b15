"""Where a planned run is measured: in this process, by the workers of a Ray cluster, or by a Slurm job array."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

import torch

from utils.config.keys import BaseConfig
from utils.models.checkpoint import CheckpointUnusable
from utils.progress import Progress
from utils.run.plan import Sweep
from utils.run.sweep import Run

log = logging.getLogger(__name__)


def execute(name: str, sweeps: Sequence[Sweep]) -> int:
    """Measure what is missing, as `executor` says.

    Returns:
        The exit code.
    """
    jobs = sweeps[0].jobs
    config = jobs[0].config
    if not any(sweep.missing for sweep in sweeps):
        return Run(name, sweeps).execute()
    if config.executor == "ray":
        from utils.run.driver import DriverRun
        from utils.run.ray_pool import RayPool

        with RayPool(config, jobs) as pool:
            return DriverRun(name, sweeps, pool).execute()
    if config.executor == "slurm":
        from utils.run.slurm import run_array

        return run_array(name, sweeps)
    with with_threads(config):
        return Run(name, sweeps).execute()


@contextlib.contextmanager
def with_threads(config: BaseConfig) -> Iterator[None]:
    """Compute with `cpus_per_checkpoint` threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    if config.cpus_per_checkpoint is not None:
        torch.set_num_threads(config.cpus_per_checkpoint)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fetch(name: str, sweeps: Sequence[Sweep]) -> int:
    """Download every unfinished checkpoint, and measure nothing.

    Returns:
        The exit code: 0, or 1 if checkpoints are missing or damaged.
    """
    run = Run(name, sweeps)
    progress = Progress(name, sum(len(sweep.missing) for sweep in sweeps), "fetched")
    for sweep in sweeps:
        for step in sweep.missing:
            progress.say(f"{sweep.family.name} step {step}")
            try:
                sweep.family.describe(step)
                sweep.family.fetch(step)
            except CheckpointUnusable as error:
                run.fail(sweep, step, str(error), 0)
            progress.advance()
    progress.close()
    return run.report_failures()
