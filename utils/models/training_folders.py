"""What training libraries leave on disk: which folders are read, converted by one command, or refused by name.

`training_folders.toml` lists them; to add one, write it there.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..base.errors import shortened

_FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
READ: list[dict[str, str]] = _FILE["read"]
"""Folders that are read, for the documentation."""
REFUSED: list[dict[str, Any]] = _FILE["refused"]
"""Folders that are not read as they are. The first that matches counts."""


def of_library(folder: Path) -> str | None:
    """Whose folder this is, if it is a training library's that is not read as it is: one line with the way out."""
    for one in REFUSED:
        if all(any(folder.glob(mark)) for mark in one["marks"]):
            first = min(folder.glob(one["marks"][0])).relative_to(folder)
            names = {"folder": folder, "parent": folder.parent, "name": folder.name, "file": first.parts[0]}
            return f"{folder}: is {one['library']}'s (it holds {first}); {one['way_out'].format(**names)}"
    return None


def contents(folder: Path) -> str:
    """What is in a folder, for errors."""
    return shortened(sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")), 5) or "nothing"
