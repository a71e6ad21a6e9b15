"""Keys of get_model_task_performance.py."""

from __future__ import annotations

from typing import Literal, Self

from ..config.keys import RedrawKeys, TaskConfig
from .registry import TASKS

STUDY_PROMPTS = {"ioi": 70, "greater_than": 1000, "gendered_pronoun": 100, "sva": 200}
"""How many prompts the published study measures."""


class PerformanceConfig(RedrawKeys, TaskConfig):
    """Keys of get_model_task_performance.py: those of every script with tasks. `task: all` means all built-in ones."""

    task_metrics: Literal["standard", "study"] = "standard"
    """Which [definitions](../docs/study.md#every-difference) of the metrics, and how many prompts if `n_prompts` is
    `null`: `standard`, or those of the `study`."""

    def of_task(self, name: str | None) -> Self:
        """The config as it is for one task, with the number of its prompts."""
        config = self
        if self.task_metrics == "study" and self.n_prompts is None and name in STUDY_PROMPTS:
            config = self.model_copy(update={"n_prompts": STUDY_PROMPTS[name]})
        return super(PerformanceConfig, config).of_task(name)

    @property
    def task_names(self) -> list[str]:
        """`task` as a list, `all` replaced by the registry's names."""
        return list(dict.fromkeys(name for task in super().task_names for name in (TASKS if task == "all" else [task])))

    def only_by_all(self, name: str) -> bool:
        """Whether a built-in task is there because of `all` alone, and may be left out where it does not fit."""
        return name in TASKS and name not in super().task_names
