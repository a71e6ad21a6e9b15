"""One checkpoint ahead: while one is measured, the next is downloaded and its tensors are read into CPU memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..base.background import in_background
from .weight_files import CheckpointFiles

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PrefetchedCheckpoint:
    """A checkpoint's files and tensors, on the CPU and in the files' number format."""

    files: CheckpointFiles
    state: dict[str, Tensor]


class Prefetcher:
    """Room for one checkpoint that will be needed next. Starting another drops the one that is there."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._future: Future[PrefetchedCheckpoint] | None = None
        self._stop = threading.Event()

    def start(self, step: int, read: Callable[[int, threading.Event], PrefetchedCheckpoint]) -> None:
        """Read a checkpoint in the background. `read` ends early once its event is set."""
        if step == self._step:
            return
        self.drop()
        self._step, self._future = step, in_background(read, step, self._stop)

    def wait(self, step: int) -> None:
        """Wait until a step has arrived, if it is on its way.

        Raises:
            Exception: what went wrong. It is told once; after that, the step counts as not started.
        """
        if step == self._step and self._future is not None and (error := self._future.exception()) is not None:
            self.drop()
            raise error

    def take(self, step: int) -> PrefetchedCheckpoint | None:
        """A step's checkpoint, once it has arrived; None if it was never started. Raises what `wait` raises."""
        self.wait(step)
        if step != self._step or self._future is None:
            return None
        prefetched = self._future.result()
        self.drop()
        return prefetched

    def drop(self) -> None:
        """Give up what is on its way, and the memory that it holds."""
        self._stop.set()
        self._step, self._future, self._stop = None, None, threading.Event()
