"""What the loop asks of workers somewhere else, and what comes back from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..results.record import EncodedResults
from .claims import ClaimedCheckpoint
from .plan import Measurement


@dataclass(frozen=True)
class PoolResult:
    """What came back from a pool of a claimed checkpoint."""

    of: ClaimedCheckpoint
    measured: Sequence[tuple[Measurement, EncodedResults]] = ()  # what is missing there, and its files
    unusable: str = ""  # why the checkpoint could not be measured, in one line
    refused: str = ""  # bad input, in one line; it ends the run


class Pool(Protocol):
    """Workers somewhere else that load and measure; a context, which is left when all is measured.

    `room` is how many claimed checkpoints they can have at once; `submit` hands one out; `wait` returns what has come
    back, and waits a moment for the first.
    """

    def __enter__(self) -> object: ...

    def __exit__(self, *raised: Any) -> None: ...

    def room(self) -> int: ...

    def submit(self, claimed: ClaimedCheckpoint) -> None: ...

    def wait(self) -> list[PoolResult]: ...
