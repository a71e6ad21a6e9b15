"""Results as figures need them: each kind is read once, and the log says what is absent."""

import argparse
import copy
import html
import logging
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import pandas as pd

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.commands import how_to_compare, how_to_make
from circuits_over_time.utils.results.comparison import ComparisonFolder
from circuits_over_time.utils.results.edges import by_node, is_of_units, over_roles
from circuits_over_time.utils.results.kinds import KINDS, WITH_CIRCUIT
from circuits_over_time.utils.results.store import Store

from .style import ModelLook, model_looks, model_order, task_order

# What all of plotting says.
logger = logging.getLogger("plotting")

EVERYTHING = argparse.Namespace(model=None, task=None)


class NotMeasured(UserError):
    """What a figure shows is not among the results. A script says so; the report lists it with the rest."""


class Results:
    """The results of the models and tasks asked for.

    `arguments` are a parsed command line: `model` and `task` (lists of names, or None for all), and a figure's options.
    The report says by itself what could be measured too.
    """

    def __init__(self, store: Store, arguments: argparse.Namespace = EVERYTHING, *, in_report: bool = False) -> None:
        self.store, self.arguments, self.in_report = store, arguments, in_report
        self._tables: dict[str, pd.DataFrame | UserError] = {}

    def with_arguments(self, **arguments: object) -> "Results":
        """The same results, read once for both, with further arguments."""
        other = copy.copy(self)
        other.arguments = argparse.Namespace(**arguments)
        return other

    def table(self, kind: str) -> pd.DataFrame:
        """All rows of a kind. What was asked for and is absent, and tasks that some models lack, are logged.

        Returns:
            One row per observation with `model, step, tokens` (and `task` where the kind has tasks), never empty.

        Raises:
            UserError: naming the command that makes the results, if there are none; a NotMeasured if no model has any.
        """
        if kind not in self._tables:
            try:
                self._tables[kind] = self._read(kind)
            except UserError as error:
                self._tables[kind] = error
        if isinstance(table := self._tables[kind], UserError):
            raise table
        return table

    def _read(self, kind: str) -> pd.DataFrame:
        asked, folder = self.arguments, f"{self.store.root}/{kind}"
        wanted = " ".join([*(asked.model or []), *(asked.task or [])])
        command = how_to_make(self.store.root, kind, (asked.model or [None])[0], (asked.task or [None])[0])
        nothing = f"{folder} holds no results{' of ' if wanted else ''}{wanted}; run: {command}"
        if not self.models(kind):
            raise NotMeasured(nothing)
        frames = []
        for model in _present(self.store.models(kind), asked.model, f"{folder}: no results of model"):
            tasks = self.store.tasks(kind, model)
            levels = _present(tasks, asked.task, f"{folder}/{model}: no results of task") if tasks else [None]
            for task in levels:
                try:
                    frames.append(self.store.read_tables(kind, model, task))
                except UserError as error:  # All of them are damaged.
                    nothing = str(error)
        for model in self._every_model if asked.model is None else ():
            if model not in self.store.models(kind):
                logger.info("%s: no results of model %s; left out", folder, model)
        measured = [frame for frame in frames if not frame.empty]
        if not frames or (not measured and kind == "baselines"):  # Which say why there are none.
            raise UserError(nothing)
        if not measured:
            baselines = self.table_if_any("baselines")  # Which may say why there are none.
            statuses = [] if baselines is None else sorted(set(baselines["status"].dropna()) - {*WITH_CIRCUIT})
            why = f" ({', '.join(statuses)})" if statuses else ""
            raise UserError(f"{folder}: measured, but no checkpoint has a circuit{why}: nothing to draw")
        # A table without rows has no types, and would make every column an object column.
        table = pd.concat(measured, ignore_index=True).infer_objects()
        if table["tokens"].isna().any():  # Nobody says how many they were: the axis counts steps.
            table["tokens"] = table["step"]
        _log_gaps(table, kind)
        return table

    def table_if_any(self, kind: str, *, note: bool = False) -> pd.DataFrame | None:
        """Like `table`, but None if there is nothing, with a line in the log if `note`."""
        try:
            return self.table(kind)
        except UserError as error:
            if note and not (self.in_report and isinstance(error, NotMeasured)):
                logger.info("left out: %s", error)
            return None

    def comparison(self, name: str, *, whole: bool = False) -> pd.DataFrame:
        """A table of `results/comparison`: rows of the models and tasks asked for or of no task, or the `whole`.

        Raises:
            UserError: naming the command that makes the table, if it holds nothing of what is asked for; a NotMeasured
                if it is missing.
        """
        folder = ComparisonFolder(self.store.root)
        try:
            table = folder.read(name)
        except UserError as error:
            raise error if folder.has(name) else NotMeasured(str(error)) from None
        if whole:
            return table
        asked = {"model": self.arguments.model or [], "task": self.arguments.task or []}
        for column, names in asked.items():
            if not names or column not in table:
                continue
            for absent in sorted(set(names) - set(table[column].dropna())):
                logger.warning("%s/comparison: no results of %s %s; left out", self.store.root, column, absent)
            table = table[table[column].isin(names) | table[column].isna()]
        if table.empty:
            wanted = " ".join([*asked["model"], *asked["task"]])
            raise UserError(
                f"{self.store.root}/comparison/{name}.csv holds nothing{' of ' if wanted else ''}{wanted}; run: "
                f"{how_to_compare(self.store.root)}"
            )
        return table.reset_index(drop=True)

    def circuits(self, *, with_roles: bool = False) -> dict[tuple[str, str], dict[int, pd.DataFrame]]:
        """Edge tables by (model, task) and step; steps without a circuit are absent. Errors as of `table`.

        Neurons are counted by node, and edges with roles of tokens added up, unless asked for with them.
        """
        circuits: dict[tuple[str, str], dict[int, pd.DataFrame]] = {}
        for model, rows in by_model(self.table("graphs")):
            for task in tasks_in(rows):
                by_step = rows[rows["task"] == task].groupby("step", sort=True)
                circuits[model, task] = {
                    int(str(step)): _with_nodes(of_step if with_roles else over_roles(of_step))
                    for step, of_step in by_step
                }
        return circuits

    @property
    def every_model(self) -> list[str]:
        """The models asked for that have results of any kind, in the order of kinds."""
        return list(dict.fromkeys(name for kind in KINDS for name in self.models(kind)))

    def models(self, kind: str) -> list[str]:
        """The models asked for that have results of a kind, smallest first."""
        asked = self.arguments.model
        return model_order(name for name in self.store.models(kind) if asked is None or name in asked)

    def tasks(self, kind: str, model: str) -> list[str]:
        """The tasks asked for that a model has results of, sorted."""
        asked = self.arguments.task
        return [name for name in self.store.tasks(kind, model) if asked is None or name in asked]

    def tokens(self, model: str) -> dict[int, float]:
        """Training tokens by step, from whichever kinds have been read (tables without rows do not tell)."""
        tokens: dict[int, float] = {}
        for table in self._tables.values():
            if isinstance(table, pd.DataFrame):
                rows = table.loc[table["model"] == model, ["step", "tokens"]].drop_duplicates("step")
                if len(rows) == 1 or not rows["tokens"].equals(rows["step"]):  # Or else they are not known.
                    tokens |= {int(step): float(count) for step, count in rows.itertuples(index=False)}
        return tokens

    def looks(self, further: Iterable[str] = ()) -> dict[str, ModelLook]:
        """The look of every model of the folder, whichever kinds a figure shows, and of further ones.

        The keys are as `escaped` writes names.
        """
        return {as_text(name): look for name, look in model_looks([*self._every_model, *further]).items()}

    @cached_property
    def _every_model(self) -> list[str]:
        return model_order(model for kind in KINDS for model in self.store.models(kind))


