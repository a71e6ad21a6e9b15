"""How what nodes write in a patched pass differs from the base run, and what the inputs that read them get."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .plan import Plan

# Adding up the rows that inputs read beats a matrix product with zeros while fewer than this share of the entries are
# edges (measured at 160m shape: 0.1 to 0.2); with one input the product is bound by memory and never wins.
DENSE = 0.15


class Differences:
    """Differences to the base run of all nodes that some mask needs, in the order of the nodes, for stacked masks.

    They are kept centred over d_model, and so are the residual streams that inputs read. `like` is what one node
    writes; it gives shape, dtype and device.
    """

    def __init__(self, plan: Plan, like: Float[Tensor, "token d_model"]) -> None:
        kept = plan.needed.any(0).nonzero()[:, 0]
        self.n_masks = len(plan)
        self.n_written = 0
        self._edges = plan.masks[:, kept]
        # Row 0 is the base residual stream of whoever reads next, then come the kept nodes of every mask.
        self._rows = like.new_empty(1 + self.n_masks * len(kept), *like.shape)

    def of_next(self, n_nodes: int) -> Float[Tensor, "mask node token d_model"]:
        """Where the next nodes write theirs; to be filled before anything is read."""
        first, self.n_written = self.n_written, self.n_written + n_nodes
        by_node = self._rows[1:].view(self.n_masks, -1, *self._rows.shape[1:])
        return by_node[:, first : self.n_written]

    def keep_tokens(self, tokens: Int[Tensor, " kept"]) -> None:
        """Forget all other tokens."""
        self._rows = self._rows[:, tokens]

    def read(
        self, inputs: Int[Tensor, " input"], base: Float[Tensor, "token d_model"], tokens: Tensor | None = None
    ) -> Float[Tensor, "input mask token d_model"]:
        """The residual streams of some backward nodes: the base run's, and the differences along the masks' edges.

        Everything they read has been written. `tokens` are those that `base` covers, if not all.
        """
        rows = self._rows if tokens is None else self._rows[:, tokens]
        rows[0] = base
        edges = self._edges[:, : self.n_written, inputs].permute(2, 0, 1)  # [input, mask, node]
        n_inputs, n_masks, n_nodes = edges.shape
        if int(edges.sum()) < n_masks * n_nodes * max(1.0, DENSE * n_inputs):
            mixed = self._sum_of_rows(rows.flatten(1), edges)
        else:
            mixed = self._product(rows.flatten(1), edges)
        return mixed.view(n_inputs, n_masks, *rows.shape[1:])

    def _sum_of_rows(self, rows: Tensor, edges: Tensor) -> Tensor:
        """For few edges: add up the rows that each input reads, the base row first."""
        _, n_masks, n_nodes = edges.shape
        of_mask = 1 + torch.arange(n_masks)[:, None] * self._edges.shape[1] + torch.arange(n_nodes)
        reads = F.pad(edges, (1, 0), value=True)
        index = F.pad(of_mask, (1, 0)).expand_as(reads)[reads]
        counts = reads.sum(-1).flatten()
        starts = counts.cumsum(0) - counts
        return F.embedding_bag(index.to(rows.device), rows, starts.to(rows.device), mode="sum")

    def _product(self, rows: Tensor, edges: Tensor) -> Tensor:
        """For many edges: a matrix product for each mask."""
        n_inputs, n_masks, n_nodes = edges.shape
        differences = rows[1:].view(n_masks, -1, rows.shape[-1])[:, :n_nodes]
        share = edges.to(rows.device, rows.dtype)
        mixed = rows.new_empty(n_inputs, n_masks, rows.shape[-1])
        for mask in range(n_masks):
            torch.mm(share[:, mask], differences[mask], out=mixed[:, mask])
        return mixed + rows[0]
