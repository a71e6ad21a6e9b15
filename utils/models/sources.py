"""Where a family's checkpoints come from: folders on disk, or revisions on the hub."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..base.errors import CheckpointUnusable
from ..base.files import combine
from ..hub import checkpoint_files as hub
from ..hub.download import Arrived
from ..hub.listing import Listing, downloads_of, in_parallel, listing_of
from . import local
from .checkpoint import Description, LoadedCheckpoint, describe, load_weights, resolve_device
from .known_families import Damage
from .revisions import Named
from .weight_files import CheckpointFiles, read_state

if TYPE_CHECKING:
    from torch import Tensor


# One checkpoint ahead: while one is measured, the next is downloaded and its tensors are read into CPU memory.

T = TypeVar("T")


@dataclass(frozen=True)
class Ready:
    """A checkpoint that has been read.

    Attributes:
        files: its files.
        state: its tensors, on the CPU, in the files' number format.
    """

    files: CheckpointFiles
    state: dict[str, Tensor]


class Ahead:
    """Room for one checkpoint that will be needed next. Starting another drops the one that is there."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._future: Future[Ready] | None = None
        self._stop = threading.Event()

    def start(self, step: int, read: Callable[[threading.Event], Ready]) -> None:
        """Read a checkpoint in the background.

        Args:
            step: its step.
            read: reads it; ends early once the event is set.
        """
        if step == self._step:
            return
        self.drop()
        self._step, self._future = step, in_background(read, self._stop)

    def wait(self, step: int) -> None:
        """Wait until a step has arrived, if it is on its way.

        Raises:
            Exception: what went wrong. It is told once; after that, the step counts as not started.
        """
        if step == self._step and self._future is not None and (error := self._future.exception()) is not None:
            self.drop()
            raise error

    def take(self, step: int) -> Ready | None:
        """A step's checkpoint, once it has arrived; None if it was never started.

        Raises:
            Exception: as `wait`.
        """
        self.wait(step)
        if step != self._step or self._future is None:
            return None
        ready = self._future.result()
        self.drop()
        return ready

    def drop(self) -> None:
        """Give up what is on its way, and the memory that it holds."""
        self._stop.set()
        self._step, self._future, self._stop = None, None, threading.Event()


def in_background(function: Callable[..., T], *args: Any) -> Future[T]:
    """Call a function in a daemon thread, so that an interrupted run does not wait for gigabytes."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


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
        trust_remote_code: whether its tokenizer may run Python code that comes with it.
    """

    name: str
    source: str
    steps: tuple[int, ...]
    tokens: dict[int, int]
    prepend_bos: bool | None = field(default=None, kw_only=True)
    damage: tuple[Damage, ...] = field(default=(), kw_only=True)
    trust_remote_code: bool = field(default=False, kw_only=True)
    _ahead: Ahead = field(default_factory=Ahead, kw_only=True, compare=False, repr=False)

    @property
    def is_local(self) -> bool:
        """Whether the checkpoints are in the user's own folder, not on the hub."""
        return isinstance(self, LocalFamily)

    def fetch_small(self, step: int) -> Path:
        """The folder with a checkpoint's config and tokenizer, downloaded if needed."""
        self._ahead.wait(step)
        return self._folder_of_small(step)

    def fetch(self, step: int, arrived: Arrived = lambda count: None) -> CheckpointFiles:
        """All of a checkpoint's files on disk, downloaded if needed; `arrived` is told of every few bytes."""
        self._ahead.wait(step)
        return self._files(step, arrived)

    def prefetch(self, step: int) -> None:
        """Start to download a checkpoint and to read it into CPU memory, in the background.

        There is room for one: starting another drops it. Errors appear when the checkpoint is described or loaded.
        """
        self._ahead.start(step, lambda stop: self._read(step, stop))

    def stop(self) -> None:
        """Give up what `prefetch` started, and the memory that it holds."""
        self._ahead.drop()

    def release(self, step: int, keep: Literal["all", "none"] | int) -> None:
        """Say that a checkpoint has been measured. Deletes downloads of this process that are no longer to be kept.

        Args:
            step: the checkpoint.
            keep: `all`, `none`, or how many to keep: those that were released last.
        """

    def _read(self, step: int, stop: threading.Event) -> Ready:
        describe(self._folder_of_small(step), self.trust_remote_code)  # Never weights that the engine cannot read.
        files = self._files(step, lambda count: None)
        return Ready(files, read_state(files.folder, stop))

    def _folder_of_small(self, step: int) -> Path:
        raise NotImplementedError

    def _files(self, step: int, arrived: Arrived) -> CheckpointFiles:
        raise NotImplementedError

    def tokens_at(self, step: int) -> int:
        """Tokens seen in training up to a published step."""
        return self.tokens[step]

    def describe(self, step: int) -> Description:
        """A checkpoint's tokenizer and shape, from its small files alone: only these are downloaded from the hub.

        Raises:
            CheckpointUnusable: if it is missing or damaged.
            UserError: if the engine cannot read such a model.
        """
        return describe(self.fetch_small(step), self.trust_remote_code)

    def load(self, step: int, dtype: str = "float32", device: str = "auto") -> LoadedCheckpoint:
        """Load a checkpoint.

        Args:
            step: a published step.
            dtype: number format of the weights: float32, bfloat16, float16.
            device: see `resolve_device`.

        Raises:
            CheckpointUnusable: if it is missing or damaged.
            UserError: if the engine cannot read such a model, or it does not fit on the device.
        """
        import torch

        where = resolve_device(device)
        tokenizer = self.describe(step).tokenizer
        ready = self._ahead.take(step)
        files = self.fetch(step) if ready is None else ready.files
        state = None if ready is None else ready.state
        del ready
        weights, parameters = load_weights(files.folder, getattr(torch, dtype), where, state)
        # Hashing takes longer than loading and is needed last, so it runs while the checkpoint is measured.
        hashes = in_background(files.hashes)
        return LoadedCheckpoint(self.name, step, self.tokens_at(step), weights, parameters, tokenizer, files, hashes)


