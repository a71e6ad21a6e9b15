"""How well the whole model does each task at every checkpoint: all metrics, on clean and corrupted prompts.

    python get_model_task_performance.py -c configs/performance_160m.yml

Writes results/task_performance/<model>/<task>/step{n}.csv with one row per run (`clean` or `corrupted`) and metric:
`run, metric, value, se, n` (mean over prompts, its standard error, number of prompts). Corrupted prompts are scored
with the answers to the clean ones, so a metric falls as far as the corruption hides the answer.
"""

import sys

from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.sweep.runner import Analysis, Lazy, main
from circuits_over_time.utils.tasks import tasks_of
from circuits_over_time.utils.tasks.keys import PerformanceConfig

ANALYSIS = Analysis(
    "get_model_task_performance",
    PerformanceConfig,
    (KINDS["task_performance"],),
    Lazy("utils.task_performance.prepare"),
    Lazy("utils.task_performance.measure"),
    tasks=tasks_of,
    inputs=Lazy("utils.tasks.registry.inputs_of_performance"),
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
