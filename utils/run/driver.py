"""The loop of a process that measures nothing itself: it gives checkpoints to a pool of workers and writes what comes
back.

It claims a checkpoint when it hands it out. So it shares a results folder with other processes as a plain run does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from utils.errors import UserError
from utils.run import unit
from utils.run.plan import Measurement, Sweep
from utils.run.share import Share
from utils.run.sweep import Run
from utils.run.worker import Outcome, Unit, unit_of

WAIT = 0.3
"""Seconds to wait for the pool, or for other processes, before looking at both again."""

Place = tuple[str, int]
"""A family's name and a step."""


class Pool(Protocol):
    """Workers somewhere."""

    def room(self) -> int:
        """How many units to hand out at once."""

    def submit(self, what: Unit) -> None:
        """Hand out a unit."""

    def wait(self, seconds: float) -> list[Outcome]:
        """What has come back: at least one outcome, unless none came in time."""


class DriverRun(Run):
    """A run whose checkpoints are measured by a pool.

    Args:
        name: as for `Run`.
        sweeps: as for `Run`.
        pool: the workers.
    """

    def __init__(self, name: str, sweeps: Sequence[Sweep], pool: Pool) -> None:
        super().__init__(name, sweeps)
        self.pool = pool

    def _measure_all(self) -> None:
        """Keep the pool busy, with the next model's checkpoints while the last of this one are measured."""
        unopened = list(self.sweeps)
        opened: list[Share] = []
        running: dict[Place, list[Measurement]] = {}
        while unopened or opened:
            while len(running) < self.pool.room():
                handed = next((place for share in opened if (place := self._hand_out(share, running))), None)
                if handed is None and not unopened:
                    break
                if handed is None:
                    sweep = unopened.pop(0)
                    opened.append(Share(sweep, self.begin(sweep), self.claims))
            self.progress.say(f"{len(running)} checkpoints at work")
            if running:
                self._take_in(opened, self.pool.wait(WAIT), running)
            elif any(share.left for share in opened):
                time.sleep(WAIT)  # Others measure them.
            for share in list(opened):
                if not share.left and not any(model == share.sweep.family.name for model, _ in running):
                    self._close(share.sweep, share)
                    opened.remove(share)

    def _hand_out(self, share: Share, running: dict[Place, list[Measurement]]) -> Place | None:
        """Give one of a model's checkpoints to the pool, if there is one to be had."""
        if not share.left or (taken := share.take()) is None:
            return None
        step, missing = taken
        number = next(place for place, sweep in enumerate(self.sweeps) if sweep is share.sweep)
        self.pool.submit(unit_of(share.sweep, number, step, missing))
        place = (share.sweep.family.name, step)
        running[place] = missing
        return place

    def _take_in(
        self, opened: Sequence[Share], outcomes: Sequence[Outcome], running: dict[Place, list[Measurement]]
    ) -> None:
        """Write what came back, all of it before bad input ends the run. What came together is written together."""
        shares = {share.sweep.family.name: share for share in opened}
        found: dict[tuple[str, Measurement], list[unit.Measured]] = {}
        for outcome in outcomes:
            missing = running.pop((outcome.name, outcome.step))
            if outcome.unusable:
                self.fail(shares[outcome.name].sweep, outcome.step, outcome.unusable, len(missing))
            elif not outcome.refused:
                for one, measured in zip(missing, outcome.measured, strict=True):
                    found.setdefault((outcome.name, one), []).append(measured)
        for (name, one), several in found.items():
            sweep = shares[name].sweep
            unit.save_all(name, one, several)
            for measured in several:
                self.progress.say(unit.label(sweep.family, measured.step, one.task, one.job, named=len(sweep.jobs) > 1))
                self.progress.advance()
        for outcome in outcomes:
            shares[outcome.name].give_back(outcome.step)
            if outcome.refused:
                raise UserError(outcome.refused)
