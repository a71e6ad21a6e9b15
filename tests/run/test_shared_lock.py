"""Entries of many processes in one file: none is lost, and one process writes for all that wait."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuits_over_time.utils.base.files import atomic_write
from circuits_over_time.utils.results.shared_lock import Entries, discard_notes, hand_in


class Book:
    """A file of entries, and how often it was written."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "book.json"

    def take_in(self, entries: Sequence[Entries]) -> dict[str, Any]:
        book = json.loads(self.path.read_text()) if self.path.exists() else {"written": 0}
        for entry in entries:
            book |= entry
        book["written"] += 1
        atomic_write(self.path, json.dumps(book).encode())
        return book

    def write(self, name: str) -> None:
        for number in range(20):
            hand_in(self.path.parent, {f"{name}.{number}": number}, self.take_in)
            assert f"{name}.{number}" in json.loads(self.path.read_text())  # Written once hand_in returns.


def test_no_entry_of_four_processes_is_lost(tmp_path: Path) -> None:
    book = Book(tmp_path)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=book.write, args=(name,)) for name in "abcd"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    held = json.loads(book.path.read_text())
    assert held.pop("written") <= 80
    assert held == {f"{name}.{number}": number for name in "abcd" for number in range(20)}
    assert [path.name for path in tmp_path.iterdir() if "note" in path.name] == []


def note(folder: Path, pid: int, host: str) -> Path:
    path = folder / f".note.1.{host}.{pid}.tmp"
    path.write_text(json.dumps({f"{host}.{pid}": 1}))
    return path


def test_notes_of_waiting_processes_are_written_and_those_of_killed_ones_are_not(tmp_path: Path) -> None:
    book, here = Book(tmp_path), socket.gethostname()
    waiting = [note(tmp_path, os.getpid(), here), note(tmp_path, 1, "elsewhere")]
    dead = note(tmp_path, 2**22 + 1, here)  # Above the largest process id of Linux.
    hand_in(tmp_path, {"own": 1}, book.take_in)
    assert set(json.loads(book.path.read_text())) == {"written", "own", f"{here}.{os.getpid()}", "elsewhere.1"}
    assert not any(path.exists() for path in waiting)
    assert dead.exists()
    discard_notes(tmp_path)
    assert not dead.exists()
