"""Attention to the three names in IOI prompts: by every head as the model runs, and by watched heads under patching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits_over_time.edge_attribution_patching.model.forward import LayerActivations, embed, forward
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.pairs import PairBatch
from circuits_over_time.edge_attribution_patching.model.transfer import Movable, checked_at_the_end, to_cpu, to_device
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.patching.forward import HeadAttention
from circuits_over_time.edge_attribution_patching.patching.paths import Head

NAMES = ("io", "s1", "s2")
"""The positions that attention is reported for."""


def name_attention(
    weights: ModelWeights,
    tokens: Int[Tensor, "prompt position"],
    lengths: Int[Tensor, " prompt"],
    queries: Int[Tensor, "prompt query"],
    names: Int[Tensor, "prompt name"],
    batch_size: int,
) -> tuple[Float[Tensor, "query name layer head prompt"], Float[Tensor, "query name layer head"]]:
    """Attention of every head from some positions of each prompt to others, in [0, 1]; and its mean over prompts."""
    on_cpu = []
    for index in torch.arange(len(tokens)).split(batch_size):
        rows = torch.arange(len(index))[:, None], queries[index], names[index][:, None, None]
        on_cpu.append((PackedTokens.whole(lengths[index]).made_for(weights), tokens[index], rows))
    found = list[Tensor]()
    with torch.no_grad(), checked_at_the_end():
        for layout, of_batch, rows in to_device(on_cpu, weights.device):
            layers: list[Tensor] = []

            def add(layer: LayerActivations, layers: list[Tensor] = layers, rows: tuple[Tensor, ...] = rows) -> None:
                # Gathered layer by layer, so that no pattern outlives its layer.
                prompt, query, name = rows
                from_queries = layer.pattern.transpose(1, 2)[prompt, query]  # [prompt, query, head, key]
                layers.append(from_queries.gather(3, name.expand(*from_queries.shape[:3], -1)).float())

            forward(weights, layout, embed(weights, layout, layout.pack(of_batch)), visit=add)
            found.append(torch.stack(layers))
        by_prompt = to_cpu(torch.cat(found, dim=1)).permute(2, 4, 0, 3, 1).contiguous()
    return by_prompt, by_prompt.mean(dim=-1)


class AttentionWatch(Movable):
    """The attention of some heads from the answer's token, under every mask of a patched forward `at_answers`."""

    def __init__(self, heads: Sequence[Head], positions: Int[Tensor, "prompt name"], n_masks: int) -> None:
        self._columns = {head: column for column, head in enumerate(heads)}
        self._positions, self._shape = positions, (n_masks, len(heads), *positions.shape)  # on the model's device
        self.seen: list[tuple[Any, ...]] = []  # what each layer of each batch attended to

    def observe(self, batch: PairBatch, attended: HeadAttention) -> None:
        """Take over what a layer attends to."""
        # A stack of masks recomputes heads that nobody watches, too.
        columns = [self._columns.get((attended.layer, head), -1) for head in attended.heads]
        if max(columns) >= 0:
            pattern = attended.pattern[:, :, :, 0].to(self._positions.device)  # [mask, prompt, head, key]
            keys = self._positions[batch.index][None, :, None, :].expand(len(pattern), -1, pattern.shape[2], -1)
            self.seen.append((attended.masks, columns, batch.rows, pattern.gather(3, keys).float()))

    def attention(self) -> Float[Tensor, "mask head prompt name"]:
        """Of all that was `seen`, once that is on the CPU; zero where a head was not recomputed."""
        attention = torch.zeros(self._shape)
        for masks, columns, rows, to_names in self.seen:
            for place, column in enumerate(columns):
                if column >= 0:
                    attention[masks[:, None], column, torch.from_numpy(rows)] = to_names[:, :, place]
        return attention
