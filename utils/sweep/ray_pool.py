"""Workers on a Ray cluster: that of an address, or one on this machine.

A checkpoint is a Ray task. Ray keeps a worker's process for the next one, so libraries stay warm, and if a worker or
its machine is lost, it runs the task again elsewhere, `retries` times. All machines need this repository and its
packages at the same path, and the folder in which the run was started.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.errors import CheckpointUnusable, UserError
from ..config.keys import BaseConfig
from .claims import ClaimedCheckpoint
from .plan import Job
from .pool import PoolResult
from .worker import WorkerSetup, import_library, import_path, work_item, work_on

WAIT = 0.3
"""Seconds to wait for the workers before looking for more to hand out."""


class RayPool:
    """A pool of Ray workers (a `Pool`). It starts or joins the cluster, and leaves it at the end.

    Raises:
        UserError: if Ray is not installed, the cluster cannot be reached, or no machine has what a checkpoint needs.
    """

    def __init__(self, config: BaseConfig, jobs: Sequence[Job]) -> None:
        import torch

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._ray = ray = import_library("ray")
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
        self._setup = ray.put(WorkerSetup(uuid.uuid4().hex, tuple(jobs), Path.cwd(), threads))
        self._task = ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=config.retries,
            max_calls=0,  # Otherwise Ray ends a process that used a GPU after one task.
            runtime_env={"env_vars": {"PYTHONPATH": import_path()}},
        )(work_on)
        self._running: dict[Any, ClaimedCheckpoint] = {}

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.close()

    def room(self) -> int:
        """As many checkpoints as are measured at once, and a few more, so that no worker waits for the driver."""
        if self._config.workers is not None:
            return self._config.workers
        slots = self._slots()
        return slots + max(1, slots // 8)

    def submit(self, claimed: ClaimedCheckpoint) -> None:
        self._running[self._task.remote(self._setup, work_item(claimed))] = claimed

    def wait(self) -> list[PoolResult]:
        """What has come back, if anything comes within a moment."""
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=WAIT)
        if ready and len(self._running) > 1:
            ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._result(reference, self._running.pop(reference)) for reference in ready]

    def close(self) -> None:
        """Leave the cluster. What is still running there ends."""
        if not self._joined:
            self._ray.shutdown()
            return
        for reference in getattr(self, "_running", {}):
            self._ray.cancel(reference, force=True)

    def _result(self, reference: Any, claimed: ClaimedCheckpoint) -> PoolResult:
        errors = self._ray.exceptions
        try:
            return PoolResult(claimed, list(zip(claimed.missing, self._ray.get(reference), strict=True)))
        except errors.RayTaskError as error:  # The worker raised.
            if isinstance(error.cause, CheckpointUnusable):
                return PoolResult(claimed, unusable=str(error.cause))
            if isinstance(error.cause, UserError):
                return PoolResult(claimed, refused=str(error.cause))
            raise error.as_instanceof_cause() from None
        except errors.RayError as error:
            tried = self._config.retries + 1
            why = " ".join(str(error).split())[:160]
            return PoolResult(claimed, unusable=f"its worker was lost, the last of {tried} times; run again ({why})")

    def _slots(self) -> int:
        """How many checkpoints the machines of the cluster can measure at once."""
        slots = 0
        for node in self._ray.nodes():
            has = node.get("Resources", {})
            if node["Alive"]:
                fits = int(has.get("CPU", 0) // self._cpus)
                slots += min(fits, int(has.get("GPU", 0) // self._gpus)) if self._gpus else fits
        return slots
