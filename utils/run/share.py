"""Which checkpoints this process measures: those that are unfinished and that no other process has claimed."""

from __future__ import annotations

import time

from utils.run.claims import Claims, Owner
from utils.run.plan import Measurement, Sweep

Holders = dict[int, Owner | None]
"""Step -> whose claim it has; None if that is known to be stale."""
LOOK = 5.0
"""Seconds between two looks at the heartbeats of others."""


class Share:
    """One model's unfinished checkpoints, as this process and others take them one by one.

    Args:
        sweep: the model's part of the run.
        steps: its unfinished steps.
        claims: this process's claims.

    Attributes:
        left: the steps that this process neither took nor saw finished.
        elsewhere: how many measurements other processes have made since the run was planned.
    """

    def __init__(self, sweep: Sweep, steps: list[int], claims: Claims) -> None:
        self.sweep, self.claims = sweep, claims
        self.left = list(steps)
        self.elsewhere = 0
        self._looked = time.monotonic()
        self._names = {step: self._names_of(step) for step in steps}
        # The first name that a step is claimed under stands for it.
        self._steps = {names[0]: step for step, names in self._names.items()}
        self._prefixes = sorted({name.rpartition("/")[0] for name in self._steps})

    def holders(self) -> Holders:
        """Which of the steps left are claimed by others, and by whom."""
        held = {name: owner for prefix in self._prefixes for name, owner in self.claims.holders(prefix).items()}
        left = set(self.left)
        return {self._steps[name]: owner for name, owner in held.items() if self._steps.get(name) in left}

    def take(
        self, holders: Holders | None = None, *, ahead: bool = False, leave: int = 0
    ) -> tuple[int, list[Measurement]] | None:
        """Claim the first step that can be had.

        Args:
            holders: what `holders` returned just now, if the caller has asked.
            ahead: for later, while this process measures another. Claims of others are left alone then.
            leave: claim none unless more than so many steps are free.

        Returns:
            The step, and what is missing there. None if nothing is left, or others have claimed all that is.
        """
        holders = self.holders() if holders is None else holders
        if leave:
            self._drop_finished()
            free = len(self.left) - sum(holders.get(step) is not None for step in self.left)
            if free <= leave:
                return None
        # A claim whose process seems to live is tried too, for its heart may have stopped, but not all the time.
        patient = ahead or time.monotonic() - self._looked < LOOK
        if not patient:
            self._looked = time.monotonic()
        for step in list(self.left):
            if step not in self.left or (patient and holders.get(step) is not None):
                continue
            if not self._missing(step):
                self._drop_finished()
                continue
            if not self.claims.acquire(self._names[step], unclaimed=step not in holders):
                continue
            self.left.remove(step)
            missing = self._missing(step)  # Once more: it may have been finished just before it was claimed.
            self.elsewhere += len(self.sweep.missing[step]) - len(missing)
            if missing:
                return step, missing
            self.give_back(step)
        return None

    def _drop_finished(self) -> None:
        """Leave out every step that others have finished. Folders are listed once, not searched for each step."""
        finished: dict[Measurement, set[int]] = {}
        for step in list(self.left):
            for one in self.sweep.missing[step]:
                if one not in finished:
                    folders = one.job.folders(self.sweep.family.name, one.task)
                    finished[one] = set.intersection(*(set(folder.steps()) for folder in folders))
            if all(step in finished[one] for one in self.sweep.missing[step]):
                self.left.remove(step)
                self.elsewhere += len(self.sweep.missing[step])

    def give_back(self, step: int) -> None:
        """Give up the claim on a step."""
        self.claims.release(self._names[step])

    def _missing(self, step: int) -> list[Measurement]:
        return [one for one in self.sweep.missing[step] if not one.done(self.sweep.family.name, step)]

    def _names_of(self, step: int) -> list[str]:
        analyses = sorted({one.job.analysis.name for one in self.sweep.missing[step]})
        return [f"{analysis}/{self.sweep.family.name}/step{step:06d}" for analysis in analyses]
