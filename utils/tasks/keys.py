"""Keys of get_model_task_performance.py."""

from ..config.keys import TaskConfig
from .registry import TASKS


class PerformanceConfig(TaskConfig):
    """Keys of get_model_task_performance.py: those of every script with tasks. `task: all` means all built-in ones."""

    @property
    def task_names(self) -> list[str]:
        """`task` as a list, `all` replaced by the registry's names."""
        return list(dict.fromkeys(name for task in super().task_names for name in (TASKS if task == "all" else [task])))

    def only_by_all(self, name: str) -> bool:
        """Whether a built-in task is there because of `all` alone, and may be left out where it does not fit."""
        return name in TASKS and name not in super().task_names
