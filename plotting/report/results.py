"""Results as the report needs them: each kind is read once, names are escaped for figures, absences are collected."""

import argparse
import html
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pandas as pd

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.kinds import how_to_make
from circuits_over_time.utils.results.store import Store

from ..parts.style import ModelLook, model_looks, model_order
from ..parts.tables import every_model, load, models_in, tasks_in

logger = logging.getLogger("plotting")


class Results:
    """A results folder, restricted to the models and tasks asked for.

    Args:
        store: the results.
        arguments: parsed command line with `model` and `task` (lists of names, or None for all).
    """

    def __init__(self, store: Store, arguments: argparse.Namespace) -> None:
        self.store, self.arguments = store, arguments
        self._tables: dict[str, pd.DataFrame | UserError] = {}
        self._tokens: dict[str, dict[int, float]] = {}

    def table(self, kind: str) -> pd.DataFrame:
        """All rows of a kind, as `plotting.tables.load` returns them.

        Raises:
            UserError: naming the command that makes the results, if there are none.
        """
        if kind not in self._tables:
            try:
                if not self.store.models(kind):  # The page lists kinds without results; the log need not.
                    raise UserError(f"{self.store.root}/{kind} holds no results; run: {how_to_make(kind)}")
                self._tables[kind] = load(self.store, kind, self.arguments)
            except UserError as error:
                self._tables[kind] = error
        found = self._tables[kind]
        if isinstance(found, UserError):
            raise found
        return found

    def table_if_any(self, kind: str) -> pd.DataFrame | None:
        """Like `table`, but None if there is nothing."""
        try:
            return self.table(kind)
        except UserError:
            return None

    def models(self, kind: str) -> list[str]:
        """The models asked for that have results of a kind, smallest first."""
        asked = self.arguments.model
        return model_order(name for name in self.store.models(kind) if asked is None or name in asked)

    def tasks(self, kind: str, model: str) -> list[str]:
        """The tasks asked for that a model has results of, sorted."""
        asked = self.arguments.task
        return [name for name in self.store.tasks(kind, model) if asked is None or name in asked]

    def circuits(self) -> dict[tuple[str, str], dict[int, pd.DataFrame]]:
        """Edge tables by (model, task) and step; steps without a circuit are absent.

        Raises:
            UserError: naming the command that makes circuits, if there are none.
        """
        table = self.table("graphs")
        found = {}
        for model in models_in(table):
            of_model = table[table["model"] == model]
            for task in tasks_in(of_model):
                rows = of_model[of_model["task"] == task]
                steps = sorted(int(step) for step in rows["step"].unique())
                found[model, task] = {step: rows[rows["step"] == step] for step in steps}
        return found

    def tokens(self, model: str) -> dict[int, float]:
        """Training tokens by step, from whichever kinds the model has (tables without rows do not tell)."""
        if model not in self._tokens:
            known: dict[int, float] = {}
            for table in self._tables.values():
                if isinstance(table, pd.DataFrame):
                    rows = table.loc[table["model"] == model, ["step", "tokens"]].drop_duplicates("step")
                    known |= {int(step): float(tokens) for step, tokens in rows.itertuples(index=False)}
            self._tokens[model] = known
        return self._tokens[model]

    def looks(self) -> dict[str, ModelLook]:
        """The look of every model of the folder, by escaped name."""
        return {shown(name): look for name, look in model_looks(every_model(self.store)).items()}


def shown(name: str) -> str:
    """A name as text in plotly and HTML, where nothing in it counts as markup."""
    return html.escape(name, quote=False)


def escaped(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all its texts escaped, because figures read labels as markup."""
    texts = [column for column in table if table[column].map(lambda value: isinstance(value, str)).any()]
    return table.assign(
        **{
            str(name): table[name].map(lambda value: shown(value) if isinstance(value, str) else value)
            for name in texts
        }
    )


def plain(value: Any) -> Any:
    """A value from a table as JSON has it: missing is None, numbers to six digits."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, str):
        return value
    number = float(value)
    if number in (float("inf"), float("-inf")):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else float(f"{number:.6g}")


def fields(row: Mapping[Any, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The named cells of a row that exist and are not empty."""
    cells = {name: plain(row[name]) for name in names if name in row}
    return {name: cell for name, cell in cells.items() if cell is not None}


@contextmanager
def collected_notes() -> Iterator[list[str]]:
    """Collect what the figures' code logs inside the block, each line once: what is absent, and why."""
    notes: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (line := record.getMessage()) not in notes:
                notes.append(line)

    collector, level = Collector(), logger.level
    logger.addHandler(collector)
    logger.setLevel(min(logging.INFO, logger.getEffectiveLevel()))
    try:
        yield notes
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
