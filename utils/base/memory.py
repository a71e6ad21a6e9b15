"""How much memory computations may take: what a device has free, less a margin."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GB = 1e9
MARGIN = 0.2
"""Share of what is free that is left alone: for what others take, and for gaps between blocks."""
MOST_ON_CPU = 0.5
"""GB. More makes little faster there: stacks of this size no longer fit into any cache."""
CGROUP, PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """What a device has free. Of the CPU's, what Linux calls available, within the limit of a container or a job."""
    import torch

    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # Where nobody says more: half of all.
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = (line.split() for line in meminfo.read_text().splitlines())
        free = next((1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:"), free)
    return max(min([free, *_free_of_groups()]), 0)


def total_bytes(device: torch.device) -> int:
    """All the memory of a device, whatever is in it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free_of_groups() -> Iterator[int]:
    """What the limits of the container and of the job leave, each of which may be a group within another one."""
    own = CGROUP
    if PROCESS.exists():
        lines = (line.split("::", 1) for line in PROCESS.read_text().splitlines() if line.startswith("0::"))
        own = next((CGROUP / path.strip().lstrip("/") for _, path in lines), CGROUP)
    for group in (own, *own.parents):
        if not group.is_relative_to(CGROUP):
            break
        limits = [group / name for name in ("memory.max", "memory.current")]
        if not all(path.exists() for path in limits):
            continue
        most, used = (path.read_text().strip() for path in limits)
        if most != "max":
            stat = group / "memory.stat"
            told = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
            # Files that were read lately count as used, but make way.
            yield int(most) - int(used) + sum(int(told.get(name, 0)) for name in ("inactive_file", "active_file"))


def auto_budget_gb(device: torch.device) -> float:
    """What `memory_budget_gb: auto` is on a device that holds the weights.

    Half of what is free less the margin, since what is kept for later passes may take as much as a pass. A power of
    two: what other processes take then seldom changes how work is split up, and with it the last digits.
    """
    budget = budget_of_free(free_bytes(device))
    return budget if device.type in ("cuda", "mps") else min(budget, MOST_ON_CPU)


def budget_of_free(free: float) -> float:
    """The same from how many bytes a GPU has free."""
    return 2.0 ** math.floor(math.log2(max((1 - MARGIN) * free / 2 / GB, 2**-10)))


def trim_heap() -> None:
    """Give freed memory of the CPU back to the system: the C library of Linux keeps it for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # Not every C library has it.
        trim(0)


def release_memory(*, thoroughly: bool = False) -> None:
    """Give back what is no longer used.

    Unless `thoroughly`, garbage that was there at the last call is left to Python's own collection: to look through all
    that libraries keep takes longer than to load a small model. Weights never wait for either.
    """
    import torch

    gc.collect(2 if thoroughly else 1)
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
