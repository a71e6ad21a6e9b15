"""How well the whole model does a task: every metric on clean and on corrupted prompts."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from edge_attribution_patching.forward import embed, forward, unembed
from edge_attribution_patching.layout import Layout
from edge_attribution_patching.weights import ModelWeights
from utils.errors import UserError
from utils.tasks import Prompts
from utils.tasks.metrics import METRICS


@torch.inference_mode()
def answer_logits(
    weights: ModelWeights, tokens: Int[Tensor, "prompt position"], lengths: Int[Tensor, " prompt"]
) -> Float[Tensor, "prompt vocab"]:
    """Logits of the token that follows each right-padded prompt."""
    layout = Layout.whole(lengths)
    x = embed(weights, layout, layout.pack(tokens))
    return unembed(weights, forward(weights, layout, x, last_layer="answers"))


def task_performance(weights: ModelWeights, prompts: Prompts, metrics: Iterable[str], batch_size: int) -> pd.DataFrame:
    """Means over prompts.

    Args:
        weights: the model.
        prompts: a task's prompts; the corrupted ones are held against the clean ones' answers.
        metrics: keys of `METRICS`.
        batch_size: prompts that run at once.

    Returns:
        One row a run (`clean`, `corrupted`) and metric: `run, metric, value` (mean), `se` (its standard error, missing
        where there is one prompt), `n` (prompts).

    Raises:
        UserError: if a prompt is longer than the model's context.
    """
    longest = int(prompts.lengths.max())
    if longest > weights.n_positions:
        raise UserError(f"task: a prompt has {longest} tokens, the model's context has {weights.n_positions} positions")
    rows = []
    order = prompts.lengths.argsort(stable=True)  # prompts of similar length run together
    for run in ("clean", "corrupted"):
        values: dict[str, list[Tensor]] = {metric: [] for metric in metrics}
        for index in order.split(batch_size):
            batch = prompts.select(index).to(weights.device)
            logits = answer_logits(weights, getattr(batch, run), batch.lengths)
            for metric, parts in values.items():
                parts.append(METRICS[metric](logits, batch).double().cpu())
        for metric, parts in values.items():
            every = torch.cat(parts)
            error = every.std(correction=1).item() / len(every) ** 0.5 if len(every) > 1 else None
            rows.append({"run": run, "metric": metric, "value": every.mean().item(), "se": error, "n": len(every)})
    return pd.DataFrame(rows)
