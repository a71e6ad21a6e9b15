"""The registry of tasks: from names and prompts CSVs to tasks, and from tasks to prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from circuits_over_time.edge_attribution_patching.choices import USUAL_METHOD

from ..base.errors import UserError, suggest
from ..config.keys import (
    CSV_METRIC,
    AnswersAs,
    PromptOptions,
    TaskConfig,
    TemplateKeys,
    as_list,
    task_and_method,
    variant_keys,
)
from . import gendered_pronoun, greater_than, ioi, sva
from .csv_task import csv_task, near_files
from .metrics import DIFFERENTIABLE
from .mib import TASKS as MIB_TASKS
from .prompts import Prompts, Task, Work, metric_name, require_length, token_rows
from .templates import template_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASKS: dict[str, Task] = {task.name: task for task in (ioi.TASK, greater_than.TASK, gendered_pronoun.TASK, sva.TASK)}
NAMED: dict[str, Task] = TASKS | MIB_TASKS
"""Also the benchmark's tasks, whose prompts come from the hub: `task: all` is without them."""


def primary_metric(task: str) -> str | None:
    """The primary metric of a built-in task; None for any other one, whose run.json states it."""
    task, _ = task_and_method(task)
    return metric_name(NAMED[task].primary) if task in NAMED else None


def units_of(names: Iterable[str]) -> str:
    """What sizes of circuits of these names in the results count."""
    levels = {variant_keys(task_and_method(name)[1]).get("level", "edge") for name in names}
    words = {"edge": "edges", "node": "heads and MLPs", "neuron": "neurons"}
    return " or ".join(words[level] for level in words if level in levels)


def task_label(task: str) -> str:
    """A task's name as figures write it: of one's own its key, or its file's name; then what is unusual."""
    task, method = task_and_method(task)
    label = (NAMED[task].label if task in NAMED else "") or task.replace("_", " ")
    return label if method == USUAL_METHOD else f"{label} ({method.replace('_', ' ').replace('+', ', ')})"


def get_task(
    task: str,
    metric: str | None = None,
    own: Mapping[str, TemplateKeys] | None = None,
    answers_as: AnswersAs = "text",
) -> Task:
    """Find a task by its name, a key of `NAMED` or `own`, or by its prompts CSV, whose stem then names it.

    `metric` is the primary one of a CSV, and `answers_as` says what its answers are; other tasks have their own, so one
    run can have both. `own` are tasks from templates, by name. It is a UserError if there is no such task, its metric
    cannot be used, or one of one's own has a built-in task's name.
    """
    own = own or {}
    for name, keys in own.items():
        if name in NAMED:
            raise UserError(f"tasks.{name}: there is a built-in task '{name}'; give yours another name")
        if keys.metric not in DIFFERENTIABLE:
            ways = " or ".join(DIFFERENTIABLE)
            raise UserError(f"tasks.{name}.metric: {keys.metric!r} cannot be used; set it to {ways}")
    if task in own:
        return template_task(task, own[task])
    if not task.lower().endswith(".csv"):
        if task not in NAMED:
            if (base := task_and_method(task)[0]) != task:
                raise UserError(f"task: '{task}' names results of the task {base}; use {base}")
            if Path(task).name != task or Path(task).suffix:  # Meant as a file.
                wrong = "not a prompts CSV" if Path(task).exists() else "no such file"
                raise UserError(f"task: {task}: {wrong}{near_files(Path(task)) or '; the name of a CSV ends in .csv'}")
            known = suggest(task, [*own, *NAMED], "name a prompts CSV or one of", [*own, *TASKS])
            raise UserError(f"task: '{task}' is unknown{known}")
        if metric is not None and metric not in DIFFERENTIABLE:
            raise UserError(f"metric: '{metric}' cannot be used; set it to {' or '.join(DIFFERENTIABLE)}")
        return NAMED[task]
    if (stem := Path(task).stem) in NAMED:
        raise UserError(f"task: {task} would write into the results of the built-in task '{stem}'; rename the file")
    if (base := task_and_method(stem)[0]) != stem:
        raise UserError(f"task: {task}: '{stem}' would name results of a task {base}; rename the file")
    return csv_task(Path(task), metric or CSV_METRIC, answers_as)


def tasks_of(config: TaskConfig) -> Sequence[Task]:
    """The tasks that a config names, called as their results are; errors as of `get_task`."""
    tasks = [get_task(name, config.metric, config.tasks, config.answers_as) for name in config.task_names]
    return [replace(task, name=config.name_in_results(task.name)) for task in tasks]


def inputs_of_performance(config: TaskConfig, tokenizer: PreTrainedTokenizerBase, shape: Any) -> Iterator[Work]:
    """The prompts of each task; errors are those of `Task.build`. One that is there by `all` alone may not fit."""
    for task in tasks_of(config):
        n = config.of_task(task.name).n_prompts or task.usual
        try:
            work = Work(task.name, task.pairs(tokenizer, n, config.seed, config), 2)  # clean and corrupted
            rows, _ = token_rows(tokenizer, work.pairs, config.prepend_bos)
            require_length(
                task.name, [len(row) for row in rows], [pair.clean for pair in work.pairs], shape.n_positions
            )
        except UserError:
            if task.name not in TASKS or task.name in as_list(config.task):
                raise
        else:
            yield work


def build_prompts(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    n: int | None,
    seed: int,
    *,
    prepend_bos: bool = False,
    ioi_corruption: Literal["swap", "abc"] = "swap",
    prompt_set: Literal["standard", "study"] = "standard",
    metric: str | None = None,
) -> Prompts:
    """Build n distinct prompt pairs of a task, a key of `NAMED` or the path of a CSV; n is None for 100, or all rows of
    a CSV.

    The same arguments give the same prompts in every process. The first k of n prompts are the k prompts of the same
    seed, so you can add prompts without changing the ones you have. `prepend_bos` puts exactly one BOS token in front
    of every prompt; otherwise there are no special tokens. Errors are those of `get_task` and `Task.build`.
    """
    options = PromptOptions(prepend_bos=prepend_bos, ioi_corruption=ioi_corruption, prompt_set=prompt_set)
    return get_task(task, metric).build(tokenizer, n, seed, options)
