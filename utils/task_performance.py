"""What get_model_task_performance.py hands to the runner; the numbers are those of `tasks/performance.py`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.model.architectures import Shape

from .base.errors import CheckpointUnusable, UserError
from .models.checkpoint import LoadedCheckpoint
from .results.store import Result
from .tasks import Prompts, Task, tasks_of
from .tasks.keys import PerformanceConfig
from .tasks.performance import task_performance


def prepare(
    config: PerformanceConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape
) -> dict[str, Prompts | UserError]:
    """The prompts of every task by its name; or why it has none, if only `all` names it (else that is raised)."""
    prepared: dict[str, Prompts | UserError] = {}
    for task in tasks_of(config):
        try:
            prepared[task.name] = _prompts(config, task, tokenizer, shape)
        except UserError as error:
            if not config.only_by_all(task.name):
                raise
            prepared[task.name] = error
    return prepared


def measure(
    checkpoint: LoadedCheckpoint, config: PerformanceConfig, inputs: Mapping[str, Prompts | UserError], task: Task
) -> dict[str, Result]:
    """All metrics of one task."""
    prompts, json = inputs[task.name], None
    if isinstance(prompts, UserError):  # This checkpoint has another tokenizer than those before.
        raise CheckpointUnusable(str(prompts))
    if config.redraws(task.name):
        prompts = _prompts(config.at_step(checkpoint.step), task, checkpoint.tokenizer, checkpoint.weights)
        json = {"prompts": prompts.texts}
    study = config.task_metrics == "study"
    table = task_performance(checkpoint.weights, prompts, task.metrics, config.batch_size, study=study)
    return {"task_performance": Result(table, json=json)}


def _prompts(config: PerformanceConfig, task: Task, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> Prompts:
    prompts = task.build(tokenizer, config.of_task(task.name).n_prompts, config.seed, config)
    prompts.require_fit(task.name, shape)
    return prompts
