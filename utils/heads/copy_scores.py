"""Copy and negative copy score of every attention head (Wang et al. 2022, arXiv 2211.00593, section 3.1).

They ask what a head would write if it attended to a name alone. The residual stream after layer 0 at the name's
position goes through the head's own input norm, V and O (with the biases of norm and V), the final norm and the
unembedding. The copy score is the percentage of names that are among the 5 highest logits. The negative copy score is
the same for minus the head's output.

The study (Tigges et al. 2024, arXiv 2407.10827) takes the same path, with both norms folded into the weights and their
scales left out: x - mean(x) takes the place of (x - mean(x)) / s. Its loader moves value biases into the output bias,
which belongs to no head, so they are left out too. Its prompts are those of `prompt_set: study`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits_over_time.edge_attribution_patching.model.forward import Unembedding, clamp, embed, forward
from circuits_over_time.edge_attribution_patching.model.norms import Norm, centred, normalise
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.transfer import to_device
from circuits_over_time.edge_attribution_patching.model.weights import LayerWeights, ModelWeights

from .keys import Definition

TOP_K = 5
"""A name counts as copied if it is among this many of the highest logits (Wang et al. 2022)."""

_CANDIDATES = 512
_LOGITS_AT_ONCE = 2**25


def mean_scores(
    samples: Mapping[str, Float[Tensor, "layer head sample"]],
) -> dict[str, Float[Tensor, "layer head"]]:
    """The mean of each score over its samples, taken in their precision and stored in float32."""
    return {name: of_score.mean(dim=2).float() for name, of_score in samples.items()}


@torch.inference_mode()
def copy_samples(
    weights: ModelWeights,
    tokens: Int[Tensor, "prompt position"],
    lengths: Int[Tensor, " prompt"],
    positions: Int[Tensor, "prompt name"],
    batch_size: int,
    definition: Definition = "standard",
) -> dict[str, Float[Tensor, "layer head prompt"]]:
    """How often each head's OV circuit raises, or lowers, the very token it reads (Wang et al. 2022, section 3.1).

    Args:
        tokens: token ids, padded on the right.
        positions: where the tokens to copy are (in IOI prompts: IO, S1 and S2).
        batch_size: prompts that run through layer 0 at once.
        definition: whether the norms divide by their scale, and values have a bias (`standard`), or not (`study`).

    Returns:
        `copy`, `negative_copy`: percentages of each prompt's positions, in [0, 100], float64. A token that ties with
        others counts as below them, so a head that writes nothing scores 0.
    """
    precise = torch.promote_types(weights.dtype, torch.float32)
    residual = _after_layer_0(weights, tokens, lengths, positions, batch_size).to(precise)
    own = tokens.gather(1, positions).flatten().to(weights.device)

    def seen(norm: Norm, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """What a norm, its gain and bias aside, makes of a residual stream."""
        return centred(norm, x) if definition == "study" else normalise(norm, x)[0]

    # The attention norm before V sees the same whatever the layer; its gain and bias are folded into W_V.
    norm = weights.layers[0].attn_norm
    read = residual if norm is None else seen(norm, residual)
    ranking = _Ranking(weights, own.unique(), seen)
    copied = torch.stack([ranking.in_top_k(_written(layer, read, definition), own) for layer in weights.layers]).cpu()
    by_prompt = 100 * copied.unflatten(3, positions.shape).double().mean(dim=4)
    return {"copy": by_prompt[:, 0], "negative_copy": by_prompt[:, 1]}


def _after_layer_0(
    weights: ModelWeights,
    tokens: Int[Tensor, "prompt position"],
    lengths: Int[Tensor, " prompt"],
    positions: Int[Tensor, "prompt name"],
    batch_size: int,
) -> Float[Tensor, "prompt_x_name d_model"]:
    """The residual stream after layer 0 at the given positions."""
    bottom = replace(weights, n_layers=1, layers=weights.layers[:1])
    residuals = []
    for index in torch.arange(len(tokens)).split(batch_size):
        size = lengths[index].cpu()
        starts = size.cumsum(0) - size  # where each prompt begins among the packed tokens
        places = (starts[:, None] + positions[index].cpu()).flatten()
        on_cpu = PackedTokens.whole(size).made_for(bottom)
        layout, of_batch, places = to_device((on_cpu, tokens[index], places), weights.device)
        x = forward(bottom, layout, embed(weights, layout, layout.pack(of_batch)))
        residuals.append(x[places])
    return torch.cat(residuals)


def _written(
    layer: LayerWeights, read: Float[Tensor, "row d_model"], definition: Definition
) -> Float[Tensor, "head row d_model"]:
    """What each head writes if it attends to one row alone, without the output bias (which belongs to no head)."""
    W_V, b_V, W_O = (weight.to(read.dtype) for weight in (layer.W_V, layer.b_V, layer.W_O_scaled))
    bias = 0 if definition == "study" else b_V[:, None]
    return layer.per_head(clamp(layer, read @ W_V.transpose(1, 2) + bias)) @ W_O


class _Ranking:
    """Whether tokens are among the highest logits, found without computing most logits.

    If `TOP_K` of a few hundred candidates beat a token, it is out, whatever the other logits are. Only what is left,
    few heads and names in practice, is ranked against the whole vocabulary. The answer is exact.

    Args:
        asked: the tokens that will be asked about. They join the candidates, since they are likely to have high logits.
        seen: what the final norm makes of what is written.
    """

    def __init__(
        self, weights: ModelWeights, asked: Int[Tensor, " token"], seen: Callable[[Norm, Tensor], Tensor]
    ) -> None:
        unembedding = Unembedding(weights)
        self.norm, self.gain, self.seen = weights.final_norm, unembedding.gain, seen
        # The gain joins what is read, not the unembedding: that one is left as it is, without a copy.
        unembed = weights.unembed.to(unembedding.dtype)
        # What the logits are without any input: the same for a head's output and its negative.
        offset = unembedding.bias(slice(None))
        everything = torch.arange(weights.d_vocab, device=weights.device)
        candidates = torch.cat((asked, everything[:: max(weights.d_vocab // _CANDIDATES, 1)])).unique()
        self.candidates = (candidates, unembed[candidates], offset[candidates])
        self.everything = (everything, unembed, offset)

    def in_top_k(
        self, written: Float[Tensor, "head row d_model"], own: Int[Tensor, " row"]
    ) -> Bool[Tensor, "2 head row"]:
        """Whether each row's own token is in the top k of what a head writes, and of minus that."""
        n_heads, n_rows, d_model = written.shape
        directions = self.seen(self.norm, written.reshape(-1, d_model)) * self.gain
        directions = torch.cat((directions, -directions))
        own = own.repeat(2 * n_heads)
        # Whoever fails among the candidates is out for good; whoever passes is asked again among all tokens.
        undecided = _in_top_k(directions, own, *self.candidates)
        for rows in undecided.nonzero()[:, 0].split(max(_LOGITS_AT_ONCE // len(self.everything[0]), 1)):
            undecided[rows] = _in_top_k(directions[rows], own[rows], *self.everything)
        return undecided.view(2, n_heads, n_rows)


def _in_top_k(
    directions: Float[Tensor, "row d_model"],
    own: Int[Tensor, " row"],
    among: Int[Tensor, " token"],
    unembed: Float[Tensor, "token d_model"],
    offset: Float[Tensor, " token"],
) -> Bool[Tensor, " row"]:
    """Whether each row's own token is in the top k of some tokens (sorted, with its own). Ties count against it."""
    logits = torch.addmm(offset, directions, unembed.T)
    value = logits.gather(1, torch.searchsorted(among, own)[:, None])
    return (logits >= value).sum(dim=1) <= TOP_K
