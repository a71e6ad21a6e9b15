"""A local family on disk: `step{n}` folders, and `family.json` with `{"tokens_per_step": n}` beside them."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

from utils.errors import UserError
from utils.files import combine, file_sha256, weight_files

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


def weights_sha256(folder: Path) -> str:
    """Hash of a checkpoint's weights as they are on disk now; files are read again only if they changed.

    Raises:
        UserError: if there are none, or they change meanwhile.
    """
    stamps = {path: _stamp(path) for path in weight_files(folder)}
    sha256 = combine({path.name: _sha256(path, *stamp) for path, stamp in stamps.items()})
    if any(_stamp(path) != stamp for path, stamp in stamps.items()):
        raise UserError(f"{folder}: the weights changed while they were read; run again once they are complete")
    return sha256


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@functools.cache
def _sha256(path: Path, *stamp: int) -> str:
    return file_sha256(path)
