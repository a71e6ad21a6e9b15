"""KL divergences of many small changes of the logits at once, in tiles over the vocabulary.

Let l be the logits at a token, p their softmax, and d the change of the logits by an intervention. Then

    KL(orig || changed) = log sum_v p_v exp(d_v) - sum_v p_v d_v = log1p(sum_v p_v (exp(d_v) - 1)) - sum_v p_v d_v,

so the changed logits are never formed, and exp(d) - 1 keeps the digits of a small change, which a difference of two
log-softmaxes would lose. The second sum needs no exponential: d = D W with D [token, d_model] the change of the
normalised residual stream, so it is D . m with m = sum_v p_v W_v, which all interventions share.

A head's change has rank d_head: d = y (W_O W), y [token, d_head]. To it may be added a few multiples of the rows of
G = vectors W, shared by all heads (`Kept`). Per head and vocabulary tile that is one [token x d_head] matrix product,
one sum of a few rows of G, and elementwise work on a block that stays in the processor's cache.

Memory beyond the weights and the arguments, in numbers: n_tokens * (d_model + tile) for m and p; tile * (2 * d_model +
n_heads_of_a_layer * d_head + n_vectors) for one tile's matrices; 3 * rows * tile for a block; two per head and token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from circuits_over_time.edge_attribution_patching.model.forward import Unembedding
from circuits_over_time.edge_attribution_patching.model.pairs import bar

LOG2_E = math.log2(math.e)

SMALL = 0.01
"""Root mean square of a change of the logits below which rounding in 2 ** x would show in exp(d) - 1."""

CPU_BLOCK = (2048, 256)
"""Tokens (at most) and vocabulary entries of a block: a few megabytes, small enough for the last-level cache, large
enough that calling torch costs little beside the work."""

GPU_BLOCK = (4096, 4096)

WITHOUT_FLOAT64: tuple[str, ...] = ("mps",)
"""Types of devices that have no double precision: Apple's GPUs."""


@dataclass(frozen=True)
class Kept:
    """Multiples of shared vectors that are added to the residual stream at each token."""

    vector: Int[Tensor, " entry"]  # which vector, token by token
    weight: Float[Tensor, " entry"]
    starts: Int[Tensor, " token_plus_one"]  # where each token's entries start; one more at the end
    starts_on_cpu: np.ndarray  # the same, where no device is waited for

    def __mul__(self, factor: float) -> Kept:
        return Kept(self.vector, self.weight * factor, self.starts, self.starts_on_cpu)

    def sum_of(self, rows: Float[Tensor, "vector column"], first: int, last: int) -> Float[Tensor, "token column"]:
        """The weighted sums of `rows` at tokens first to last - 1."""
        starts = self.starts[first : last + 1] - self.starts[first]
        entries = slice(self.starts_on_cpu[first], self.starts_on_cpu[last])
        vector, weight = self.vector[entries], self.weight[entries]
        return F.embedding_bag(vector, rows, starts, mode="sum", per_sample_weights=weight, include_last_offset=True)


@dataclass(frozen=True)
class HeadChange:
    """What replaces one head's output, as the change of the normalised residual stream at a frozen scale.

    `ablated @ W_O` is the change where the head is ablated. The other intervention's is `other @ W_O`, or that of the
    ablation with `other` added to it.
    """

    ablated: Float[Tensor, "token d_head"]
    other: Float[Tensor, "token d_head"] | Kept


@dataclass(frozen=True)
class Divergences:
    """Per head and token; a head's two interventions are ablation (0) and the other one (1)."""

    kl: Float[Tensor, "head 2 token"]
    loss: Float[Tensor, "head 2 token"]  # cross-entropy with the next token; meaningless where the target is below 0
    original_loss: Float[Tensor, " token"]  # the same without any change
    largest_logit: Float[Tensor, ""]  # largest magnitude of a centred logit, which says how fine logits are rounded


