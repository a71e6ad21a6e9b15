"""A local family on disk: a folder for each checkpoint, in `save_pretrained` format.

Folders are named `step{n}`, or as trainers name them (`checkpoint-500`, `iter_0000500`, `global_step500`). Next to them
there may be a `family.json` with `{"tokens_per_step": n}`, and a tokenizer that all steps share.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path

from ..base.errors import CheckpointUnusable, UserError
from ..base.files import file_sha256
from .revisions import GENERAL, GENERAL_NAMES, Named, read_names
from .weight_files import weight_files

Stamp = tuple[int, int, int]
Stamps = dict[Path, Stamp]

_SAMPLES, _SAMPLE = 16, 65_536
_OWN_FORMAT = re.compile(r"model_\d+\.pt")  # nanochat's
_WAY_OUT = 'write {"tokens_per_step": N} into it'


def named_folders(path: Path, pattern: re.Pattern[str]) -> list[Named]:
    """The checkpoints in a family's folder.

    Raises:
        UserError: if there are none, or two of the same step.
    """
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    named = read_names(folders, pattern)
    if not named:
        raise UserError(_no_checkpoints(path, pattern, folders))
    seen: dict[tuple[int, int], str] = {}
    for one in named:
        if (other := seen.setdefault((one.stage, one.step), one.name)) != one.name:
            raise UserError(f"model: {path} holds step {one.step} twice: {other} and {one.name}; keep one")
    return named


def _no_checkpoints(path: Path, pattern: re.Pattern[str], folders: list[str]) -> str:
    if pattern is not GENERAL:
        held = f"it holds {', '.join(folders[:5])}" if folders else "it holds no folders"
        return f"revisions: no folder in {path} is named like '{pattern.pattern}' ({held})"
    if own := sorted(entry.name for entry in path.iterdir() if _OWN_FORMAT.fullmatch(entry.name)):
        return (
            f"model: {path} holds {own[0]}, torch's own files of a model that transformers does not know; convert each "
            f"to a Hugging Face model and save it with save_pretrained as {path}/step{{n}}"
        )
    if (path / "config.json").is_file():
        return f"model: {path} is one checkpoint; name the folder above it, which has a folder for each checkpoint"
    return (
        f"model: {path} holds no folders that name a step ({GENERAL_NAMES}); name a folder of checkpoints, or pass "
        r"revisions='...(?P<step>\d+)' for other names"
    )


def tokens_per_step(path: Path, otherwise: int | None) -> int:
    """Tokens per training step, from `family.json`, or `otherwise` if there is no such file.

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


def prepend_bos(path: Path) -> bool | None:
    """Whether a local family was trained with a start token, if its `family.json` says so.

    Raises:
        UserError: if what it says is not true or false.
    """
    about = path / "family.json"
    try:
        habit = json.loads(about.read_text(encoding="utf-8")).get("prepend_bos")
    except (OSError, ValueError, AttributeError):
        return None  # `tokens_per_step` refuses a broken file.
    if habit is not None and not isinstance(habit, bool):
        raise UserError(f"{about}: prepend_bos: {habit!r} is not true or false; correct it or leave it out")
    return habit


def stamps(folder: Path) -> Stamps:
    """What shows whether a checkpoint's weights have changed: inode, size and time of change of each file.

    Raises:
        CheckpointUnusable: if the folder holds no weights.
    """
    return {path: _stamp(path) for path in weight_files(folder)}


def hashes(before: Stamps) -> dict[str, str]:
    """SHA-256 of each weight file with these stamps. Each file is read only once, until it changes.

    Raises:
        CheckpointUnusable: if one has changed since.
    """
    found = {path.name: _sha256(path, stamp) for path, stamp in before.items()}
    for path, stamp in before.items():
        if _stamp(path) != stamp:
            raise CheckpointUnusable(f"{path}: changed while it was read; run again once the checkpoint is complete")
    return found


def fingerprints(before: Stamps) -> dict[str, str]:
    """For each weight file, a hash of its size and of samples of its bytes. Files that differ in it differ.

    It reads a megabyte of each file, where `hashes` would read all.
    """
    return {path.name: _fingerprint(path, stamp) for path, stamp in before.items()}


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@functools.cache
def _sha256(path: Path, stamp: Stamp) -> str:
    return file_sha256(path)


@functools.cache
def _fingerprint(path: Path, stamp: Stamp) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(max(size - _SAMPLE, 0) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
