"""SHA-256 of a checkpoint's weights: equal hashes at different steps give away branches that hold the same weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from utils.errors import UserError


def file_sha256(path: Path) -> str:
    """Of a file's bytes; the hub gives the same for files in its large-file storage."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combine(hashes: dict[str, str]) -> str:
    """One hash for a checkpoint: its file's, or for several the SHA-256 of their `<sha256>  <name>` lines."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The weights in a `save_pretrained` folder, by name: safetensors, or torch's own format where there are no others.

    Raises:
        UserError: if the folder holds no weights.
    """
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        if files := sorted(folder.glob(pattern)):
            return files
    raise UserError(f"{folder}: holds no weights (model.safetensors); save the checkpoint again with save_pretrained")
