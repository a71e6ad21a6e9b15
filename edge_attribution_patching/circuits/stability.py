"""Would other prompts have given the same circuit? Bootstraps of circuits from stored fold scores, without a model.

A resample draws as many folds of prompts as there are, with replacement (`statistics.Bootstrap`), and averages their
scores by the prompts in each. From these scores it grows a circuit by the same rule and of the same number of edges.
The stability of an edge is the share of resamples whose circuit holds it.

    folds = KeptFolds.from_tensors(stored, Circuit.from_tensors(stored).graph)
    scores = resampled_scores(folds, seed=0, resamples=100)    # [resample, kept]
    circuits = CircuitBootstrap(folds).circuits(scores, 64)    # [resample, kept]: of 64 edges before pruning

Edges whose fold scores are not kept cannot join a resampled circuit; in a large graph these are the weakest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..choices import POSITIVE_SHARE, Order, Selection
from ..connected import prune
from ..scores.folds import KeptFolds
from ..statistics import RESAMPLES, Bootstrap
from .search import EdgeSelector, Signed

STABLE_SIGN = 0.95
"""The sign of a score is stable if so many of the resamples share it."""
_AT_ONCE = 20_000_000
"""How many entries of masks or scores are worked on at once."""


def resampled_scores(
    folds: KeptFolds, seed: int, resamples: int = RESAMPLES, part: slice = slice(None)
) -> Float[Tensor, "resample kept"]:
    """Mean scores over folds drawn with replacement, float32; of some of the resamples, if `part` says so.

    The same seed draws the same folds of every circuit that has as many.
    """
    # Folds may differ by a prompt: each counts by how often it was drawn times its size. [resample, fold]
    shares = Bootstrap.of(len(folds.sizes), seed, resamples).shares[part] * folds.sizes
    return (shares / shares.sum(dim=1, keepdim=True)).float() @ folds.means


def sign_stable(folds: KeptFolds, seed: int, resamples: int = RESAMPLES) -> Bool[Tensor, " kept"]:
    """Of which edges 95% of the resampled scores have one sign."""
    positive = torch.zeros(len(folds.edges))
    negative = torch.zeros(len(folds.edges))
    for part in _parts(resamples, len(folds.edges)):
        scores = resampled_scores(folds, seed, resamples, part)
        positive += (scores > 0).sum(0)
        negative += (scores < 0).sum(0)
    return torch.maximum(positive, negative) >= STABLE_SIGN * resamples


def signed_selection(folds: KeptFolds, seed: int, positive_share: float) -> Signed:
    """What signed selection needs to know, from fold scores."""
    stable = torch.zeros(folds.graph.n_forward * folds.graph.n_backward, dtype=torch.bool)
    stable[folds.edges] = sign_stable(folds, seed)
    return Signed(stable.view_as(folds.graph.edge_mask), positive_share)


class CircuitBootstrap:
    """Grows a circuit from each set of scores, by the rule that the stored one was found by.

    Args:
        folds: the stored fold scores; they say which edges may join.
        order, selection, positive_share, seed: of the run (`search.order`, ...). Which signs are stable is worked out
            once, from all folds.
    """

    def __init__(
        self,
        folds: KeptFolds,
        order: Order = "greedy",
        selection: Selection = "absolute",
        positive_share: float = POSITIVE_SHARE,
        seed: int = 0,
    ) -> None:
        self.folds, self.order = folds, order
        self.signed = signed_selection(folds, seed, positive_share) if selection == "signed" else None
        self._selector = EdgeSelector(folds.graph, folds.edges)

    def circuits(
        self, scores: Float[Tensor, "resample kept"], sizes: int | Sequence[int]
    ) -> Bool[Tensor, "resample kept"]:
        """Which of the kept edges each circuit holds after pruning.

        `sizes` are edges before pruning, of all circuits or of each. There are fewer if no more are within reach.
        """
        graph, edges = self.folds.graph, self.folds.edges
        per_resample = [sizes] * len(scores) if isinstance(sizes, int) else list(sizes)
        held = torch.zeros(len(scores), len(edges), dtype=torch.bool)
        for part in _parts(len(scores), graph.n_forward * graph.n_backward):
            masks = torch.zeros(len(held[part]), graph.n_forward * graph.n_backward, dtype=torch.bool)
            for mask, values, size in zip(masks, scores[part], per_resample[part], strict=True):
                mask[edges[self._selector.select(values, size, self.order, self.signed)]] = True
            # Pruning needs whole graphs; of the result only the kept edges are stored.
            held[part] = prune(masks.view(-1, graph.n_forward, graph.n_backward), graph).flatten(1)[:, edges]
        return held

    def stability(self, size: int, seed: int, resamples: int = RESAMPLES) -> Float[Tensor, "n_forward n_backward"]:
        """The share of resampled circuits of some size that hold each edge; 0 for edges that are not kept."""
        graph, edges = self.folds.graph, self.folds.edges
        held = torch.zeros(len(edges))
        for part in _parts(resamples, len(edges)):
            held += self.circuits(resampled_scores(self.folds, seed, resamples, part), size).sum(0)
        shares = torch.zeros(graph.n_forward * graph.n_backward)
        shares[edges] = held / resamples
        return shares.view(graph.n_forward, graph.n_backward)


def _parts(n: int, width: int) -> list[slice]:
    """Split n rows into parts that hold some million numbers each."""
    at_once = max(1, _AT_ONCE // max(width, 1))
    return [slice(start, min(start + at_once, n)) for start in range(0, n, at_once)]
