"""Backup behaviour: what brings back the logit difference when the name movers are ablated.

Wang et al. 2022 (arXiv 2211.00593, section 3.4) found it. McGrath et al. 2023 (arXiv 2307.15771, "The Hydra effect")
measured it by direct effects. Here all name movers together have to write something else at the last token. Everything
after them is recomputed, and the direct effect of every part of the model is measured before and after.

A part's direct effect is what it adds to the logit difference itself: what it writes at the last token, along the
difference of the two answers' unembedding directions, at the scale of the final norm in the clean run. With that scale
held, what the name movers add less is `lost`. What all other parts then add more or less, and what the change of the
final norm's own scale adds, is what comes back:

    LD_ablated - LD_clean = heads + mlps + final_norm - lost        came_back = 100 * (heads + mlps + final_norm) / lost

The same can be asked of any set of heads, and of each head by itself (`backup_of`). The change of a head's direct
effect leaves out what it makes others write. So the heads that bring back most are frozen at what they write in the
clean run, one at a time, and all else is recomputed again: what comes back less then came back from that head. A set
takes a pass for the ablation and one for each of the FROZEN heads, at the last tokens alone; all share their prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.patching.forward import HeadAttention, evaluate_masks_final
from circuits_over_time.edge_attribution_patching.patching.paths import Head, recompute_mask
from circuits_over_time.edge_attribution_patching.patching.plan import ActivationOverrides
from circuits_over_time.edge_attribution_patching.patching.runs import PreparedRuns, RunActivations

from ..results.kinds import IOI_BACKUP, ROLES
from .effects import PairedRuns
from .keys import NAME_MOVERS, ablated_sets
from .roles import Roles, holders
from .shares import Scale
from .tables import typed_table

Ablation = Literal["mean", "corrupted"]
OfPrompts = Float[Tensor, " prompt"]
FROZEN = 2
"""How many heads are frozen, one at a time."""


@dataclass(frozen=True)
class DirectEffects:
    """Parts of every prompt's logit difference, at the norm scale of the clean run: first as they are in the clean run,
    then how they change by ablation.
    """

    heads: Float[Tensor, "2 layer head prompt"]
    mlps: Float[Tensor, "2 prompt"]
    final_norm: Float[Tensor, "2 prompt"]  # what the change of the final norm's scale adds; nan in the clean run
    logit_diff: Float[Tensor, "2 prompt"]


def direct_effects(runs: PairedRuns, ablated: Sequence[Head], ablation: Ablation) -> DirectEffects:
    """Every part's direct effect, and how it changes when all of some heads are ablated at the last token."""
    given_at = _given(runs, ablated, ablation)
    graph, layers = runs.graph, runs.weights.layers
    device, dtype = runs.weights.device, torch.promote_types(runs.weights.dtype, torch.float32)
    # Filled on the device, and copied once.
    heads = torch.zeros(2, graph.n_layers, graph.n_heads, runs.n_prompts, dtype=dtype, device=device)
    mlps = torch.zeros(graph.n_layers, runs.n_prompts, dtype=dtype, device=device)
    clean, after, written = torch.zeros(3, runs.n_prompts, dtype=dtype, device=device)
    for end in runs.at_answers():
        index, base = end.batch.index, end.base

        def direct(written: Tensor, base: RunActivations = base, index: Tensor = index) -> Tensor:
            """What [*stack, prompt, d_model] adds to the logit difference, [*stack, prompt]."""
            return runs.logit_difference.of_part(written, base.final, index)

        def direct_of(layer: int, written: Float[Tensor, "prompt head d_head"], which: slice | Tensor) -> Tensor:
            """The same for what some heads of a layer write, [head, prompt]."""
            return direct(torch.bmm(written.transpose(0, 1), layers[layer].W_O_scaled[which]).to(device))

        def observe(attended: HeadAttention, base: RunActivations = base, index: Tensor = index) -> None:
            """Note how the direct effects of a layer's recomputed heads change."""
            layer, which = attended.layer, attended.there
            change = attended.written[0] - base.layers[layer].written[:, which]
            heads[1, layer][which.to(device)[:, None], index] = direct_of(layer, change, which)

        # Before: what every part writes in the clean run, along the difference of the answers.
        for layer, run in enumerate(base.layers):
            heads[0, layer][:, index] = direct_of(layer, run.written, slice(None))
            mlps[layer, index] = direct(run.mlp_out.to(device))
        # That is how the ablated heads' own effects change.
        given = given_at(end)
        for layer, head in ablated:
            change = given[graph.head(layer, head)][0] - base.layers[layer].written[:, head]
            heads[1, layer, head, index] = direct_of(layer, change[:, None], slice(head, head + 1))[0]
        # After: the patched forward tells how the heads behind them change.
        mask, overrides, budget = recompute_mask(graph)[None], ActivationOverrides(outputs=given), runs.memory_budget_gb
        [final] = evaluate_masks_final(
            runs.weights, end, mask, overrides=overrides, memory_budget_gb=budget, observe=observe
        )
        clean[index], after[index] = runs.logit_difference(torch.stack((base.final, final)), index)
        written[index] = direct(final - base.final)
    parts = (heads.flatten(0, 2), mlps, torch.stack((clean, after, written)))
    of_heads, of_mlps, of_all = torch.cat(parts).cpu().double().split([len(part) for part in parts])
    change = of_all[1] - of_all[0]
    of_heads = of_heads.view(heads.shape)
    # At the clean scale everything written adds up. The rest of the change is the scale's, and what heads do not
    # explain of the former is the MLPs'.
    by_mlps = torch.stack((of_mlps.sum(0), of_all[2] - of_heads[1].sum(dim=(0, 1))))
    by_norm = torch.stack((torch.full_like(change, torch.nan), change - of_all[2]))
    return DirectEffects(of_heads, by_mlps, by_norm, torch.stack((of_all[0], change)))


