"""Which checkpoints this process measures: those that are unfinished and that no other process has claimed."""

from __future__ import annotations

from utils.run.claims import Claims
from utils.run.plan import Measurement, Sweep


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

    def take(self, *, ahead: bool = False) -> tuple[int, list[Measurement]] | None:
        """Claim the first step that can be had.

        Args:
            ahead: for later. Then, only if more steps are free than other processes hold, so that none is kept waiting
                while another process has nothing to do.

        Returns:
            The step, and what is missing there. None if nothing is left, or others have claimed all that is.
        """
        taken = [step for step in self.left if self.claims.is_taken(self._names(step)[0])] if ahead else []
        if ahead and len(self.left) - len(taken) <= len(taken):
            return None
        for step in list(self.left):
            if step in taken or (self._missing(step) and not self.claims.acquire(self._names(step))):
                continue
            self.left.remove(step)
            missing = self._missing(step)  # Once more: it may have been finished just before it was claimed.
            self.elsewhere += len(self.sweep.missing[step]) - len(missing)
            if missing:
                return step, missing
            self.give_back(step)
        return None

    def give_back(self, step: int) -> None:
        """Give up the claim on a step."""
        self.claims.release(self._names(step))

    def _missing(self, step: int) -> list[Measurement]:
        return [one for one in self.sweep.missing[step] if not one.done(self.sweep.family.name, step)]

    def _names(self, step: int) -> list[str]:
        analyses = sorted({one.job.analysis.name for one in self.sweep.missing[step]})
        return [f"{analysis}/{self.sweep.family.name}/step{step:06d}" for analysis in analyses]
