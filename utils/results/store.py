"""Results on disk: the only code that knows where results are.

    results/<kind>/<model>/<task>/step001000.csv   one tidy table per checkpoint; no <task> level if there is no task
                                  step001000.pt    tensors, for kinds that have some; the same for .json
                                  run.json         what made the folder's results (`utils/results/record.py`)
                                  <name>.csv       a summary of all steps, such as ioi_consistency's role_handover.csv

A file that exists is complete: everything goes through a temporary file in the same folder, `fsync` and `os.replace`.
The table is written after its tensors, so a checkpoint is finished if and only if its table exists. The same results
give the same bytes: numbers are written in their shortest exact form, and nothing holds a date.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..base.errors import UserError, one_line, some
from ..base.files import atomic_write
from .checked import STAMP, Damaged, DamagedRecord, OtherVersion, of_another, read_run, written_hashes, wrong_in
from .commands import how_to_make
from .edges import with_inputs
from .kinds import ResultSchema, find_kind

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit

# Columns that hold names, even where all are digits.
_NAMES = dict.fromkeys(("model", "task", "other_model", "models", "group"), str)
_STEP_FILE = re.compile(r"step(\d{6,18})\.csv")
_NAME = re.compile(r"[^/\\\0.][^/\\\0]*")

Content = TypeVar("Content")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What an analysis found in one checkpoint, for one kind of result."""

    table: pd.DataFrame  # with the kind's columns; the store adds `model, step, tokens`
    tensors: dict[str, Any] | None = None  # go into a .pt file next to the table
    json: dict[str, Any] | None = None  # goes into a .json file next to the table


