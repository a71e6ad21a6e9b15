"""The lock of a results folder, and how many processes write into one file behind it without a queue.

Where many processes measure into one folder, each would rewrite run.json for every checkpoint, one after the other.
Instead each puts its entries next to it as a note, and whoever has the lock writes all the notes that are there (the
group commit of databases). Whoever finds its note gone knows that its entries are written.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.files import atomic_write, locked, writer_is_gone

_NOTE, _WAIT = ".note.", 0.01

Entries = Mapping[str, Any]
TakeIn = Callable[[Sequence[Entries]], dict[str, Any]]


def folder_lock(folder: Path, timeout: float = -1) -> contextlib.AbstractContextManager[bool]:
    """Let one process at a time through; with a `timeout` in seconds, the block learns whether it has the lock."""
    return locked(folder / ".lock", "results_dir", timeout)


def hand_in(folder: Path, entries: Entries, take_in: TakeIn) -> dict[str, Any] | None:
    """Have entries, as JSON has them, written by this process or by the one that has the folder's lock.

    `take_in` writes the entries of several processes, under the lock. Returns what it returned; None if another process
    has written them.
    """
    note = None
    try:
        while True:
            with folder_lock(folder, timeout=0) as mine:
                if mine:
                    notes = _notes(folder)
                    found = take_in([*notes.values(), entries])
                    for path in notes:
                        path.unlink(missing_ok=True)
                    return found
            if note is None:
                note = folder / f"{_NOTE}{uuid.uuid4().hex}.{socket.gethostname()}.{os.getpid()}.tmp"
                atomic_write(note, json.dumps(entries, ensure_ascii=False).encode(), sync_folder=False)
            elif not note.exists():
                return None
            time.sleep(_WAIT)
    finally:
        if note is not None:
            note.unlink(missing_ok=True)


def discard_notes(folder: Path) -> None:
    """Delete all notes. Only for whoever knows that no other process is at work."""
    for path in folder.glob(f"{_NOTE}*.tmp"):
        path.unlink(missing_ok=True)


def _notes(folder: Path) -> dict[Path, Entries]:
    """The entries that others wait to have written, in no order. Those of killed processes are left out."""
    found = {}
    for path in folder.glob(f"{_NOTE}*.tmp"):
        if writer_is_gone(path):
            continue
        with contextlib.suppress(FileNotFoundError):
            found[path] = json.loads(path.read_text(encoding="utf-8"))
    return found
