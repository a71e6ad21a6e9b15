"""How well the whole model does each task at every checkpoint: all metrics, on clean and on corrupted prompts.

    python get_model_task_performance.py -c configs/performance_160m.yml

Writes results/task_performance/<model>/<task>/step{n}.csv with one row a run (`clean` or `corrupted`) and metric:
`run, metric, value, se, n` (mean over prompts, its standard error, number of prompts). Corrupted prompts are held
against the clean prompts' answers, so a metric falls as far as the corruption takes the answer away.
"""

import sys

from transformers import PreTrainedTokenizerBase

from utils.config.keys import TaskConfig
from utils.models.family import LoadedCheckpoint
from utils.runner import Analysis, Result, main
from utils.task_performance import task_performance
from utils.tasks import TASKS, Prompts, build_prompts, get_task

ALL = "all"


class PerformanceConfig(TaskConfig):
    """The keys every script that runs tasks shares; `task: all` is every task of the registry."""

    @property
    def tasks(self) -> list[str]:
        """`task` as a list, `all` replaced by the registry's names."""
        return list(dict.fromkeys(name for task in super().tasks for name in (TASKS if task == ALL else [task])))


def folders(config: PerformanceConfig) -> list[str | None]:
    """The tasks' folder names."""
    return [get_task(task, config.metric).name for task in config.tasks]


def prompts(config: PerformanceConfig, task: str, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The prompts of a task as the config wants them."""
    return build_prompts(
        task,
        tokenizer,
        config.n_prompts,
        config.seed,
        prepend_bos=config.prepend_bos,
        ioi_corruption=config.ioi_corruption,
        metric=config.metric,
    )


def check(config: PerformanceConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse tasks that have no usable prompts under this tokenizer."""
    for task in config.tasks:
        prompts(config, task, tokenizer)


def measure(checkpoint: LoadedCheckpoint, config: PerformanceConfig, folder: str | None) -> dict[str, Result]:
    """All metrics of one task."""
    name = next(name for name, task in zip(config.tasks, folders(config), strict=True) if task == folder)
    asked = prompts(config, name, checkpoint.tokenizer)
    metrics = get_task(name, config.metric).metrics
    table = task_performance(checkpoint.weights, asked, metrics, config.batch_size)
    return {"task_performance": Result(table)}


ANALYSIS = Analysis(
    "get_model_task_performance", PerformanceConfig, ("task_performance",), measure, tasks=folders, check=check
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
