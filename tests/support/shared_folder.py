"""A folder that takes long to fill, filled by one of the processes that tests run in and read by all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def filled_once(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], object]) -> Path:
    """The folder `name` of this run of the tests, filled by whoever asks first. Do not change what is in it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "filled").exists():
            folder.mkdir(exist_ok=True)
            fill(folder)
            (folder / "filled").touch()
    return folder
