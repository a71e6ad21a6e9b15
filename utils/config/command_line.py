"""The command line of the scripts: arguments, signals and exit codes.

Exit codes: 0 all done, 1 done but for checkpoints that could not be loaded, 2 bad input (one line on stderr), 130
Ctrl-C, 143 SIGTERM.
It changes these global settings: the root logger, the log levels of the libraries and the progress bars of transformers
(once), and the handler of SIGTERM (while the script runs).
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

import pydantic

from ..base.errors import UserError
from ..base.progress import configure_logging
from .keys import load_config

_TOLD = "said how to go on"

Schema = TypeVar("Schema", bound=pydantic.BaseModel)


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that the script ends as cleanly as on Ctrl-C."""


def run_script(
    script: str,
    schema: type[Schema],
    execute: Callable[[Schema, argparse.Namespace], int],
    argv: Sequence[str] | None = None,
    options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Run a script from its command line.

    Args:
        script: the name of its file.
        schema: its config.
        execute: does the work, given the config and the parsed arguments, and returns the exit code.
        argv: its arguments, by default those of the process.
        options: adds the script's own options.

    Returns:
        The exit code.
    """
    configure_logging()
    try:
        arguments = _parse(script, argv, options)
        config = load_config(schema, arguments.config, arguments.overrides)
        with _sigterm_raises():
            return execute(config, arguments)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt as error:
        _say_interrupted(error)
        return 130
    except Terminated as error:
        _say_interrupted(error)
        return 143


def told_how_to_go_on(error: BaseException) -> None:
    """Note that the user has been told what an interruption leaves, so that it is said once."""
    error.add_note(_TOLD)


def _say_interrupted(error: BaseException) -> None:
    if _TOLD not in getattr(error, "__notes__", []):
        sys.stderr.write("interrupted: to go on, run the same command again\n")


def _parse(
    script: str, argv: Sequence[str] | None, options: Callable[[argparse.ArgumentParser], None] | None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=script, allow_abbrev=False)
    parser.add_argument("-c", "--config", type=Path, help="YAML config; configs/README.md lists every key")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, for example batch_size=16")
    if options is not None:
        options(parser)
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        hint = unknown[0].lstrip("-")
        way_out = f"write {hint}" if "=" in hint else f"--help lists them; an override is written {hint}=value"
        raise UserError(f"command line: {unknown[0]}: unknown option; {way_out}")
    return arguments


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # Only the main thread may handle signals, and a notebook may run in another.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
