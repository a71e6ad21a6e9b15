"""How well the whole model does a task: every metric on clean and on corrupted prompts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from circuits_over_time.edge_attribution_patching.model.forward import answer_logits
from circuits_over_time.edge_attribution_patching.model.transfer import checked_at_the_end, to_cpu, to_device
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.statistics import standard_error

from .prompts import MetricFunction, Prompts, metric_name, metric_unit


def task_performance(
    weights: ModelWeights,
    prompts: Prompts,
    metrics: Iterable[str | MetricFunction],
    batch_size: int,
    *,
    study: bool = False,
) -> pd.DataFrame:
    """Means over prompts of metrics, which are keys of `ALL_METRICS` or functions; `study`: keys mean what
    `STUDY_METRICS` says. Corrupted prompts are scored with the answers to the clean ones.

    Returns one row per run (`clean`, `corrupted`) and metric: `run, metric, unit, value` (mean), `se` (its standard
    error, missing if there is only one prompt), `n` (how many prompts).
    """
    functions = {metric: prompts.metric(metric, weights, study=study) for metric in metrics}
    runs = {"clean": prompts.clean, "corrupted": prompts.corrupted}
    lengths, batches = prompts.lengths.cpu(), list[Tensor]()
    order = lengths.argsort(stable=True)  # Prompts of similar length run together.
    with checked_at_the_end():
        for index in order.split(batch_size):
            there, rows = to_device(index, weights.device), list[Tensor]()
            for tokens in runs.values():
                logits = answer_logits(weights, tokens[index], lengths[index])
                rows += [function(logits, there)[None] for function in functions.values()]
            batches.append(torch.cat(rows))
        values = to_cpu(torch.cat(batches, dim=1)).double()  # [run and metric, prompt]
    return pd.DataFrame(
        [
            {"run": run, "metric": metric_name(metric), "unit": metric_unit(metric), "value": of_all.mean().item()}
            | {"se": standard_error(of_all), "n": len(of_all)}
            for (run, metric), of_all in zip(itertools.product(runs, functions), values, strict=True)
        ]
    )
