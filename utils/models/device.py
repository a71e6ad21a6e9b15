"""Where a model runs."""

from __future__ import annotations

import torch

from utils.errors import UserError


def resolve_device(device: str) -> torch.device:
    """`auto` is a CUDA device where there is one, else Apple's GPU, else the CPU; anything else is torch's own name.

    Raises:
        UserError: if there is no such device here.
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
        raise UserError(f"device: '{device}' is not here; this machine has {', '.join(found)} (auto takes {found[0]})")
    return asked
