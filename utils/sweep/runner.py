"""What a script calls: it hands `main` its `Analysis`, and every checkpoint of its models is measured.

Seeds and gradients are up to the analysis.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import yaml

from ..base.background import threads
from ..config.command_line import read_command_line, script
from ..config.keys import BaseConfig
from ..integrity.duplicates import steps_to_leave_out
from ..models.family import fetch as fetch_steps
from .analysis import Analysis, Lazy
from .estimate import refuse_unfit
from .loop import Failure, SweepLoop, report
from .plan import Job, Sweep, describe, plan, prepare
from .ray_pool import RayPool
from .slurm import run_array
from .suite import SuiteConfig, jobs_of
from .times import needs, on_a_gpu

__all__ = ["Analysis", "Lazy", "main", "main_of_suite", "run", "run_jobs"]

SWITCHES = {
    "dry_run": "say what would be measured, load nothing",
    "fetch": "only download what is missing, measure nothing",
}


@script
def main(analysis: Analysis, argv: Sequence[str] | None = None) -> int:
    """Run a script from its command line, by default that of the process; returns the exit code."""
    config, arguments = read_command_line(f"{analysis.name}.py", analysis.schema, argv, **SWITCHES)
    jobs = [Job(analysis, config)]
    return run_jobs(analysis.name, jobs, config, dry_run=arguments.dry_run, only_fetch=arguments.fetch)


@script
def main_of_suite(argv: Sequence[str] | None = None) -> int:
    """Run run_suite.py from its command line; see `main`."""
    config, arguments = read_command_line("run_suite.py", SuiteConfig, argv, **SWITCHES)
    where = "analyses" if arguments.config is None else f"{arguments.config}: analyses"
    jobs = jobs_of(config, where)
    return run_jobs("run_suite", jobs, config, dry_run=arguments.dry_run, only_fetch=arguments.fetch)


def run(analysis: Analysis, config: BaseConfig, *, dry_run: bool = False, only_fetch: bool = False) -> int:
    """Measure what is missing of one script's results; see `run_jobs`."""
    return run_jobs(analysis.name, [Job(analysis, config)], config, dry_run=dry_run, only_fetch=only_fetch)


def run_jobs(
    name: str, jobs: Sequence[Job], config: BaseConfig, *, dry_run: bool = False, only_fetch: bool = False
) -> int:
    """Measure what is missing, with each checkpoint loaded once for all jobs; the progress bar says `name`.

    `dry_run` writes to stdout what would be measured, and loads nothing; `only_fetch` downloads what is missing, and
    measures nothing. Returns the exit code: 0, or 1 if checkpoints that are missing or damaged had to be left out. Bad
    input is a UserError; what was measured before is saved.
    """
    sweeps = plan(jobs, outdated=not (dry_run or only_fetch))
    later = [Job(analysis, job.config) for job in jobs for analysis in job.analysis.then]
    later = [job for job in later if job.tasks]
    code = 0
    if dry_run:
        needed = [refuse_unfit(sweep) for sweep in sweeps]
        told = [needs(sweep, one, named=len(sweeps) > 1) for sweep, one in zip(sweeps, needed, strict=True)]
        sys.stdout.write(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        sys.stdout.write(describe(jobs, sweeps) + "".join(told) + on_a_gpu(sweeps, needed))
    elif only_fetch:
        return _fetch(sweeps, [sweep for job in later for sweep in plan([job], outdated=False)])
    else:
        executor = config.executor if any(sweep.missing for sweep in sweeps) else "local"
        for sweep in sweeps:  # Metadata tells which checkpoints hold the weights of others.
            steps = list(sweep.missing)
            for step in steps_to_leave_out(sweep.family, steps, config.on_duplicate_weights) if steps else ():
                del sweep.missing[step]
        if executor == "slurm":
            code = run_array(name, jobs, sweeps)
        else:
            with threads(config.cpus_per_checkpoint):
                code = SweepLoop(name, sweeps, RayPool(config, jobs) if executor == "ray" else None).run()
        for job, model in [(job, sweep.family.name) for sweep in sweeps for job in sweep.jobs]:
            if job.analysis.finish is not None and any(folder.steps() for folder in job.folders(model)):
                job.analysis.finish(job.config, job.store, model)
    for job in later:
        code = max(code, run_jobs(job.analysis.name, [job], job.config, dry_run=dry_run, only_fetch=only_fetch))
    return code


def _fetch(sweeps: Sequence[Sweep], later: Sequence[Sweep]) -> int:
    """Bring everything to disk that measuring needs: checkpoints, and the data sets of jobs.

    What the second walks (`later`) lack depends on what is measured first, so all of their checkpoints are fetched.
    """
    failures: list[Failure] = []
    for sweep in sweeps:
        following = [step for one in later if one.family.name == sweep.family.name for step in one.steps]
        steps = sorted({*sweep.missing, *following})
        failed = fetch_steps(sweep.family, steps)
        failures += [Failure(sweep.family.name, step, reason) for step, reason in failed.items()]
        if (there := next((step for step in steps if step not in failed), None)) is not None:
            described = sweep.family.describe(there)
            for job in sweep.jobs:
                if sweep.missing_of(job):
                    prepare(job, described, {})  # Data sets arrive with this.
    return report(failures)