def with_each_frozen(
    runs: PairedRuns, ablated: Sequence[Head], ablation: Ablation, frozen: Sequence[Head]
) -> Float[Tensor, "frozen prompt"]:
    """The logit difference when heads are ablated and each of some others, in turn, writes as in the clean run."""
    given_at = _given(runs, ablated, ablation)
    masks = recompute_mask(runs.graph).repeat(len(frozen), 1, 1)
    for mask, head in zip(masks, frozen, strict=True):
        mask[runs.graph.head(*head)] = False  # Whatever it writes else, nothing reads it.
    dtype = torch.promote_types(runs.weights.dtype, torch.float32)
    values = torch.zeros(len(frozen), runs.n_prompts, dtype=dtype, device=runs.weights.device)
    for end in runs.at_answers():
        given = ActivationOverrides(outputs=given_at(end))
        final = evaluate_masks_final(runs.weights, end, masks, overrides=given, memory_budget_gb=runs.memory_budget_gb)
        values[:, end.batch.index] = runs.logit_difference(final, end.batch.index)
    return values.cpu().double()


def _given(
    runs: PairedRuns, ablated: Sequence[Head], ablation: Ablation
) -> Callable[[PreparedRuns], dict[int, Float[Tensor, "1 prompt d_head"]]]:
    """What ablated heads write instead in each batch, by their nodes, before W_O_scaled.

    That is the mean of what they write at the answers of the clean prompts, or what they write in the source run.
    """
    means: dict[Head, Tensor] = {}
    for end in runs.at_answers() if ablation == "mean" else ():
        for layer, head in ablated:
            total = end.base.layers[layer].written[:, head].sum(dim=0)
            means[layer, head] = means[layer, head] + total if (layer, head) in means else total

    def given(end: PreparedRuns) -> dict[int, Tensor]:
        of_source = {head: end.source.layers[head[0]].written[:, head[1]] for head in ablated}
        instead = {head: means[head] / runs.n_prompts for head in means}
        return {
            runs.graph.head(*head): instead.get(head, written).expand_as(written)[None]
            for head, written in of_source.items()
        }

    return given


