"""What a sweep will need: bytes to download, disk and memory, from metadata alone.

Sizes of files come from the hub's listing or the local disk. The number of parameters follows from the size of the
weights and the number format that config.json names. Activations are not counted: they depend on `batch_size`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.models.family import Family, HubFamily, LocalFamily
from utils.models.fetch import listings
from utils.models.listing import Listing
from utils.models.unusable import CheckpointUnusable
from utils.models.weight_files import weight_files

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Of one number in each format."""


@dataclass(frozen=True)
class Estimate:
    """What measuring some checkpoints takes.

    Attributes:
        download: bytes still to download.
        disk: the most bytes of weights that will be on disk for these steps at once; 0 for a local family.
        memory: the most bytes that weights will take in memory at once, while a checkpoint is loaded: a file of weights
            and a model in the number format asked for, twice if that is not the file's. On a GPU, the model is there
            and the file in CPU memory. None if no config is at hand.
        unknown: steps whose sizes are not known.
    """

    download: int
    disk: int
    memory: int | None
    unknown: tuple[int, ...]


def estimate(
    family: Family, steps: Sequence[int], dtype: str, keep: Literal["all", "none"] | int, prefetch: bool
) -> Estimate:
    """Estimate what measuring these steps takes.

    Args:
        family: the family.
        steps: the unfinished steps, sorted.
        dtype: number format that they are loaded in.
        keep: as `keep_checkpoints`.
        prefetch: whether the next checkpoint is brought while one is measured.
    """
    sizes, on_disk = _sizes(family, steps)
    known = [step for step in steps if step in sizes]
    unknown = tuple(step for step in steps if step not in sizes)
    to_fetch = [step for step in known if step not in on_disk]
    disk = 0
    if isinstance(family, HubFamily):
        held = sum(sizes[step] for step in known if step in on_disk)
        at_once = len(to_fetch) if keep == "all" else (0 if keep == "none" else keep) + 1 + int(prefetch)
        windows = [to_fetch[start : start + at_once] for start in range(max(len(to_fetch) - at_once, 0) + 1)]
        disk = held + max(sum(sizes[step] for step in window) for window in windows)
    return Estimate(sum(sizes[step] for step in to_fetch), disk, _memory(family, known, sizes, dtype), unknown)


def told(estimate: Estimate) -> str:
    """An estimate in one line, for `--dry-run`."""
    parts = [f"download {size(estimate.download)}", f"peak disk {size(estimate.disk)}"]
    parts.append("peak memory unknown" if estimate.memory is None else f"peak memory {size(estimate.memory)}")
    more = f"; sizes of {len(estimate.unknown)} checkpoints are unknown" if estimate.unknown else ""
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
        listed = listings(family, steps)
        found = {step: one.bytes_of_weights for step in steps if isinstance(one := listed[step], Listing)}
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
    try:
        config = json.loads((family.fetch_small(steps[0]) / "config.json").read_text(encoding="utf-8"))
    except (CheckpointUnusable, OSError, ValueError):
        return None
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    largest = max(sizes[step] for step in steps)
    model = largest // BYTES.get(stored, 4) * BYTES[dtype]
    # In another format than the file's, the model shares no memory with the file, and some tensors exist twice while
    # the engine's weights are made from it.
    return largest + model * (1 if dtype == stored else 2)
