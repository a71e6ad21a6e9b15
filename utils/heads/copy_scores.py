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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits_over_time.edge_attribution_patching.model.forward import Unembedding, clamp, embed, forward
from circuits_over_time.edge_attribution_patching.model.norms import Norm, centred, normalise
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.transfer import checked_at_the_end, to_cpu, to_device
from circuits_over_time.edge_attribution_patching.model.weights import LayerWeights, ModelWeights

from .keys import Definition

TOP_K = 5
"""A name counts as copied if it is among this many of the highest logits (Wang et al. 2022)."""

_CANDIDATES = 512
_LOGITS_AT_ONCE = 2**25


def mean_scores(samples: Mapping[str, Float[Tensor, "layer head sample"]]) -> dict[str, Float[Tensor, "layer head"]]:
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
    """How often each head's OV circuit raises, or lowers, the very token it reads (see above).

    Args:
        tokens: token ids, padded on the right.
        positions: where the tokens to copy are (in IOI prompts: IO, S1 and S2).

    Returns:
        `copy`, `negative_copy`: percentages of each prompt's positions, in [0, 100], float64. A token that ties with
        others counts as below them, so a head that writes nothing scores 0.
    """
    precise = torch.promote_types(weights.dtype, torch.float32)
    tokens, lengths, positions = tokens.cpu(), lengths.cpu(), positions.cpu()
    own = tokens.gather(1, positions).flatten()

    def seen(norm: Norm, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """What a norm, its gain and bias aside, makes of a residual stream."""
        return centred(norm, x) if definition == "study" else normalise(norm, x)[0]

    with checked_at_the_end():
        # The residual stream after layer 0 at the given positions, [prompt and name, d_model].
        bottom = replace(weights, n_layers=1, layers=weights.layers[:1])
        on_cpu = []
        for size, of_batch, places in zip(*(x.split(batch_size) for x in (lengths, tokens, positions)), strict=True):
            starts = size.cumsum(0) - size  # where each prompt begins among the packed tokens
            on_cpu.append((PackedTokens.whole(size).made_for(bottom), of_batch, (starts[:, None] + places).flatten()))
        residual = torch.cat(
            [
                forward(bottom, layout, embed(weights, layout, layout.pack(of_batch)))[places]
                for layout, of_batch, places in to_device(on_cpu, weights.device)
            ]
        ).to(precise)
        # The attention norm before V sees the same whatever the layer; its gain and bias are folded into W_V.
        norm = weights.layers[0].attn_norm
        read = residual if norm is None else seen(norm, residual)
        ranking = _Ranking(weights, own, seen)
        # As many layers together as memory allows, since each round waits for the device.
        layers_at_once = max(_LOGITS_AT_ONCE // (2 * weights.n_heads * read.numel()), 1)
        found = []
        for first in range(0, weights.n_layers, layers_at_once):
            layers = weights.layers[first : first + layers_at_once]
            found.append(ranking.in_top_k([_written(layer, read, definition) for layer in layers]))
        copied = to_cpu(torch.cat(found))
    by_prompt = 100 * copied.unflatten(3, positions.shape).double().mean(dim=4)
    return {"copy": by_prompt[:, 0], "negative_copy": by_prompt[:, 1]}


def _written(
    layer: LayerWeights, read: Float[Tensor, "row d_model"], definition: Definition
) -> Float[Tensor, "head row d_model"]:
    """What each head writes if it attends to one row alone, without the output bias (which belongs to no head)."""
    W_V, b_V, W_O = (weight.to(read.dtype) for weight in (layer.W_V, layer.b_V, layer.W_O_scaled))
    bias = 0 if definition == "study" else b_V[:, None]
    values = layer.per_head(clamp(layer, read.to(layer.device) @ W_V.transpose(1, 2) + bias))
    return (values @ W_O).to(read.device)


class _Ranking:
    """Whether tokens are among the highest logits, found without computing most logits.

    If `TOP_K` of a few hundred candidates beat a token, it is out, whatever the other logits are. Only what is left,
    few heads and names in practice, is ranked against the whole vocabulary. The answer is exact.
    """

    def __init__(self, weights: ModelWeights, own: Int[Tensor, " row"], seen: Callable[[Norm, Tensor], Tensor]) -> None:
        """Each row's own token, on the CPU, joins the candidates: it is likely to have a high logit."""
        unembedding = Unembedding(weights)
        self.norm, self.gain, self.seen = weights.final_norm, unembedding.gain, seen
        # The gain joins what is read, not the unembedding: that one is left as it is, without a copy.
        unembed = weights.unembed.to(unembedding.dtype)
        # What the logits are without any input: the same for a head's output and its negative.
        offset = unembedding.bias(slice(None))
        everything = torch.arange(weights.d_vocab, device=weights.device)
        some = torch.arange(0, weights.d_vocab, max(weights.d_vocab // _CANDIDATES, 1))
        self.own, candidates = to_device((own, torch.cat((own, some)).unique()), weights.device)
        self.candidates = (candidates, unembed[candidates], offset[candidates])
        self.everything = (everything, unembed, offset)

    def in_top_k(self, written: Sequence[Float[Tensor, "head row d_model"]]) -> Bool[Tensor, "layer 2 head row"]:
        """Whether each row's own token is in the top k of what a head writes, and of minus that, layer by layer."""
        n_heads, n_rows, d_model = written[0].shape
        seen = [self.seen(self.norm, of_layer.reshape(-1, d_model)) * self.gain for of_layer in written]
        directions = torch.cat([signed for of_layer in seen for signed in (of_layer, -of_layer)])
        own = self.own.repeat(2 * n_heads * len(written))
        # Whoever fails among the candidates is out for good; whoever passes is asked again among all tokens.
        undecided = _in_top_k(directions, own, *self.candidates)
        for rows in undecided.nonzero()[:, 0].split(max(_LOGITS_AT_ONCE // len(self.everything[0]), 1)):
            undecided[rows] = _in_top_k(directions[rows], own[rows], *self.everything)
        return undecided.view(len(written), 2, n_heads, n_rows)


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
