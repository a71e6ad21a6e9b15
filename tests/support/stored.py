"""One file of a checkpoint's results, written as a sweep writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from circuits_over_time.utils.results.store import Result, ResultsFolder


def write_table(folder: ResultsFolder, step: int, table: pd.DataFrame, tokens: int) -> Path:
    """Write a checkpoint's table."""
    return folder.write(step, ".csv", folder.encode(step, Result(table), tokens)[".csv"])


def write_tensors(folder: ResultsFolder, step: int, tensors: dict[str, Any]) -> Path:
    """Write a checkpoint's tensors, and no table."""
    return folder.write(step, ".pt", folder.encode(step, Result(_nothing(folder), tensors=tensors), 0)[".pt"])


def write_json(folder: ResultsFolder, step: int, value: dict[str, Any]) -> Path:
    """Write a checkpoint's JSON, and no table."""
    return folder.write(step, ".json", folder.encode(step, Result(_nothing(folder), json=value), 0)[".json"])


def _nothing(folder: ResultsFolder) -> pd.DataFrame:
    return pd.DataFrame(columns=list(folder.kind.columns))
