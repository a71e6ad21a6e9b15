"""Any function of a model at every checkpoint: an analysis of its own, with the sweep's resume, progress and files."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from ..base.errors import UserError, suggest
from ..config.keys import BaseConfig, StartToken
from ..config.keywords import validated
from ..models.checkpoint import LoadedCheckpoint
from ..models.family import family_of
from ..results.checked import STAMP
from ..results.kinds import KINDS, ResultSchema, find_kind
from ..results.store import Result, Store
from ..sweep.analysis import Analysis
from ..sweep.runner import run
from .handle import Model


class FunctionConfig(BaseConfig):
    """What results of a function depend on. A function that has changed since is refused, like any other setting."""

    prepend_bos: StartToken = "auto"
    function: str
    """A hash of its source."""


def over_time(
    model: str, steps: str | Sequence[int], function: Callable[[Model], Any], name: str, keys: Mapping[str, Any]
) -> pd.DataFrame:
    """Measure a function at every step and return the tables of all; see `cot.over_time`."""
    if not callable(function):
        raise TypeError(f"function={function!r}: not a function")
    if not isinstance(steps, Iterable):
        raise TypeError(f"steps={steps!r}: neither a schedule nor a list of steps")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name) or name in KINDS:
        raise UserError(f"name={name!r}: must be a word that is not a kind of result; pass name='...'")
    given = {
        "model": model,
        "checkpoints": steps if isinstance(steps, str) else list(steps),
        "function": _code(function),
        **keys,
    }
    if unknown := [key for key in given if key not in FunctionConfig.model_fields]:
        known = set(FunctionConfig.model_fields) - {"model", "checkpoints", "function"}
        raise TypeError(f"{unknown[0]}: there is no such keyword{suggest(unknown[0], sorted(known))}")
    with _steps_for_checkpoints():
        config = validated(FunctionConfig, given, given)
    if config.executor != "local":
        raise UserError(
            f"executor={config.executor!r}: a function of your own is measured in this process; leave it out"
        )
    columns: dict[str, str] = {}  # As the first table has them.
    kind = ResultSchema(name, columns, name)

    def measure(checkpoint: LoadedCheckpoint, config: FunctionConfig, inputs: None, task: None) -> dict[str, Result]:
        table = _table(function(Model.of_checkpoint(checkpoint, config.prepend_bos is True)), name)
        if not columns:
            columns.update(dict.fromkeys(table.columns, ""))
        if list(columns) != list(table.columns):
            raise UserError(f"{name}: returned columns {list(table.columns)}; other checkpoints have {list(columns)}")
        return {name: Result(table)}

    store, family = Store(config.results_dir), family_of(config, model).name
    folder = store.folder(kind, family)
    if (there := folder.steps()) and not config.overwrite:
        held = folder.read_table(there[0])
        columns.update(dict.fromkeys(list(held.columns)[len(STAMP) :], ""))
    with _steps_for_checkpoints():
        run(Analysis(name, FunctionConfig, (kind,), lambda config, tokenizer, shape: None, measure), config)
    return store.read_tables(kind, family)


@contextmanager
def _steps_for_checkpoints() -> Iterator[None]:
    """Errors about the scripts' key `checkpoints` in the words of the caller, who passed `steps`."""
    try:
        yield
    except (UserError, TypeError, ValueError) as error:
        if not str(error).startswith("checkpoints"):
            raise
        raise type(error)("steps" + str(error).removeprefix("checkpoints")) from None


def _code(function: Callable[..., Any]) -> str:
    """What shows whether a function has changed: its source, or its name where there is none."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = getattr(function, "__qualname__", repr(function))
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _table(value: Any, name: str) -> pd.DataFrame:
    """What a function returned, as a table whose columns are text."""
    if isinstance(value, pd.DataFrame | Mapping):
        if isinstance(value, Mapping):
            row = {key: item.item() if getattr(item, "ndim", 1) == 0 else item for key, item in value.items()}
            if wrong := [key for key, item in row.items() if hasattr(item, "__iter__") and not isinstance(item, str)]:
                kind = type(row[wrong[0]]).__name__
                raise TypeError(
                    f"{name}: {wrong[0]!r} is {kind}, not a number or text; return a data frame for more rows"
                )
            value = pd.DataFrame([row])
        columns = [str(column) for column in value.columns]
        if taken := [column for column in columns if column in STAMP or columns.count(column) > 1]:
            raise UserError(f"{name}: column {taken[0]!r} is there already; call it something else")
        return value.set_axis(columns, axis=1)
    try:
        return pd.DataFrame({"value": [float(value)]})
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: returned {type(value).__name__}; return a data frame, a dict of one row, or a number"
        ) from None


def stored_kind(folder: Path, name: str) -> ResultSchema:
    """A kind of result by its name: one of the scripts', or one that `over_time` wrote."""
    if name in KINDS or not (folder / name).is_dir():
        return find_kind(name)
    return ResultSchema(name, {}, name)


def stored_results(folder: Path) -> pd.DataFrame:
    """What there is in a folder of results; see `cot.results`."""
    rows = []
    for path in sorted([*folder.glob("*/*/run.json"), *folder.glob("*/*/*/run.json")]):
        kind, model, *task = path.relative_to(folder).parts[:-1]
        if any(part.startswith(".") for part in (kind, model, *task)):
            continue
        if steps := Store(folder).folder(stored_kind(folder, kind), model, *task).steps():
            rows.append((kind, model, task[0] if task else None, len(steps), steps[0], steps[-1]))
    if not rows:
        raise UserError(f"{folder} holds no results")
    return pd.DataFrame(rows, columns=["kind", "model", "task", "checkpoints", "first", "last"])
