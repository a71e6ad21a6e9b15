"""`results/comparison/<table>.csv`: what compare_circuits.py makes of everything else in the folder.

    results/comparison/similarity.csv    one tidy table for all models and tasks; `COMPARISONS` lists the tables
                       run.json          the config and package versions
                       .parts/<key>.csv  rows of a run that has not finished, under a hash of what they follow from;
                                         its first line is the hash of the others

Tables are written whole, and only when everything is worked out. A run that was stopped finds its parts again.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from ..base.errors import UserError, one_line
from ..base.files import atomic_write, file_sha256, locked, remove_stale_temporaries
from .checked import Damaged, read_run
from .commands import how_to_compare
from .store import ResultsFolder, csv_bytes, read_csv

COMPARISONS: dict[str, dict[str, str]] = tomllib.loads(
    Path(__file__).with_name("comparison.toml").read_text(encoding="utf-8")
)
"""The tables, each about all models and tasks: name of the file -> column -> meaning."""


@dataclass(frozen=True)
class ComparisonFolder:
    """The comparisons in a folder of results, `root`."""

    root: Path

    @property
    def path(self) -> Path:
        return self.root / "comparison"

    def has(self, name: str) -> bool:
        """Whether a table is there, and so is complete."""
        return self._file(name).is_file()

    def read(self, name: str) -> pd.DataFrame:
        """A table as it was written; a UserError that names the command if it is missing or damaged."""
        path = self._file(name)
        if not path.is_file():
            raise UserError(f"{path} is missing; run: {how_to_compare(self.root)}")
        run = self.read_run()
        try:
            data = path.read_bytes()
            table = read_csv(BytesIO(data))
        except (OSError, ValueError) as error:
            raise Damaged(path, one_line(error), f"run: {how_to_compare(self.root)}") from None
        # Tables of an older version have no hashes.
        written = run.get("files", {path.name: None} if "config" in run else {}).get(path.name, "")
        if written is not None and hashlib.sha256(data).hexdigest() != written:
            raise Damaged(path, "not what was written", f"run: {how_to_compare(self.root)}")
        if list(table.columns) != list(COMPARISONS[name]):
            raise Damaged(path, f"has the columns {', '.join(table.columns)}", f"run: {how_to_compare(self.root)}")
        return table

    def matches_of(self, model: str) -> dict[tuple[str, str], dict[tuple[int, int], tuple[int, int]]]:
        """Heads (layer, number) of others -> a model's, by (other model, signature); errors of `read`."""
        found = dict[tuple[str, str], dict[tuple[int, int], tuple[int, int]]]()
        for key, rows in self.read("matches").groupby(["model", "other_model", "signature"], sort=False):
            first, second, signature = map(str, key)
            if model in (first, second):
                heads = heads_of(rows)
                other = second if model == first else first
                found[other, signature] = (
                    heads if model == first else {own: of_other for of_other, own in heads.items()}
                )
        return found

    def write(self, name: str, table: pd.DataFrame) -> Path:
        """Write a table; a ValueError unless its columns are those of its kind, in the same order."""
        if list(table.columns) != list(COMPARISONS[name]):
            raise ValueError(f"{name} has {list(COMPARISONS[name])}, not {list(table.columns)}")
        path = self._file(name)
        atomic_write(path, csv_bytes(table))
        return path

    def write_all(self, tables: Mapping[str, pd.DataFrame], run: Mapping[str, Any]) -> None:
        """Write all tables, and what made them. Of two runs that end together, all is of the one or of the other."""
        with locked(self.path / ".lock", "results_dir"):
            # While there is no run.json, no table is taken for that of the run before.
            (self.path / "run.json").unlink(missing_ok=True)
            paths = [self.write(name, table) for name, table in tables.items()]
            record = {**run, "files": {path.name: file_sha256(path) for path in paths}}
            atomic_write(self.path / "run.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())

    def read_run(self) -> dict[str, Any]:
        """What made the tables; a UserError that names the command if it is missing or damaged."""
        path = self.path / "run.json"
        try:
            return read_run(path)
        except UserError:
            raise UserError(f"{path} is missing or damaged; run: {how_to_compare(self.root)}") from None

    def part(self, key: str) -> pd.DataFrame | None:
        """The rows kept under a key, if there are any, and they are as they were written."""
        path = self._part(key)
        if not path.is_file():
            return None
        sha256, _, rows = path.read_bytes().partition(b"\n")
        if hashlib.sha256(rows).hexdigest().encode() != sha256:
            return None
        return read_csv(BytesIO(rows))

    def keep_part(self, key: str, rows: pd.DataFrame) -> None:
        """Keep rows until the run is finished, and for the next one."""
        data = csv_bytes(rows)
        atomic_write(self._part(key), hashlib.sha256(data).hexdigest().encode() + b"\n" + data)

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


def heads_of(matches: pd.DataFrame) -> dict[tuple[int, int], tuple[int, int]]:
    """Head (layer, number) of the other model -> head of the model, of the matches that count."""
    rows = matches[matches["matched"].astype(bool)]
    places = rows[["layer", "head", "other_layer", "other_head"]].astype(int).itertuples(index=False)
    return {(other_layer, other): (layer, head) for layer, head, other_layer, other in places}


def fingerprint(settings: object, folders: Iterable[ResultsFolder] = (), step: int = 0) -> str:
    """A hash of settings, and of a step's files in some results folders."""
    total = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for folder in folders:
        total.update(f"{folder.kind.name}/{folder.model}/{folder.task}/{step}".encode())
        for suffix in (".csv", ".pt"):
            if folder.has(step, suffix):
                total.update(file_sha256(folder.file(step, suffix)).encode())
    return total.hexdigest()[:32]
