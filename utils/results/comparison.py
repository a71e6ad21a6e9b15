"""`results/comparison/<table>.csv`: what compare_circuits.py makes of everything else in the folder.

    results/comparison/similarity.csv    one tidy table for all models and tasks; `comparison_kinds.py` lists the tables
                       run.json          the config and package versions
                       .parts/<key>.csv  rows of a run that has not finished, under a hash of what they follow from

Tables are written whole, and only when everything is worked out. A run that was stopped finds its parts again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from utils.errors import UserError
from utils.files import atomic_write, remove_stale_temporaries
from utils.results.comparison_kinds import COMPARISONS
from utils.results.store import ResultsFolder, csv_bytes, read_csv


@dataclass(frozen=True)
class ComparisonFolder:
    """The comparisons of a results folder.

    Attributes:
        root: the folder of all results.
    """

    root: Path

    @property
    def path(self) -> Path:
        """`results/comparison`."""
        return self.root / "comparison"

    def has(self, name: str) -> bool:
        """Whether a table is there, and so is complete."""
        return self._file(name).is_file()

    def read(self, name: str) -> pd.DataFrame:
        """A table as it was written.

        Raises:
            UserError: if it is missing, naming the command that makes it.
        """
        path = self._file(name)
        if not path.is_file():
            raise UserError(f"{path} is missing; run: python compare_circuits.py -c configs/compare_toy.yml")
        return read_csv(path)

    def write(self, name: str, table: pd.DataFrame) -> Path:
        """Write a table.

        Raises:
            ValueError: unless its columns are those of its kind, in the same order.
        """
        if list(table.columns) != list(COMPARISONS[name].columns):
            raise ValueError(f"{name} has {list(COMPARISONS[name].columns)}, not {list(table.columns)}")
        path = self._file(name)
        atomic_write(path, csv_bytes(table))
        return path

    def write_run(self, run: dict[str, Any]) -> None:
        """Record what made the tables."""
        atomic_write(self.path / "run.json", (json.dumps(run, indent=1, ensure_ascii=False) + "\n").encode())

    def read_run(self) -> dict[str, Any]:
        """What made the tables.

        Raises:
            UserError: if it is missing or damaged, naming the command that writes it.
        """
        path = self.path / "run.json"
        try:
            run: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError):
            command = "python compare_circuits.py -c configs/compare_toy.yml"
            raise UserError(f"{path} is missing or damaged; run: {command}") from None
        return run

    def part(self, key: str) -> pd.DataFrame | None:
        """The rows kept under a key, if there are any."""
        path = self._part(key)
        return read_csv(path) if path.is_file() else None

    def keep_part(self, key: str, rows: pd.DataFrame) -> None:
        """Keep rows until the run is finished, and for the next one."""
        atomic_write(self._part(key), csv_bytes(rows))

    def drop_parts(self, besides: Iterable[str]) -> None:
        """Delete all parts but these."""
        kept = {self._part(key) for key in besides}
        if not (self.path / ".parts").is_dir():
            return
        remove_stale_temporaries(self.path / ".parts")
        for path in (self.path / ".parts").glob("*.csv"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        if name not in COMPARISONS:
            raise ValueError(f"'{name}' is not a table of comparisons")
        return self.path / f"{name}.csv"

    def _part(self, key: str) -> Path:
        return self.path / ".parts" / f"{key}.csv"


def fingerprint(folders: Iterable[ResultsFolder], settings: object) -> str:
    """A hash of settings and of everything in some results folders that comparisons read."""
    total = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for folder in folders:
        total.update(f"{folder.kind.name}/{folder.model}/{folder.task}".encode())
        for step in folder.steps():
            for suffix in (".csv", ".pt"):
                if folder.has(step, suffix):
                    total.update(f"{step}{suffix}".encode())
                    total.update(hashlib.sha256(folder.file(step, suffix).read_bytes()).digest())
    return total.hexdigest()[:32]
