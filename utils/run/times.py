"""How long measurements took on this machine: what `--dry-run` estimates time from.

One JSON line a measurement, in `~/.cache/circuits-over-time/times/<analysis>.jsonl` (below XDG_CACHE_HOME, if that is
set). It is not part of the results, whose bytes follow from the config alone, and it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
from collections import defaultdict
from pathlib import Path

from utils.config.keys import BaseConfig, result_settings


def folder() -> Path:
    """Where this machine keeps them."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "circuits-over-time" / "times"


class Times:
    """The times of one analysis with one config, on this machine."""

    def __init__(self, analysis: str, config: BaseConfig) -> None:
        self.path = folder() / f"{analysis}.jsonl"
        settings = json.dumps([result_settings(config), config.device, config.batch_size], sort_keys=True, default=str)
        self._settings = hashlib.sha256(settings.encode()).hexdigest()[:16]

    def add(self, model: str, step: int, task: str | None, seconds: float) -> None:
        """Record a measurement. If that is impossible, it is left out."""
        line = {"model": model, "step": step, "task": task, "settings": self._settings, "seconds": round(seconds, 3)}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, (json.dumps(line) + "\n").encode())  # One call: processes do not mix their lines.
            finally:
                os.close(handle)

    def usual(self, model: str) -> dict[str | None, float]:
        """Task -> the median of its seconds, over the measurements of this model with the same settings."""
        seconds: dict[str | None, list[float]] = defaultdict(list)
        with contextlib.suppress(OSError):
            for text in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    line = json.loads(text)
                    if (line["model"], line["settings"]) == (model, self._settings):
                        seconds[line["task"]].append(float(line["seconds"]))
        return {task: statistics.median(each) for task, each in seconds.items()}
