"""Files: written whole or not at all, and hashed.

If the weights of two steps have the same hash, two branches on the hub hold the same checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError


def some(steps: Sequence[int], most: int = 10) -> str:
    """`step 1000`, `steps 1000, 2000`, `steps 0, 1 and 152 more`."""
    shown = ", ".join(str(step) for step in steps[:most])
    more = f" and {len(steps) - most} more" if len(steps) > most else ""
    return f"step{'s' if len(steps) > 1 else ''} {shown}{more}"


_DAY = 86_400.0


def atomic_write(path: Path, data: bytes, *, sync_folder: bool = True) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, replace, fsync of the folder.

    Args:
        path: the file.
        data: what it will hold.
        sync_folder: `False` leaves the folder to the next file that is written there.

    Raises:
        UserError: if the folder cannot be created or written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
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


def make_folder(folder: Path) -> None:
    """Create a folder, and those above it, if they are missing.

    Raises:
        UserError: if that is impossible.
    """
    above = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for made in above:
            _sync_folder(made.parent)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}); name another folder") from error


def require_writable(folder: Path, key: str) -> None:
    """Create a folder and check that files can be written into it.

    Args:
        folder: the folder.
        key: the config key that names it.

    Raises:
        UserError: if it cannot be created or written to.
    """
    probe = folder / f".probe.{socket.gethostname()}.{os.getpid()}.tmp"
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
        host, _, pid = path.name.removesuffix(".tmp").rpartition(".")
        here = host.endswith(f".{socket.gethostname()}") and pid.isdigit()
        try:
            if (here and not is_running(int(pid))) or time.time() - path.stat().st_mtime > _DAY:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. The hub reports the same for files in its large-file storage."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combine(hashes: dict[str, str]) -> str:
    """One hash for a checkpoint: that of its file, or for several the SHA-256 of their `<sha256>  <name>` lines."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Elsewhere a folder cannot be opened, and a rename lasts without it.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_running(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
