"""Attention to the three names in IOI prompts: by every head as the model runs, and by watched heads under patching."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits_over_time.edge_attribution_patching.model.forward import LayerActivations, embed, forward
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.transfer import checked_at_the_end, to_cpu, to_device
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
        for layout, of_batch, (prompt, query, name) in to_device(on_cpu, weights.device):
            layers: list[Tensor] = []

            def add(
                layer: LayerActivations,
                layers: list[Tensor] = layers,
                prompt: Tensor = prompt,
                query: Tensor = query,
                name: Tensor = name,
            ) -> None:
                # Gathered layer by layer, so that no pattern outlives its layer.
                from_queries = layer.pattern.transpose(1, 2)[prompt, query]  # [prompt, query, head, key]
                layers.append(from_queries.gather(3, name.expand(*from_queries.shape[:3], -1)).float())

            forward(weights, layout, embed(weights, layout, layout.pack(of_batch)), visit=add)
            found.append(torch.stack(layers))
        by_prompt = to_cpu(torch.cat(found, dim=1)).permute(2, 4, 0, 3, 1).contiguous()
    return by_prompt, by_prompt.mean(dim=-1)


class AttentionWatch:
    """The attention of some heads from the answer's token, under every mask of a patched forward of `at_answers` runs.

    Args:
        positions: where the tokens attended to are.
        n_masks: how many masks the patched forward has.

    Attributes:
        attention: fills up as batches run; zero if a head is not recomputed.
    """

    def __init__(self, heads: Sequence[Head], positions: Int[Tensor, "prompt name"], n_masks: int) -> None:
        self._columns = {head: column for column, head in enumerate(heads)}
        self._positions = positions
        shape = (n_masks, len(heads), *positions.shape)
        self.attention: Float[Tensor, "mask head prompt name"] = torch.zeros(shape, device=positions.device)

    def observe(self, index: Int[Tensor, " prompt"], attended: HeadAttention) -> None:
        """Take over what a layer attends to; `index` says which prompts the batch holds."""
        pattern = attended.pattern[:, :, :, 0]  # [mask, prompt, head, key]
        keys = self._positions[index][None, :, None, :].expand(len(pattern), -1, pattern.shape[2], -1)
        to_names = pattern.gather(3, keys).to(self.attention.dtype)
        # A stack of masks may come in parts, and recomputes heads that nobody watches.
        columns = [self._columns.get((attended.layer, head), -1) for head in attended.heads]
        watched = torch.tensor([(place, column) for place, column in enumerate(columns) if column >= 0])
        if len(watched):
            masks, (places, watched_columns) = to_device((attended.masks, watched.T), index.device)
            here = masks[:, None, None], watched_columns[:, None], index
            self.attention[here] = to_names[:, :, places].transpose(1, 2)
