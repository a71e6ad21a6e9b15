"""What each thing that the published study's code does changes in circuits and task metrics, one at a time.

    python benchmarks/bench_study.py                                   # the toy family's last checkpoint
    python benchmarks/bench_study.py --model model_cache/smollm2-135m --step 2000000 --tasks ioi

For every task it finds the circuit with our defaults, and again with one key as the study has it (`docs/study.md`), and
prints the edges asked for, the share of edges in common (Jaccard), and the faithfulness by our definition.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import pandas as pd

import circuits_over_time as cot
from circuits_over_time.utils.circuits.keys import CircuitsConfig
from circuits_over_time.utils.tasks import TASKS
from circuits_over_time.utils.tasks.performance import task_performance

log = logging.getLogger("bench_study")


def points(task: str, step: int, n_prompts: int) -> dict[str, dict[str, Any]]:
    """The study's ways by their numbers in docs/study.md, as keys of `find_circuit`; `dtype` is the model's."""
    # Of 100 prompts as many as of IOI in the study, and in batches of its size: the last one is small.
    fewer = {"n_prompts": 70 * n_prompts // 100, "batch_size": 32 * n_prompts // 100, "evaluate_on": "same"}
    small = {"batch_size": 8 if task in ("greater_than", "sva") else 32}
    bfloat16 = {"dtype": "bfloat16"}
    return {
        "redraw_prompts": {"seed": CircuitsConfig(model="m", task=task).at_step(step).seed},
        "search.grid": {"grid": "study"},
        "search.criterion": {"criterion": "raw"},
        "batch_weighting": {"batch_weighting": "by_batch", **fewer},
        "batch_weighting, its default": fewer,
        "bfloat16": bfloat16,
        "bfloat16, eap.accumulate": {**bfloat16, **small, "accumulate": "model", "ig_steps": 30},
        "bfloat16, accumulate_evaluation": {**bfloat16, "accumulate_evaluation": "model"},
        "prompt_set": {"prompt_set": "study", "n_prompts": min(n_prompts, 30 if task == "gendered_pronoun" else 100)},
        "evaluate_on": {"evaluate_on": "same"},
    }


def compare(
    models: dict[str, cot.Model], task: str, step: int, n_prompts: int, leave_out: list[str]
) -> list[dict[str, Any]]:
    """A row for the default and for every point."""
    rows, first = list[dict[str, Any]](), set[str]()
    for name, point in {"default": {}, **points(task, step, n_prompts)}.items():
        if name in leave_out:
            continue
        keys = {"n_random": 0, "n_prompts": n_prompts} | point
        found = cot.find_circuit(models[keys.pop("dtype", "float32")], cot.task(task), **keys)
        edges = set(found.edges["source"] + "->" + found.edges["target"] + found.edges["input"].fillna(""))
        first = first or edges
        jaccard = len(first & edges) / max(1, len(first | edges))
        row = {"task": task, "point": name, "size": found.size, "edges": len(edges), "jaccard": jaccard}
        rows.append(row | {"faithfulness": found.faithfulness, "full": found.full})
        log.info("%s", rows[-1])
    return rows


def metrics(model: cot.Model, task: str) -> list[dict[str, Any]]:
    """Task metrics by both definitions, on the same prompts."""
    prompts, rows = cot.prompts(model, cot.task(task)), list[dict[str, Any]]()
    for study in (False, True):
        table = task_performance(model.weights, prompts, TASKS[task].metrics, 32, study=study)
        clean = table[table["run"] == "clean"].set_index("metric")["value"]
        rows.append({"task": task, "task_metrics": "study" if study else "standard", **clean})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tests/data/toy")
    parser.add_argument("--step", type=int, default=1350)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--leave-out", nargs="+", default=[], help="points that take too long")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    models = {dtype: cot.load(arguments.model, step=arguments.step, dtype=dtype) for dtype in ("float32", "bfloat16")}
    how = arguments.step, arguments.prompts, arguments.leave_out
    rows = [row for task in arguments.tasks for row in compare(models, task, *how)]
    log.info("%s", pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))
    both = [row for task in arguments.tasks for row in metrics(models["float32"], task)]
    log.info("%s", pd.DataFrame(both).to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
