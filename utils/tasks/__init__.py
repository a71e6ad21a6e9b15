"""The registry of tasks: names and prompts CSVs to tasks, and tasks to prompts."""

from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from utils.errors import UserError
from utils.tasks import gendered_pronoun, greater_than, ioi, sva
from utils.tasks.csv_task import csv_task
from utils.tasks.prompts import Pair, PromptOptions, Prompts, Task

__all__ = ["TASKS", "Pair", "PromptOptions", "Prompts", "Task", "build_prompts", "get_task", "task_folder_name"]

TASKS: dict[str, Task] = {task.name: task for task in (ioi.TASK, greater_than.TASK, gendered_pronoun.TASK, sva.TASK)}


def is_csv(task: str) -> bool:
    """Whether a task is a prompts CSV and no name of the registry."""
    return task.lower().endswith(".csv")


def task_folder_name(task: str) -> str:
    """The name of a task in results: its registry name, or the stem of its CSV.

    Raises:
        UserError: if there is no such task, or a CSV's stem is a name of the registry.
    """
    if not is_csv(task):
        if task in TASKS:
            return task
        close = get_close_matches(task, TASKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use {', '.join(TASKS)} or a prompts CSV"
        raise UserError(f"task: {task!r} is unknown; {hint}")
    stem = Path(task).stem
    if stem in TASKS:
        raise UserError(f"task: {task} would write to the results of the task {stem!r}; rename the file")
    return stem


def get_task(task: str, metric: str | None = None) -> Task:
    """The task of a name or a prompts CSV.

    Args:
        task: a key of `TASKS`, or the path of a CSV.
        metric: a CSV's primary metric, `logit_diff` or `prob_diff`. Tasks of the registry have their own and ignore it,
            so that one run can have both.

    Raises:
        UserError: if there is no such task, or a CSV comes without a metric.
    """
    name = task_folder_name(task)
    return csv_task(Path(task), metric) if is_csv(task) else TASKS[name]


def build_prompts(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    n: int,
    seed: int,
    *,
    prepend_bos: bool = False,
    ioi_corruption: Literal["swap", "abc"] = "swap",
    metric: str | None = None,
) -> Prompts:
    """Build n distinct prompt pairs of a task.

    The same arguments give the same prompts in every process, and the first k of n prompts are the k prompts of the
    same seed, so that prompts can be added without changing those that are there.

    Args:
        task: a key of `TASKS`, or the path of a prompts CSV.
        tokenizer: the model's.
        n: number of pairs.
        seed: of the draw.
        prepend_bos: put exactly one BOS token in front of every prompt; without it there are no special tokens.
        ioi_corruption: how `ioi` prompts are corrupted.
        metric: see `get_task`.

    Raises:
        UserError: if there is no such task, a prompt cannot be used under this tokenizer, or there are fewer than n.
    """
    return get_task(task, metric).build(tokenizer, n, seed, PromptOptions(prepend_bos, ioi_corruption))
