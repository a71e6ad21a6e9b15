"""The unit of work: one loaded checkpoint, and everything that a run still lacks of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from utils.errors import UserError
from utils.models.checkpoint import Description, LoadedCheckpoint
from utils.models.family import Family
from utils.results.record import RunRecord
from utils.results.store import Result
from utils.run.plan import Job, Measurement
from utils.run.times import Times
from utils.tasks.prompts import Task

log = logging.getLogger(__name__)


class Inputs:
    """What jobs prepare for one model: once, and again only for a checkpoint with another tokenizer or shape."""

    def __init__(self) -> None:
        self._prepared: dict[Job, tuple[Description, Any]] = {}

    def of(self, job: Job, described: Description) -> Any:
        """A job's inputs for a checkpoint.

        Raises:
            UserError: on bad input.
        """
        held = self._prepared.get(job)
        if held is None or held[0] != described:
            held = described, job.analysis.prepare(job.config, described.tokenizer, described.shape)
            self._prepared[job] = held
        return held[1]


def measure(checkpoint: LoadedCheckpoint, what: Measurement, inputs: Any) -> dict[str, Result]:
    """One measurement.

    Raises:
        UserError: if a batch does not fit on the device, or as the analysis does.
    """
    analysis, config = what.job.analysis, what.job.config
    try:
        results = analysis.measure(checkpoint, config, inputs, what.task)
    except torch.OutOfMemoryError:
        size = config.batch_size
        raise UserError(
            f"batch_size: {size} does not fit on {checkpoint.device} ({checkpoint.name} step {checkpoint.step}); "
            f"pass a smaller one, for example batch_size={max(size // 2, 1)}"
        ) from None
    kinds = {kind.name for kind in analysis.kinds}
    if set(results) != kinds:
        raise ValueError(f"{analysis.name} measured {sorted(results)}, its kinds are {sorted(kinds)}")
    return results


@dataclass(frozen=True)
class Measured:
    """What was measured, ready to be written.

    Attributes:
        step: the checkpoint's.
        provenance: of its weights.
        files: for each kind of the analysis, suffix -> bytes.
    """

    step: int
    provenance: dict[str, Any]
    files: tuple[dict[str, bytes], ...]


def encode(checkpoint: LoadedCheckpoint, what: Measurement, results: dict[str, Result]) -> Measured:
    """The files of one measurement."""
    folders = what.job.folders(checkpoint.name, what.task)
    files = [folder.encode(checkpoint.step, results[folder.kind.name], checkpoint.tokens) for folder in folders]
    return Measured(checkpoint.step, checkpoint.provenance, tuple(files))


def save(model: str, what: Measurement, measured: Measured) -> None:
    """Write one measurement; see `save_all`."""
    save_all(model, what, [measured])


def save_all(model: str, what: Measurement, found: Sequence[Measured]) -> None:
    """Write one measurement of several checkpoints.

    Provenance comes first, then what goes with the tables, and the tables last: a table says that all is complete.
    """
    folders = what.job.folders(model, what.task)
    equal: dict[int, set[int]] = {}
    for place, folder in enumerate(folders):
        added = RunRecord(folder).add_all({one.step: (one.provenance, one.files[place]) for one in found})
        for step, others in added.items():
            equal.setdefault(step, set()).update(others)
        for one in found:
            for suffix, data in one.files[place].items():
                if suffix != ".csv":
                    folder.write(one.step, suffix, data)
    for place, folder in enumerate(folders):
        for one in found:
            folder.write(one.step, ".csv", one.files[place][".csv"], sync_folder=one is found[-1])
    for step, same in equal.items():
        if same:
            steps = ", ".join(str(other) for other in sorted(same))
            log.warning("%s: step %d holds the same weights as step %s; recorded in run.json", model, step, steps)


def load(family: Family, step: int, job: Job) -> LoadedCheckpoint:
    """Load a checkpoint as a job's config says. All jobs of a run agree in it.

    Raises:
        CheckpointUnusable: if this checkpoint is missing or damaged.
        UserError: if it does not fit on the device, or the device does not exist.
    """
    return family.load(step, job.config.dtype, job.config.device)


def free_memory() -> None:
    """Give the GPU memory of a checkpoint that is no longer used back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def label(family: Family, step: int, task: Task | None, job: Job, *, named: bool) -> str:
    """What the progress bar says of a measurement; `named` if there are several jobs."""
    parts = [family.name, "step", str(step)]
    if named:
        parts.append(job.analysis.name.removeprefix("get_"))
    if task is not None:
        parts.append(task.name)
    return " ".join(parts)


def times_of(job: Job) -> Times:
    """How long a job's measurements took on this machine."""
    return Times(job.analysis.name, job.config)


def task_name(what: Measurement) -> str | None:
    """The name of a measurement's task; None if it has none."""
    return None if what.task is None else what.task.name
