"""A local family on disk: `step{n}` folders, and `family.json` with `{"tokens_per_step": n}` beside them."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

from utils.errors import UserError
from utils.files import combine, file_sha256, weight_files

Stamp = tuple[int, int, int]
Stamps = dict[Path, Stamp]

_STEP_FOLDER = re.compile(r"step(\d+)")
_WAY_OUT = 'write {"tokens_per_step": N} into it'


def step_folders(path: Path) -> dict[int, Path]:
    """Step -> its folder, by step.

    Raises:
        UserError: if there are none, or two for one step.
    """
    folders: dict[int, Path] = {}
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and (match := _STEP_FOLDER.fullmatch(folder.name)):
            if (step := int(match[1])) in folders:
                names = f"{folders[step].name} and {folder.name}"
                raise UserError(f"model: {path} holds step {step} twice: {names}; keep one")
            folders[step] = folder
    if not folders:
        raise UserError(f"model: {path} holds no step{{n}} folders; name a folder of checkpoints")
    return dict(sorted(folders.items()))


def tokens_per_step(path: Path, otherwise: int | None) -> int:
    """Tokens of one training step, from `family.json`; `otherwise` is taken where there is no such file.

    Raises:
        UserError: if neither says it.
    """
    about = path / "family.json"
    if not about.is_file():
        if otherwise is None:
            raise UserError(f"{about} is missing; {_WAY_OUT}, or pass tokens_per_step=N")
        return otherwise
    try:
        per_step = json.loads(about.read_text(encoding="utf-8"))["tokens_per_step"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{about}: does not say tokens_per_step; {_WAY_OUT}") from None
    if type(per_step) is not int or per_step <= 0:
        raise UserError(f"{about}: tokens_per_step: {per_step!r} is not a whole number > 0; {_WAY_OUT}")
    return per_step


def stamps(folder: Path) -> Stamps:
    """What tells whether a checkpoint's weights have changed: inode, size and time of change of each file.

    Raises:
        UserError: if the folder holds no weights.
    """
    return {path: _stamp(path) for path in weight_files(folder)}


def weights_sha256(before: Stamps) -> str:
    """Hash of the weights that had these stamps; each file is read once, until it changes.

    Raises:
        UserError: if one has changed since.
    """
    sha256 = combine({path.name: _sha256(path, stamp) for path, stamp in before.items()})
    for path, stamp in before.items():
        if _stamp(path) != stamp:
            raise UserError(f"{path}: changed while it was read; run again once the checkpoint is complete")
    return sha256


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@functools.cache
def _sha256(path: Path, stamp: Stamp) -> str:
    return file_sha256(path)
