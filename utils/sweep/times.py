"""How long a sweep will take: from earlier measurements on this machine, or else from the model's shape.

A forward pass takes two operations for each token and each parameter outside the embeddings. Analyses say how many
passes they take over their prompts (`Analysis.inputs`; measured in benchmarks/README.md).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from circuits_over_time.edge_attribution_patching.model.memory import BYTES

from ..base.progress import about, duration
from ..config.keys import BaseConfig, for_model, result_settings
from ..config.schedules import PYTHIA_STEPS, select_steps
from ..models.checkpoint import resolve_device
from ..models.family import Family, LocalFamily
from .estimate import Needed, estimate, format_estimate, needed_of_known
from .plan import Job, Measurement, Sweep

FLOP_PER_SECOND: Mapping[str, Mapping[str, float]] = {
    "core": {"float32": 35e9, "float64": 17e9, "bfloat16": 17e9, "float16": 5e9},
    "cuda": {"float32": 8e12, "float64": 4e12, "bfloat16": 60e12, "float16": 60e12},
    "mps": {"float32": 2e12, "bfloat16": 2e12, "float16": 2e12},
}
"""Of one core of a processor, or of a GPU, in a forward pass. A core: half of the 70e9 that large products of matrices
reach in float32 on the machine where the benchmarks ran, less where formats need conversions. GPUs: about half of what
an A100 and an Apple M1 Max are sold for. A GPU that is here is measured (`_measured_speed`)."""
_OF_PRODUCTS = 0.5
"""The share of its large products' speed that a device reaches in a forward pass."""


def needs(sweep: Sweep, needed: Needed, *, named: bool = False) -> str:
    """What is missing in a model needs, each line indented; nothing if there is nothing to measure.

    `needed` is what `estimate.refuse_unfit` finds; `named`: say which model it is, where there are others.
    """
    if not sweep.missing:
        return ""
    config = sweep.jobs[0].config
    widest = max((job.config.dtype for job in sweep.jobs if sweep.missing_of(job)), key=BYTES.__getitem__)
    found = estimate(sweep.family, list(sweep.missing), widest, config.keep_checkpoints, config.prefetch)
    of_model = f" of {sweep.family.name}" if named else ""
    cards = f"  GPU memory, predicted: {needed.cards}\n" if needed.cards else ""
    return f"  needs{of_model}: {format_estimate(found)}\n{cards}{_time(sweep, needed.operations)}"


def on_a_gpu(sweeps: Sequence[Sweep], needed: Sequence[Needed]) -> str:
    """About how long a usual GPU takes for what is missing in several models together; nothing for one, or none."""
    left = [
        (one, of_model)
        for sweep, of_model in zip(sweeps, needed, strict=True)
        for one in chain(*sweep.missing.values())
    ]
    seconds = sum(_seconds_on_gpu(one, of_model.operations) for one, of_model in left)
    if len(sweeps) == 1 or not seconds:
        return ""
    return f"all models: {about(seconds)} of a usual GPU, from the models' shapes, without loading\n"


def _seconds_on_gpu(what: Measurement, operations: Mapping[tuple[Job, str | None], float]) -> float:
    return operations.get((what.job, what.task_name), 0.0) / FLOP_PER_SECOND["cuda"][what.job.config.dtype]


def _time(sweep: Sweep, operations: Mapping[tuple[Job, str | None], float]) -> str:
    """The time of what is missing, and that of each unit at one checkpoint, with where they are from."""
    left = [(one.job, one.task_name) for here in sweep.missing.values() for one in here]
    measured: dict[tuple[Job, str | None], float] = {}
    for job in sweep.jobs:
        usual = Times(job).usual(sweep.family)
        measured |= {(job, task): seconds for task, seconds in usual.items()}
    units, seconds, source = list(dict.fromkeys(left)), {}, ""
    for unit in units:
        if unit in measured:
            seconds[unit] = measured[unit]
        elif operations.get(unit):
            speed, source = flop_per_second(unit[0].config)
            seconds[unit] = operations[unit] / speed
    known = [seconds[unit] for unit in left if unit in seconds]
    if not known:
        return ""
    part = "" if len(known) == len(left) else f" for {len(known)} of {len(left)} measurements"
    sources = ["as measured here before"] if seconds.keys() & measured.keys() else []
    if seconds.keys() - measured.keys():
        sources.append(f"from the model's shape{source}")
    whole = f"  time: {about(sum(known))}{part}, {' or '.join(sources)}, without loading\n"
    named = len(sweep.jobs) > 1
    each = []
    for (job, task), taken in seconds.items():
        analysis = job.analysis.name.removeprefix("get_") if named or task is None else ""
        source = "" if (job, task) in measured or len(sources) == 1 else " (shape)"
        each.append(f"{' '.join(filter(None, (analysis, task)))} {_short(taken)}{source}")
    return f"{whole}    a checkpoint: {', '.join(each)}\n"


