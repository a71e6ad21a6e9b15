"""The command line of the scripts: arguments, signals and exit codes.

Exit codes: 0 all done, 1 done but for checkpoints that could not be loaded, 2 bad input (one line on stderr), 130
Ctrl-C, 143 SIGTERM.
It changes these global settings: the root logger, the log levels of the libraries and the progress bars of transformers
(once), and the handler of SIGTERM (while the script runs).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import pydantic

from ..base.errors import UserError, is_out_of_memory, one_line
from ..base.progress import configure_logging
from .explain import given_in, key_of
from .keys import load_config
from .strict_yaml import Block, parse_override, read_yaml

_TOLD = "said how to go on"
_config: ContextVar[tuple[Path | None, Block, list[tuple[str, ...]]]] = ContextVar("config")
"""The script's config file, the keys in it, and those given on the command line."""

Schema = TypeVar("Schema", bound=pydantic.BaseModel)
Arguments = ParamSpec("Arguments")


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that the script ends as cleanly as on Ctrl-C."""


def script(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """Make a function the `main` of a script: it logs to stderr, and whatever ends it becomes an exit code."""

    @functools.wraps(main)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        # Libraries make objects by the hundred thousand, and keep them: to look through those again and again for
        # garbage would take a seventh of the time until the first result.
        gc.set_threshold(200_000, 50)
        configure_logging()
        _config.set((None, {}, []))
        try:
            with _sigterm_raises():
                return main(*args, **kwargs)
        except UserError as error:
            line = str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            line = f"not enough memory ({one_line(error)}); ask for less, or for smaller batches"
        except OSError as error:
            if error.filename is None:
                raise
            line = f"{error.filename}: {error.strerror}; name another file or folder, or put this right"
        except (KeyboardInterrupt, Terminated) as error:
            if _TOLD not in getattr(error, "__notes__", []):
                sys.stderr.write("interrupted: to go on, run the same command again\n")
            return 130 if isinstance(error, KeyboardInterrupt) else 143
        sys.stderr.write(f"{_with_its_file(line)}\n")
        return 2

    return run


def read_command_line(
    name: str, schema: type[Schema], argv: Sequence[str] | None = None, **switches: str
) -> tuple[Schema, argparse.Namespace]:
    """Parse a script's arguments, by default those of the process, and read its config; `name` is the script's file.

    `switches` are its own options that are on or off, and what `--help` says of them: `dry_run` is `--dry-run`. An
    unknown argument is a UserError, and so is what `load_config` refuses.
    """
    parser = argparse.ArgumentParser(prog=name, allow_abbrev=False)
    parser.add_argument("-c", "--config", type=Path, help="YAML config; configs/README.md lists every key")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, for example seed=1")
    for switch, meaning in switches.items():
        parser.add_argument(f"--{switch.replace('_', '-')}", action="store_true", help=meaning)
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        hint = unknown[0].lstrip("-")
        way_out = f"write {hint}" if "=" in hint else f"--help lists them; an override is written {hint}=value"
        raise UserError(f"command line: {unknown[0]}: unknown option; {way_out}")
    config = load_config(schema, arguments.config, arguments.overrides)
    if arguments.config is not None:
        changed = [parse_override(text)[0] for text in arguments.overrides]
        _config.set((arguments.config, read_yaml(arguments.config), changed))
    return config, arguments


def told_how_to_go_on(error: BaseException) -> None:
    """Note that the user has been told what an interruption leaves, so that it is said once."""
    error.add_note(_TOLD)


def _with_its_file(message: str) -> str:
    """A message; lines that begin with a key from the script's config file get the file's name in front."""
    path, block, changed = _config.get()
    lines = []
    for line in message.split("\n"):
        key = key_of(line)
        held: Any = block
        for part in key:
            held = held.get(part) if isinstance(held, dict) else None
        there = key and held is not None and given_in(key, path, changed) == str(path)
        lines.append(f"{path}: {line}" if there else line)
    return "\n".join(lines)


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