@dataclass(frozen=True)
class LocalFamily(Family):
    """A folder of `step{n}` folders."""

    folders: dict[int, Path]

    def sha256(self, step: int) -> str:
        """Hash of a checkpoint's weights as they are on disk now."""
        return combine(local.hashes(local.stamps(self.folders[step])))

    def fingerprint(self, step: int) -> str:
        """Hash of samples of a checkpoint's weights as they are on disk now (`local.fingerprints`)."""
        return combine(local.fingerprints(local.stamps(self.folders[step])))

    def _folder_of_small(self, step: int) -> Path:
        return self.folders[step]

    def _files(self, step: int, arrived: Arrived) -> CheckpointFiles:
        folder = self.folders[step]
        before = local.stamps(folder)
        origin = {"repository": self.source, "revision": folder.name, "commit": None}
        origin["fingerprint"] = combine(local.fingerprints(before))
        return CheckpointFiles(folder, origin, lambda: local.hashes(before), self.trust_remote_code)


@dataclass(frozen=True)
class HubFamily(Family):
    """Checkpoints on the hub: branches or tags of one or several repositories.

    Attributes:
        revisions: step -> branch or tag.
        cache_dir: where downloads go.
        commits: repository -> branch or tag -> its commit, None if the hub was not asked.
    """

    revisions: dict[int, Named]
    cache_dir: Path
    commits: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict, compare=False, repr=False)
    _own: hub.OwnFiles = field(default_factory=hub.OwnFiles, compare=False, repr=False)
    _listed: dict[int | str, Listing | CheckpointUnusable] = field(default_factory=dict, compare=False, repr=False)
    _released: list[int] = field(default_factory=list, compare=False, repr=False)

    def folder(self, step: int) -> Path:
        """Where a checkpoint's files are downloaded to."""
        revision = self.revisions[step]
        return hub.folder_of(self.cache_dir, revision.repository, revision.name)

    def listing(self, step: int) -> Listing:
        """What the hub lists of a checkpoint; the answer of an earlier request, if its commit is the same.

        Raises:
            CheckpointUnusable: if the revision is missing, or the hub did not answer.
        """
        revision = self.revisions[step]
        downloads = downloads_of(self.cache_dir, revision.repository)
        return listing_of(revision.repository, revision.name, downloads, self.commit(step))

    def listed(self, steps: Sequence[int]) -> dict[int, Listing | CheckpointUnusable]:
        """What the hub lists of some steps, or what is wrong. It is asked once for each, also if it does not answer."""
        asked: dict[int | str, Callable[[], Listing]] = {
            step: partial(self.listing, step) for step in steps if step not in self._listed
        }
        self._listed.update(in_parallel(asked))
        return {step: self._listed[step] for step in steps}

    def main(self) -> Listing | None:
        """What the hub lists of the branch `main`; None if there is none.

        Raises:
            CheckpointUnusable: if the hub did not answer.
        """
        names = self.commits.get(self.source, {})
        if "main" not in names:
            return None
        return listing_of(self.source, "main", downloads_of(self.cache_dir, self.source), names["main"])

    def is_complete(self, step: int) -> bool:
        """Whether all of a checkpoint's files are on disk."""
        return hub.read_manifest(self.folder(step)) is not None

    def release(self, step: int, keep: Literal["all", "none"] | int) -> None:
        if keep == "all":
            return
        self._released.append(step)
        while len(self._released) > (0 if keep == "none" else keep):
            self._own.delete(self.folder(self._released.pop(0)))

    def _folder_of_small(self, step: int) -> Path:
        revision, folder = self.revisions[step], self.folder(step)
        self._own.note(folder)
        code = self.trust_remote_code
        hub.download_small(revision.repository, revision.name, folder, self.commit(step), code=code)
        return folder

    def _files(self, step: int, arrived: Arrived) -> CheckpointFiles:
        revision, folder = self.revisions[step], self.folder(step)
        self._own.note(folder)
        origin = hub.download(revision.repository, revision.name, folder, self.commit(step), arrived)
        hashes = origin.get("files") or {"": origin["sha256"]}  # Earlier manifests have one hash alone.
        about = {key: origin[key] for key in ("repository", "revision", "commit")}
        return CheckpointFiles(folder, about, lambda: hashes, self.trust_remote_code)

    def commit(self, step: int) -> str | None:
        """The commit that a step's revision is at today; None if the hub was not asked."""
        revision = self.revisions[step]
        return self.commits.get(revision.repository, {}).get(revision.name)
