"""What the hub says about checkpoints before any weights are fetched: names, commits, files, sizes and hashes.

One request lists a repository's branches and tags with their commits (`names.json`). One request for each commit lists
its files with sizes and SHA-256; a commit never changes, so the answer is kept for good (`.listings/<commit>.json`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import CheckpointUnusable, UserError, one_line
from ..base.files import atomic_write
from .download import WAITS, patiently

NAMES, LISTINGS = "names.json", ".listings"
AT_ONCE = 8
"""How many listings are asked for at the same time."""

log = logging.getLogger(__name__)

_SAFETENSORS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_TORCH = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")


class HubUnreachable(CheckpointUnusable):
    """The hub did not answer: no network, offline mode, or the hub is down."""


@dataclass(frozen=True)
class ListedFile:
    """A file of a commit.

    Attributes:
        size: in bytes.
        blob: git's id of its content.
        sha256: the hash of its content, for files in large-file storage.
    """

    size: int
    blob: str
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    """The files of a commit.

    Attributes:
        repository: today's id, if it was renamed.
        commit: the commit's hash.
        files: name -> file.
    """

    repository: str
    commit: str
    files: Mapping[str, ListedFile]

    @property
    def weights(self) -> list[str]:
        """The weights to fetch: those in safetensors, or in torch's own format if there are no others; never both."""
        for pattern in (_SAFETENSORS, _TORCH):
            if found := sorted(name for name in self.files if pattern.fullmatch(name)):
                return found
        return []

    @property
    def bytes_of_weights(self) -> int:
        """How large they are together."""
        return sum(self.files[name].size for name in self.weights)

    @property
    def formats(self) -> list[dict[str, str]]:
        """SHA-256 of the weights, one format at a time; without those of which the hub does not say every hash."""
        found = []
        for pattern in (_SAFETENSORS, _TORCH):
            named = {name: file.sha256 for name, file in self.files.items() if pattern.fullmatch(name)}
            known = {name: sha256 for name, sha256 in sorted(named.items()) if sha256 is not None}
            if known and len(known) == len(named):
                found.append(known)
        return found

    @property
    def weight_hashes(self) -> dict[str, str]:
        """SHA-256 of all weights, in both formats, as far as the hub says them."""
        patterns = (_SAFETENSORS, _TORCH)
        named = {name: file.sha256 for name, file in self.files.items() if any(p.fullmatch(name) for p in patterns)}
        return {name: sha256 for name, sha256 in sorted(named.items()) if sha256 is not None}


def downloads_of(cache_dir: Path, repository: str) -> Path:
    """Where a repository's checkpoints are downloaded to."""
    return cache_dir / repository.replace("/", "--")


def published_names(repository: str, downloads: Path) -> dict[str, str | None]:
    """A repository's branches, then its tags, each with its commit. Without the hub, those that it listed before.

    Args:
        repository: the hub id.
        downloads: where its checkpoints are downloaded to. The names are kept there.

    Raises:
        UserError: if there is no such repository.
        HubUnreachable: if the hub did not answer, and never did.
    """
    from huggingface_hub import HfApi

    held = read_json(kept := downloads / NAMES)
    _never_hang()
    try:
        with told(repository):
            waits = WAITS if held is None else WAITS[:2]  # Where there is no network, do not make every run wait.
            refs = patiently(lambda: HfApi().list_repo_refs(repository), f"branches of {repository}", waits=waits)
    except HubUnreachable as error:
        if held is None:
            raise
        log.warning("%s; taking the branches and tags that it listed before (%s)", error, kept)
        # Before commits were kept, the names were lists.
        commits = [dict.fromkeys(part) | (part if isinstance(part, dict) else {}) for part in held.values()]
        return {name: commit for part in commits for name, commit in part.items()}
    branches, tags = ({ref.name: ref.target_commit for ref in part} for part in (refs.branches, refs.tags))
    with contextlib.suppress(UserError):  # Downloading a checkpoint will tell if the cache cannot be written to.
        write_json(kept, {"branches": branches, "tags": tags})
    return {**branches, **{name: commit for name, commit in tags.items() if name not in branches}}


