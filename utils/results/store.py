"""Results on disk: the only code that knows where a result lies.

    results/<kind>/<model>/<task>/step001000.csv   one tidy table per checkpoint; no <task> level where there is no task
                                  step001000.pt    tensors, where a kind has some; .json alike
                                  run.json         what the folder's results were made with (`utils/results/record.py`)
                                  <name>.csv       a summary of all steps, such as ioi_consistency's role_handover.csv

A file that exists is complete: everything goes through a temporary file in the same folder, `fsync` and `os.replace`.
The table is written after its tensors, so a checkpoint is finished exactly if its table exists. The same results give
the same bytes: numbers are written in their shortest exact form and nothing holds a date.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from utils.errors import UserError

if TYPE_CHECKING:
    import torch

KINDS: dict[str, tuple[str, str]] = {
    "graphs": ("get_circuits_over_time.py", ""),
    "faithfulness": ("get_circuits_over_time.py", ""),
    "baselines": ("get_circuits_over_time.py", ""),
    "components": ("get_full_model_components_over_time.py", "components"),
    "successor": ("get_new_successor_head_scores_over_time.py", "successor"),
    "cspa": ("get_model_cspa.py", "cspa"),
    "ioi_consistency": ("get_ioi_consistency.py", "ioi_consistency"),
    "ioi_consistency_heads": ("get_ioi_consistency.py", "ioi_consistency"),
    "ioi_consistency_signals": ("get_ioi_consistency.py", "ioi_consistency"),
    "task_performance": ("get_model_task_performance.py", "performance"),
}
"""Kind -> the script that writes it, and how its configs' names start (empty: with the task's name)."""

STAMP = ("model", "step", "tokens")
"""The columns every table starts with."""

_STEP_FILE = re.compile(r"step(\d{6,})\.csv")
_NAME = re.compile(r"[^/\\\0.][^/\\\0]*")
_DAY = 86_400.0


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, replace.

    Raises:
        UserError: if the folder cannot be written to or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or name another folder") from error


def remove_stale_temporaries(folder: Path) -> None:
    """Delete what killed runs left of files they were writing; those of running processes stay."""
    for path in folder.glob(".*.tmp"):
        host, _, pid = path.name.removesuffix(".tmp").rpartition(".")
        here = host.endswith(f".{socket.gethostname()}") and pid.isdigit()
        try:
            if (here and not _is_running(int(pid))) or time.time() - path.stat().st_mtime > _DAY:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Only there can a folder be opened, and only there does a rename need it to last.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Store:
    """A results folder.

    Args:
        results_dir: the folder; it need not exist to be read from.
    """

    def __init__(self, results_dir: Path | str) -> None:
        self.root = Path(results_dir)

    def folder(self, kind: str, model: str, task: str | None = None) -> Path:
        """`results/<kind>/<model>[/<task>]`.

        Raises:
            ValueError: if the kind is unknown, or a name would leave its folder.
        """
        if kind not in KINDS:
            raise ValueError(f"'{kind}' is no kind of result; known: {', '.join(KINDS)}")
        parts = [model] if task is None else [model, task]
        for part in parts:
            if not _NAME.fullmatch(part):
                raise ValueError(f"'{part}' cannot name a results folder")
        return self.root.joinpath(kind, *parts)

    def path(self, kind: str, model: str, step: int, task: str | None = None, suffix: str = ".csv") -> Path:
        """`<folder>/step{step:06d}{suffix}`."""
        return self.folder(kind, model, task) / f"step{step:06d}{suffix}"

    def has(self, kind: str, model: str, step: int, task: str | None = None, suffix: str = ".csv") -> bool:
        """Whether a checkpoint's file is there, and so complete."""
        return self.path(kind, model, step, task, suffix).is_file()

    def steps(self, kind: str, model: str, task: str | None = None) -> list[int]:
        """The finished steps, sorted."""
        return _steps_in(self.folder(kind, model, task))

    def models(self, kind: str) -> list[str]:
        """The models with results of a kind, sorted."""
        names = [folder.name for folder in _subfolders(self.root / kind)]
        return [name for name in names if self.steps(kind, name) or self.tasks(kind, name)]

    def tasks(self, kind: str, model: str) -> list[str]:
        """The tasks with results, sorted; empty where the kind has no task level."""
        return [folder.name for folder in _subfolders(self.folder(kind, model)) if _steps_in(folder)]

    def write_table(self, kind: str, model: str, task: str | None, step: int, table: pd.DataFrame, tokens: int) -> Path:
        """Write a checkpoint's table, with `model, step, tokens` as its first columns; the index is left out.

        Raises:
            ValueError: if the table holds one of these columns, or two columns of one name.
        """
        if taken := [column for column in table.columns if column in STAMP]:
            raise ValueError(f"the table of {kind} already has the column {taken[0]}; the store adds it")
        if not table.columns.is_unique:
            raise ValueError(f"the table of {kind} has two columns of one name: {list(table.columns)}")
        stamped = table.reset_index(drop=True)
        stamped.insert(0, "model", model)
        stamped.insert(1, "step", step)
        stamped.insert(2, "tokens", tokens)
        path = self.path(kind, model, step, task)
        atomic_write(path, _csv_bytes(stamped))
        return path

    def read_table(self, kind: str, model: str, task: str | None, step: int) -> pd.DataFrame:
        """A checkpoint's table as it was written; an empty cell is a missing value, and text like `NA` stays text.

        Raises:
            UserError: if it is missing, naming the command that makes it.
        """
        return _read_csv(self.path(kind, model, step, task), kind, model, task)

    def read_tables(self, kind: str, model: str | None = None, task: str | None = None) -> pd.DataFrame:
        """All steps of a kind as one tidy frame, of one model or all, of one task or all.

        Returns:
            Rows sorted by model, task and step; a `task` column after `model` where there is a task level.

        Raises:
            UserError: if there are no results, naming the command that makes them.
        """
        frames = []
        for name in [model] if model is not None else self.models(kind):
            levels: Iterable[str | None] = [task] if task is not None else [*self.tasks(kind, name), None]
            for level in levels:
                for step in self.steps(kind, name, level):
                    frame = self.read_table(kind, name, level, step)
                    if level is not None:
                        frame.insert(1, "task", level)
                    frames.append(frame)
        if not frames:
            where = self.root / kind if model is None else self.folder(kind, model, task)
            raise UserError(f"{where} holds no results; run: {how_to_make(kind, model, task)}")
        return pd.concat(frames, ignore_index=True)

    def write_summary(self, kind: str, model: str, task: str | None, name: str, table: pd.DataFrame) -> Path:
        """Write a table about all of a folder's steps as `<folder>/<name>.csv`, with `model` as its first column.

        Raises:
            ValueError: if the table has the column `model`.
        """
        stamped = table.reset_index(drop=True)
        stamped.insert(0, "model", model)
        path = self.folder(kind, model, task) / f"{name}.csv"
        atomic_write(path, _csv_bytes(stamped))
        return path

    def read_summary(self, kind: str, model: str, task: str | None, name: str) -> pd.DataFrame:
        """What `write_summary` wrote.

        Raises:
            UserError: if it is missing, naming the command that makes it.
        """
        return _read_csv(self.folder(kind, model, task) / f"{name}.csv", kind, model, task)

    def write_tensors(self, kind: str, model: str, task: str | None, step: int, tensors: dict[str, Any]) -> Path:
        """Write tensors, numbers, texts and lists of them; they are read back with `weights_only=True`."""
        import torch  # Readers of tables need not wait for torch.

        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        path = self.path(kind, model, step, task, ".pt")
        atomic_write(path, buffer.getvalue())
        return path

    def read_tensors(self, kind: str, model: str, task: str | None, step: int) -> dict[str, torch.Tensor | Any]:
        """What `write_tensors` wrote, on the CPU.

        Raises:
            UserError: if it is missing, naming the command that makes it.
        """
        import torch

        path = self.path(kind, model, step, task, ".pt")
        if not path.is_file():
            raise UserError(f"{path} is missing; run: {how_to_make(kind, model, task)}")
        tensors: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return tensors

    def write_json(self, kind: str, model: str, task: str | None, step: int, value: dict[str, Any]) -> Path:
        """Write a checkpoint's JSON; NaN and infinity are refused with ValueError, as JSON has neither."""
        path = self.path(kind, model, step, task, ".json")
        atomic_write(path, json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
        return path

    def read_json(self, kind: str, model: str, task: str | None, step: int) -> dict[str, Any]:
        """What `write_json` wrote.

        Raises:
            UserError: if it is missing, naming the command that makes it.
        """
        path = self.path(kind, model, step, task, ".json")
        if not path.is_file():
            raise UserError(f"{path} is missing; run: {how_to_make(kind, model, task)} overwrite=true")
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value

    def read_run(self, kind: str, model: str, task: str | None = None) -> dict[str, Any]:
        """The folder's run.json (`utils/results/record.py`).

        Raises:
            UserError: if it is missing, naming the command that makes it.
        """
        path = self.folder(kind, model, task) / "run.json"
        if not path.is_file():
            raise UserError(f"{path} is missing; run: {how_to_make(kind, model, task)}")
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return run


def how_to_make(kind: str, model: str | None = None, task: str | None = None) -> str:
    """The command that makes a kind's results, with a config that is there (or the name it would have)."""
    script, prefix = KINDS[kind]
    start = prefix or task or "ioi"
    own = Path("configs", f"{start}_{(model or '160m').removeprefix('pythia-')}.yml")
    of_all_tasks = Path("configs", f"{model}.yml")
    if not prefix and not own.exists() and of_all_tasks.exists():
        return f"python {script} -c {of_all_tasks.as_posix()}"
    if own.exists() or model is None:
        return f"python {script} -c {own.as_posix()}"
    others = sorted(Path("configs").glob(f"{start}_*.yml"))
    if not others:
        return f"python {script} -c {own.as_posix()}"
    return f"python {script} -c {others[0].as_posix()} model={model}"


def _csv_bytes(table: pd.DataFrame) -> bytes:
    text = table.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # Python before 3.13 leaves it unquoted, and a reader takes it for the end of a line.
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return text.encode()


def _read_csv(path: Path, kind: str, model: str, task: str | None) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path} is missing; run: {how_to_make(kind, model, task)}")
    return pd.read_csv(path, keep_default_na=False, na_values=[""], float_precision="round_trip", encoding="utf-8")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _steps_in(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _STEP_FILE.fullmatch(path.name)))
