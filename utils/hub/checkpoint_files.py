"""Checkpoints on the Hugging Face hub, brought to disk.

A checkpoint's files are in `<cache_dir>/<org>--<name>/<branch or tag>/`. First come its small files (config and
tokenizer; those that another checkpoint also has are copied) and `revision.json`, which says what the hub lists. Then
come the weights, and last the manifest `download.json`. So a folder with a manifest is complete and needs no network.
The SHA-256 of every weight file is computed on arrival and compared with the hub's.

HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to `huggingface_hub`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.errors import CheckpointUnusable
from ..base.files import atomic_write, combine, locked, make_folder, read_json, write_json
from .download import Arrived, Listing, download_file
from .listing import hub_errors_as_user_errors, listing_of

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
SMALL_FILES = ("config.json", *TOKENIZER_FILES)

SHARED, LOCKS = ".shared", ".locks"
LISTING, MANIFEST = "revision.json", "download.json"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / MANIFEST)


def download_small(
    repository: str, revision: str, folder: Path, commit: str | None = None, *, code: bool = False
) -> dict[str, Any]:
    """Download a checkpoint's config and tokenizer into a folder; with `code` also the Python files that a tokenizer
    may need.

    Returns `repository, revision, commit`, and `weights`: file -> SHA-256 (None if the hub has none). It is a
    CheckpointUnusable if the revision holds no weights; other errors are those of `listing_of`.
    """
    complete = read_manifest(folder)
    known = read_json(folder / LISTING) or complete
    moved = complete is None and known is not None and commit not in (None, known.get("commit"))
    if known is not None and not moved and (known.get("code", False) or not code):
        return known
    listing = listing_of(repository, revision, folder.parent, commit)
    if (adapter := "adapter_config.json") in listing.files:
        raise CheckpointUnusable(
            f"model: revision {revision} of {repository} is an adapter ({adapter}); to measure it, run: hf download "
            f"{repository} --revision {revision} --local-dir DIR/{revision}, and pass model=DIR"
        )
    if not listing.weights:
        raise CheckpointUnusable(f"model: revision {revision} of {repository} holds no weights; leave that step out")
    with hub_errors_as_user_errors(repository, revision):
        for name in listing.files:
            if name in SMALL_FILES or name.endswith(".index.json") or (code and name.endswith(".py")):
                _download_shared(listing, name, folder)
    about: dict[str, Any] = {"repository": listing.repository, "revision": revision, "commit": listing.commit}
    about["weights"] = {name: listing.files[name].sha256 for name in listing.weights}
    write_json(folder / LISTING, about | ({"code": True} if code else {}))
    return about


def download(
    repository: str, revision: str, folder: Path, commit: str | None = None, arrived: Arrived = lambda count: None
) -> dict[str, Any]:
    """Download a checkpoint, on from where it stopped; returns the manifest. Errors of `download_small`."""
    if (manifest := read_manifest(folder)) is not None:
        return manifest
    with _alone(folder):
        if (manifest := read_manifest(folder)) is not None:  # Another process was faster.
            return manifest
        about = download_small(repository, revision, folder, commit)
        listing = listing_of(about["repository"], about["commit"], folder.parent, about["commit"])
        with hub_errors_as_user_errors(repository, revision):
            hashes = {name: download_file(listing, name, folder, arrived) for name in about["weights"]}
        manifest = {key: about[key] for key in ("repository", "revision", "commit")}
        manifest |= {"sha256": combine(hashes), "files": hashes} | ({"code": True} if about.get("code") else {})
        write_json(folder / MANIFEST, manifest)
        return manifest


class OwnFiles:
    """Which downloads are this process's own. Only these are ever deleted."""

    def __init__(self) -> None:
        self._before: dict[Path, frozenset[str]] = {}
        self._lock = threading.Lock()

    def note(self, folder: Path) -> None:
        """Remember what a checkpoint's folder held before this process downloaded anything into it."""
        with self._lock:
            if folder not in self._before:
                held = folder.iterdir() if folder.is_dir() else ()
                self._before[folder] = frozenset(path.name for path in held)

    def delete(self, folder: Path) -> None:
        """Delete what has been added since, and the folder if nothing is left in it."""
        with self._lock:
            before = self._before.pop(folder, None)
        if before is None or MANIFEST in before or not folder.is_dir():
            return
        with _alone(folder):
            (folder / MANIFEST).unlink(missing_ok=True)  # First: without it, the rest does not count.
            for path in list(folder.iterdir()):
                if path.name not in before and path.is_file():
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time download to a path; the others then find it complete."""
    locks = path.parent / LOCKS
    make_folder(locks)
    with locked(locks / f"{path.name}.lock", "cache_dir"):
        yield


def _download_shared(listing: Listing, name: str, folder: Path) -> None:
    """Files that many checkpoints share are downloaded once and kept under the hash of their content."""
    file = listing.files[name]
    content = file.sha256 or file.blob or f"{listing.commit}-{name.replace('/', '--')}"
    kept = folder.parent / SHARED / content
    if not kept.is_file():
        with _alone(kept):
            if not kept.is_file():
                download_file(listing, name, folder)
                atomic_write(kept, (folder / name).read_bytes())
                return
    atomic_write(folder / name, kept.read_bytes())
