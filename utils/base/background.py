"""Threads: how many compute, those that an interrupted run does not wait for, and what one of them reads ahead."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let torch compute with so many threads, and with as many as before afterwards; None changes nothing."""
    if number is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_background(function: Callable[..., T], *args: Any) -> Future[T]:
    """Call a function in a daemon thread: the threads of `concurrent.futures` are joined when the interpreter ends."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


class Prefetcher(Generic[T]):
    """Room for what one step will need next. Starting another drops the one that is there."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._future: Future[T] | None = None
        self._stop = threading.Event()

    def start(self, step: int, read: Callable[[int, threading.Event], T]) -> None:
        """Read what a step needs in the background. `read` ends early once its event is set."""
        if step == self._step:
            return
        self.drop()
        self._step, self._future = step, in_background(read, step, self._stop)

    def wait(self, step: int) -> None:
        """Wait for a step that is on its way. What went wrong is raised once; then it counts as not started."""
        if step == self._step and self._future is not None and (error := self._future.exception()) is not None:
            self.drop()
            raise error

    def take(self, step: int) -> T | None:
        """What a step needs, once it has arrived; None if it was never started. Raises what `wait` raises."""
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
