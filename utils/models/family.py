"""Model families and their checkpoints.

A family is named by
- a Pythia name: `pythia-14m` ... `pythia-12b`, `-deduped`, and the PolyPythias `pythia-160m-seed3`,
  `pythia-160m-data-seed1`, `pythia-160m-weight-seed1` (EleutherAI's repositories on the hub);
- a hub id `organisation/name` whose branches are checkpoints (`utils/models/hub.py`);
- a local folder of `step{n}` folders (`utils/models/local.py`).
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from utils.errors import UserError, suggest
from utils.models import hub, local
from utils.models.checkpoint import CheckpointFiles, Description, LoadedCheckpoint, describe, load_weights
from utils.models.device import resolve_device
from utils.models.names import PYTHIA_NAMES, pythia_repository
from utils.models.schedules import PYTHIA_STEPS, TOKENS_PER_STEP, tokens_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Family:
    """A model's published checkpoints.

    Attributes:
        name: last part of the model's name or folder, which names its results.
        source: the hub repository, or the local folder as it was given.
        steps: the published steps, sorted.
        tokens: tokens seen at each published step.
    """

    name: str
    source: str
    steps: tuple[int, ...]
    tokens: dict[int, int]

    @property
    def is_local(self) -> bool:
        """Whether the checkpoints are the user's own folder, not the hub's."""
        return isinstance(self, LocalFamily)

    def fetch_small(self, step: int) -> Path:
        """The folder that holds a checkpoint's config and tokenizer, downloaded if need be."""
        raise NotImplementedError

    def fetch(self, step: int) -> CheckpointFiles:
        """All of a checkpoint's files on disk, downloaded if need be."""
        raise NotImplementedError

    def prefetch(self, step: int) -> None:
        """Begin to fetch a checkpoint in the background; its errors come when it is loaded."""

    def free(self, step: int) -> None:
        """Delete a downloaded checkpoint's files."""

    def tokens_at(self, step: int) -> int:
        """Tokens seen in training up to a published step."""
        return self.tokens[step]

    def describe(self, step: int) -> Description:
        """A checkpoint's tokenizer and shape, from its small files alone: of a hub family only these are downloaded.

        Raises:
            UserError: if it cannot be had, or the engine cannot read such a model.
        """
        return describe(self.fetch_small(step))

    def tokenizer(self, step: int) -> PreTrainedTokenizerBase:
        """A checkpoint's tokenizer."""
        return self.describe(step).tokenizer

    def load(self, step: int, dtype: str = "float32", device: str = "auto") -> LoadedCheckpoint:
        """Load a checkpoint.

        Args:
            step: a published step.
            dtype: number format of the weights: float32, bfloat16, float16.
            device: see `resolve_device`.

        Raises:
            UserError: if it cannot be had, the engine cannot read such a model, or its files cannot be loaded.
        """
        where = resolve_device(device)
        tokenizer = self.describe(step).tokenizer
        files = self.fetch(step)
        weights, parameters = load_weights(files.folder, getattr(torch, dtype), where)
        # Hashing takes longer than loading and is needed last, so it goes on while the checkpoint is measured.
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
    """A hub repository whose branches are checkpoints."""

    revisions: dict[int, str]
    downloads: Path
    _pending: dict[int, Future[None]] = field(default_factory=dict, compare=False, repr=False)

    def folder(self, step: int) -> Path:
        """Where a checkpoint's files are downloaded to."""
        return self.downloads / f"step{step}"

    def fetch_small(self, step: int) -> Path:
        self._settle(step)
        hub.download_small(self.source, self.revisions[step], self.folder(step))
        return self.folder(step)

    def fetch(self, step: int) -> CheckpointFiles:
        self._settle(step)
        origin = hub.download(self.source, self.revisions[step], self.folder(step))
        sha256 = origin.pop("sha256")
        return CheckpointFiles(self.folder(step), origin, lambda: sha256)

    def prefetch(self, step: int) -> None:
        if step not in self._pending and hub.read_manifest(self.folder(step)) is None:
            self._pending[step] = _in_background(self._download, step)

    def free(self, step: int) -> None:
        shutil.rmtree(self.folder(step), ignore_errors=True)

    def _download(self, step: int) -> None:
        """The small files first, so that no weights are fetched that the engine cannot read."""
        hub.download_small(self.source, self.revisions[step], self.folder(step))
        describe(self.folder(step))
        hub.download(self.source, self.revisions[step], self.folder(step))

    def _settle(self, step: int) -> None:
        """Wait for a prefetch; what went wrong will be told when it goes wrong again."""
        if (pending := self._pending.pop(step, None)) is not None and (error := pending.exception()) is not None:
            log.debug("prefetch of step %d: %s", step, error)


