"""Signatures of heads: what each head does, in numbers that do not depend on where it stands.

Two models name their heads by chance. To find the same head in both (`utils/comparison/matching.py`), each head needs a
description without its number, and without directions of the residual stream, which differ between seeds by a rotation.
Its numbers are listed in `docs/heads.md#signatures`. Attention takes one forward pass over the prompts. The rest is
read from the results, where it was measured on the same weights. All comes in folds of prompts, so that half of them
can be held out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.choices import QKV
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.model.forward import LayerActivations, embed, forward
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.transfer import checked_at_the_end, to_cpu, to_device
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.scores.folds import KeptFolds

from ..base.errors import UserError
from ..base.files import file_sha256
from ..models.checkpoint import LoadedCheckpoint
from ..results.kinds import KINDS
from ..results.store import Result, ResultsFolder, Store
from ..tasks import Prompts, Task, tasks_of
from .keys import SignaturesConfig
from .needs import require_folds

ROLES = ("first", "previous", "self", "same", "induction")
"""What a key is to a query."""
_READ = ("graphs", "components", "successor", "cspa")

log = logging.getLogger(__name__)


def prepare(config: SignaturesConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> dict[str, Prompts]:
    """The prompts of every task; a UserError if they do not fit the model, or are fewer than the folds."""
    found = {}
    for task in tasks_of(config):
        prompts = task.build(tokenizer, config.n_prompts, config.seed, config)
        prompts.require_fit(task.name, shape)
        require_folds(config, task.name, len(prompts))
        # Tasks take turns between their kinds of prompts, and so would the folds.
        mixed = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(config.seed))
        found[task.name] = prompts.select(mixed)
    return found


def measure(
    checkpoint: LoadedCheckpoint, config: SignaturesConfig, inputs: dict[str, Prompts], task: Task
) -> dict[str, Result]:
    """The signature of every head: a row for each number, and tensors with its folds and attention patterns."""
    weights, prompts = checkpoint.weights, inputs[task.name]
    fold_of = torch.arange(len(prompts)) % config.n_folds
    by_prompt, patterns = attention_roles(weights, prompts, config.batch_size, config.n_patterns)
    folds = {
        f"attention_{role}": torch.stack([of_role[..., fold_of == k].nanmean(-1) for k in range(config.n_folds)])
        for role, of_role in by_prompt.items()
    }
    # A role that only some folds have (a token that comes twice) is no part of the signature.
    folds = {name: of_folds for name, of_folds in folds.items() if not of_folds.isnan().any()}
    read = {kind: _readable(kind, checkpoint, config, task) for kind in _READ}
    if (graphs := read["graphs"]) is not None:
        folds |= _effects(graphs, checkpoint, config, by_prompt)
    scores = _scores(read, checkpoint)
    columns = {}
    for name, of_folds in folds.items():
        shares = (fold_of.bincount() / len(fold_of))[:, None, None]
        mean = (shares * of_folds).sum(0)
        columns[name] = mean, ((shares * (of_folds - mean).square()).sum(0) / (config.n_folds - 1)).sqrt()
    places = pd.MultiIndex.from_product([range(weights.n_layers), range(weights.n_heads)], names=["layer", "head"])
    tables = [
        pd.DataFrame({"score": name, "value": value.flatten().tolist(), "se": error.flatten().tolist()}, places)
        for name, (value, error) in (columns | scores).items()
    ]
    width = -(-len(patterns) // config.n_folds)  # patterns of a fold
    of_folds = torch.zeros(config.n_folds, width, *patterns.shape[1:])
    for number, pattern in enumerate(patterns):
        of_folds[number % config.n_folds, number // config.n_folds] = pattern
    tensors: dict[str, Any] = {
        "folds": torch.stack(list(folds.values()), dim=-1).float(),
        "fold_scores": list(folds),
        "scores": torch.stack([torch.stack(pair) for pair in scores.values()], dim=-1) if scores else None,
        "other_scores": list(scores),
        "patterns": of_folds.movedim(1, 3).flatten(3).half(),
        "n_kv_heads": weights.n_kv_heads,
    }
    table = pd.concat(tables).reset_index()[list(KINDS["signatures"].columns)]
    there = _there(Store(config.results_dir), checkpoint.name, task, checkpoint.step)
    return {"signatures": Result(table, tensors=tensors, json={"read": there})}


def attention_roles(
    weights: ModelWeights, prompts: Prompts, batch_size: int, n_patterns: int = 0
) -> tuple[dict[str, Float[Tensor, "layer head prompt"]], Float[Tensor, "pattern layer head entry"]]:
    """Mean attention of each prompt by role; nan where a prompt has no query with such a key.

    And the patterns of the first prompts, below the diagonal, 0 beyond a prompt's tokens.
    """
    names = [*ROLES, *(f"end_{name}" for name in prompts.positions if name != "end")]
    width = int(prompts.lengths[:n_patterns].max()) if n_patterns else 0
    below = torch.ones(width, width).tril().bool()
    found, patterns = list[Tensor](), list[Tensor]()
    for index in torch.arange(len(prompts)).split(batch_size):
        batch = prompts.select(index)
        masks = _role_masks(batch)  # [role, prompt, query, key]
        has_key = masks.any(-1)
        longest = int(batch.lengths.max())
        shares = (masks / has_key.sum(-1).clamp(min=1)[..., None, None])[..., :longest, :longest]
        on_cpu = PackedTokens.whole(batch.lengths).made_for(weights)
        layout, tokens, shares = to_device((on_cpu, batch.clean, shares), weights.device)
        inside = (shares[ROLES.index("self")] > 0).any(-1)  # the queries of each prompt
        layers, kept = list[Tensor](), list[Tensor]()

        def add(
            layer: LayerActivations,
            shares: Tensor = shares,
            inside: Tensor = inside,
            layers: list[Tensor] = layers,
            kept: list[Tensor] = kept,
            n_kept: int = n_patterns - int(index[0]),
        ) -> None:
            pattern = layer.pattern.float().masked_fill(~inside[:, None, :, None], 0)
            layers.append(torch.einsum("bhqk,rbqk->rhb", pattern, shares))
            if n_kept > 0:
                kept.append(pattern[:n_kept, :, :width, :width].clone())

        with torch.inference_mode(), checked_at_the_end():
            forward(weights, layout, embed(weights, layout, layout.pack(tokens)), visit=add)
            # [role, layer, head, prompt] and [prompt, layer, head, query, key]
            values, of_first = to_cpu((torch.stack(layers, dim=1), torch.stack(kept, dim=1) if kept else None))
        found.append(values.masked_fill(~has_key.any(-1)[:, None, None], torch.nan))
        if of_first is not None:
            square = torch.zeros(*of_first.shape[:3], width, width)
            square[..., : of_first.shape[3], : of_first.shape[4]] = of_first
            patterns.append(square[..., below])
    of_roles = dict(zip(names, torch.cat(found, dim=-1), strict=True))
    return of_roles, torch.cat(patterns) if patterns else torch.zeros(0, weights.n_layers, weights.n_heads, 0)


def _role_masks(prompts: Prompts) -> Bool[Tensor, "role prompt query key"]:
    """Which keys have each role to a query: those of `ROLES`, then each named position as seen from the end."""
    tokens, places = prompts.clean, torch.arange(prompts.clean.shape[1])
    query, key = places[:, None], places[None, :]
    inside = (places < prompts.lengths[:, None])[:, :, None]  # [prompt, query, 1]; later keys have no attention anyway
    equal = tokens[:, :, None] == tokens[:, None, :]
    followed = torch.zeros_like(equal)
    followed[:, :, 1:] = equal[:, :, :-1]
    masks = [
        (key == 0) & (query > 0) & inside,
        (key == query - 1) & inside,
        (key == query) & inside,
        equal & (key < query) & inside,
        followed & (key < query) & inside,
    ]
    at_end = (places == prompts.positions["end"][:, None])[:, :, None]
    for name, position in prompts.positions.items():
        if name != "end":
            masks.append(at_end & (places == position[:, None])[:, None, :] & (key <= query))
    return torch.stack(masks)


def _readable(kind: str, checkpoint: LoadedCheckpoint, config: SignaturesConfig, task: Task) -> ResultsFolder | None:
    """The folder that holds a kind's results of this checkpoint, if they are of the same weights."""
    folder = Store(config.results_dir).folder(kind, checkpoint.name, task.name if kind == "graphs" else None)
    if not folder.has(checkpoint.step):
        return None
    held = folder.read_run().get("checkpoints", {}).get(str(checkpoint.step), {})
    if held.get("sha256") not in (None, checkpoint.provenance["sha256"]):
        log.warning("%s was measured on other weights; left out of the signatures", folder.file(checkpoint.step))
        return None
    return folder