def listing_of(repository: str, revision: str, downloads: Path, commit: str | None = None) -> Listing:
    """The files of a revision.

    Args:
        repository: the hub id.
        revision: branch, tag or commit.
        downloads: where its checkpoints are downloaded to. Listings are kept there.
        commit: the revision's commit, if it is known. Then a kept listing needs no request.

    Raises:
        CheckpointUnusable: if the revision is missing.
        HubUnreachable: if the hub did not answer.
        UserError: if the repository is missing or closed.
    """
    if commit is not None and (held := kept_listing(downloads, commit)) is not None:
        return held
    from huggingface_hub import HfApi, constants

    _never_hang()
    with told(repository, revision):
        info = patiently(
            lambda: HfApi().model_info(
                repository, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ),
            f"revision {revision} of {repository}",
        )
    files = {
        file.rfilename: ListedFile(
            (file.lfs.size if file.lfs is not None else file.size) or 0,
            file.blob_id or "",
            None if file.lfs is None else file.lfs.sha256,
        )
        for file in info.siblings or []
    }
    listing = Listing(info.id, info.sha or revision, files)
    with contextlib.suppress(UserError):
        plain = {name: [file.size, file.blob, file.sha256] for name, file in files.items()}
        write_json(downloads / LISTINGS / f"{listing.commit}.json", {"repository": listing.repository, "files": plain})
    return listing


def kept_listing(downloads: Path, commit: str) -> Listing | None:
    """A commit's listing from an earlier request, or None."""
    held = read_json(downloads / LISTINGS / f"{commit}.json")
    if held is None:
        return None
    return Listing(held["repository"], commit, {name: ListedFile(*parts) for name, parts in held["files"].items()})


def in_parallel(
    tasks: Mapping[int | str, Callable[[], Listing]], advance: Callable[[], object] = lambda: None
) -> dict[int | str, Listing | CheckpointUnusable]:
    """Listings by key, several requests at a time.

    Args:
        tasks: key -> a call of `listing_of`.
        advance: called after each.

    Returns:
        For each key, in order, its listing or what is wrong with it. After the first `HubUnreachable`, nothing more is
        asked for, and the rest get the same error.

    Raises:
        UserError: if the repository is missing or closed.
    """
    waiting, arrived = queue.SimpleQueue[int | str](), queue.SimpleQueue[tuple[int | str, Listing | Exception]]()
    stop = threading.Event()
    for key in tasks:
        waiting.put(key)

    def work() -> None:
        while not stop.is_set():
            try:
                key = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                arrived.put((key, tasks[key]()))
            except Exception as error:
                arrived.put((key, error))

    # Daemon threads: whoever presses Ctrl-C need not wait for the waits between their attempts.
    for _ in range(min(AT_ONCE, len(tasks))):
        threading.Thread(target=work, daemon=True).start()
    found: dict[int | str, Listing | CheckpointUnusable] = {}
    try:
        while len(found) < len(tasks):
            key, outcome = arrived.get()
            if isinstance(outcome, HubUnreachable):
                return {each: found.get(each, outcome) for each in tasks}
            if isinstance(outcome, Exception) and not isinstance(outcome, CheckpointUnusable):
                raise outcome
            found[key] = outcome
            advance()
    finally:
        stop.set()
    return {key: found[key] for key in tasks}


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file, or None if there is none or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    atomic_write(path, (json.dumps(content, indent=1) + "\n").encode())


@contextlib.contextmanager
def told(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turns the hub client's errors into one line each, without secrets."""
    from huggingface_hub import errors

    named = repository if revision is None else f"revision {revision} of {repository}"
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(f"model: {repository} is gated; accept its terms on the hub and run: hf auth login") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"model: {repository} is not on the hub (or private); check the name, or name a folder of step{{n}} folders"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointUnusable(f"checkpoints: {named} is not on the hub; leave that step out") from None
    except errors.HFValidationError:
        raise UserError(f"model: '{repository}' is not a hub id; write it as organisation/name") from None
    except UnicodeEncodeError:
        raise UserError(
            "HF_TOKEN: the token holds characters that none can have; set it again (hf auth login)"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        way_out = "try again later" if status >= 500 or status == 429 else "check the name and your access"
        raise HubUnreachable(f"model: the hub answered {status} for {named}; {way_out}") from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise HubUnreachable(
            f"model: {named}: the hub cannot be reached ({one_line(error)}); connect, or measure checkpoints that you "
            "have"
        ) from None
    except OSError as error:
        if "Consistency check failed" in str(error):
            raise HubUnreachable(f"model: {named}: the download breaks off each time; try again later") from None
        raise UserError(
            f"model: {named} cannot be stored ({one_line(error)}); free space or name another cache_dir"
        ) from None


def _never_hang() -> None:
    """Give the hub's client a time limit where it has none of its own (it lists branches without one)."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    session = get_session()
    if session.timeout.read is None:
        session.timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
