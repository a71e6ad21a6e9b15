"""Where a family's checkpoints come from: folders on disk, or revisions on the hub."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from utils.models import hub, local
from utils.models.checkpoint import CheckpointFiles, Description, LoadedCheckpoint, describe, load_weights
from utils.models.device import resolve_device
from utils.models.families import Damage
from utils.models.revisions import Named

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Family:
    """A model's published checkpoints.

    Attributes:
        name: the model's short name, or the last part of its hub id or folder. Its results go by this name.
        source: the hub repository, or the local folder as it was given.
        steps: the published steps, sorted, counted over the whole training (`utils/models/revisions.py`).
        tokens: tokens seen at each published step.
        prepend_bos: whether it was trained with a start token before every document; None if nobody says.
        damage: what is known to be wrong with its checkpoints.
    """

    name: str
    source: str
    steps: tuple[int, ...]
    tokens: dict[int, int]
    prepend_bos: bool | None = field(default=None, kw_only=True)
    damage: tuple[Damage, ...] = field(default=(), kw_only=True)

    @property
    def is_local(self) -> bool:
        """Whether the checkpoints are in the user's own folder, not on the hub."""
        return isinstance(self, LocalFamily)

    def fetch_small(self, step: int) -> Path:
        """The folder with a checkpoint's config and tokenizer, downloaded if needed."""
        raise NotImplementedError

    def fetch(self, step: int) -> CheckpointFiles:
        """All of a checkpoint's files on disk, downloaded if needed."""
        raise NotImplementedError

    def prefetch(self, step: int) -> None:
        """Start to download a checkpoint in the background. Errors appear when it is loaded."""

    def free(self, step: int) -> None:
        """Delete a downloaded checkpoint's files."""

    def tokens_at(self, step: int) -> int:
        """Tokens seen in training up to a published step."""
        return self.tokens[step]

    def describe(self, step: int) -> Description:
        """A checkpoint's tokenizer and shape, from its small files alone: only these are downloaded from the hub.

        Raises:
            UserError: if there is no such checkpoint, or the engine cannot read such a model.
        """
        return describe(self.fetch_small(step))

    def load(self, step: int, dtype: str = "float32", device: str = "auto") -> LoadedCheckpoint:
        """Load a checkpoint.

        Args:
            step: a published step.
            dtype: number format of the weights: float32, bfloat16, float16.
            device: see `resolve_device`.

        Raises:
            UserError: if there is no such checkpoint, the engine cannot read such a model, or its files do not load.
        """
        where = resolve_device(device)
        tokenizer = self.describe(step).tokenizer
        files = self.fetch(step)
        weights, parameters = load_weights(files.folder, getattr(torch, dtype), where)
        # Hashing takes longer than loading and is needed last, so it runs while the checkpoint is measured.
        sha256 = _in_background(files.sha256)
        return LoadedCheckpoint(self.name, step, self.tokens_at(step), weights, parameters, tokenizer, files, sha256)


@dataclass(frozen=True)
class LocalFamily(Family):
    """A folder of `step{n}` folders."""

    folders: dict[int, Path]

    def fetch_small(self, step: int) -> Path:
        return self.folders[step]

    def fetch(self, step: int) -> CheckpointFiles:
        folder = self.folders[step]
        before = local.stamps(folder)
        origin = {"repository": self.source, "revision": folder.name, "commit": None}
        return CheckpointFiles(folder, origin, lambda: local.weights_sha256(before))

    def sha256(self, step: int) -> str:
        """Hash of a checkpoint's weights as they are on disk now."""
        return local.weights_sha256(local.stamps(self.folders[step]))


@dataclass(frozen=True)
class HubFamily(Family):
    """Checkpoints on the hub: branches or tags of one or several repositories."""

    revisions: dict[int, Named]
    cache_dir: Path
    _pending: dict[int, Future[None]] = field(default_factory=dict, compare=False, repr=False)

    def folder(self, step: int) -> Path:
        """Where a checkpoint's files are downloaded to."""
        revision = self.revisions[step]
        return hub.downloads_of(self.cache_dir, revision.repository) / revision.name.replace("/", "--")

    def fetch_small(self, step: int) -> Path:
        self._settle(step)
        hub.download_small(*self._where(step))
        return self.folder(step)

    def fetch(self, step: int) -> CheckpointFiles:
        self._settle(step)
        origin = hub.download(*self._where(step))
        sha256 = origin.pop("sha256")
        return CheckpointFiles(self.folder(step), origin, lambda: sha256)

    def prefetch(self, step: int) -> None:
        if step not in self._pending and hub.read_manifest(self.folder(step)) is None:
            self._pending[step] = _in_background(self._download, step)

    def free(self, step: int) -> None:
        shutil.rmtree(self.folder(step), ignore_errors=True)

    def _where(self, step: int) -> tuple[str, str, Path]:
        revision = self.revisions[step]
        return revision.repository, revision.name, self.folder(step)

    def _download(self, step: int) -> None:
        """The small files first, so that it never downloads weights that the engine cannot read."""
        hub.download_small(*self._where(step))
        describe(self.folder(step))
        hub.download(*self._where(step))

    def _settle(self, step: int) -> None:
        """Wait for a prefetch. If it failed, the error will come up again."""
        if (pending := self._pending.pop(step, None)) is not None and (error := pending.exception()) is not None:
            log.debug("prefetch of step %d: %s", step, error)


def _in_background(function: Callable[..., T], *args: Any) -> Future[T]:
    """Call a function in a daemon thread, so that an interrupted run does not wait for gigabytes."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
