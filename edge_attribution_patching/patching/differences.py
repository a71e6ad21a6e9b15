"""How what nodes write in a patched pass differs from the base run, and what the inputs that read them get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor
from torch.nn import functional as F

from ..model.transfer import Movable, to_device

# Adding up the rows that inputs read beats a matrix product with zeros while fewer than this share of the entries are
# edges (measured at 160m shape: 0.1 to 0.2); with one input the product is bound by memory and never wins.
DENSE = 0.15
# An input that reads most of so many nodes, or of more, takes the sum of all, and those off that it does not read.
MANY = 64


@dataclass(frozen=True)
class Reading(Movable):
    """Which differences some inputs read under every mask: either a list of rows for each, or a matrix.

    Attributes:
        n_nodes: how many nodes they may read, the first ones of those kept.
        rows: those that an input reads, the base row first, one input and mask after the other; None with a matrix.
        signs: what each row counts, where some inputs take all nodes' sum and rows off it; None where all count 1.
        starts: where each input's and mask's begin.
        edges: the matrix; None with a list.
    """

    n_inputs: int
    n_masks: int
    n_nodes: int
    rows: Int[Tensor, " row"] | None
    signs: Int8[Tensor, " row"] | None
    starts: Int[Tensor, " input_x_mask"] | None
    edges: Bool[Tensor, "mask input node"] | None

    @classmethod
    def of(
        cls,
        edges: Bool[Tensor, "mask kept n_backward"],
        n_written: int,
        inputs: Int[Tensor, " input"] | list[int],
        dtype: torch.dtype = torch.float32,
    ) -> Reading:
        """By the masks' edges from the nodes that are kept, of which the first so many are written; on the CPU.

        In a `dtype` of two bytes nothing is taken off a sum: what a large node loses to rounding would stay.
        """
        n_kept = edges.shape[1]
        edges = edges[:, :n_written, inputs].permute(2, 0, 1)  # [input, mask, node]
        n_inputs, n_masks, n_nodes = edges.shape
        shape = n_inputs, n_masks, n_nodes
        most = 2 * edges.sum(-1, keepdim=True) > max(n_nodes, MANY)  # [input, mask, 1]
        most &= dtype.itemsize > 2
        taken = edges ^ most
        if int(taken.sum()) >= n_masks * n_nodes * max(1.0, DENSE * n_inputs):
            return cls(*shape, None, None, None, edges.transpose(0, 1).contiguous())
        # Of every mask its nodes, and at the end their sum (`Differences`).
        of_mask = 1 + torch.arange(n_masks)[:, None] * (n_kept + 1) + torch.tensor([*range(n_nodes), n_kept])
        reads = torch.cat((torch.ones_like(most), taken, most), dim=-1)
        rows, counts = F.pad(of_mask, (1, 0)).expand_as(reads)[reads], reads.sum(-1).flatten()
        signs = None
        if bool(most.any()):
            signs = torch.where(most, -1, 1).to(torch.int8).repeat(1, 1, n_nodes + 2)
            signs[..., [0, -1]] = 1
            signs = signs[reads]
        return cls(*shape, rows, signs, counts.cumsum(0) - counts, None)

    @classmethod
    def by_role(
        cls,
        edges: Bool[Tensor, "mask role kept n_backward"],
        n_written: int,
        inputs: Int[Tensor, " input"] | list[int],
        dtype: torch.dtype = torch.float32,
    ) -> list[Reading]:
        """One for each role of the tokens; one alone where all roles read the same."""
        read = edges[..., inputs]
        alike = bool((read == read[:, :1]).all())
        return [cls.of(of_role, n_written, inputs, dtype) for of_role in edges[:, : 1 if alike else None].unbind(1)]


class Differences:
    """Differences to the base run of all nodes that some mask needs, in the order of the nodes, for stacked masks.

    They are kept centred over d_model, and so are the residual streams that inputs read. `like` is what one node
    writes; it gives shape, dtype and device. `tokens_of_roles` are those of every role, if they have roles.
    """

    def __init__(
        self,
        n_masks: int,
        n_kept: int,
        like: Float[Tensor, "token d_model"],
        tokens_of_roles: Sequence[Int[Tensor, " token"]] = (),
    ) -> None:
        self.n_masks, self.n_written, self.tokens_of_roles = n_masks, 0, tokens_of_roles
        # Row 0 is the base residual stream of whoever reads next, then come the kept nodes of every mask and their sum.
        self._rows = like.new_empty(1 + n_masks * (n_kept + 1), *like.shape)
        self._n_summed = 0

    @property
    def device(self) -> torch.device:
        return self._rows.device

    def move(self, device: torch.device) -> None:
        """To where the next nodes are computed."""
        self._rows = self._rows.to(device, non_blocking=True)
        self.tokens_of_roles = to_device(list(self.tokens_of_roles), device)

    def of_next(self, n_nodes: int) -> Float[Tensor, "mask node token d_model"]:
        """Where the next nodes write theirs; to be filled before anything is read."""
        first, self.n_written = self.n_written, self.n_written + n_nodes
        return self._of_masks()[:, first : self.n_written]

    def _of_masks(self) -> Float[Tensor, "mask node_or_sum token d_model"]:
        return self._rows[1:].view(self.n_masks, -1, *self._rows.shape[1:])

    def _sum_up(self, n_nodes: int) -> None:
        """Bring every mask's sum up to the first so many nodes."""
        if n_nodes > self._n_summed:
            of_masks = self._of_masks()
            more = of_masks[:, self._n_summed : n_nodes].sum(1)
            of_masks[:, -1] = more if self._n_summed == 0 else of_masks[:, -1] + more
            self._n_summed = n_nodes

    def keep_tokens(self, tokens: Int[Tensor, " kept"]) -> None:
        """Forget all other tokens."""
        self._rows = self._rows.index_select(1, tokens)  # It copies whole rows, five times as fast as an index.

    def read(
        self, readings: Sequence[Reading], base: Float[Tensor, "token d_model"], tokens: Tensor | None = None
    ) -> Float[Tensor, "input mask token d_model"]:
        """The residual streams of some backward nodes: the base run's, and the differences along the masks' edges.

        Everything they read has been written. `tokens` are those that `base` covers, if not all.
        """
        if any(reading.signs is not None for reading in readings):
            self._sum_up(readings[0].n_nodes)
        rows = self._rows if tokens is None else self._rows.index_select(1, tokens)
        rows[0] = base
        if len(readings) == 1:
            return self._read(readings[0], rows)
        out = rows.new_empty(readings[0].n_inputs, self.n_masks, *rows.shape[1:])
        for reading, of_role in zip(readings, self.tokens_of_roles, strict=True):
            if len(of_role):
                out[:, :, of_role] = self._read(reading, rows[:, of_role])
        return out

    def _read(
        self, reading: Reading, rows: Float[Tensor, "row token d_model"]
    ) -> Float[Tensor, "input mask token d_model"]:
        flat = rows.flatten(1)
        if reading.edges is None:
            assert reading.rows is not None
            signs = None if reading.signs is None else reading.signs.to(flat.dtype)
            mixed = F.embedding_bag(reading.rows, flat, reading.starts, mode="sum", per_sample_weights=signs)
        else:
            mixed = self._product(flat, reading.edges)
        return mixed.view(reading.n_inputs, reading.n_masks, *rows.shape[1:])

    def _product(self, rows: Tensor, edges: Bool[Tensor, "mask input node"]) -> Tensor:
        """For many edges: a matrix product for each mask."""
        n_masks, n_inputs, n_nodes = edges.shape
        differences = rows[1:].view(n_masks, -1, rows.shape[-1])[:, :n_nodes]
        share = edges.to(rows.dtype)
        mixed = rows.new_empty(n_inputs, n_masks, rows.shape[-1])
        for mask in range(n_masks):
            torch.mm(share[mask], differences[mask], out=mixed[:, mask])
        return mixed.add_(rows[0])
