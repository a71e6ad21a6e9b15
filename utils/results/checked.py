"""What is read of results is checked first: a file that is damaged is named, and never read as something else.

`run.json` has the SHA-256 of every file, so a file is sound if its bytes are those that were written. Where there is no
hash (results of old versions, a run.json that is gone), a table is sound if it has the columns of its kind, of numbers
where the kind has numbers, no row twice, and says the model and the step that its path says.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from typing_extensions import TypedDict

from ..base.errors import UserError
from ..base.files import Stamp, stamp_of
from .kinds import ResultSchema

if TYPE_CHECKING:
    import pandas as pd

STAMP = ("model", "step", "tokens")
"""The columns every table starts with."""
_PLACES = ("tokens", "layer", "head")
"""Columns that hold whole numbers in every kind."""
_KEYS = ("layer", "head", "number", "size", "from_step")
"""The numbers that, with a kind's texts, say what a row is about: no two rows have the same."""


class Damaged(UserError):
    """A file of results that is not as it was written. `reason` says why, in a few words."""

    what = "is damaged"

    def __init__(self, path: Path, reason: str, way_out: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path} {self.what} ({reason}); {way_out}")


class OtherVersion(Damaged):
    """A table of an older version of its kind, which lacks what is read today."""

    def __init__(self, path: Path, held: int, own: int, reason: str, way_out: str) -> None:
        self.what = f"is of version {held} of its definitions, this is {own}"
        super().__init__(path, reason, way_out)


class DamagedRecord(UserError):
    """A run.json that does not hold what it should."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is damaged; pass repair=true to measure the folder again, or put the file back")


class _Shape(TypedDict, total=False):
    n_layers: int
    n_heads: int
    parallel_attn_mlp: bool
    d_model: int


class _Checkpoint(TypedDict, total=False):
    repository: str
    sha256: str
    parameters: int | None
    tokens: int | None
    shape: _Shape
    inputs: dict[str, str]


class _Run(TypedDict, total=False):
    """The types of a run.json (`record.py` says what its entries mean). More entries do no harm."""

    analysis: str
    config: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    repository: str
    versions: dict[str, str]
    inputs: dict[str, str]
    checkpoints: dict[str, _Checkpoint]
    equal_weights: list[list[int]]
    files: dict[str, str]


_RUN = pydantic.TypeAdapter(_Run)


def read_run(path: Path) -> dict[str, Any]:
    """A run.json that is there; a DamagedRecord if it is none, or something in it has another type."""
    try:
        run = json.loads(path.read_bytes())
        _RUN.validate_python(run, strict=True)
        # Steps and files are sorted by their numbers, which therefore must be some.
        all(int(step) >= 0 for step in run.get("checkpoints", {}))
    except (OSError, ValueError, RecursionError):
        raise DamagedRecord(path) from None
    return dict(run)


def written_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder of results as it was written; empty if nobody says."""
    path = folder / "run.json"
    try:
        return _written_hashes(path, stamp_of(path))
    except OSError:
        return {}


@functools.lru_cache(maxsize=256)
def _written_hashes(path: Path, stamp: Stamp) -> dict[str, str]:
    try:
        return dict(read_run(path).get("files", {}))
    except DamagedRecord:
        return {}


def wrong_in(table: pd.DataFrame, kind: ResultSchema, model: str, step: int) -> str:
    """What is wrong with a checkpoint's table; empty if it is as its kind says."""
    columns = [*STAMP, *kind.columns_of(table)]
    if kind.columns and list(table.columns) != columns:
        absent = [name for name in columns if name not in table]
        return f"has no column '{absent[0]}'" if absent else f"has other columns: {', '.join(map(str, table.columns))}"
    if list(table.columns)[: len(STAMP)] != list(STAMP):
        return f"does not begin with the columns {', '.join(STAMP)}"
    if table.empty:
        return "has no rows" if kind.never_empty else ""
    if kind.one_row and len(table) > 1:
        return f"has {len(table)} rows, not one"
    if reason := of_another(table, model, step):
        return reason
    if kind.texts is None:
        return ""
    keys = [name for name in columns if name in kind.texts or name in _KEYS]
    if table.duplicated(keys or None).any():
        return "has a row twice"
    for name in columns:
        # A training that nobody counted the tokens of has none in any row.
        empty = name in kind.may_be_empty or (name == "tokens" and bool(table[name].isna().all()))
        if name in _PLACES and (reason := _no_place(table[name], empty=empty)):
            return f"column '{name}' {reason}"
    numbers = [name for name in columns if name not in ("model", *kind.texts)]
    return next((f"column '{name}' holds {reason}" for name in numbers if (reason := _no_numbers(table[name]))), "")


def of_another(table: pd.DataFrame, model: str, step: int) -> str:
    """Which other model or step a table says it is of; empty if it is of these, or has no rows."""
    for name, held in (("model", model), ("step", step)):
        if not table[name].eq(held).all():
            return f"is of {name} {table[name][table[name].ne(held)].iloc[0]}, not {held}"
    return ""


def _no_place(column: pd.Series, *, empty: bool) -> str:
    """What is wrong with a column of whole numbers of 0 or more."""
    import numpy as np

    places = (column if column.dtype.kind in "iu" else column.dropna()).to_numpy()
    if len(places) < len(column) and not empty:
        return "has an empty cell"
    sound = column.dtype.kind in "iuf" and bool(((places >= 0) & (np.trunc(places) == places) & (places < 2**63)).all())
    return "" if sound else "holds something else than whole numbers of 0 or more"


def _no_numbers(column: pd.Series) -> str:
    """What a column holds that is neither a finite number, true or false, nor empty."""
    import numpy as np

    if column.dtype.kind not in "iufb":
        texts = [value for value in column.dropna() if not isinstance(value, bool)]
        return f"the text {texts[0]!r}" if texts else ""
    return "infinity" if column.dtype.kind == "f" and np.isinf(column.to_numpy()).any() else ""
