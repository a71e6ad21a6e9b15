"""Tasks: prompt pairs, whose right answer is lost in the corruption, and the metrics that show it."""

from .prompts import Pair, Prompts, Task
from .registry import TASKS, build_prompts, get_task, tasks_of

__all__ = ["TASKS", "Pair", "Prompts", "Task", "build_prompts", "get_task", "tasks_of"]
