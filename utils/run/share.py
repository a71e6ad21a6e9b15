"""Which checkpoints this process measures: those that are unfinished and that no other process has claimed."""

from __future__ import annotations

import time
from collections import Counter

from utils.run.claims import Claims, Owner
from utils.run.plan import Measurement, Sweep

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

    def take(self, *, ahead: bool = False) -> tuple[int, list[Measurement]] | None:
        """Claim the first step that can be had.

        Args:
            ahead: for later, while this process measures another. Then only if enough are left for each other process
                to have one ahead too: none is kept waiting while another has nothing to do.

        Returns:
            The step, and what is missing there. None if nothing is left, or others have claimed all that is.
        """
        holders = self._holders()
        if ahead:
            busy = Counter(owner for owner in holders.values() if owner is not None)
            free = len(self.left) - sum(owner is not None for owner in holders.values())
            if free <= sum(number == 1 for number in busy.values()):
                return None
        # A claim whose process seems to live is tried too, for its heart may have stopped, but not all the time.
        patient = ahead or time.monotonic() - self._looked < LOOK
        if not patient:
            self._looked = time.monotonic()
        for step in list(self.left):
            if patient and holders.get(step) is not None:
                continue
            if self._missing(step) and not self.claims.acquire(self._names(step)):
                continue
            self.left.remove(step)
            missing = self._missing(step)  # Once more: it may have been finished just before it was claimed.
            self.elsewhere += len(self.sweep.missing[step]) - len(missing)
            if missing:
                return step, missing
            self.give_back(step)
        return None

    def _holders(self) -> dict[int, Owner | None]:
        """Which of the steps left are claimed, and by whom; None if the claim is stale."""
        names = {self._names(step)[0]: step for step in self.left}
        prefixes = {name.rpartition("/")[0] for name in names}
        held = {name: owner for prefix in prefixes for name, owner in self.claims.holders(prefix).items()}
        return {names[name]: owner for name, owner in held.items() if name in names}

    def give_back(self, step: int) -> None:
        """Give up the claim on a step."""
        self.claims.release(self._names(step))

    def _missing(self, step: int) -> list[Measurement]:
        return [one for one in self.sweep.missing[step] if not one.done(self.sweep.family.name, step)]

    def _names(self, step: int) -> list[str]:
        analyses = sorted({one.job.analysis.name for one in self.sweep.missing[step]})
        return [f"{analysis}/{self.sweep.family.name}/step{step:06d}" for analysis in analyses]
