"""Where a model runs."""

from __future__ import annotations

import torch

from utils.errors import UserError


def resolve_device(device: str) -> torch.device:
    """The device that a name stands for: `auto` is CUDA if there is one, else Apple's GPU, else the CPU.

    Raises:
        UserError: if this machine has no such device.
    """
    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.insert(0, "mps")
    if torch.cuda.is_available():
        found.insert(0, "cuda")
    if device == "auto":
        return torch.device(found[0])
    try:
        asked = torch.device(device)
    except RuntimeError:
        asked = torch.device("meta")
    index_exists = asked.type != "cuda" or (asked.index or 0) < torch.cuda.device_count()
    if asked.type not in found or not index_exists:
        raise UserError(f"device: there is no '{device}' here, only {', '.join(found)} (auto takes {found[0]})")
    return asked
