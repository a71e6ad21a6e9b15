"""Checkpoints on the Hugging Face hub: a repository's branches and tags, and their files on disk.

A checkpoint's files are in `<cache_dir>/<org>--<name>/<branch or tag>/`. First come its small files (config and
tokenizer; those that another checkpoint also has are copied) and `revision.json`, which says what the hub lists. Then
come the weights, and last the manifest `download.json`. So a folder with a manifest is complete and needs no network.
The SHA-256 of every weight file is computed on arrival and compared with the hub's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from utils.errors import UserError
from utils.files import atomic_write, combine, file_sha256
from utils.models.checkpoint import SMALL_FILES, CheckpointUnusable

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo
    from huggingface_hub.hf_api import RepoSibling

NAMES, SHARED = "names.json", ".shared"
LISTING, MANIFEST = "revision.json", "download.json"

log = logging.getLogger(__name__)

_SAFETENSORS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_TORCH = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")


class HubUnreachable(CheckpointUnusable):
    """The hub did not answer: no network, offline mode, or the hub is down."""


class _Silent(tqdm):
    """Hides the hub's own progress bars: the runner shows one, and downloads run in the background."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("name", None)
        super().__init__(*args, **kwargs | {"disable": True})


def published_names(repository: str, downloads: Path) -> list[str]:
    """The names of a repository's branches, then of its tags. Without the hub, those that it listed before.

    Args:
        repository: the hub id.
        downloads: where its checkpoints are downloaded to. The names are kept there.

    Raises:
        UserError: if there is no such repository.
        HubUnreachable: if the hub did not answer, and never did.
    """
    from huggingface_hub import HfApi

    kept = downloads / NAMES
    try:
        with _told(repository):
            refs = HfApi().list_repo_refs(repository)
    except HubUnreachable as error:
        if (names := _read(kept)) is None:
            raise
        log.warning("%s; taking the branches and tags that it listed before (%s)", error, kept)
        return [*names["branches"], *names["tags"]]
    names = {"branches": [ref.name for ref in refs.branches], "tags": [ref.name for ref in refs.tags]}
    with contextlib.suppress(UserError):  # Downloading a checkpoint will tell if the cache cannot be written to.
        _write(kept, names)
    return [*names["branches"], *names["tags"]]


def downloads_of(cache_dir: Path, repository: str) -> Path:
    """Where a repository's checkpoints are downloaded to."""
    return cache_dir / repository.replace("/", "--")


def download_small(repository: str, revision: str, folder: Path) -> dict[str, Any]:
    """Download a checkpoint's config and tokenizer into a folder.

    Returns:
        What the hub lists: `repository, revision, commit`, `weights`: file -> SHA-256 (None if the hub has none).

    Raises:
        UserError: if the revision is missing or holds no weights.
        HubUnreachable: if the hub did not answer.
    """
    if (listing := _read(folder / LISTING) or read_manifest(folder)) is not None:
        return listing
    from huggingface_hub import HfApi

    api = HfApi()
    with _told(repository, revision):
        info = api.model_info(repository, revision=revision, files_metadata=True)
        files = {file.rfilename: file for file in info.siblings or []}
        weights = _weight_files(list(files))
        if not weights:
            raise CheckpointUnusable(
                f"model: revision {revision} of {repository} holds no weights; leave that step out"
            )
        small = [file for name, file in files.items() if name in SMALL_FILES or name.endswith(".index.json")]
        _bring_small(api, info, small, folder)
    listing = {"repository": info.id, "revision": revision, "commit": info.sha}  # today's id, if it was renamed
    listing["weights"] = {name: lfs.sha256 if (lfs := files[name].lfs) is not None else None for name in weights}
    _write(folder / LISTING, listing)
    return listing


def download(repository: str, revision: str, folder: Path) -> dict[str, Any]:
    """Download all of a checkpoint's files into a folder. Goes on where an earlier download stopped.

    Returns:
        The manifest: `repository, revision, commit`, `sha256` of the weights.

    Raises:
        UserError: if the revision is missing, holds no weights, or arrived damaged.
        HubUnreachable: if the hub did not answer.
    """
    if (manifest := read_manifest(folder)) is not None:
        return manifest
    from huggingface_hub import HfApi

    listing = download_small(repository, revision, folder)
    weights = listing.pop("weights")
    with _told(repository, revision):
        HfApi().snapshot_download(
            listing["repository"],
            revision=listing["commit"],
            local_dir=folder,
            allow_patterns=list(weights),
            tqdm_class=_Silent,
        )
    hashes = {name: file_sha256(folder / name) for name in weights}
    for name, sha256 in hashes.items():
        if weights[name] not in (None, sha256):
            (folder / name).unlink()
            raise CheckpointUnusable(
                f"{folder / name}: arrived damaged (SHA-256 differs from the hub's); it is deleted, run again"
            )
    manifest = listing | {"sha256": combine(hashes)}
    _write(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete download, or None."""
    return _read(folder / MANIFEST)


def _bring_small(api: HfApi, info: ModelInfo, files: Sequence[RepoSibling], folder: Path) -> None:
    """Download files into a folder. Files that many checkpoints share are downloaded once and kept under their hash."""
    kept = {}
    for file in files:
        known = file.lfs.sha256 if file.lfs is not None else file.blob_id
        kept[file.rfilename] = folder.parent / SHARED / (known or f"{info.sha}-{file.rfilename}")
    if absent := [name for name, path in kept.items() if not path.is_file()]:
        api.snapshot_download(info.id, revision=info.sha, local_dir=folder, allow_patterns=absent, tqdm_class=_Silent)
    for name, path in kept.items():
        source, target = (path, folder / name) if path.is_file() else (folder / name, path)
        atomic_write(target, source.read_bytes())


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path, (json.dumps(content, indent=1) + "\n").encode())


def _weight_files(names: list[str]) -> list[str]:
    """The weights in safetensors, or in torch's own format if there are no others."""
    for pattern in (_SAFETENSORS, _TORCH):
        if found := sorted(name for name in names if pattern.fullmatch(name)):
            return found
    return []


@contextlib.contextmanager
def _told(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turns the hub's errors into one line each."""
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
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        way_out = "try again later" if status >= 500 or status == 429 else "check the name and your access"
        raise HubUnreachable(f"model: the hub answered {status} for {named}; {way_out}") from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise HubUnreachable(
            f"model: {named}: the hub cannot be reached ({reason}); connect, or measure checkpoints that you have"
        ) from error
    except OSError as error:
        raise UserError(f"model: {named} cannot be stored ({error}); free space or name another cache_dir") from error
