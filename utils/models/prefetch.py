"""One checkpoint ahead: while one is measured, the next is downloaded and its tensors are read into CPU memory.

The thread only reads files. It builds no model, because transformers changes torch's default number format while it
builds one, which the measurement at work would notice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from utils.models.checkpoint import CheckpointFiles

T = TypeVar("T")


@dataclass(frozen=True)
class Ready:
    """A checkpoint that has been read.

    Attributes:
        files: its files.
        state: its tensors, on the CPU, in the files' number format.
    """

    files: CheckpointFiles
    state: dict[str, Tensor]


class Ahead:
    """Room for one checkpoint that will be needed next. Starting another drops the one that is there."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._future: Future[Ready] | None = None
        self._stop = threading.Event()

    def start(self, step: int, read: Callable[[threading.Event], Ready]) -> None:
        """Read a checkpoint in the background.

        Args:
            step: its step.
            read: reads it; ends early once the event is set.
        """
        if step == self._step:
            return
        self.drop()
        self._step, self._future = step, in_background(read, self._stop)

    def wait(self, step: int) -> None:
        """Wait until a step has arrived, if it is on its way.

        Raises:
            Exception: what went wrong. It is told once; after that, the step counts as not started.
        """
        if step == self._step and self._future is not None and (error := self._future.exception()) is not None:
            self.drop()
            raise error

    def take(self, step: int) -> Ready | None:
        """A step's checkpoint, once it has arrived; None if it was never started.

        Raises:
            Exception: as `wait`.
        """
        self.wait(step)
        if step != self._step or self._future is None:
            return None
        ready = self._future.result()
        self.drop()
        return ready

    def drop(self) -> None:
        """Give up what is on its way, and the memory that it holds."""
        self._stop.set()
        self._step, self._future, self._stop = None, None, threading.Event()


def in_background(function: Callable[..., T], *args: Any) -> Future[T]:
    """Call a function in a daemon thread, so that an interrupted run does not wait for gigabytes."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
