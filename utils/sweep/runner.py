"""What a script calls: it hands `main` its `Analysis`, and the runner walks models x checkpoints x tasks.

`utils/sweep/plan.py` finds what is missing, `utils/sweep/loop.py` is the loop.
Seeds and gradients are up to the analysis.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..config.command_line import read_command_line, script
from ..config.keys import BaseConfig
from .analysis import Analysis, Lazy
from .estimate import needs
from .execute import execute, fetch
from .plan import Job, describe, plan, shown_config
from .suite import SuiteConfig, jobs_of

__all__ = ["Analysis", "Lazy", "main", "main_of_suite", "run", "run_suite"]


SWITCHES = {
    "dry_run": "say what would be measured, load nothing",
    "fetch": "only download what is missing, measure nothing",
}


@script
def main(analysis: Analysis, argv: Sequence[str] | None = None) -> int:
    """Run a script from its command line.

    Args:
        analysis: the script.
        argv: its arguments, by default those of the process.

    Returns:
        The exit code (see `utils/config/command_line.py`).
    """
    config, arguments = read_command_line(f"{analysis.name}.py", analysis.schema, argv, **SWITCHES)
    return run(analysis, config, dry_run=arguments.dry_run, only_fetch=arguments.fetch)


@script
def main_of_suite(argv: Sequence[str] | None = None) -> int:
    """Run run_suite.py from its command line; see `main`."""
    config, arguments = read_command_line("run_suite.py", SuiteConfig, argv, **SWITCHES)
    where = "analyses" if arguments.config is None else f"{arguments.config}: analyses"
    return run_suite(config, dry_run=arguments.dry_run, only_fetch=arguments.fetch, where=where)


def run(analysis: Analysis, config: BaseConfig, *, dry_run: bool = False, only_fetch: bool = False) -> int:
    """Measure what is missing.

    Args:
        analysis: the script.
        config: an instance of its schema.
        dry_run: write to stdout what would be measured, and load nothing.
        only_fetch: download what missing measurements need, and measure nothing.

    Returns:
        The exit code: 0, or 1 if checkpoints that are missing or damaged had to be left out.

    Raises:
        UserError: on bad input. What was measured before is saved.
    """
    return _run(analysis.name, [Job(analysis, config)], config, dry_run, only_fetch)


def run_suite(config: SuiteConfig, *, dry_run: bool = False, only_fetch: bool = False, where: str = "analyses") -> int:
    """Measure what a suite's analyses are missing, with each checkpoint loaded once; see `run`."""
    return _run("run_suite", jobs_of(config, where), config, dry_run, only_fetch)


def _run(name: str, jobs: list[Job], config: BaseConfig, dry_run: bool, only_fetch: bool) -> int:
    sweeps = plan(jobs)
    if only_fetch and not dry_run:
        later = [Job(following, job.config) for job in jobs if (following := _then(job, dry_run=True)) is not None]
        return fetch(name, sweeps, [sweep for job in later for sweep in plan([job])])
    code = 0
    if dry_run:
        sys.stdout.write(shown_config(config) + describe(sweeps) + "".join(needs(sweep) for sweep in sweeps))
    else:
        code = execute(name, sweeps)
    for job in jobs:
        if (following := _then(job, dry_run)) is not None:
            code = max(code, _run(following.name, [Job(following, job.config)], job.config, dry_run, only_fetch))
    return code


def _then(job: Job, dry_run: bool) -> Analysis | None:
    """The analysis that follows a job, if its config asks for one."""
    return None if job.analysis.then is None else job.analysis.then(job.config, dry_run)
