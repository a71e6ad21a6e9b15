"""What a script is to the runner: a function of one checkpoint, and what must be known about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from utils.config.keys import BaseConfig
from utils.models.family import LoadedCheckpoint
from utils.results.store import Store


@dataclass(frozen=True)
class Result:
    """What one checkpoint gives of one kind.

    Attributes:
        table: rows without `model, step, tokens`, which the store adds.
        tensors: go to a .pt file beside the table.
        json: goes to a .json file beside the table.
    """

    table: pd.DataFrame
    tensors: dict[str, Any] | None = None
    json: dict[str, Any] | None = None


def no_tasks(config: Any) -> list[str | None]:
    """The tasks of an analysis that has none."""
    return [None]


@dataclass(frozen=True)
class Analysis:
    """A script: a function of one checkpoint, and what the runner must know about it.

    Attributes:
        name: the script's name without `.py`.
        schema: its config.
        kinds: every kind of result that `measure` returns.
        measure: (checkpoint, config, task's folder name) -> kind -> result.
        tasks: config -> the tasks' folder names; [None] where scores have no task.
        check: (config, tokenizer) -> None, raises UserError on bad input; runs once a model, before its first
            checkpoint is measured.
        finish: (config, store, model's name) -> None, runs after a model's sweep, also if nothing was left to measure.
    """

    name: str
    schema: type[BaseConfig]
    kinds: tuple[str, ...]
    measure: Callable[[LoadedCheckpoint, Any, str | None], dict[str, Result]]
    tasks: Callable[[Any], list[str | None]] = no_tasks
    check: Callable[[Any, Any], None] | None = None
    finish: Callable[[Any, Store, str], None] | None = None
