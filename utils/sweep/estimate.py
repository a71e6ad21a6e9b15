"""What a sweep will need, for `--dry-run`: download, disk and memory from metadata, time from earlier measurements.

Sizes of files come from the hub's listing or the local disk. The number of parameters follows from the size of the
weights and the number format that config.json names. Activations are not counted: they depend on `batch_size`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..base.errors import CheckpointUnusable, HubUnreachable
from ..base.files import read_json
from ..base.progress import duration
from ..config.keys import BaseConfig, errors_named, result_settings
from ..models.family import Family, HubFamily, LocalFamily
from ..models.known_families import known_size
from ..models.tokenizers import plain_tokenizer
from ..models.weight_files import weight_files
from ..tasks.prompts import require_length, token_rows
from .plan import Sweep

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Of one number in each format."""


@dataclass(frozen=True)
class Estimate:
    """What measuring some checkpoints takes.

    Attributes:
        disk: the most bytes of weights that will be on disk for these steps at once; 0 for a local family.
        memory: the most bytes that weights will take in memory at once, while a checkpoint is loaded: a file of weights
            and a model in the number format asked for, twice if that is not the file's. On a GPU, the model is there
            and the file in CPU memory. None if no config is at hand.
        unknown: steps whose sizes are not known.
        from_shape: whether sizes follow from the model's shape, because the hub did not answer.
    """

    download: int
    disk: int
    memory: int | None
    unknown: tuple[int, ...]
    from_shape: bool = False


def estimate(
    family: Family, steps: Sequence[int], dtype: str, keep: Literal["all", "none"] | int, prefetch: bool
) -> Estimate:
    """What measuring unfinished steps takes, loaded as `dtype`; `keep` and `prefetch` are as in the config."""
    sizes, on_disk = _sizes(family, steps)
    listed = family.listings(steps).values() if isinstance(family, HubFamily) else ()
    of_shape = known_size(family.name) if any(isinstance(one, HubUnreachable) for one in listed) else None
    if from_shape := of_shape is not None and len(sizes) < len(steps):
        sizes = dict.fromkeys(steps, of_shape[1]) | sizes
    known = [step for step in steps if step in sizes]
    unknown = tuple(step for step in steps if step not in sizes)
    to_fetch = [step for step in known if step not in on_disk]
    disk = 0
    if isinstance(family, HubFamily):
        held = sum(sizes[step] for step in known if step in on_disk)
        at_once = len(to_fetch) if keep == "all" else (0 if keep == "none" else keep) + 1 + int(prefetch)
        windows = [to_fetch[start : start + at_once] for start in range(max(len(to_fetch) - at_once, 0) + 1)]
        disk = held + max(sum(sizes[step] for step in window) for window in windows)
    return Estimate(
        sum(sizes[step] for step in to_fetch), disk, _memory(family, known, sizes, dtype), unknown, from_shape
    )


def format_estimate(estimate: Estimate) -> str:
    """An estimate in one line, for `--dry-run`."""
    if estimate.unknown and not estimate.disk and not estimate.memory:
        return "sizes are not known: the hub did not answer"
    parts = [f"download {size(estimate.download)}", f"peak disk {size(estimate.disk)}"]
    parts.append("peak memory unknown" if estimate.memory is None else f"peak memory {size(estimate.memory)}")
    if estimate.from_shape:
        parts = [f"{', '.join(parts)}, from the model's shape because the hub did not answer"]
    missing = len(estimate.unknown)
    more = f", and {missing} checkpoint{'s'[: missing != 1]} of unknown size" if missing else ""
    return f"{', '.join(parts)} (weights alone){more}"


