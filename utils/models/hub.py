"""Checkpoints on the Hugging Face hub: which steps a repository publishes, and their files on disk.

A checkpoint's files lie in `<cache_dir>/<org>--<name>/step{n}/`. First come its small files (config and tokenizer) and
`revision.json`, which says what the hub lists; then the weights and last the manifest `download.json`, so a folder with
a manifest is complete and needs no network. The SHA-256 of every weight file is computed once it is here and compared
with the hub's.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.errors import UserError
from utils.files import atomic_write, combine, file_sha256
from utils.models.checkpoint import SMALL_FILES

LISTING, MANIFEST = "revision.json", "download.json"

_REVISION = re.compile(r"(?P<stage>stage1-)?(?:step|checkpoint-)(?P<step>\d+)(?:-tokens(?P<billions>\d+)B)?")
_SAFETENSORS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_TORCH = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")


class HubUnreachable(UserError):
    """The hub did not answer: no network, offline mode, or the hub is down."""


@dataclass(frozen=True)
class Revision:
    """A branch that holds a training checkpoint; `tokens` where its name tells them (OLMo), else None."""

    name: str
    tokens: int | None


class _Silent(tqdm):
    """No bars of the hub's own: the runner shows one, and downloads go on beside it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("name", None)
        super().__init__(*args, **kwargs | {"disable": True})


def published_revisions(repository: str) -> dict[int, Revision]:
    """Step -> branch, from the names `step1000` (Pythia), `step1000-tokens4B`, `stage1-step1000-tokens4B` (OLMo) and
    `checkpoint-1000`. Where two branches hold one step, the plainest name counts. Later training stages are left out,
    as they count their steps anew.

    Raises:
        UserError: if there is no such repository, or it has no such branch.
        HubUnreachable: if the hub did not answer.
    """
    from huggingface_hub import HfApi

    with _told(repository):
        branches = HfApi().list_repo_refs(repository).branches
    revisions: dict[int, Revision] = {}
    for name in sorted((branch.name for branch in branches), key=lambda name: (-len(name), name)):
        if match := _REVISION.fullmatch(name):
            billions = match["billions"]
            revisions[int(match["step"])] = Revision(name, None if billions is None else int(billions) * 10**9)
    if not revisions:
        raise UserError(f"model: {repository} has no step{{n}} branches on the hub; name a repository of checkpoints")
    return dict(sorted(revisions.items()))


def download_small(repository: str, revision: str, folder: Path) -> dict[str, Any]:
    """Bring a checkpoint's config and tokenizer into a folder.

    Returns:
        What the hub lists: `repository, revision, commit`, `weights`: file -> SHA-256 (None where the hub has none).

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
        listed = {file.rfilename: file.lfs.sha256 if file.lfs is not None else None for file in info.siblings or []}
        weights = _weight_files(list(listed))
        if not weights:
            raise UserError(f"model: revision {revision} of {repository} holds no weights; leave that step out")
        small = [name for name in listed if name in SMALL_FILES or name.endswith(".index.json")]
        api.snapshot_download(repository, revision=info.sha, local_dir=folder, allow_patterns=small, tqdm_class=_Silent)
    listing = {"repository": repository, "revision": revision, "commit": info.sha}
    listing["weights"] = {name: listed[name] for name in weights}
    _write(folder / LISTING, listing)
    return listing


def download(repository: str, revision: str, folder: Path) -> dict[str, Any]:
    """Bring all of a checkpoint's files into a folder, going on where an earlier download stopped.

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
            repository,
            revision=listing["commit"],
            local_dir=folder,
            allow_patterns=list(weights),
            tqdm_class=_Silent,
        )
    hashes = {name: file_sha256(folder / name) for name in weights}
    for name, sha256 in hashes.items():
        if weights[name] not in (None, sha256):
            (folder / name).unlink()
            raise UserError(f"{folder / name}: arrived damaged (SHA-256 differs from the hub's); deleted, run again")
    manifest = listing | {"sha256": combine(hashes)}
    _write(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete download; None where there is none."""
    return _read(folder / MANIFEST)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path, (json.dumps(content, indent=1) + "\n").encode())


def _weight_files(names: list[str]) -> list[str]:
    """The weights in safetensors; in torch's own format only where there are no others."""
    for pattern in (_SAFETENSORS, _TORCH):
        if found := sorted(name for name in names if pattern.fullmatch(name)):
            return found
    return []


@contextlib.contextmanager
def _told(repository: str, revision: str | None = None) -> Iterator[None]:
    """The hub's errors, each as one line."""
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
        raise UserError(f"checkpoints: {named} is not on the hub; leave that step out") from None
    except errors.HFValidationError:
        raise UserError(f"model: '{repository}' is no hub id; write it as organisation/name") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        way_out = "try again later" if status >= 500 or status == 429 else "check the name and your access"
        raise HubUnreachable(f"model: the hub answered {status} for {named}; {way_out}") from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise HubUnreachable(
            f"model: {named}: the hub cannot be reached ({reason}); connect, or measure checkpoints that are here"
        ) from error
    except OSError as error:
        raise UserError(f"model: {named} cannot be stored ({error}); free space or name another cache_dir") from error
