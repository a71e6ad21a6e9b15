"""Where a planned run is measured: in this process, by the workers of a Ray cluster, or by a Slurm job array."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..models.family import fetch as fetch_steps
from . import loop as unit
from .loop import Failure, Run, with_threads
from .plan import Sweep, screened

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
        from .ray_pool import DriverRun, RayPool

        with RayPool(config, given) as pool:
            return DriverRun(name, sweeps, pool).execute()
    if config.executor == "slurm":
        from .slurm import run_array

        return run_array(name, sweeps)
    with with_threads(config):
        return Run(name, sweeps).execute()


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
