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
    """What came back from a pool of a claimed checkpoint.

    Attributes:
        measured: what is missing there, and its files; empty if there is an error.
        unusable: why the checkpoint could not be measured, in one line.
        refused: bad input, in one line; it ends the run.
    """

    of: ClaimedCheckpoint
    measured: Sequence[tuple[Measurement, EncodedResults]] = ()
    unusable: str = ""
    refused: str = ""


class Pool(Protocol):
    """Workers somewhere else that load and measure; a context, which is left when all is measured."""

    def __enter__(self) -> object: ...

    def __exit__(self, *raised: Any) -> None: ...

    def room(self) -> int:
        """How many claimed checkpoints they can have at once."""

    def submit(self, claimed: ClaimedCheckpoint) -> None:
        """Hand one out."""

    def wait(self) -> list[PoolResult]:
        """What has come back. It waits a moment for the first."""