@dataclass(frozen=True)
class ResultsFolder:
    """One kind of result for one model, and for one task if the kind has tasks.

    `model` and `task` are the names of its folders; it is a UserError if one would leave its place.
    """

    root: Path
    kind: ResultSchema
    model: str
    task: str | None = None

    def __post_init__(self) -> None:
        for what, part in (("model", self.model), ("task", self.task)):
            if part is not None and not _NAME.fullmatch(part):
                raise UserError(
                    f"{what}: '{part}' cannot name a results folder; rename it, without a dot first and without slashes"
                )

    @property
    def path(self) -> Path:
        """`results/<kind>/<model>[/<task>]`."""
        return self.root.joinpath(self.kind.name, self.model, *([] if self.task is None else [self.task]))

    def file(self, step: int, suffix: str = ".csv") -> Path:
        return self.path / f"step{step:06d}{suffix}"

    def has(self, step: int, suffix: str = ".csv") -> bool:
        """Whether a checkpoint's file exists, and so is complete."""
        return self.file(step, suffix).is_file()

    def steps(self) -> list[int]:
        """The finished steps, sorted."""
        return _steps_in(self.path)

    def how_to_make(self, **keys: Any) -> str:
        """The command that makes these results."""
        return how_to_make(self.root, self.kind, self.model, self.task, **keys)

    def encode(self, step: int, result: Result, tokens: int | None) -> dict[str, bytes]:
        """A checkpoint's files: suffix -> bytes, the table last; a ValueError unless they are as the kind says."""
        files: dict[str, bytes] = {}
        if result.tensors is not None:
            import torch  # Whoever only reads tables need not wait for torch.

            torch.save(result.tensors, buffer := io.BytesIO())
            files[".pt"] = buffer.getvalue()
        if result.json is not None:
            files[".json"] = json.dumps(result.json, ensure_ascii=False, allow_nan=False).encode()
        if unknown := files.keys() - self.kind.companions:
            raise ValueError(f"{self.kind.name} has no {min(unknown)} files next to its tables")
        table = result.table.reset_index(drop=True)
        columns = self.kind.columns_of(table)
        if list(table.columns) != columns:
            raise ValueError(f"a table of {self.kind.name} has {columns}, not {list(table.columns)}")
        table = table.assign(model=self.model, step=step, tokens=tokens)[[*STAMP, *columns]]
        return files | {".csv": csv_bytes(table)}

    def write(self, step: int, suffix: str, data: bytes, *, sync_folder: bool = True) -> Path:
        """Write one of the files that `encode` made; `sync_folder` as in `atomic_write`."""
        path = self.file(step, suffix)
        atomic_write(path, data, sync_folder=sync_folder)
        return path

    def read_table(self, step: int) -> pd.DataFrame:
        """A checkpoint's table as it was written. An empty cell is a missing value; text like `NA` stays text.

        A UserError names the command if it is missing; it is `Damaged` if it, or a file written with it, is not as it
        was written.
        """
        for suffix in self._written(step):
            self._require(self.file(step, suffix))
        table, known = self._read(step, ".csv", _decode_table)
        if self.kind.name == "graphs" and "target" in table:
            table = with_inputs(table)
        if not set(self.kind.added) <= set(table):  # A table of an earlier version.
            order = [name for name in (*STAMP, *self.kind.columns) if name in table or name in self.kind.added]
            table = table.reindex(columns=list(dict.fromkeys([*order, *table.columns])))
        # The columns of a sound table may be those of an older version of its kind.
        if known and {*STAMP, *self.kind.columns_of(table)} <= set(table):
            # As it was written, but its folder or a copy of it has another name since.
            if reason := of_another(table, self.model, step):
                way_out = f"give its folder its old name back, or run: {self.how_to_make(overwrite=True)}"
                raise Damaged(self.file(step), reason, way_out)
        elif reason := wrong_in(table, self.kind, self.model, step):
            own = version = self.kind.version
            with contextlib.suppress(UserError):  # Without a record nothing says that the version is to blame.
                version = self.read_run().get("settings", {}).get("definitions_version", own)
            if isinstance(version, int) and version < own:
                way_out = f"to measure it again, run: {self.how_to_make(overwrite=True)}"
                raise OtherVersion(self.file(step), version, own, reason, way_out)
            raise Damaged(self.file(step), reason, self._repair)
        return table

    def damage(self, step: int) -> list[Damaged]:
        """What is wrong with the files of a finished checkpoint, by their hashes; a table that has none is read."""
        found = dict[Path, Damaged]()
        written = self._written(step)
        for suffix in dict.fromkeys((".csv", *written)):
            try:
                if suffix in written:
                    self._read(step, suffix, len)
                else:
                    self.read_table(step)
            except Damaged as error:
                found.setdefault(error.path, error)
        return list(found.values())

    def write_summary(self, name: str, table: pd.DataFrame) -> Path:
        """Write a table about all steps as `<folder>/<name>.csv`, with `model` as its first column; a ValueError for
        other columns than the kind's.
        """
        columns = self.kind.summaries.get(name)
        if columns is None or list(table.columns) != list(columns):
            raise ValueError(f"{self.kind.name} has no summary '{name}' with the columns {list(table.columns)}")
        stamped = table.reset_index(drop=True)
        stamped.insert(0, "model", self.model)
        path = self.path / f"{name}.csv"
        atomic_write(path, csv_bytes(stamped))
        return path

    def read_tensors(self, step: int) -> dict[str, torch.Tensor | Any]:
        """A checkpoint's tensors, on the CPU; errors as of `read_table`."""
        import torch

        # Only tensors and plain values are loaded, whoever wrote the file.
        return self._read(
            step, ".pt", lambda data: dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
        )[0]

    def read_circuit(self, step: int) -> tuple[Circuit, dict[str, torch.Tensor | Any]]:
        """The circuit in a checkpoint's tensors, and all of them; errors as of `read_tensors`."""
        from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit

        tensors = self.read_tensors(step)
        try:
            circuit = Circuit.from_tensors(tensors)
            if not circuit.scores.shape == circuit.in_circuit.shape == circuit.graph.edge_mask.shape:
                raise ValueError
            return circuit, tensors
        except Exception:  # Whatever else the file holds.
            raise Damaged(self.file(step, ".pt"), "it holds no circuit", self._repair) from None

    def read_json(self, step: int) -> dict[str, Any]:
        """What is in a checkpoint's .json file; errors as of `read_table`."""
        self._existing(self.file(step, ".json"), overwrite=True)
        return self._read(step, ".json", lambda data: dict(json.loads(data)))[0]

    def read_run(self) -> dict[str, Any]:
        """The folder's run.json (`utils/results/record.py`); a UserError that says how to make it if it is missing."""
        return read_run(self._existing(self.path / "run.json"))

    def delete(self, step: int) -> None:
        """Delete a checkpoint's files, the table first: without it, the others do not count."""
        for suffix in (".csv", *self.kind.companions):
            if (path := self.file(step, suffix)).is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def name(self, path: Path) -> str:
        """A file of the folder as run.json names it."""
        return path.relative_to(self.path).as_posix()

    def _written(self, step: int) -> list[str]:
        """What the names of a checkpoint's files end in, as run.json names them; none if nobody says."""
        start = f"step{step:06d}"
        return [name.removeprefix(start) for name in written_hashes(self.path) if name.startswith(f"{start}.")]

    @property
    def _repair(self) -> str:
        return f"to measure it again, run: {self.how_to_make(repair=True)}"

    def _read(self, step: int, suffix: str, decode: Callable[[bytes], Content]) -> tuple[Content, bool]:
        """What is in a file, and whether its bytes are known to be those that were written."""
        path = self.file(step, suffix)
        self._require(path)
        self._existing(path)
        for last in (False, True):  # Another process may replace the file, and then its hash, between two reads.
            try:
                data = path.read_bytes()
            except OSError as error:
                raise Damaged(path, error.strerror or type(error).__name__, self._repair) from None
            written = written_hashes(self.path).get(self.name(path))
            if written is None or hashlib.sha256(data).hexdigest() == written:
                break
            if last:
                raise Damaged(path, "not what was written", self._repair)
        try:
            return decode(data), written is not None
        except Exception as error:  # Of pandas, torch or json: there are no others that say why.
            # torch's own words advise to load what it refuses.
            reason = "torch cannot read it" if suffix == ".pt" else one_line(error)
            raise Damaged(path, reason, self._repair) from None

    def _require(self, path: Path) -> None:
        """A file that was written must be there."""
        if self.name(path) in written_hashes(self.path) and not path.is_file():
            raise Damaged(path, "it is gone", self._repair)

    def _existing(self, path: Path, **keys: Any) -> Path:
        if not path.is_file():
            raise UserError(f"{path} is missing; run: {self.how_to_make(**keys)}")
        return path


