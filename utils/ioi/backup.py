"""Backup behaviour: what brings back the logit difference when the name movers are ablated.

Wang et al. 2022 (arXiv 2211.00593, section 3.4) found that other heads take over when name movers are knocked out.
McGrath et al. 2023 (arXiv 2307.15771, "The Hydra effect") measured such compensation by direct effects. Here all name
movers together have to write something else at the last token: their mean over the clean prompts, or what they write in
the corrupted prompt. Everything after them is recomputed, and the direct effect of every part of the model is measured
before and after.

A part's direct effect is what it adds to the logit difference itself: what it writes at the last token, along the
difference of the two answers' unembedding directions, at the scale of the final norm in the clean run. With that scale
held, what the name movers add less is `lost`. What all other parts then add more or less, and what the change of the
final norm's own scale adds, is what comes back:

    LD_ablated - LD_clean = heads + mlps + final_norm - lost        came_back = 100 * (heads + mlps + final_norm) / lost
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits_over_time.edge_attribution_patching.patching.forward import HeadAttention, evaluate_masks_final
from circuits_over_time.edge_attribution_patching.patching.paths import Head, recompute_mask
from circuits_over_time.edge_attribution_patching.patching.plan import ActivationOverrides
from circuits_over_time.edge_attribution_patching.patching.runs import PreparedRuns, at_answers

from ..results.kinds import IOI_BACKUP
from .effects import PairedRuns
from .roles import Roles, holders
from .shares import Scale

Ablation = Literal["mean", "corrupted"]


@dataclass(frozen=True)
class DirectEffects:
    """Parts of every prompt's logit difference, at the norm scale of the clean run, and how they change by ablation.

    Attributes:
        final_norm_change: what the change of the final norm's scale adds.
    """

    heads: Float[Tensor, "layer head prompt"]
    heads_change: Float[Tensor, "layer head prompt"]
    mlps: Float[Tensor, " prompt"]
    mlps_change: Float[Tensor, " prompt"]
    final_norm_change: Float[Tensor, " prompt"]
    logit_diff: Float[Tensor, " prompt"]
    logit_diff_change: Float[Tensor, " prompt"]


def direct_effects(runs: PairedRuns, ablated: Sequence[Head], ablation: Ablation) -> DirectEffects:
    """Every part's direct effect, and how it changes when all of some heads are ablated at the last token."""
    means = _means(runs, ablated) if ablation == "mean" else {}
    graph, n = runs.graph, runs.n_prompts
    heads, heads_change = torch.zeros(2, graph.n_layers, graph.n_heads, n, dtype=torch.float64)
    mlps, mlps_change, norm_change, whole, whole_change = torch.zeros(5, n, dtype=torch.float64)
    for prepared in runs:
        index, end = prepared.batch.index, at_answers(prepared)
        at = index.cpu()
        direct = _Parts(runs, end, index, heads_change)
        # What the ablated heads write instead, by their nodes.
        given = {
            graph.head(*head): (
                means[head].expand(len(index), -1) if means else end.source.layers[head[0]].written[:, head[1]]
            )
            for head in ablated
        }
        # Before: what every part writes in the clean run, along the difference of the answers.
        for layer, run in enumerate(end.base.layers):
            heads[layer][:, at] = direct.of_heads(layer, run.written, torch.arange(graph.n_heads))
            mlps[at] += direct.of(run.mlp_out)
        # After: the ablated heads' change is known; the patched forward tells that of the heads behind them.
        for layer, head in ablated:
            change = given[graph.head(layer, head)] - end.base.layers[layer].written[:, head]
            heads_change[layer, head, at] = direct.of_heads(layer, change[:, None], torch.tensor([head]))[0]

        final = evaluate_masks_final(
            runs.weights,
            end,
            recompute_mask(graph)[None],
            overrides=ActivationOverrides(outputs={node: written[None] for node, written in given.items()}),
            memory_budget_gb=runs.memory_budget_gb,
            observe=direct.observe,
        )[0]
        before, after = runs.logit_difference(torch.stack((end.base.final, final)), index).double().cpu()
        # At the clean scale everything written adds up. The rest of the change is the scale's, and what heads do not
        # explain of the former is the MLPs'.
        written = direct.of(final - end.base.final)
        whole[at], whole_change[at] = before, after - before
        norm_change[at] = after - before - written
        mlps_change[at] = written - heads_change[:, :, at].sum(dim=(0, 1))
    return DirectEffects(heads, heads_change, mlps, mlps_change, norm_change, whole, whole_change)


