"""Attention to the three names in IOI prompts: by every head as the model runs, and by watched heads under patching."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits_over_time.edge_attribution_patching.model.forward import LayerActivations, embed, forward
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
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
    total = torch.zeros(queries.shape[1], names.shape[1], weights.n_layers, weights.n_heads)
    by_prompt = torch.zeros(*total.shape, len(tokens))
    for index in torch.arange(len(tokens), device=tokens.device).split(batch_size):
        layout = PackedTokens.whole(lengths[index])
        rows = torch.arange(len(index), device=tokens.device)[:, None]

        def add(layer: LayerActivations, index: Tensor = index, rows: Tensor = rows) -> None:
            from_queries = layer.pattern.transpose(1, 2)[rows, queries[index]]  # [prompt, query, head, key]
            keys = names[index][:, None, None].expand(*from_queries.shape[:3], -1)
            seen = from_queries.gather(3, keys).float()  # [prompt, query, head, name]
            # Gathered layer by layer, so that no pattern outlives its layer.
            total[:, :, layer.layer] += seen.sum(dim=0).transpose(1, 2).cpu()
            by_prompt[:, :, layer.layer, :, index.cpu()] = seen.permute(1, 3, 2, 0).cpu()

        with torch.no_grad():
            forward(weights, layout, embed(weights, layout, layout.pack(tokens[index])), visit=add)
    return by_prompt, total / len(tokens)


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
        masks = attended.masks.to(index.device)[:, None]
        # A stack of masks may come in parts, and recomputes heads that nobody watches.
        for place, head in enumerate(attended.heads.tolist()):
            if (column := self._columns.get((attended.layer, head))) is not None:
                self.attention[masks, column, index[None]] = to_names[:, :, place]
