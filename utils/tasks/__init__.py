"""Tasks: prompt pairs whose right answer the corruption takes away, and the metrics that say so."""

from utils.tasks.prompts import Pair, Prompts, Task
from utils.tasks.registry import TASKS, build_prompts, get_task, tasks_of

__all__ = ["TASKS", "Pair", "Prompts", "Task", "build_prompts", "get_task", "tasks_of"]
