"""Results as the figures need them: read through the store, filtered, with what is absent said in the log."""

import argparse
import logging

import pandas as pd

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.comparison import ComparisonFolder
from circuits_over_time.utils.results.kinds import KINDS, how_to_make
from circuits_over_time.utils.results.store import Store

from .style import model_order, task_order

logger = logging.getLogger("plotting")


def load(store: Store, kind: str, arguments: argparse.Namespace) -> pd.DataFrame:
    """All rows of a kind for the models and tasks asked for.

    What was asked for and is absent, and tasks that some models lack, are logged and left out.

    Args:
        store: the results.
        kind: e.g. `faithfulness`.
        arguments: parsed command line with `model` and `task` (lists of names, or None for all).

    Returns:
        One row per observation with `model`, `step`, `tokens` (and `task` where the kind has tasks), never empty.

    Raises:
        UserError: naming the command that makes the results, if there are none.
    """
    frames = []
    for model in _present(store.models(kind), arguments.model, f"{store.root}/{kind}: no results of model"):
        tasks = store.tasks(kind, model)
        place = f"{store.root}/{kind}/{model}"
        levels = _present(tasks, arguments.task, f"{place}: no results of task") if tasks else [None]
        frames += [store.read_tables(kind, model, task) for task in levels]
    if arguments.model is None:
        for model in every_model(store):
            if model not in store.models(kind):
                logger.info("%s/%s: no results of model %s; left out", store.root, kind, model)
    frames = [frame for frame in frames if not frame.empty]
    if not frames:
        wanted = " ".join([*(arguments.model or []), *(arguments.task or [])])
        command = how_to_make(kind, (arguments.model or [None])[0], (arguments.task or [None])[0])
        raise UserError(f"{store.root}/{kind} holds no results{' of ' if wanted else ''}{wanted}; run: {command}")
    # A table without rows has no types, and would make every column an object column.
    table = pd.concat(frames, ignore_index=True).infer_objects()
    _log_gaps(table, kind)
    return table


def load_if_any(store: Store, kind: str, arguments: argparse.Namespace) -> pd.DataFrame | None:
    """As `load`, but None, with a line in the log, where there is nothing."""
    try:
        return load(store, kind, arguments)
    except UserError as error:
        logger.info("left out: %s", error)
        return None


def load_comparison(store: Store, name: str, arguments: argparse.Namespace) -> pd.DataFrame:
    """A table of `results/comparison` for the models and tasks asked for. Rows that are of no task stay.

    Raises:
        UserError: naming the command that makes the table, if it is missing or holds nothing of them.
    """
    table = ComparisonFolder(store.root).read(name)
    for column, asked in (("model", arguments.model), ("task", arguments.task)):
        if asked is None or column not in table:
            continue
        for absent in sorted(set(asked) - set(table[column].dropna())):
            logger.warning("%s/comparison: no results of %s %s; left out", store.root, column, absent)
        table = table[table[column].isin(asked) | table[column].isna()]
    if table.empty:
        wanted = " ".join([*(arguments.model or []), *(arguments.task or [])])
        raise UserError(
            f"{store.root}/comparison/{name}.csv holds nothing{' of ' if wanted else ''}{wanted}; run: "
            "python compare_circuits.py -c configs/compare_toy.yml"
        )
    return table.reset_index(drop=True)


def circuits(store: Store, arguments: argparse.Namespace) -> dict[tuple[str, str], dict[int, pd.DataFrame]]:
    """Edge tables (`source, target, score` and the stamp) by (model, task) and step; steps without a circuit are
    absent.

    Raises:
        UserError: naming the command that makes circuits, if there are none.
    """
    table = load(store, "graphs", arguments)
    found = {}
    for key, rows in table.groupby(["model", "task"], sort=False):
        model, task = map(str, key)
        steps = sorted(int(step) for step in rows["step"].unique())
        found[model, task] = {step: rows[rows["step"] == step] for step in steps}
    return found


def models_in(table: pd.DataFrame) -> list[str]:
    """Models of a table, smallest first."""
    return model_order(table["model"])


def tasks_in(table: pd.DataFrame) -> list[str]:
    """Tasks of a table, in the order of the study."""
    return task_order(table["task"])


def every_model(store: Store) -> list[str]:
    """All models of the results folder, so that a model keeps its colour whichever kinds a figure shows."""
    return model_order(model for kind in KINDS for model in store.models(kind))


def _present(found: list[str], asked: list[str] | None, message: str) -> list[str]:
    if asked is None:
        return found
    for name in asked:
        if name not in found:
            logger.warning("%s %s; left out", message, name)
    return [name for name in found if name in asked]


def _log_gaps(table: pd.DataFrame, kind: str) -> None:
    """Say which task a model lacks that others have, and which steps a task lacks that the model's others have."""
    # A task that a checkpoint has not learned has no circuit there: that is a finding, not a gap.
    if "task" not in table or kind in ("faithfulness", "graphs"):
        return
    for model in models_in(table):
        rows = table[table["model"] == model]
        for task in tasks_in(table):
            there = set(rows.loc[rows["task"] == task, "step"])
            absent = sorted(int(step) for step in set(rows["step"]) - there)
            if not there:
                logger.info("%s: %s has no %s; left out", kind, model, task)
            elif absent:
                logger.info("%s: %s %s lacks steps that other tasks have: %s", kind, model, task, _listed(absent))


def _listed(steps: list[int], most: int = 6) -> str:
    text = ", ".join(str(step) for step in steps[:most])
    return text if len(steps) <= most else f"{text} and {len(steps) - most} more"