def size(count: float) -> str:
    """`512 B`, `1.6 MB`, `24.0 GB`: in powers of 1000, as the hub shows sizes."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _sizes(family: Family, steps: Sequence[int]) -> tuple[dict[int, int], set[int]]:
    """Bytes of weights of each step, where known, and which steps are on disk."""
    if isinstance(family, HubFamily):
        listed = family.listings(steps)
        known = {step: one for step, one in listed.items() if not isinstance(one, CheckpointUnusable)}
        found = {step: one.bytes_of_weights for step, one in known.items()}
        complete = {step for step in steps if family.is_complete(step)}
        for step in complete - found.keys():
            found[step] = _bytes_in(family.folder(step))
        return {step: count for step, count in found.items() if count}, complete
    sizes = {}
    if isinstance(family, LocalFamily):
        for step in steps:
            try:
                sizes[step] = _bytes_in(family.folders[step])
            except CheckpointUnusable:
                continue
    return sizes, set(sizes)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))


def _memory(family: Family, steps: Sequence[int], sizes: dict[int, int], dtype: str) -> int | None:
    if not steps:
        return 0
    largest = max(sizes[step] for step in steps)
    try:
        config = json.loads((family.fetch_small(steps[0]) / "config.json").read_text(encoding="utf-8"))
    except (CheckpointUnusable, OSError, ValueError):
        of_shape = known_size(family.name)
        return None if of_shape is None else largest + 2 * of_shape[0] * BYTES[dtype]
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    model = largest // BYTES.get(stored, 4) * BYTES[dtype]
    # In another format than the file's, the model shares no memory with the file, and some tensors exist twice while
    # the engine's weights are made from it.
    return largest + model * (1 if dtype == stored else 2)


def refuse_unfit(sweep: Sweep) -> None:
    """Refuse what the run will refuse before it loads weights: a device that is not there, prompts that do not fit.

    Prompts are checked by the tokenizer's file alone, without torch and transformers.

    Raises:
        UserError: as the run would.
    """
    config = sweep.jobs[0].config
    if sweep.missing and config.executor == "local" and config.device not in ("auto", "cpu"):
        from ..models.checkpoint import resolve_device

        resolve_device(config.device)
    jobs = [job for job in sweep.jobs if job.analysis.pairs is not None and sweep.missing_of(job)]
    try:
        folder = sweep.family.fetch_small(min(sweep.missing)) if jobs else Path()
    except CheckpointUnusable:
        return  # The run leaves it out, and says why.
    if not jobs or (tokenizer := plain_tokenizer(folder)) is None:
        return
    shape = read_json(folder / "config.json") or {}
    sizes = [shape.get(name) for name in ("max_position_embeddings", "n_positions")]
    for job in jobs:
        assert job.analysis.pairs is not None
        with errors_named(f"{job.where}: " if job.where else "", job.analysis.schema):
            for name, pairs in job.analysis.pairs(job.config, tokenizer):
                rows, _ = token_rows(tokenizer, pairs, getattr(job.config, "prepend_bos", False))
                for n_positions in (size for size in sizes if isinstance(size, int)):
                    require_length(name, [len(row) for row in rows], [pair.clean for pair in pairs], n_positions)


def needs(sweep: Sweep) -> str:
    """Two lines at most, each indented; nothing if there is nothing to measure."""
    if not sweep.missing:
        return ""
    config = sweep.jobs[0].config
    found = estimate(sweep.family, list(sweep.missing), config.dtype, config.keep_checkpoints, config.prefetch)
    return f"  needs: {format_estimate(found)}\n{_time(sweep)}"


def _time(sweep: Sweep) -> str:
    usual = {job: Times(job.analysis.name, job.config).usual(sweep.family.name) for job in sweep.jobs}
    left = [(one.job, one.task.name if one.task else None) for here in sweep.missing.values() for one in here]
    known = [usual[job][task] for job, task in left if task in usual[job]]
    if not known:
        return ""
    part = "" if len(known) == len(left) else f" for {len(known)} of {len(left)} measurements"
    return f"  time: about {duration(sum(known))}{part}, as measured here before, without loading\n"


def folder() -> Path:
    """Where this machine keeps the times of measurements."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "circuits-over-time" / "times"


class Times:
    """How long the measurements of one analysis with one config took on this machine."""

    def __init__(self, analysis: str, config: BaseConfig) -> None:
        self.path = folder() / f"{analysis}.jsonl"
        settings = json.dumps([result_settings(config), config.device, config.batch_size], sort_keys=True, default=str)
        self._settings = hashlib.sha256(settings.encode()).hexdigest()[:16]

    def add(self, model: str, step: int, task: str | None, seconds: float) -> None:
        """Record a measurement. If that is impossible, it is left out."""
        line = {"model": model, "step": step, "task": task, "settings": self._settings, "seconds": round(seconds, 3)}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, (json.dumps(line) + "\n").encode())  # One call: processes do not mix their lines.
            finally:
                os.close(handle)

    def usual(self, model: str) -> dict[str | None, float]:
        """Task -> the median of its seconds, over the measurements of this model with the same settings."""
        seconds: dict[str | None, list[float]] = defaultdict(list)
        with contextlib.suppress(OSError):
            for text in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    line = json.loads(text)
                    if (line["model"], line["settings"]) == (model, self._settings):
                        seconds[line["task"]].append(float(line["seconds"]))
        return {task: statistics.median(each) for task, each in seconds.items()}