def _effects(
    graphs: ResultsFolder,
    checkpoint: LoadedCheckpoint,
    config: SignaturesConfig,
    attention: Mapping[str, Float[Tensor, "layer head prompt"]],
) -> dict[str, Float[Tensor, "fold layer head"]]:
    """Direct effect of each head, and its sensitivity to heads of each role, by fold of the circuit's prompts.

    A head's role is the one to which it attends most, beside what all heads together attend to it. A UserError if the
    circuit has other folds than this run asks for.
    """
    graph = Graph.of(checkpoint.weights)
    kept = KeptFolds.from_tensors(graphs.read_circuit(checkpoint.step)[1], graph)
    if len(kept.sizes) != config.n_folds:
        raise UserError(
            f"n_folds: the circuits in {graphs.path} have {len(kept.sizes)} folds, this run asks for {config.n_folds}; "
            f"pass n_folds={len(kept.sizes)}, or measure them again: {graphs.how_to_make(overwrite=True)}"
        )
    scores = torch.zeros(config.n_folds, graph.n_forward * graph.n_backward)
    scores[:, kept.edges] = kept.means
    scores = scores.view(config.n_folds, graph.n_forward, graph.n_backward)
    heads = torch.tensor([[graph.head(layer, h) for h in range(graph.n_heads)] for layer in range(graph.n_layers)])
    means = torch.stack([attention[role].nanmean(-1) for role in ROLES]).nan_to_num(0)  # [role, layer, head]
    role_of = (means / means.mean((1, 2), keepdim=True).clamp(min=1e-9)).argmax(0)
    into = torch.stack(
        [
            scores[:, :, [graph.head_input(layer, h, letter) for letter in QKV]].sum(-1)
            for layer in range(graph.n_layers)
            for h in range(graph.n_heads)
        ],
        dim=-1,
    ).unflatten(-1, heads.shape)  # [fold, sender, layer, head]
    found = {"effect": scores[:, heads, graph.logits]}
    return found | {
        f"sensitivity_{role}": into[:, heads[role_of == number]].sum(1) for number, role in enumerate(ROLES)
    }


