"""Copy-suppression-preserving ablation (CSPA) of every head, from one forward pass per batch.

Source: McDougall, Conmy, Rushing, McGrath, Nanda 2023, "Copy Suppression: Comprehensively Understanding an Attention
Head" (arXiv 2310.04625). A copy-suppression head attends to context tokens that are predicted and lowers their logits.
CSPA keeps of a head only that: with attention A, value outputs o_s = v_s W_O, the head's mean output mu_d at position d
over other text, and unit unembeddings u_s (final norm's gain folded in, centred over the vocabulary and, as LayerNorm
sees it, over d_model), the head's output at d becomes

    mu_d + sum over kept s <= d of min(0, A_ds (o_s - mu_d) . u_s) u_s          ov and qk
    mu_d + sum over kept s <= d of A_ds (o_s - mu_d)                            qk alone
    the first line with every s <= d kept                                       ov alone

where qk keeps a source if its token is among the K that are predicted most at d, of the distinct tokens of the context
that are no function words: K = the fraction `k_unembeddings` of d's place (1 for the first), rounded up. "Predicted" is
the logit lens of the residual stream before the layer; the run's final norm scale would multiply all of a position's
logits alike and the final norm's bias says nothing about the position, so neither is needed for the order. A kept token
is kept at each of its places. As in the authors' code, effects are direct ones on the logits, at the run's final norm
scale:

    score = 1 - KL(orig || CSPA) / KL(orig || mean-ablated), means over positions.

Cost: heads live in d_head numbers a token until the logits, a kept source is a multiple of one direction that all heads
share, and the vocabulary is walked in tiles (`utils/heads/streamed_kl.py`). Memory beyond the weights: the activations
of one batch, n_scored_heads * (3 * d_head + 2 * kept sources) + 6 * d_model numbers a token, and a few tiles; nothing
of size tokens * vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits_over_time.edge_attribution_patching.model.forward import LayerActivations, Unembedding, embed, forward
from circuits_over_time.edge_attribution_patching.model.norms import normalise
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.transfer import checked_at_the_end, to_cpu, to_device
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.statistics import quotient_errors, standard_error, standard_errors

from ..base.errors import UserError
from .keys import Ablation
from .streamed_kl import Divergences, HeadChange, Kept, kl_of_changes

NO_EFFECT = "mean ablation changes the logits by no more than rounding"
OVERFLOW = "the change of the logits overflows"


def mean_outputs(
    weights: ModelWeights, tokens: Int[Tensor, "sequence position"], start_layer: int = 0, batch_size: int = 32
) -> Float[Tensor, "layer position head d_head"]:
    """Mean of what the heads write at each position, from `start_layer` up: times W_O_scaled, its output."""
    layers = weights.n_layers - start_layer
    dtype = torch.promote_types(weights.dtype, torch.float32)
    sums = torch.zeros(layers, tokens.shape[1], weights.n_heads, weights.d_head, dtype=dtype, device=weights.device)

    def add(layer: LayerActivations) -> None:
        if layer.layer >= start_layer:
            z = layer.written.view(-1, tokens.shape[1], *layer.z.shape[1:])
            sums[layer.layer - start_layer] += z.sum(dim=0, dtype=dtype)

    with torch.no_grad(), checked_at_the_end():
        for layout, batch in _batches(weights, tokens, batch_size):
            forward(weights, layout, embed(weights, layout, batch.flatten()), visit=add)
    return sums / len(tokens)


def cspa_scores(
    weights: ModelWeights,
    tokens: Int[Tensor, "sequence position"],
    means: Float[Tensor, "layer position head d_head"],
    function_tokens: Int[Tensor, " token"],
    settings: Ablation,
    batch_size: int = 32,
) -> pd.DataFrame:
    """CSPA score of every head from `settings.first_layer` up.

    Args:
        means: `mean_outputs` of other text, of at least as many positions, from the same `start_layer` up.

    Returns:
        One row a head: `layer, head, score`; `kl_cspa, kl_ablated`, nats, means over all `n_positions`; `loss`,
        `loss_cspa, loss_ablated`, nats, means over the positions whose next token is in the sequence; each with its
        standard error from sequences (`score_se`, ...); `reason`, why the score is empty, or empty.

    Raises:
        UserError: if the model caps its logits (Gemma 2): effects on them then do not add up.
    """
    if weights.logit_softcap is not None:
        raise UserError("model: its logits are capped, which CSPA's direct effects cannot see; leave CSPA out")
    with torch.no_grad(), checked_at_the_end():
        heads = _HeadChanges(weights, tokens, means[:, : tokens.shape[1]], function_tokens, settings)
        for number, (layout, _) in enumerate(_batches(weights, tokens, batch_size)):
            heads.add(layout, slice(number * batch_size, (number + 1) * batch_size))
        return heads.table(heads.divergences())


def _batches(
    weights: ModelWeights, tokens: Int[Tensor, "sequence position"], batch_size: int
) -> list[tuple[PackedTokens, Int[Tensor, "some position"]]]:
    """Some sequences at a time, and how they are laid out."""
    on_cpu = [
        (PackedTokens.whole(torch.full((len(batch),), tokens.shape[1])).made_for(weights), batch)
        for batch in tokens.cpu().split(batch_size)
    ]
    return to_device(on_cpu, weights.device)


class _HeadChanges:
    """Heads' changes, gathered batch by batch while the layers run."""

    def __init__(
        self, weights: ModelWeights, tokens: Tensor, means: Tensor, function_tokens: Tensor, settings: Ablation
    ) -> None:
        self.weights, self.means, self.settings = weights, means, settings
        distinct, vector = tokens.cpu().unique(return_inverse=True)
        n_kept = torch.tensor(settings.n_kept(tokens.shape[1]))
        on_cpu = tokens, distinct, vector, function_tokens, n_kept
        self.tokens, distinct, self.vector, self.function_tokens, self.n_kept = to_device(on_cpu, weights.device)
        self.unembedding = Unembedding(weights, centre_vocabulary=True)
        self.dtype = self.unembedding.dtype
        self.directions = self.unembedding.rows(distinct)
        self.units = torch.nn.functional.normalize(self.directions, dim=-1)
        self.n_heads = (weights.n_layers - settings.first_layer) * weights.n_heads
        self.final: list[Tensor] = []
        # Of each batch what ablation changes of all heads, and what CSPA does: dense, or with ov that of `_sparse`.
        self.ablated: list[Float[Tensor, "head token d_head"]] = []
        self.other: list[tuple[Tensor, ...]] = []
        # Of each head, what ablation changes and what it could at most, as sums of squares.
        self.change_and_size = torch.zeros(self.n_heads, 2, dtype=self.dtype, device=weights.device)

    def add(self, layout: PackedTokens, batch: slice) -> None:
        """Run some sequences."""
        measured: list[tuple[Tensor, Tensor]] = []

        def visit(layer: LayerActivations) -> None:
            if layer.layer >= self.settings.first_layer:
                measured.append(self._measure(layer, batch))

        x = embed(self.weights, layout, self.tokens[batch].flatten())
        final, scale = normalise(self.weights.final_norm, forward(self.weights, layout, x, visit=visit))
        scale = scale.to(self.dtype)
        self.final.append(final.to(self.dtype))
        ablated, other = (torch.cat(of_layers).mul_(scale) for of_layers in zip(*measured, strict=True))
        self.ablated.append(ablated)
        self.other.append(self._sparse(other, batch) if "ov" in self.settings.interventions else (other,))

    def _measure(
        self, layer: LayerActivations, batch: slice
    ) -> tuple[Float[Tensor, "head token d_head"], Float[Tensor, "head token column"]]:
        """A layer's changes, before the final norm's scale: where ablated, and of CSPA.

        CSPA's are multiples of the unit unembeddings at each key of the sequence (ov), or changes of z (qk alone).
        """
        # What heads write (z) and the values that they mix, [head, sequence, position, d_head].
        tokens, index = self.tokens[batch], layer.layer - self.settings.first_layer
        shape = (*tokens.shape, self.weights.n_heads, self.weights.d_head)
        block = self.weights.layers[layer.layer]
        v = block.per_head(layer.v.to(self.dtype).movedim(1, 0)).movedim(0, 1)
        z, v = (x.to(self.dtype).reshape(shape).movedim(2, 0) for x in (layer.written, v))
        pattern = layer.pattern.to(self.dtype).transpose(0, 1)
        # Behind a norm, what a source adds is divided by the scale at its destination.
        scale = layer.post_inverse_scale
        inverse: Tensor | float = 1.0 if scale is None else scale.to(self.dtype).view(1, *tokens.shape, 1)

        # Mean ablation, and whether it changes more than rounding could.
        mean = self.means[index].to(self.dtype).transpose(0, 1)[:, None]
        ablated = mean - z
        heads = slice(index * self.weights.n_heads, (index + 1) * self.weights.n_heads)
        self.change_and_size[heads, 0] += ablated.square().sum(dim=(1, 2, 3))
        self.change_and_size[heads, 1] += torch.maximum(z.square(), mean.square()).sum(dim=(1, 2, 3))

        # qk: the sources that the logit lens predicts at each destination. W_U u_s orders them without any norm.
        resid = layer.resid_pre.to(self.dtype).view(*tokens.shape, -1)
        predicted = resid @ self.directions[self.vector[batch]].transpose(1, 2)
        kept = kept_sources(predicted, tokens, self.function_tokens, self.settings, self.n_kept)
        if "ov" not in self.settings.interventions:
            # mu + sum of A (o - mu) over kept sources, as a change of z.
            kept_pattern = pattern * kept
            other = mean * (1 - kept_pattern.sum(dim=-1, keepdim=True)) + (kept_pattern @ v) * inverse - z
            return ablated.flatten(1, 2), other.flatten(1, 2)

        # ov: (o_s - mu_d) . u_s. With W_O u_s worked out first, it is a dot product of d_head numbers.
        W_O = block.W_O_scaled.to(self.units)
        readers = torch.einsum("hed,bsd->hbse", W_O, self.units[self.vector[batch]])
        component = (v * readers).sum(dim=-1)[:, :, None] * inverse - mean @ readers.transpose(2, 3)
        if self.settings.negative_only:
            component = component.clamp(max=0)
        component = component * pattern * kept
        # A token's places share one direction: add up at the first.
        first = first_places(tokens)[None, :, None].expand_as(component)
        component = torch.zeros_like(component).scatter_add_(3, first, component)
        return ablated.flatten(1, 2), component.flatten(1, 2)

    def _sparse(self, change: Float[Tensor, "head token key"], batch: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The multiples that are not 0, head by head: of which unit vector (those of the tokens at the keys), how much,
        and how many each token has, [head, token]."""
        # The processor waits to know how many: for all heads at once.
        head, row, key = change.nonzero(as_tuple=True)
        vector = self.vector[batch][row // self.tokens.shape[1], key]
        return vector, change[head, row, key], (change != 0).sum(dim=2)

    def _kept(self) -> list[Kept]:
        """The batches' multiples, joined for each head."""
        vectors, weights, counts = zip(*self.other, strict=True)
        starts = torch.nn.functional.pad(torch.cat(counts, dim=1).cumsum(1), (1, 0))
        on_cpu = to_cpu(starts).numpy()
        # How many of each head every batch has, [batch, head].
        ends = np.cumsum([0, *(of_batch.shape[1] for of_batch in counts)])
        sizes = np.diff(on_cpu[:, ends]).T.tolist()
        of_heads = (
            map(torch.cat, zip(*map(torch.split, batches, sizes), strict=True)) for batches in (vectors, weights)
        )
        return list(map(Kept, *of_heads, starts, on_cpu))

    def divergences(self) -> Divergences:
        """KL divergences and losses of all heads."""
        layers, n_heads = self.weights.layers[self.settings.first_layer :], self.weights.n_heads
        if "ov" in self.settings.interventions:
            others: Sequence[Tensor | Kept] = self._kept()
        else:
            others = torch.cat([other for (other,) in self.other], dim=1).unbind()
        joined = list(map(HeadChange, torch.cat(self.ablated, dim=1), others))
        changes = [joined[i * n_heads : (i + 1) * n_heads] for i in range(len(layers))]
        outputs = [layer.W_O_scaled.to(self.units) for layer in layers]
        targets = self.tokens.roll(-1, dims=1)
        targets[:, -1] = -1
        final = torch.cat(self.final)
        return kl_of_changes(self.unembedding, final, targets.flatten(), outputs, changes, self.units)

    def table(self, divergences: Divergences) -> pd.DataFrame:
        """One row a head."""
        # [..., sequence, position]; at the last position no next token is known.
        kl, loss, original = (
            of_tokens.unflatten(-1, self.tokens.shape)
            for of_tokens in (divergences.kl, divergences.loss, divergences.original_loss)
        )
        loss, original = loss[..., :-1], original[..., :-1]
        of_heads = divergences.kl.mean(dim=2).clamp(min=0), loss.flatten(2).mean(dim=2), self.change_and_size
        # Positions of a sequence are no independent draws; sequences are.
        by_sequence = loss.mean(dim=3), kl.mean(dim=3), original.mean(dim=1)
        of_model = original.flatten().mean(), divergences.largest_logit
        of_heads, by_sequence, (mean_loss, largest_logit) = to_cpu((of_heads, by_sequence, of_model))
        (kl_ablated, kl_cspa), (loss_ablated, loss_cspa), (change, size) = (
            numbers.double().T.numpy() for numbers in of_heads
        )
        loss_errors, kl_errors = (standard_errors(numbers).T.numpy() for numbers in by_sequence[:2])
        # What rounding of the logits, and of a head's output before its mean is taken off, can pass for an effect.
        floor = (torch.finfo(self.dtype).eps * float(largest_logit)) ** 2
        coarse = (4 * torch.finfo(self.weights.dtype).eps) ** 2
        overflows = ~(np.isfinite(kl_ablated) & np.isfinite(kl_cspa))
        reason = np.select([overflows, (kl_ablated <= floor) | (change <= coarse * size)], [OVERFLOW, NO_EFFECT], "")
        first, last = self.settings.first_layer, self.weights.n_layers
        table = pd.DataFrame(product(range(first, last), range(self.weights.n_heads)), columns=["layer", "head"])
        with np.errstate(all="ignore"):
            table["score"] = 1 - kl_cspa / kl_ablated
        table["score_se"] = quotient_errors(*by_sequence[1].unbind(dim=1)[::-1]).numpy()
        table.loc[reason != "", ["score", "score_se"]] = math.nan
        table["kl_cspa"], table["kl_cspa_se"] = kl_cspa, kl_errors[1]
        table["kl_ablated"], table["kl_ablated_se"] = kl_ablated, kl_errors[0]
        table["loss"], table["loss_se"] = float(mean_loss), standard_error(by_sequence[2])
        table["loss_cspa"], table["loss_cspa_se"] = loss_cspa, loss_errors[1]
        table["loss_ablated"], table["loss_ablated_se"] = loss_ablated, loss_errors[0]
        table["n_positions"], table["reason"] = self.tokens.numel(), reason
        return table.replace([math.inf, -math.inf], math.nan)


def kept_sources(
    predicted: Float[Tensor, "sequence query key"],
    tokens: Int[Tensor, "sequence position"],
    function_tokens: Int[Tensor, " token"],
    settings: Ablation,
    n_kept: Int[Tensor, " position"],
) -> Bool[Tensor, "sequence query key"]:
    """Which sources each position keeps. If different tokens tie for the last of the K places, it keeps all of them.

    With fewer than K admissible tokens it keeps these; in the study's code function words and all others come back in.
    `predicted` holds the logit of each key's token, `n_kept` K.
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
    threshold = ranked.gather(2, (n_kept - 1)[None, :, None].expand(len(tokens), -1, 1))
    return (causal if settings.head_scores == "study" else possible) & (logits >= threshold)


def first_places(tokens: Int[Tensor, "sequence position"]) -> Int[Tensor, "sequence position"]:
    """The first position of each token's id in its sequence."""
    return (tokens[:, :, None] == tokens[:, None, :]).int().argmax(dim=2)
