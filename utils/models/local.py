"""A local family on disk: a folder for each checkpoint, in `save_pretrained` format.

Folders are named `step{n}`, or as trainers name them (`checkpoint-500`, `iter_0000500`, `global_step500`). Next to them
there may be a `family.json` with `{"tokens_per_step": n}`, and a tokenizer that all steps share.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

from ..base.errors import CheckpointUnusable, UserError
from ..base.files import Stamp, read_json, sha256_at, stamp_of
from .revisions import GENERAL, GENERAL_NAMES, Named, read_names
from .weight_files import weight_files

Stamps = dict[Path, Stamp]
"""The stamp of each weight file."""

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


def read_about(path: Path, tokens_per_step: int | None) -> tuple[int, bool | None]:
    """What a family's `family.json` says: tokens per training step, and whether it was trained with a start token.

    Args:
        tokens_per_step: used if there is no such file.

    Raises:
        UserError: if neither says the tokens, or the file says something else than a number, or true or false.
    """
    about = path / "family.json"
    if not about.is_file():
        if tokens_per_step is None:
            raise UserError(f"{about} is missing; {_WAY_OUT}, or pass tokens_per_step=N")
        return tokens_per_step, None
    content = read_json(about) or {}
    if "tokens_per_step" not in content:
        raise UserError(f"{about}: does not say tokens_per_step; {_WAY_OUT}")
    per_step, prepend_bos = content["tokens_per_step"], content.get("prepend_bos")
    if type(per_step) is not int or per_step <= 0:
        raise UserError(f"{about}: tokens_per_step: {per_step!r} is not a whole number > 0; {_WAY_OUT}")
    if prepend_bos is not None and not isinstance(prepend_bos, bool):
        raise UserError(f"{about}: prepend_bos: {prepend_bos!r} is not true or false; correct it or leave it out")
    return per_step, prepend_bos


def stamps(folder: Path) -> Stamps:
    """What shows whether a checkpoint's weights have changed.

    Raises:
        CheckpointUnusable: if the folder holds no weights.
    """
    return {path: stamp_of(path) for path in weight_files(folder)}


def hashes(before: Stamps) -> dict[str, str]:
    """SHA-256 of each weight file with these stamps. Each file is read only once, until it changes.

    Raises:
        CheckpointUnusable: if one has changed since.
    """
    found = {path.name: sha256_at(path, stamp) for path, stamp in before.items()}
    for path, stamp in before.items():
        if stamp_of(path) != stamp:
            raise CheckpointUnusable(f"{path}: changed while it was read; run again once the checkpoint is complete")
    return found


def fingerprints(before: Stamps) -> dict[str, str]:
    """For each weight file, a hash of its size and of samples of its bytes. Files that differ in it differ.

    It reads a megabyte of each file, where `hashes` would read all.
    """
    return {path.name: _fingerprint(path, stamp) for path, stamp in before.items()}


@functools.cache
def _fingerprint(path: Path, stamp: Stamp) -> str:
    size = stamp[1]
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(max(size - _SAMPLE, 0) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