def backup_table(
    runs: PairedRuns,
    roles: Roles,
    ablation: Ablation,
    scale: Scale,
    backup_of: Sequence[str | list[str]] = (NAME_MOVERS,),
) -> pd.DataFrame:
    """The table of kind `ioi_backup`, set by set: parts of the model first, then heads.

    All heads are listed for the name movers, by their `roles` at the first level; for other sets those that are frozen.
    """
    of_role, rows = {name: holders(roles, name) for name in ROLES[:3]}, []
    for name, heads in ablated_sets(backup_of, runs.graph, of_role).items():
        nothing = [{"part": "all", "reason": f"there are no {name.replace('_', ' ')}s to ablate"}]
        of_set = _rows_of(runs, name, heads, roles, ablation, scale) if heads else nothing
        rows += [row | {"ablated": name} for row in of_set]
    return typed_table(rows, IOI_BACKUP)


def _rows_of(
    runs: PairedRuns, name: str, heads: Sequence[Head], roles: Roles, ablation: Ablation, scale: Scale
) -> list[dict[str, Any]]:
    """The rows of one set."""
    effects = direct_effects(runs, heads, ablation)
    ablated = torch.zeros(effects.heads.shape[1:3], dtype=torch.bool)
    ablated[tuple(torch.tensor(heads).T)] = True
    lost = -effects.heads[1, ablated].sum(dim=0)
    whole = name == NAME_MOVERS
    what = "the name movers" if whole else name
    reason = None if float(lost.mean()) > 0 else f"ablating {what} loses nothing directly"
    # Effect, change, and what of the change brings back what is lost.
    others = effects.heads[:, ~ablated].sum(dim=1)
    parts = {
        "all": (*effects.logit_diff, effects.logit_diff[1] + lost),
        "name_movers" if whole else "ablated": (*effects.heads[:, ablated].sum(dim=1), None),
        "heads": (*others, others[1]),
        "mlps": (*effects.mlps, effects.mlps[1]),
        "final_norm": (*effects.final_norm, effects.final_norm[1]),
    }
    about = {"n_ablated": len(heads), "ablation": ablation}
    rows = [
        {"part": part, **about, "reason": reason, **_row(scale, effect, change, None if reason else back, lost)}
        for part, (effect, change, back) in parts.items()
    ]
    rises = effects.heads[1].mean(dim=-1).masked_fill(ablated, 0)
    strongest = [divmod(int(place), rises.shape[1]) for place in rises.flatten().argsort(descending=True)[:FROZEN]]
    frozen = [head for head in strongest if rises[head] > 0 and reason is None]
    without = with_each_frozen(runs, heads, ablation, frozen) if frozen else ()
    less = {head: effects.logit_diff.sum(dim=0) - left for head, left in zip(frozen, without, strict=True)}
    for layer, head in torch.ones_like(ablated).nonzero().tolist() if whole else frozen:
        role, (effect, change) = roles.get((layer, head)), effects.heads[:, layer, head]
        back = None if ablated[layer, head] or reason is not None else change
        held = role.name if role is not None and role.passes else ""
        row = {"part": "head", "layer": layer, "head": head, **about, "role": held}
        row |= _row(scale, effect, change, back, lost)
        if (layer, head) in less:
            row |= _share(scale, "from_head", less[layer, head], lost)
        rows.append(row)
    return rows


def without_backup(reason: str) -> pd.DataFrame:
    """The table if nothing is measured."""
    return typed_table([{"part": "all", "reason": reason}], IOI_BACKUP)


def _row(scale: Scale, effect: OfPrompts, change: OfPrompts, back: OfPrompts | None, lost: OfPrompts) -> dict[str, Any]:
    """Means over prompts, and the share of what is lost that comes back, unless `back` is None."""
    bootstrap = scale.bootstrap
    row = {"direct_effect": float(effect.mean()), "direct_effect_ablated": float((effect + change).mean())}
    row |= {"change": float(change.mean()), "change_se": float(bootstrap.error(bootstrap.means(change)))}
    return row if back is None else row | _share(scale, "came_back", back, lost)


def _share(scale: Scale, name: str, back: OfPrompts, lost: OfPrompts) -> dict[str, float]:
    """What of the loss comes back, in percent, and the ends of its interval."""
    low, high = scale.interval(100 * scale.bootstrap.means(back) / scale.bootstrap.means(lost))
    return {name: 100 * float(back.mean() / lost.mean()), f"{name}_low": low, f"{name}_high": high}