def _with_nodes(edges: pd.DataFrame) -> pd.DataFrame:
    if not is_of_units(edges):
        return edges
    nodes = by_node(edges)
    if list(nodes["source"]) == list(edges["source"]):
        return edges
    same = ["model", "task", "step", "tokens", "target", "input"]
    return nodes.join(pd.concat([edges[same].head(1)] * len(nodes), ignore_index=True))


def as_text(name: str) -> str:
    """A name as text in plotly and HTML, where nothing in it counts as markup."""
    return html.escape(name, quote=False)


def html_table(head: Iterable[str], rows: Iterable[Iterable[str]], css: str = "") -> str:
    """A table in HTML, that scrolls by itself. On a phone, where a row is a block, every cell says what it holds."""
    names = [html.escape(name) for name in head]
    body = "".join(
        "<tr>"
        + "".join(f"<td data-name='{name}'>{html.escape(c)}</td>" for name, c in zip(names, row, strict=True))
        + "</tr>"
        for row in rows
    )
    top = "".join(f"<th scope='col'>{name}</th>" for name in names)
    return f"<div class='scroll'><table class='{css}'><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


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


def escaped(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all its texts escaped, because figures read labels as markup."""
    texts = [column for column in table if table[column].map(lambda value: isinstance(value, str)).any()]
    cells = {
        str(name): table[name].map(lambda cell: as_text(cell) if isinstance(cell, str) else cell) for name in texts
    }
    return table.assign(**cells)


def models_in(table: pd.DataFrame) -> list[str]:
    """Models of a table, smallest first."""
    return model_order(table["model"])


def by_model(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Models of a table, smallest first, and their rows."""
    return [(model, table[table["model"] == model]) for model in models_in(table)]


def tasks_in(table: pd.DataFrame) -> list[str]:
    """Tasks of a table, in the order of the study."""
    return task_order(table["task"])


def _present(names: list[str], asked: list[str] | None, message: str) -> list[str]:
    if asked is None:
        return names
    for name in asked:
        if name not in names:
            logger.warning("%s %s; left out", message, name)
    return [name for name in names if name in asked]


def _log_gaps(table: pd.DataFrame, kind: str) -> None:
    """Say which task a model lacks that others have, and which steps a task lacks that the model's others have."""
    # A task that a checkpoint has not learned has no circuit there: that is a finding, not a gap.
    if "task" not in table or kind in ("faithfulness", "graphs", "attention"):
        return
    for model, rows in by_model(table):
        for task in tasks_in(table):
            there = set(rows.loc[rows["task"] == task, "step"])
            absent = sorted(int(step) for step in set(rows["step"]) - there)
            if not there:
                logger.info("%s: %s has no %s; left out", kind, model, task)
            elif absent:
                listed = ", ".join(map(str, absent[:6])) + (f" and {len(absent) - 6} more" if len(absent) > 6 else "")
                logger.info("%s: %s %s lacks steps that other tasks have: %s", kind, model, task, listed)
