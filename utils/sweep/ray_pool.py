"""Workers on a Ray cluster: that of an address, or one on this machine.

A unit is a Ray task. Ray keeps a worker's process for the next one, so libraries stay warm, and if a worker or its
machine is lost, it runs the task again elsewhere, `retries` times. All machines need this repository and its packages
at the same path, and the folder in which the run was started.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from ..base.errors import UserError
from ..config.keys import BaseConfig
from . import loop as unit
from .claims import Share
from .loop import Run
from .plan import Job, Measurement, Sweep
from .worker import Outcome, Shared, Unit, import_path, run_unit, unit_of


def import_ray() -> Any:
    """The library.

    Raises:
        UserError: if it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UserError("executor: ray is not installed; run: pip install -r requirements-cluster.txt") from None
    return ray


class RayPool:
    """A pool of Ray workers (`driver.Pool`). It starts or joins the cluster, and leaves it at the end.

    Raises:
        UserError: if Ray is not installed, the cluster cannot be reached, or no machine has what a checkpoint needs.
    """

    def __init__(self, config: BaseConfig, jobs: Sequence[Job]) -> None:
        import torch

        self._ray = ray = import_ray()
        self._config = config
        # With a GPU a single core feeds it; without, the threads need a core each.
        self._cpus = config.cpus_per_checkpoint or (1 if config.gpus_per_checkpoint else torch.get_num_threads())
        self._gpus = config.gpus_per_checkpoint or 0
        self._joined = ray.is_initialized()
        if not self._joined:
            try:
                ray.init(
                    address=config.ray_address, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
                )
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                why = " ".join(str(error).split())[:200]
                raise UserError(
                    f"ray_address: no Ray cluster at '{config.ray_address}' ({why}); start one with: ray start --head"
                ) from None
        if not self._slots():
            self.close()
            raise UserError(
                f"cpus_per_checkpoint: no machine of the Ray cluster has {self._cpus} cores and {self._gpus:g} GPUs; "
                "ask for fewer"
            )
        threads = config.cpus_per_checkpoint or torch.get_num_threads()
        self._shared = ray.put(Shared(uuid.uuid4().hex, tuple(jobs), Path.cwd(), threads))
        self._task = ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=config.retries,
            max_calls=0,  # Otherwise Ray ends a process that used a GPU after one task.
            runtime_env={"env_vars": {"PYTHONPATH": import_path()}},
        )(run_unit)
        self._running: dict[Any, Unit] = {}

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def room(self) -> int:
        """As many units as run at once, and a few more, so that no worker waits for the driver."""
        if self._config.workers is not None:
            return self._config.workers
        slots = self._slots()
        return slots + max(1, slots // 8)

    def submit(self, what: Unit) -> None:
        """Hand out a unit."""
        self._running[self._task.remote(self._shared, what)] = what

    def wait(self, seconds: float) -> list[Outcome]:
        """What has come back."""
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        if ready and len(self._running) > 1:
            ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._outcome(reference, self._running.pop(reference)) for reference in ready]

    def close(self) -> None:
        """Leave the cluster. What is still running there ends."""
        if not self._joined:
            self._ray.shutdown()
            return
        for reference in getattr(self, "_running", {}):
            self._ray.cancel(reference, force=True)

    def _outcome(self, reference: Any, what: Unit) -> Outcome:
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
            return outcome
        except errors.RayTaskError as error:  # The analysis raised.
            raise error.as_instanceof_cause() from None
        except errors.RayError as error:
            tried = self._config.retries + 1
            why = " ".join(str(error).split())[:160]
            reason = f"its worker was lost, the last of {tried} times; run again ({why})"
            return Outcome(what.name, what.step, unusable=reason)

    def _slots(self) -> int:
        """How many checkpoints the machines of the cluster can measure at once."""
        slots = 0
        for node in self._ray.nodes():
            has = node.get("Resources", {})
            if node["Alive"]:
                fits = int(has.get("CPU", 0) // self._cpus)
                slots += min(fits, int(has.get("GPU", 0) // self._gpus)) if self._gpus else fits
        return slots


# The loop of a process that measures nothing itself: it gives checkpoints to a pool of workers and writes what comes

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
