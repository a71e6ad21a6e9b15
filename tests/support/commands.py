"""Command lines of scripts, as the report and messages suggest them, run in this process."""

from __future__ import annotations

import importlib
import shlex

from circuits_over_time.utils.sweep.runner import main


def run_command(command: str, *further: str) -> int:
    """The exit code of `python SCRIPT ARGUMENTS...` with further arguments."""
    python, script, *argv = shlex.split(command)
    assert python == "python"
    module = importlib.import_module(f"circuits_over_time.{script.removesuffix('.py')}")
    if hasattr(module, "ANALYSIS"):
        return main(module.ANALYSIS, [*argv, *further])
    return int(module.main([*argv, *further]))
