"""What heads and MLPs do to a task along named paths: path patching with any task and metric."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import pandas as pd
import torch

from circuits_over_time.edge_attribution_patching.graph import QKV, Graph, head_named
from circuits_over_time.edge_attribution_patching.patching.forward import evaluate_masks_final
from circuits_over_time.edge_attribution_patching.patching.paths import (
    Head,
    Receivers,
    Sender,
    path_masks,
    recompute_after,
)
from circuits_over_time.edge_attribution_patching.patching.runs import (
    PreparedBatches,
    at_answers,
    metric_of_finals,
    run_metric,
)
from circuits_over_time.edge_attribution_patching.statistics import standard_error

from ..base.errors import UserError
from ..tasks import Task
from .handle import Model, names_in, task_prompts


def path_effects(
    model: Model,
    task: Task,
    senders: Sequence[str] | None,
    receivers: str | Sequence[str],
    through_mlps: bool | None,
    keys: Mapping[str, Any],
) -> pd.DataFrame:
    """How the metric of clean prompts changes if receivers read senders as if corrupted; see `cot.path_effects`."""
    settings, prompts = task_prompts(model, task, keys)
    weights, graph = model.weights, model.graph
    names = [name for name in graph.forward_nodes if "." in name]
    if senders is not None:
        names = names_in(senders, f"senders: {senders!r} is not a list of names")
    if not names:
        raise UserError("senders: none are named; leave it out for all heads")
    nodes = [_sender(name, graph) for name in names]
    rows = sorted(range(len(nodes)), key=lambda row: nodes[row][0])
    into = _receivers(names_in(receivers, f"receivers: {receivers!r} is not a list of names"), graph)
    if not isinstance(through_mlps, bool | None):
        raise TypeError(f"through_mlps={through_mlps!r}: not True, False or None")
    through_mlps = into is not None if through_mlps is None else through_mlps
    metric, memory = prompts.metric(task.primary, weights), settings.budget_gb(*weights.devices)
    patched = torch.zeros(len(nodes), len(prompts), dtype=torch.float64)
    clean, corrupted = torch.zeros(2, len(prompts), dtype=torch.float64)
    batches = prompts.pairs.batches(settings.batch_size, weights=weights, memory_budget_gb=memory)
    for runs in PreparedBatches(weights, batches, "clean", memory):
        index = runs.batch.rows
        corrupted[index], clean[index] = torch.stack(run_metric(weights, runs, metric)).cpu().double()
        # One layer's senders at a time: the masks of a large model's heads are large.
        for _, group in groupby(rows, key=lambda row: nodes[row][0]):
            of_layer = list(group)
            sending = [nodes[row] for row in of_layer]
            if into is None:  # Only what is written at the answers' tokens reaches the logits there.
                masks = path_masks(graph, sending, through_mlps=through_mlps)
                finals = evaluate_masks_final(weights, at_answers(runs), masks, memory_budget_gb=memory)
            else:
                finals = recompute_after(
                    weights, runs, sending, into, through_mlps=through_mlps, memory_budget_gb=memory
                )
            values = [metric_of_finals(weights, final[None], runs.batch.index, metric) for final in finals]
            patched[torch.tensor(of_layer)[:, None], index] = torch.cat(values).cpu().double()
    effects = patched - clean
    drop = float((clean - corrupted).mean())
    return pd.DataFrame(
        {
            "sender": names,
            "effect": effects.mean(1).tolist(),
            "effect_se": [standard_error(values) for values in effects],
            "share": (effects.mean(1) / drop).tolist() if drop else torch.nan,
        }
    )


def _sender(name: str, graph: Graph) -> Sender:
    """A head or an MLP by its name."""
    mlp = re.fullmatch(r"m(\d+)", name)
    return (int(mlp[1]), None) if mlp and name in graph.forward_nodes else _head(name, graph, "senders")


def _head(name: str, graph: Graph, where: str) -> Head:
    head = head_named(name)
    if head is None or name not in graph.forward_nodes:
        last_head, last_mlp = graph.forward_nodes[-2:]
        mlps = f", MLPs m0, ... {last_mlp}" if where == "senders" else ""
        raise UserError(f"{where}: {name!r} is not a head of this model; heads are a0.h0, ... {last_head}{mlps}")
    return head


def _receivers(names: Sequence[str], graph: Graph) -> Receivers | None:
    """Heads and the letter they are entered by; None for the logits."""
    if list(names) == ["logits"]:
        return None
    parts = [name.rstrip(">").partition("<") for name in names]
    letters = [letter for letter in QKV if all(given == letter for _, _, given in parts)]
    if len(letters) != 1:  # No names at all would fit all three.
        raise UserError(
            f"receivers: {', '.join(names) or 'none'}: name 'logits', or heads with one letter, such as 'a1.h0<q>', "
            "'a2.h3<q>'"
        )
    return Receivers(tuple(_head(head, graph, "receivers") for head, _, _ in parts), letters[0])