def _scores(
    read: Mapping[str, ResultsFolder | None], checkpoint: LoadedCheckpoint
) -> dict[str, tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]]:
    """Scores of the other scripts with their standard errors; 0 where a head has none."""
    tables: dict[str, pd.DataFrame] = {}
    if (folder := read["components"]) is not None:
        tables |= {str(name): rows for name, rows in folder.read_table(checkpoint.step).groupby("score")}
    if (folder := read["successor"]) is not None:
        tables["succession"] = folder.read_table(checkpoint.step)
    if (folder := read["cspa"]) is not None:
        tables["copy_suppression"] = (
            folder.read_table(checkpoint.step)
            .drop(columns="value", errors="ignore")
            .rename(columns={"score": "value", "score_se": "se"})
        )
    found = {}
    for name, table in tables.items():
        places = table["layer"].to_numpy(copy=True), table["head"].to_numpy(copy=True)  # torch warns of read-only ones
        values = torch.zeros(2, checkpoint.weights.n_layers, checkpoint.weights.n_heads)
        values[:, *places] = torch.tensor(table[["value", "se"]].fillna(0).to_numpy(dtype="float32").T)
        found[name] = values[0], values[1]
    return found


def outdated(config: SignaturesConfig, store: Store, model: str) -> set[tuple[str, int]]:
    """The tasks and steps whose signatures were made with other results than are there now."""
    found = set[tuple[str, int]]()
    for task in tasks_of(config):
        folder = store.folder("signatures", model, task.name)
        for step in folder.steps():
            if folder.read_json(step)["read"] != _there(store, model, task, step):
                log.info("%s was made with other results than are there now; made again", folder.file(step))
                found.add((task.name, step))
    return found


def _there(store: Store, model: str, task: Task, step: int) -> dict[str, str | None]:
    """The hash of each result that a signature may take something from; None where there is none."""
    folders = {kind: store.folder(kind, model, task.name if kind == "graphs" else None) for kind in _READ}
    return {kind: file_sha256(one.file(step)) if one.has(step) else None for kind, one in folders.items()}
