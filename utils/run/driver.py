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
from utils.run.sweep import WAIT, Run
from utils.run.worker import Outcome, Unit, unit_of


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

    def _measure(self, sweep: Sweep, share: Share, inputs: unit.Inputs) -> None:
        number = list(self.sweeps).index(sweep)
        running: dict[int, list[Measurement]] = {}
        while True:
            while len(running) < self.pool.room() and (taken := share.take()) is not None:
                step, running[step] = taken[0], taken[1]
                self.pool.submit(unit_of(sweep, number, step, taken[1]))
            if not running and not share.left:
                return
            self.progress.say(f"{sweep.family.name}: {len(running)} checkpoints at work")
            if not running:
                time.sleep(WAIT)
                continue
            for outcome in self.pool.wait(WAIT):
                self._take_in(sweep, outcome, running.pop(outcome.step))
                share.give_back(outcome.step)

    def _take_in(self, sweep: Sweep, outcome: Outcome, missing: list[Measurement]) -> None:
        if outcome.refused:
            raise UserError(outcome.refused)
        if outcome.unusable:
            self.fail(sweep, outcome.step, outcome.unusable, len(missing))
            return
        for one, measured in zip(missing, outcome.measured, strict=True):
            self.progress.say(unit.label(sweep.family, outcome.step, one.task, one.job, named=len(sweep.jobs) > 1))
            unit.save(sweep.family.name, one, measured)
            self.progress.advance()
