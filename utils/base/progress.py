"""What you see while a sweep runs: log lines, and a progress bar with the time left."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm.auto import tqdm

log = logging.getLogger(__name__)


def bar(total: int, what: str = "", **options: Any) -> tqdm:
    """A progress bar: a line in a terminal, a widget in a notebook, and nothing where the output is no terminal."""
    from tqdm.auto import tqdm  # Not above: it is slow, and most lines are logged without a bar.

    return tqdm(total=total, desc=what, **{"disable": None, "dynamic_ncols": True, "leave": False} | options)


class Progress:
    """A bar that says what is going on and how long it will take; without a terminal, a log line per measurement."""

    def __init__(self, name: str, total: int, verb: str = "measured") -> None:
        self.total, self.done, self._what, self._start, self._verb = total, 0, name, time.monotonic(), verb
        # smoothing 0: the time left follows from the mean, because checkpoints take equally long.
        self._bar = bar(
            total,
            smoothing=0,
            disable=True if total == 0 else None,
            leave=True,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed} passed, {remaining} left]",
        )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def say(self, what: str) -> None:
        self._what = what
        self._bar.set_description_str(what)

    def advance(self) -> None:
        """Count one more measurement as saved."""
        self.done += 1
        self._bar.update()
        if self._bar.disable:
            left = self.seconds / self.done * (self.total - self.done)
            log.info("%s: %s %d of %d, about %s left", self._what, self._verb, self.done, self.total, duration(left))

    def reach(self, done: int) -> None:
        """Count what others have saved, up to now `done` measurements in all."""
        while self.done < done:
            self.advance()

    def drop(self, n: int) -> None:
        """Expect n measurements fewer."""
        self.total -= n
        self._bar.total = self.total
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """`02:05`, `1:02:05`."""
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:d}:{minutes:02d}:{left:02d}" if hours else f"{minutes:02d}:{left:02d}"


def about(seconds: float) -> str:
    """A time that is estimated: `about 02:05`, `under a second`."""
    return "under a second" if seconds < 1 else f"about {duration(seconds)}"


class _BarHandler(logging.StreamHandler):
    """Writes log lines above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if "tqdm" in sys.modules:
            from tqdm.auto import tqdm

            tqdm.write(line, file=sys.stderr)
        else:
            sys.stderr.write(f"{line}\n")


def configure_logging() -> None:
    """Send messages to stderr as plain lines above the bar, and of the libraries' own only errors."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    if any(isinstance(handler, _BarHandler) for handler in root.handlers):
        return
    handler = _BarHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    for library in ("transformers", "huggingface_hub", "httpx", "httpx2", "urllib3", "transformer_lens"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # Read when the hub's client and transformers are imported. Most often they are not yet, and need not be.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if (hub := sys.modules.get("huggingface_hub.utils")) is not None:
        hub.disable_progress_bars()
    if (transformers_logging := sys.modules.get("transformers.utils.logging")) is not None:
        transformers_logging.disable_progress_bar()