class Store:
    """All results in a folder, which need not exist: then it holds none."""

    def __init__(self, results_dir: Path | str) -> None:
        self.root = Path(results_dir)
        self.left_out: list[str] = []  # what `read_tables` left out as damaged, and how to mend it: a line a folder

    def folder(self, kind: str | ResultSchema, model: str, task: str | None = None) -> ResultsFolder:
        """The folder for a kind, a model and a task; a ValueError if the kind is unknown."""
        return ResultsFolder(self.root, find_kind(kind), model, task)

    def models(self, kind: str | ResultSchema) -> list[str]:
        """The models that have results of a kind, sorted."""
        names = [folder.name for folder in _subfolders(self.root / find_kind(kind).name)]
        return [name for name in names if self.folder(kind, name).steps() or self.tasks(kind, name)]

    def tasks(self, kind: str | ResultSchema, model: str) -> list[str]:
        """The tasks that have results, sorted; empty if the kind has no task level."""
        return [folder.name for folder in _subfolders(self.folder(kind, model).path) if _steps_in(folder)]

    def read_tables(self, kind: str | ResultSchema, model: str | None = None, task: str | None = None) -> pd.DataFrame:
        """All steps of a kind in one tidy frame, for one model or all, for one task or all.

        Damaged tables are left out, with a line in the log and in `left_out`. Rows are sorted by model, task and step,
        with a `task` column after `model` if there is a task level. No results at all are a UserError.
        """
        import pandas as pd

        frames, left_out = list[pd.DataFrame](), list[Damaged]()
        for name in [model] if model is not None else self.models(kind):
            levels: Iterable[str | None] = [task] if task is not None else [*self.tasks(kind, name), None]
            for level in levels:
                folder = self.folder(kind, name, level)
                for frame in self.sound(folder, ResultsFolder.read_table, left_out).values():
                    if level is not None:
                        frame.insert(1, "task", level)
                    frames.append(frame)
        if not frames:
            where = self.root / find_kind(kind).name if model is None else self.folder(kind, model, task).path
            holds, keys = ("damaged results only", {"repair": True}) if left_out else ("no results", {})
            if left_out and all(isinstance(one, OtherVersion) for one in left_out):
                holds, keys = "results of another version only", {"overwrite": True}
            raise UserError(f"{where} holds {holds}; run: {how_to_make(self.root, kind, model, task, **keys)}")
        # A step without rows has no types, and would leave every column without one.
        return pd.concat(frames, ignore_index=True).infer_objects()

    def sound(
        self, folder: ResultsFolder, read: Callable[[ResultsFolder, int], Content], lost: list[Damaged] | None = None
    ) -> dict[int, Content]:
        """What `read` finds at each finished step of a folder. Those with damaged files are told, and in `lost`."""
        found, damaged = dict[int, Content](), dict[int, Damaged]()
        for step in folder.steps():
            try:
                found[step] = read(folder, step)
            except Damaged as error:
                damaged[step] = error
        lines = []
        if damaged:
            lines.append(f"{some(list(damaged))} of {folder.path} left out: {next(iter(damaged.values()))}")
        if found and (folder.path / "run.json").is_file():
            try:
                folder.read_run()
            except DamagedRecord as error:
                lines.append(str(error))
        for line in lines:
            if line not in self.left_out:
                self.left_out.append(line)
                log.warning("%s", line)
        if lost is not None:
            lost += damaged.values()
        return found


def _decode_table(data: bytes) -> pd.DataFrame:
    if not data.endswith(b"\n"):
        raise ValueError("its end is missing")
    return read_csv(io.BytesIO(data))


def csv_bytes(table: pd.DataFrame) -> bytes:
    """A table as CSV; the same table gives the same bytes."""
    text = table.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # Python before 3.13 leaves it unquoted, and readers take it for the end of a line.
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return text.encode()


def read_csv(path: Path | io.StringIO | io.BytesIO) -> pd.DataFrame:
    """A table as it was written. An empty cell is a missing value; text like `NA` stays text, and so do names."""
    import pandas as pd

    return pd.read_csv(
        path, keep_default_na=False, na_values=[""], float_precision="round_trip", encoding="utf-8", dtype=_NAMES
    )


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # Others leave hidden folders where they look around (.ipynb_checkpoints).
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def _steps_in(folder: Path) -> list[int]:
    """The finished steps: those of the tables in a folder."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    except OSError:
        return []
    # Of step 10 there is one name, step000010.csv.
    return sorted(
        int(match[1]) for name in names if (match := _STEP_FILE.fullmatch(name)) and f"{int(match[1]):06d}" == match[1]
    )