def kl_of_changes(
    unembedding: Unembedding,
    final: Float[Tensor, "token d_model"],
    targets: Int[Tensor, " token"],
    outputs: Sequence[Float[Tensor, "head d_head d_model"]],
    changes: Sequence[Sequence[HeadChange]],
    vectors: Float[Tensor, "vector d_model"],
    *,
    block: tuple[int, int] | None = None,
) -> Divergences:
    """KL divergence and loss of every head's two changes.

    A change so large that its exponential overflows gives inf or nan.

    Args:
        final: final residual stream, normalised without gain and bias.
        targets: next token of each token, or -1.
        vectors: what `Kept` refers to.
        block: tokens and vocabulary entries worked on at once; chosen for the device where None.
    """
    n_tokens, device = len(final), final.device
    most_rows, columns = block or (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK)
    rows = math.ceil(n_tokens / math.ceil(n_tokens / most_rows))  # blocks of about equal size
    # Each W_O [d_head, d_model] and its change.
    heads = [head for layer in zip(outputs, changes, strict=True) for head in zip(*layer, strict=True)]
    precise = final.dtype if device.type in WITHOUT_FLOAT64 else torch.float64
    sums = final.new_zeros(len(heads), 2, n_tokens, dtype=precise)
    softmax = _Softmax(final)
    in_bits = _in_bits(unembedding, heads)
    # The factor of changes in bits is taken once, not in every block.
    scaled = [
        HeadChange(head.ablated * LOG2_E, head.other * LOG2_E) if bits else head
        for (_, head), bits in zip(heads, in_bits, strict=True)
    ]
    scratch = final.new_empty(2 * rows * columns)
    for start in bar(range(0, unembedding.d_vocab, columns), "the vocabulary"):
        tile = slice(start, min(start + columns, unembedding.d_vocab))
        directions = unembedding.rows(tile)
        # p is relative to the largest logit so far. When a larger one comes, all earlier sums shrink.
        p, shrink = softmax.add(directions, unembedding.bias(tile))
        sums *= shrink
        # What the shared vectors, and a unit of each of a head's d_head numbers, add to the tile's logits.
        of_vectors = vectors @ directions.T
        number = 0
        for output in outputs:
            of_heads = (output.flatten(0, 1) @ directions.T).view(*output.shape[:2], -1)  # [head, d_head, column]
            for of_head in of_heads:
                change, bits = scaled[number], in_bits[number]
                for first in range(0, n_tokens, rows):
                    last = min(first + rows, n_tokens)
                    # Every block works in the same memory, which stays in the cache: d of both interventions.
                    both = scratch[: 2 * (last - first) * p.shape[1]].view(2, last - first, -1)
                    ablated, other = both
                    torch.mm(change.ablated[first:last], of_head, out=ablated)
                    if isinstance(change.other, Kept):
                        torch.add(ablated, change.other.sum_of(of_vectors, first, last), out=other)
                    else:
                        torch.mm(change.other[first:last], of_head, out=other)
                    excess = both.exp2_().sub_(1) if bits else both.expm1_()  # exp(d) - 1
                    sums[number, :, first:last] += excess.mul_(p[first:last]).sum(dim=-1)
                number += 1
    sums /= softmax.total[:, 0]

    # From the sums over the vocabulary to divergences and losses.
    next_tokens = targets.clamp(min=0)
    wanted = unembedding.rows(next_tokens)
    log_total = (softmax.top + softmax.total.log())[:, 0]
    original = log_total - (final * wanted).sum(-1) - unembedding.bias(next_tokens)
    mean_direction = softmax.mean_direction / softmax.total
    kl, loss = torch.log1p(sums), torch.empty_like(sums)
    for number, (W_O, head) in enumerate(heads):
        ablated, more = head.ablated @ W_O, head.other
        other = ablated + more.sum_of(vectors, 0, n_tokens) if isinstance(more, Kept) else more @ W_O
        for index, change in enumerate((ablated, other)):
            loss[number, index] = original - (change * wanted).sum(-1) + kl[number, index]
            kl[number, index] -= (change * mean_direction).sum(-1)
    return Divergences(kl, loss, original.to(kl.dtype), softmax.largest)


def _in_bits(unembedding: Unembedding, heads: Sequence[tuple[Tensor, HeadChange]]) -> list[bool]:
    """For which heads 2 ** x - 1 will do, with x in bits: it is several times faster on CPUs than exp or expm1.

    Only a small change needs the digits of expm1. Sizes are judged by entries spread over the vocabulary.
    """
    if unembedding.gain.device.type != "cpu":
        return [False] * len(heads)
    sample = torch.arange(0, unembedding.d_vocab, max(unembedding.d_vocab // 512, 1))
    directions = unembedding.rows(sample)
    sizes = [(head.ablated @ (W_O @ directions.T)).square_().mean().sqrt() for W_O, head in heads]
    return [bool(size > SMALL) for size in sizes]


class _Softmax:
    """The softmax of the logits, tile by tile, relative to the largest logit so far (Milakov & Gimelshein 2018)."""

    def __init__(self, final: Float[Tensor, "token d_model"]) -> None:
        self.final = final
        self.top = final.new_full((len(final), 1), -math.inf)
        self.total = final.new_zeros(len(final), 1)
        self.mean_direction = torch.zeros_like(final)  # sum over the vocabulary of p * direction
        self.largest = final.new_zeros(())

    def add(
        self, directions: Float[Tensor, "column d_model"], bias: Float[Tensor, " column"]
    ) -> tuple[Float[Tensor, "token column"], Float[Tensor, " token"]]:
        """A tile's probabilities, times `total` at the end, and what earlier ones have to be multiplied with."""
        logits = torch.addmm(bias, self.final, directions.T)
        self.largest = torch.maximum(self.largest, logits.abs().max())
        top = torch.maximum(self.top, logits.max(dim=1, keepdim=True).values)
        shrink = (self.top - top).exp()
        p = logits.sub_(top).exp_()
        self.top = top
        self.total = self.total * shrink + p.sum(dim=1, keepdim=True)
        self.mean_direction.mul_(shrink).addmm_(p, directions)
        return p, shrink[:, 0]
