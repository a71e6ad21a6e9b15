"""Where a planned run is measured: in this process, by the workers of a Ray cluster, or by a Slurm job array."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

import torch

from utils.config.keys import BaseConfig
from utils.models.fetch import fetch as fetch_steps
from utils.run import unit
from utils.run.plan import Sweep
from utils.run.screen import screened
from utils.run.sweep import Failure, Run

log = logging.getLogger(__name__)


def execute(name: str, sweeps: Sequence[Sweep]) -> int:
    """Measure what is missing, as `executor` says.

    Returns:
        The exit code.

    Raises:
        UserError: on bad input, also if checkpoints hold another's weights (`on_duplicate_weights`).
    """
    given = sweeps[0].given
    config = given[0].config
    if not any(sweep.missing for sweep in sweeps):
        return Run(name, sweeps).execute()
    sweeps = [screened(sweep) for sweep in sweeps]
    if config.executor == "ray":
        from utils.run.driver import DriverRun
        from utils.run.ray_pool import RayPool

        with RayPool(config, given) as pool:
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


def fetch(name: str, sweeps: Sequence[Sweep], later: Sequence[Sweep] = ()) -> int:
    """Bring everything to disk that measuring needs, and measure nothing: checkpoints, and the data sets of jobs.

    Args:
        name: the script's.
        sweeps: what to measure.
        later: second walks over the same models. What they lack depends on what is measured first, so all of their
            checkpoints are fetched.

    Returns:
        The exit code: 0, or 1 if checkpoints are missing or damaged.

    Raises:
        UserError: as `utils.models.fetch.fetch`, or on bad input of a job.
    """
    run = Run(name, sweeps)
    for sweep in sweeps:
        following = [one for one in later if one.family.name == sweep.family.name]
        steps = sorted({*sweep.missing, *(step for one in following for step in one.steps)})
        failed = fetch_steps(sweep.family, steps)
        run.failures += [Failure(sweep.family.name, step, reason) for step, reason in failed.items()]
        if (there := next((step for step in steps if step not in failed), None)) is not None:
            inputs, described = unit.Inputs(), sweep.family.describe(there)
            for job in sweep.jobs:
                if sweep.missing_of(job):
                    inputs.of(job, described)  # Data sets arrive with this.
    return run.report_failures()
