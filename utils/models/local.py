"""A local family on disk: a folder for each checkpoint, in `save_pretrained` format.

Folders are named `step{n}`, or as trainers name them (`checkpoint-500`, `iter_0000500`, `global_step500`); of `step{n}`
and `step{n}-hf`, which a converter wrote, the second counts. Next to them there may be a tokenizer that all steps
share, and a `family.json` with `{"tokens_per_step": n}`. Without it the tokens are those that the Trainer counted
(`num_input_tokens_seen` in `trainer_state.json`), or its batch size times `sequence_length`, `world_size` and
`gradient_accumulation_steps` in `family.json`, which the Trainer does not store. Where nothing tells them, they are
left out, and figures count steps.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..base.errors import CheckpointUnusable, UserError
from ..base.files import Stamp, read_json, sha256_at, stamp_of
from .revisions import GENERAL, GENERAL_NAMES, Named, read_names
from .weight_files import of_library, weight_files

Stamps = dict[Path, Stamp]
"""The stamp of each weight file."""

_SAMPLES, _SAMPLE = 16, 65_536
_WAY_OUT = 'write {"tokens_per_step": N} into it'
WAY_OUT = 'to change that, write {"tokens_per_step": N} into its family.json, or pass tokens_per_step=N'
_FACTORS = ("sequence_length", "world_size", "gradient_accumulation_steps")
_SAVES = re.compile(r"checkpoint_\d+")  # as accelerate counts its saves


def named_folders(path: Path, pattern: re.Pattern[str]) -> list[Named]:
    """The checkpoints in a family's folder; a UserError for none, a step twice, or counted saves."""
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    converted = {name.removesuffix("-hf"): name for name in folders if name.endswith("-hf")}
    named = [
        replace(one, name=converted.get(one.name, one.name))
        for one in read_names(dict.fromkeys([*folders, *converted]), pattern)
    ]
    if not named:
        raise UserError(_no_checkpoints(path, pattern, folders))
    if pattern is GENERAL:
        _refuse_counted_saves(path, named)
    seen: dict[tuple[int, int], str] = {}
    for one in named:
        if (other := seen.setdefault((one.stage, one.step), one.name)) != one.name:
            raise UserError(f"model: {path} holds step {one.step} twice: {other} and {one.name}; keep one")
    return named


def _refuse_counted_saves(path: Path, named: list[Named]) -> None:
    """accelerate numbers its folders by the save: `checkpoint_1` is no step."""
    saves = sorted((one for one in named if _SAVES.fullmatch(one.name)), key=lambda one: one.step)
    if not saves:
        return
    numbers = [one.step for one in saves]
    ours = any(next((path / one.name).glob("random_states_*.pkl"), None) for one in saves)
    if ours or numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        raise UserError(
            f"model: {path}/{saves[0].name}: accelerate numbers its folders by the save, not by the step; rename each "
            r"to step{n} with the step of training it was saved at, or, if they are steps, pass "
            r"revisions='checkpoint_(?P<step>\d+)'"
        )


def _no_checkpoints(path: Path, pattern: re.Pattern[str], folders: list[str]) -> str:
    if pattern is not GENERAL:
        held = f"it holds {', '.join(folders[:5])}" if folders else "it holds no folders"
        return f"revisions: no folder in {path} is named like '{pattern.pattern}' ({held})"
    for folder in (path, *(path / name for name in folders)):
        if (refusal := of_library(folder)) is not None:
            return f"model: {refusal}"
    if (path / "config.json").is_file():
        return f"model: {path} is one checkpoint; name the folder above it, which has a folder for each checkpoint"
    return (
        f"model: {path} holds no folders that name a step ({GENERAL_NAMES}); name a folder of checkpoints, or pass "
        r"revisions='...(?P<step>\d+)' for other names"
    )


@dataclass(frozen=True)
class About:
    """What a family says about its training."""

    file: Path  # its `family.json`, which need not be there
    per_step: tuple[int, ...]  # tokens of a step, as in `TokensRule`; empty if only the steps' own files tell
    prepend_bos: bool | None  # whether it was trained with a start token; None if it does not say
    content: dict[str, Any]  # all that the file says

    @classmethod
    def of(cls, path: Path, tokens_per_step: int | None) -> About:
        """What a folder's `family.json` says, or the number given instead; a UserError if it says anything odd."""
        file = path / "family.json"
        content = read_json(file) if file.is_file() else {}
        if content is None:
            raise UserError(f"{file}: is not JSON; {_WAY_OUT}")
        for name in ("tokens_per_step", *_FACTORS):
            if name in content and (type(content[name]) is not int or content[name] <= 0):
                raise UserError(f"{file}: {name}: {content[name]!r} is not a whole number > 0; {_WAY_OUT}")
        prepend_bos = content.get("prepend_bos")
        if prepend_bos is not None and not isinstance(prepend_bos, bool):
            raise UserError(f"{file}: prepend_bos: {prepend_bos!r} is not true or false; correct it or leave it out")
        per_step = content.get("tokens_per_step") or tokens_per_step
        return cls(file, () if per_step is None else (per_step,), prepend_bos, content)

    def with_tokens(self, folder: Path, named: Named) -> Named:
        """A checkpoint with the tokens that its own files tell, where the family does not say them.

        It is a UserError if `family.json` has some of the factors of the Trainer's batch, but not all.
        """
        if self.per_step or named.tokens is not None:
            return named
        state = read_json(folder / "trainer_state.json") or {}
        if (counted := state.get("num_input_tokens_seen")) and isinstance(counted, int):
            return replace(named, tokens=counted)
        if isinstance(batch := state.get("train_batch_size"), int):
            missing = [name for name in _FACTORS if name not in self.content]
            if len(missing) == len(_FACTORS):
                return named
            if missing:
                raise UserError(
                    f"{self.file}: {missing[0]} is missing: {folder.name}/trainer_state.json has batches of {batch} in "
                    f'each process, but not {", ".join(missing)}; write them into it, or {{"tokens_per_step": N}}'
                )
            each = batch * math.prod(self.content[name] for name in _FACTORS)
            return replace(named, tokens=named.step * each)
        return named


def stamps(folder: Path) -> Stamps:
    """What shows whether a checkpoint's weights have changed; errors as of `weight_files`."""
    return {path: stamp_of(path) for path in weight_files(folder)}


def hashes(before: Stamps) -> dict[str, str]:
    """SHA-256 of each weight file with these stamps, each read once; a CheckpointUnusable if one has changed since."""
    found = {path.name: sha256_at(path, stamp) for path, stamp in before.items()}
    for path, stamp in before.items():
        if stamp_of(path) != stamp:
            raise CheckpointUnusable(f"{path}: changed while it was read; run again once the checkpoint is complete")
    return found


def fingerprints(before: Stamps) -> dict[str, str]:
    """For each weight file, a hash of its size and a megabyte of samples: files that differ in it differ."""
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
