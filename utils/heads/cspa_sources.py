"""Which sources copy-suppression-preserving ablation keeps at each destination; `utils/heads/cspa.py` defines it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Cspa:
    """What is kept of a head.

    Attributes:
        interventions: `ov` keeps the part along the source's unembedding, `qk` keeps predicted sources.
        k_unembeddings: of the qk intervention, the share of a position's place in (0, 1].
        keep_self_attention: whether a position's own token counts as one of its sources.
        negative_only: of the ov intervention, keep a component only where it lowers the source's logit.
        start_layer: first layer whose heads are scored.
    """

    interventions: Sequence[Literal["ov", "qk"]] = ("ov", "qk")
    k_unembeddings: float = 0.05
    keep_self_attention: bool = True
    negative_only: bool = True
    start_layer: int = 0

    def __post_init__(self) -> None:
        if not self.interventions or not set(self.interventions) <= {"ov", "qk"}:
            raise ValueError(f"interventions={self.interventions}: name ov, qk or both")
        if not 0 < self.k_unembeddings <= 1:
            raise ValueError(f"k_unembeddings={self.k_unembeddings} is not in (0, 1]")

    def n_kept(self, seq_len: int) -> list[int]:
        """K at each position; the fraction is taken as it is written, so that 0.07 of 100 is 7."""
        fraction = Fraction(str(self.k_unembeddings))
        return [math.ceil(fraction * place) for place in range(1, seq_len + 1)]


def kept_sources(
    predicted: Float[Tensor, "sequence query key"],
    tokens: Int[Tensor, "sequence position"],
    function_tokens: Int[Tensor, " token"],
    settings: Cspa,
) -> Bool[Tensor, "sequence query key"]:
    """Which sources each position keeps; of different tokens that tie for the last of the K places, all.

    Args:
        predicted: logit at the query of the key's token.
        tokens: the sequences.
        function_tokens: never kept by qk.
        settings: what is kept.
    """
    seq_len = tokens.shape[1]
    causal = torch.ones(seq_len, seq_len, dtype=torch.bool, device=tokens.device)
    causal = causal.tril(diagonal=0 if settings.keep_self_attention else -1)
    if "qk" not in settings.interventions:
        return causal.expand_as(predicted)
    possible = causal & ~torch.isin(tokens, function_tokens)[:, None]
    first = first_places(tokens)
    # A repeated token has one logit, taken at its first place so that rounding cannot split its places.
    logits = predicted.gather(2, first[:, None].expand_as(predicted)).masked_fill(~possible, -math.inf)
    is_first = first == torch.arange(seq_len, device=tokens.device)
    ranked = logits.masked_fill(~is_first[:, None], -math.inf).sort(dim=2, descending=True).values
    last_kept = torch.tensor(settings.n_kept(seq_len), device=tokens.device) - 1
    threshold = ranked.gather(2, last_kept[None, :, None].expand(len(tokens), -1, 1))
    return possible & (logits >= threshold)


def first_places(tokens: Int[Tensor, "sequence position"]) -> Int[Tensor, "sequence position"]:
    """The first position of each token's id in its sequence."""
    return (tokens[:, :, None] == tokens[:, None, :]).int().argmax(dim=2)
