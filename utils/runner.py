"""What a script calls: it hands `main` its `Analysis`, and the runner walks models x checkpoints x tasks.

`utils/run/plan.py` finds what is missing, `utils/run/sweep.py` is the loop, `utils/run/unit.py` measures and saves.
Seeds, threads and gradients are up to the analysis.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from utils.command_line import run_script
from utils.config.keys import BaseConfig
from utils.run.analysis import Analysis
from utils.run.needs import needs
from utils.run.plan import Job, describe, plan, shown_config
from utils.run.sweep import Run

__all__ = ["Analysis", "main", "run"]


def main(analysis: Analysis, argv: Sequence[str] | None = None) -> int:
    """Run a script from its command line.

    Args:
        analysis: the script.
        argv: its arguments, by default those of the process.

    Returns:
        The exit code (see `utils/command_line.py`).
    """

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="say what would be measured, load nothing")

    def execute(config: BaseConfig, arguments: argparse.Namespace) -> int:
        return run(analysis, config, dry_run=arguments.dry_run)

    return run_script(f"{analysis.name}.py", analysis.schema, execute, argv, options)


def run(analysis: Analysis, config: BaseConfig, *, dry_run: bool = False) -> int:
    """Measure what is missing.

    Args:
        analysis: the script.
        config: an instance of its schema.
        dry_run: write to stdout what would be measured, and load nothing.

    Returns:
        The exit code: 0, or 1 if checkpoints that are missing or damaged had to be left out.

    Raises:
        UserError: on bad input. What was measured before is saved.
    """
    sweeps = plan([Job(analysis, config)])
    if dry_run:
        sys.stdout.write(shown_config(config) + describe(sweeps) + "".join(needs(sweep) for sweep in sweeps))
        return 0
    return Run(analysis.name, sweeps).execute()
