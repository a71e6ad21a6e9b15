"""Which sources copy-suppression-preserving ablation keeps at each destination; `cspa_scores.py` defines it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .keys import Ablation


def kept_sources(
    predicted: Float[Tensor, "sequence query key"],
    tokens: Int[Tensor, "sequence position"],
    function_tokens: Int[Tensor, " token"],
    settings: Ablation,
) -> Bool[Tensor, "sequence query key"]:
    """Which sources each position keeps. If different tokens tie for the last of the K places, it keeps all of them.

    Args:
        predicted: at each query, the logit of each key's token.
        tokens: the sequences.
        function_tokens: tokens that qk never keeps.
        settings: what to keep.
    """
    seq_len = tokens.shape[1]
    causal = torch.ones(seq_len, seq_len, dtype=torch.bool, device=tokens.device)
    causal = causal.tril(diagonal=0 if settings.keep_self_attention else -1)
    if "qk" not in settings.interventions:
        return causal.expand_as(predicted)
    possible = causal & ~torch.isin(tokens, function_tokens)[:, None]
    first = first_places(tokens)
    # A repeated token has one logit, taken at its first place, so that rounding cannot tell its places apart.
    logits = predicted.gather(2, first[:, None].expand_as(predicted)).masked_fill(~possible, -math.inf)
    is_first = first == torch.arange(seq_len, device=tokens.device)
    ranked = logits.masked_fill(~is_first[:, None], -math.inf).sort(dim=2, descending=True).values
    last_kept = torch.tensor(settings.n_kept(seq_len), device=tokens.device) - 1
    threshold = ranked.gather(2, last_kept[None, :, None].expand(len(tokens), -1, 1))
    return possible & (logits >= threshold)


def first_places(tokens: Int[Tensor, "sequence position"]) -> Int[Tensor, "sequence position"]:
    """The first position of each token's id in its sequence."""
    return (tokens[:, :, None] == tokens[:, None, :]).int().argmax(dim=2)