def _short(seconds: float) -> str:
    """`under 0.1 s`, `0.3 s`, `02:05`."""
    return "under 0.1 s" if seconds < 0.1 else f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def flop_per_second(config: BaseConfig) -> tuple[float, str]:
    """Operations a second in a forward pass, about, and words on what they stand on; none for cores of this machine."""
    gpu_here = sys.platform == "darwin" or any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd"))
    here = config.executor == "local"
    device = config.device
    if here and device == "auto" and gpu_here:
        device = str(resolve_device(device))
    elif device == "auto":
        device = "cuda" if config.gpus_per_checkpoint else "cpu"
    kind = device.partition(":")[0]
    if kind == "cpu":
        return FLOP_PER_SECOND["core"][config.dtype] * (config.cpus_per_checkpoint or os.cpu_count() or 1), ""
    if here and gpu_here and config.dtype in FLOP_PER_SECOND.get(kind, FLOP_PER_SECOND["cuda"]):
        return _OF_PRODUCTS * _measured_speed(device, config.dtype), " and a product of matrices on this GPU"
    of_kind = FLOP_PER_SECOND.get(kind, FLOP_PER_SECOND["cuda"])
    return of_kind.get(config.dtype, FLOP_PER_SECOND["core"][config.dtype]), f" on a usual GPU ({kind})"


@functools.cache
def _measured_speed(device: str, dtype: str) -> float:
    """Operations a second in a large product of matrices, the best of a few: a fraction of a second on a GPU."""
    import torch

    n, best = 2048, 0.0
    one = torch.ones(n, n, device=device, dtype=getattr(torch, dtype))
    for _ in range(4):
        start = time.monotonic()
        float((one @ one)[0, 0])  # Reading a number waits for the device.
        best = max(best, 2 * n**3 / (time.monotonic() - start))
    return best


def gpu_hours(jobs_of: Sequence[Job], models: Iterable[str]) -> float:
    """About how many hours of a usual GPU it takes to measure what is missing in Pythia models, loading left out.

    It follows from the models' shapes, without a question to the hub; work that is not known counts as none.
    """
    seconds = 0.0
    for model in models:
        jobs = [replace(job, config=for_model(job.config, None, model)) for job in jobs_of]
        operations = needed_of_known(jobs, model).operations
        for what in [Measurement(job, model, task) for job in jobs for task in job.tasks]:
            config = what.job.config
            missing = [step for step in select_steps(config.checkpoints, PYTHIA_STEPS, model) if not what.done(step)]
            seconds += _seconds_on_gpu(what, operations) * len(missing)
    return seconds / 3600


def folder() -> Path:
    """Where this machine keeps the times of measurements."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "circuits-over-time" / "times"


def _whole_name(family: Family) -> str:
    """The repository, or the whole path of a local family: two folders may have the same name."""
    return os.path.abspath(family.source) if isinstance(family, LocalFamily) else family.source


class Times:
    """How long the measurements of one analysis with one config took on this machine."""

    def __init__(self, job: Job) -> None:
        config = job.config
        self.path = folder() / f"{job.analysis.name}.jsonl"
        settings = json.dumps([result_settings(config), config.device, config.batch_size], sort_keys=True, default=str)
        self._settings = hashlib.sha256(settings.encode()).hexdigest()[:16]

    def add(self, family: Family, step: int, task: str | None, seconds: float) -> None:
        """Record a measurement. If that is impossible, it is left out."""
        line: dict[str, Any] = {"model": _whole_name(family), "step": step, "task": task}
        line |= {"settings": self._settings, "seconds": round(seconds, 3)}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write((json.dumps(line) + "\n").encode())  # One call: processes do not mix their lines.

    def usual(self, family: Family) -> dict[str | None, float]:
        """Task -> the median of its seconds, over the measurements of this model with the same settings."""
        model = _whole_name(family)
        seconds: dict[str | None, list[float]] = defaultdict(list)
        with contextlib.suppress(OSError):
            for text in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    line = json.loads(text)
                    if (line["model"], line["settings"]) == (model, self._settings):
                        seconds[line["task"]].append(float(line["seconds"]))
        return {task: statistics.median(each) for task, each in seconds.items()}
