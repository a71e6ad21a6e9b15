"""How well the whole model does a task: every metric on clean and on corrupted prompts."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits_over_time.edge_attribution_patching.model.forward import embed, forward, unembed
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.statistics import standard_error

from .prompts import MetricFunction, Prompts, metric_name, metric_unit


@torch.inference_mode()
def answer_logits(
    weights: ModelWeights, tokens: Int[Tensor, "prompt position"], lengths: Int[Tensor, " prompt"]
) -> Float[Tensor, "prompt vocab"]:
    """Logits of the next token after each right-padded prompt."""
    layout = PackedTokens.whole(lengths)
    x = embed(weights, layout, layout.pack(tokens))
    return unembed(weights, forward(weights, layout, x, last_layer="answers"))


def task_performance(
    weights: ModelWeights, prompts: Prompts, metrics: Iterable[str | MetricFunction], batch_size: int
) -> pd.DataFrame:
    """Means over prompts.

    Args:
        prompts: a task's prompts. Corrupted prompts are scored with the answers to the clean ones.
        metrics: keys of `METRICS`, or functions.

    Returns:
        One row per run (`clean`, `corrupted`) and metric: `run, metric, unit, value` (mean), `se` (its standard error,
        missing if there is only one prompt), `n` (how many prompts).
    """
    rows = []
    order = prompts.lengths.argsort(stable=True)  # Prompts of similar length run together.
    for run in ("clean", "corrupted"):
        values: dict[str | MetricFunction, list[Tensor]] = {metric: [] for metric in metrics}
        for index in order.split(batch_size):
            batch = prompts.select(index).to(weights.device)
            logits = answer_logits(weights, getattr(batch, run), batch.lengths)
            everything = torch.arange(len(batch), device=weights.device)
            for metric, parts in values.items():
                parts.append(batch.metric(metric)(logits, everything).cpu().double())
        for metric, parts in values.items():
            every = torch.cat(parts)
            row = {"run": run, "metric": metric_name(metric), "unit": metric_unit(metric), "value": every.mean().item()}
            rows.append({**row, "se": standard_error(every), "n": len(every)})
    return pd.DataFrame(rows)