class _Parts:
    """Direct effects of what is written at the answers of one batch."""

    def __init__(
        self,
        runs: PairedRuns,
        end: PreparedRuns,
        index: Int[Tensor, " prompt"],
        heads_change: Float[Tensor, "layer head prompt"],
    ) -> None:
        self.runs, self.base, self.index, self.heads_change = runs, end.base, index, heads_change

    def of(self, written: Float[Tensor, "*stack prompt d_model"]) -> Float[Tensor, "*stack prompt"]:
        return self.runs.logit_difference.of_part(written, self.base.final, self.index).double().cpu()

    def of_heads(
        self, layer: int, written: Float[Tensor, "prompt head d_head"], heads: Int[Tensor, " head"]
    ) -> Float[Tensor, "head prompt"]:
        return self.of(torch.bmm(written.transpose(0, 1), self.runs.weights.layers[layer].W_O_scaled[heads]))

    def observe(self, attended: HeadAttention) -> None:
        """Note how the direct effects of a layer's recomputed heads change."""
        layer, heads = attended.layer, attended.heads
        change = attended.written[0] - self.base.layers[layer].written[:, heads]
        self.heads_change[layer, heads[:, None], self.index.cpu()[None]] = self.of_heads(layer, change, heads)


def _means(runs: PairedRuns, heads: Sequence[Head]) -> dict[Head, Float[Tensor, " d_head"]]:
    """What each head writes at the answer, before W_O_scaled, as the mean over the clean prompts."""
    totals: dict[Head, Tensor] = {}
    for prepared in runs:
        end = at_answers(prepared)
        for head in heads:
            total = end.base.layers[head[0]].written[:, head[1]].sum(dim=0)
            totals[head] = totals[head] + total if head in totals else total
    return {head: total / runs.n_prompts for head, total in totals.items()}


def backup_table(runs: PairedRuns, roles: Roles, ablation: Ablation, scale: Scale) -> pd.DataFrame:
    """The table of kind `ioi_backup`: parts of the model first, then every head.

    Heads that hold `name_mover` in `roles`, those of the first level, are ablated.
    """
    movers = holders(roles, "name_mover")
    if not movers:
        return without_backup("there are no name movers to ablate")
    effects = direct_effects(runs, movers, ablation)
    ablated = torch.zeros(effects.heads.shape[:2], dtype=torch.bool)
    ablated[tuple(torch.tensor(movers).T)] = True
    lost = -effects.heads_change[ablated].sum(dim=0)
    reason = None if float(lost.mean()) > 0 else "ablating the name movers loses nothing directly"
    parts = {
        "all": (effects.logit_diff, effects.logit_diff_change, effects.logit_diff_change + lost),
        "name_movers": (effects.heads[ablated].sum(dim=0), -lost, None),
        "heads": _twice(effects.heads[~ablated].sum(dim=0), effects.heads_change[~ablated].sum(dim=0)),
        "mlps": _twice(effects.mlps, effects.mlps_change),
        "final_norm": _twice(torch.full_like(lost, torch.nan), effects.final_norm_change),
    }
    rows = [
        {"part": name, "n_ablated": len(movers), "ablation": ablation, "reason": reason}
        | _row(scale, effect, change, back if reason is None else None, lost)
        for name, (effect, change, back) in parts.items()
    ]
    for layer, head in torch.ones_like(ablated).nonzero().tolist():
        role = roles.get((layer, head))
        effect, change = effects.heads[layer, head], effects.heads_change[layer, head]
        back = None if ablated[layer, head] or reason is not None else change
        row = {"part": "head", "layer": layer, "head": head, "n_ablated": len(movers), "ablation": ablation}
        row |= {"role": role.name if role is not None and role.passes else ""}
        rows.append(row | _row(scale, effect, change, back, lost))
    return _table(rows)


def without_backup(reason: str) -> pd.DataFrame:
    """The table if nothing is measured."""
    return _table([{"part": "all", "reason": reason}])


def _twice(effect: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return effect, change, change


def _row(
    scale: Scale,
    effect: Float[Tensor, " prompt"],
    change: Float[Tensor, " prompt"],
    back: Float[Tensor, " prompt"] | None,
    lost: Float[Tensor, " prompt"],
) -> dict[str, Any]:
    """Means over prompts, and the share of what is lost that comes back, unless `back` is None."""
    bootstrap = scale.bootstrap
    row = {"direct_effect": float(effect.mean()), "direct_effect_ablated": float((effect + change).mean())}
    row |= {"change": float(change.mean()), "change_se": float(bootstrap.error(bootstrap.means(change)))}
    if back is None:
        return row
    low, high = scale.interval(100 * bootstrap.means(back) / bootstrap.means(lost))
    return row | {"came_back": 100 * float(back.mean() / lost.mean()), "came_back_low": low, "came_back_high": high}


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(IOI_BACKUP.columns))
    words = ("definitions", "part", "role", "ablation", "reason")
    counts = ("layer", "head", "n_ablated")
    numbers = [name for name in table if name not in (*words, *counts)]
    return table.astype(dict.fromkeys(numbers, "float64") | dict.fromkeys(counts, "Int64"))