def resolve_family(model: str, cache_dir: Path, tokens_per_step: int | None = None) -> Family:
    """Find a model's checkpoints.

    Args:
        model: a Pythia name, a hub id or a local folder (a folder called like a Pythia model: `./pythia-70m`).
        cache_dir: where hub checkpoints are downloaded to.
        tokens_per_step: for families that do not say themselves.

    Raises:
        UserError: if there is no such model, it has no checkpoints, or its tokens are unknown.
    """
    if repository := pythia_repository(model):
        return _pythia_family(repository, cache_dir)
    path = Path(model).expanduser()
    if path.is_dir():
        return _local_family(model, path, tokens_per_step)
    if model.count("/") == 1 and not _looks_local(model, cache_dir):
        return _hub_family(model, cache_dir, tokens_per_step)
    if "/" in model or os.sep in model:
        raise UserError(
            f"model: the folder {model} does not exist; train a small family with: python make_toy_checkpoints.py, "
            "or name a Pythia model, a hub id or a folder of step{n} folders"
        )
    raise UserError(
        f"model: '{model}' is no Pythia name, no hub id (organisation/name) and no folder"
        f"{suggest(model, PYTHIA_NAMES, 'Pythia names')}"
    )


def _pythia_family(repository: str, cache_dir: Path) -> HubFamily:
    try:
        revisions = {step: revision.name for step, revision in hub.published_revisions(repository).items()}
    except hub.HubUnreachable as error:
        log.warning("%s; taking the %d steps that Pythia publishes", error, len(PYTHIA_STEPS))
        revisions = {step: f"step{step}" for step in PYTHIA_STEPS}
    tokens = {step: tokens_at(step, TOKENS_PER_STEP) for step in revisions}
    return _on_hub(repository, revisions, tokens, cache_dir)


def _hub_family(repository: str, cache_dir: Path, tokens_per_step: int | None) -> HubFamily:
    revisions = hub.published_revisions(repository)
    tokens = {}
    for step, revision in revisions.items():
        if revision.tokens is None and tokens_per_step is None:
            raise UserError(
                f"tokens_per_step: {repository} does not say how many tokens a step has; pass tokens_per_step=N"
            )
        tokens[step] = revision.tokens if revision.tokens is not None else step * (tokens_per_step or 0)
    return _on_hub(repository, {step: revision.name for step, revision in revisions.items()}, tokens, cache_dir)


def _on_hub(repository: str, revisions: dict[int, str], tokens: dict[int, int], cache_dir: Path) -> HubFamily:
    name = repository.rpartition("/")[2]
    downloads = cache_dir / repository.replace("/", "--")
    return HubFamily(name, repository, tuple(sorted(revisions)), tokens, revisions, downloads)


def _looks_local(model: str, cache_dir: Path) -> bool:
    """A path that no hub id would be: its folder is there, is the downloads' folder, or is written as a path."""
    parent = Path(model).expanduser().parent
    return model.startswith((".", "~", "/")) or parent.is_dir() or parent == cache_dir


def _local_family(model: str, path: Path, tokens_per_step: int | None) -> LocalFamily:
    folders = local.step_folders(path)
    per_step = local.tokens_per_step(path, tokens_per_step)
    tokens = {step: tokens_at(step, per_step) for step in folders}
    return LocalFamily(path.resolve().name, model, tuple(folders), tokens, folders)


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
