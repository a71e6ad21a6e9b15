"""Files: written whole or not at all, hashed, and locked."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import UserError

_DAY = 86_400.0

Stamp = tuple[int, int, int]
"""Inode, size and time of change of a file: equal as long as nobody has written to it."""


def atomic_write(path: Path, data: bytes, *, sync_folder: bool = True) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, replace, fsync of the folder.

    `sync_folder=False` leaves the last to the next file that is written there. It is a UserError if the folder cannot
    be created or written to, the disk is full, or a device or a pipe has the name.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # A device or a pipe would be replaced.
        raise UserError(f"{path}: is not a regular file; name another")
    temporary = path.with_name(f".{path.name}.{_process()}.tmp")
    make_folder(path.parent)
    try:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if sync_folder:
            _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or name another folder") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file with an object in it, or None if there is none or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def what_it_is(path: Path) -> str | None:
    """What a file that cannot be read is instead of what its name says, with the way out; None if nothing tells."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip()
    except OSError:
        return None
    if not start:
        return "is empty; copy or fetch it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; fetch that with: git lfs pull"
    if start[:1] == b"<":
        return "is a web page, not the file itself; fetch that again"
    return None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as `atomic_write` does."""
    atomic_write(path, (json.dumps(content, indent=1) + "\n").encode())


def make_folder(folder: Path) -> None:
    """Create a folder, and those above it, if they are missing. If that is impossible, it is a UserError."""
    above = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for made in above:
            _sync_folder(made.parent)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}); name another folder") from error


def require_writable(folder: Path, key: str) -> None:
    """Create a folder and check that files can be written into it; else a UserError names it by its config `key`."""
    probe = folder / f".probe.{_process()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"probe")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{key}: {folder} cannot be written to ({error.strerror}); name another folder") from error


def remove_stale_temporaries(folder: Path) -> None:
    """Delete the half-written files of killed runs. Those of running processes stay."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if writer_is_gone(path) or time.time() - path.stat().st_mtime > _DAY:
                path.unlink(missing_ok=True)


def writer_is_gone(temporary: Path) -> bool:
    """Whether a temporary file was made by a process of this machine that has ended. Its name ends `.host.pid.tmp`."""
    host, _, pid = temporary.name.removesuffix(".tmp").rpartition(".")
    return host.endswith(f".{socket.gethostname()}") and pid.isdigit() and not is_running(int(pid))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. The hub reports the same for files in its large-file storage."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: Path) -> Stamp:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@functools.cache
def sha256_at(path: Path, stamp: Stamp) -> str:
    """SHA-256 of a file that has this stamp. It is read only once, until it changes."""
    return file_sha256(path)


def content_sha256(path: Path) -> str | None:
    """SHA-256 of a file, or of all files in a folder; None if there is neither."""
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return combine(
                {"": "", **{file.relative_to(path).as_posix(): sha256_at(file, stamp_of(file)) for file in files}}
            )
        return sha256_at(path, stamp_of(path))
    except OSError:  # Whoever reads it says why it cannot be read.
        return None


def combine(hashes: Mapping[str, str]) -> str:
    """One hash for a checkpoint: that of its file, or for several the SHA-256 of their `<sha256>  <name>` lines."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


@contextlib.contextmanager
def locked(path: Path, key: str, timeout: float = -1) -> Iterator[bool]:
    """Hold the lock of a file, in a folder that exists; says whether this process has it, within so many seconds (-1:
    waits).

    If the file cannot be written, or there are no locks, a UserError names the folder by its config `key`.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout, poll_interval=0.005)
    except Timeout:
        yield False
        return
    except NotImplementedError:
        raise UserError(
            f"{key}: the file system of {path.parent} has no locks; mount it with them (flock), or name another folder"
        ) from None
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be written ({error.strerror}); name another") from error
    try:
        yield True
    finally:
        lock.release()


def _process() -> str:
    return f"{socket.gethostname()}.{os.getpid()}"


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Elsewhere a folder cannot be opened, and a rename lasts without it.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
