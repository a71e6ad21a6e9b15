"""The computational graph: nodes and edges as arrays.

Forward (source) nodes, in order: `input`, then for each layer its heads `a{l}.h{h}`, then its MLP `m{l}`.
Backward (destination) nodes: for each layer `a{l}.h{h}<q>` of every head, then all `<k>`, then all `<v>`, then `m{l}`;
last `logits`.
An edge joins a source to a destination that reads the residual stream after the source has written to it. In a parallel
block `m{l}` does not read layer `l`'s heads, in a sequential block it does.

With roles of the prompts' tokens (`model.pairs.TokenRoles`), every edge is there once for each role: at the tokens
where its destination reads what its source wrote there. The sources are `input@io, a0.h0@io, ..., input@s1, ...`, role
by role, and the destinations the same as without. A head writes where it reads its q; it reads k and v at the tokens
that it attends to. Roles come in the order of the prompts, and the last one is that of the answer's token: in the last
layer q, MLP and logits are read there alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from .choices import QKV, QKVName

if TYPE_CHECKING:  # Counting and naming edges needs no torch: it is imported where the first tensor is made.
    import numpy as np
    from jaxtyping import Bool, Int
    from torch import Tensor

    from .model.architectures import Shape
    from .model.pairs import TokenRoles


def head_named(name: str) -> tuple[int, int] | None:
    """Layer and number of a head by its name, `a3.h1`; None for any other name."""
    found = re.fullmatch(r"a(\d{1,9})\.h(\d{1,9})", name)
    return None if found is None else (int(found[1]), int(found[2]))


@dataclass(frozen=True)
class Graph:
    """Index maps of a transformer with `n_layers` layers of `n_heads` heads."""

    n_layers: int
    n_heads: int
    parallel: bool
    roles: tuple[str, ...] = ()
    # By role and role, whether tokens of the first attend to some of the second; it depends on the prompts drawn.
    attends: tuple[tuple[bool, ...], ...] = field(default=((True,),), compare=False)

    @classmethod
    def of(cls, model: Shape, roles: TokenRoles | None = None) -> Graph:
        by_role = () if roles is None else (roles.names, roles.attends)
        return cls(model.n_layers, model.n_heads, model.parallel, *by_role)

    @cached_property
    def plain(self) -> Graph:
        """The same without roles."""
        return Graph(self.n_layers, self.n_heads, self.parallel) if self.roles else self

    @property
    def n_roles(self) -> int:
        return max(len(self.roles), 1)

    @property
    def n_nodes(self) -> int:
        """Forward nodes without roles."""
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_forward(self) -> int:
        return self.n_roles * self.n_nodes

    @property
    def n_backward(self) -> int:
        return self.n_layers * (3 * self.n_heads + 1) + 1

    @property
    def n_edges(self) -> int:
        counts = list(self._counts_before())
        return self.n_roles * sum(counts) - (self.n_roles - 1) * sum(counts[v] for v in self.read_at_answer)

    def head(self, layer: int, head: int = 0) -> int:
        """Forward index of head `a{layer}.h{head}`."""
        return 1 + layer * (self.n_heads + 1) + head

    def mlp(self, layer: int) -> int:
        """Forward index of `m{layer}`."""
        return self.head(layer, self.n_heads)

    def head_input(self, layer: int, head: int, letter: QKVName) -> int:
        """Backward index of `a{layer}.h{head}<letter>`, letter one of q, k, v."""
        return layer * (3 * self.n_heads + 1) + QKV.index(letter) * self.n_heads + head

    def qkv_inputs(self, layer: int) -> slice:
        """Backward indices of a layer's head inputs: q of all heads, then k, then v."""
        start = layer * (3 * self.n_heads + 1)
        return slice(start, start + 3 * self.n_heads)

    def mlp_input(self, layer: int) -> int:
        """Backward index of `m{layer}`."""
        return layer * (3 * self.n_heads + 1) + 3 * self.n_heads

    @property
    def logits(self) -> int:
        """Backward index of `logits`."""
        return self.n_backward - 1

    def n_before_mlp(self, layer: int) -> int:
        """How many forward nodes have written when `m{layer}` reads: the first this many; `head(layer)` for heads."""
        return self.head(layer) if self.parallel else self.mlp(layer)

    def _counts_before(self) -> Iterator[int]:
        for layer in range(self.n_layers):
            yield from [self.head(layer)] * (3 * self.n_heads)
            yield self.n_before_mlp(layer)
        yield self.n_nodes

    @cached_property
    def read_at_answer(self) -> list[int]:
        """The backward nodes that are read at the answer's token alone."""
        first = self.qkv_inputs(self.n_layers - 1).start
        return [*range(first, first + self.n_heads), self.mlp_input(self.n_layers - 1), self.logits]

    @cached_property
    def n_before(self) -> Int[Tensor, " n_backward"]:
        """For each backward node the number of forward nodes it can read: of a role the first this many."""
        import torch

        return torch.tensor(list(self._counts_before()))

    @cached_property
    def edge_mask(self) -> Bool[Tensor, "n_forward n_backward"]:
        """Which (source, destination) pairs are edges."""
        import torch

        mask = (torch.arange(self.n_nodes)[:, None] < self.n_before[None, :]).repeat(self.n_roles, 1)
        mask[: -self.n_nodes, self.read_at_answer] = False
        return mask

    @cached_property
    def flat_edges(self) -> Int[Tensor, " edge"]:
        """Flat index forward * n_backward + backward of every edge, ascending."""
        return self.edge_mask.flatten().nonzero()[:, 0]

    def ends(self, flat: Int[Tensor, " edge"]) -> Int[Tensor, "edge 2"]:
        """Forward and backward index of edges given by their flat indices."""
        import torch

        return torch.stack((flat // self.n_backward, flat % self.n_backward), dim=1)

    @cached_property
    def forward_of_backward(self) -> Int[Tensor, " n_backward"]:
        """The node that each backward node is an input of (`a1.h0<q>` -> `a1.h0`), roles apart; `logits` -> n_nodes."""
        import torch

        nodes = []
        for layer in range(self.n_layers):
            nodes += [self.head(layer, head) for _ in QKV for head in range(self.n_heads)] + [self.mlp(layer)]
        return torch.tensor([*nodes, self.n_nodes])

    @cached_property
    def follows(self) -> Bool[Tensor, "role role n_backward"]:
        """By the roles where a node writes and where an input of it reads: whether the one depends on the other."""
        import torch

        same = torch.eye(self.n_roles, dtype=torch.bool)[..., None].repeat(1, 1, self.n_backward)
        attends = torch.tensor(self.attends)[..., None]
        for layer in range(self.n_layers):
            columns = self.qkv_inputs(layer)
            same[..., columns.start + self.n_heads : columns.stop] = attends
        same[:-1, :, self.logits] = False
        return same

    @cached_property
    def forward_nodes(self) -> list[str]:
        names = ["input"]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)] + [f"m{layer}"]
        return [f"{name}@{role}" for role in self.roles for name in names] or names

    @cached_property
    def backward_nodes(self) -> list[str]:
        names = []
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}<{letter}>" for letter in QKV for head in range(self.n_heads)]
            names.append(f"m{layer}")
        return [*names, "logits"]

    @property
    def n_ends(self) -> int:
        """Nodes that every circuit has: `input` and `logits`."""
        return 2

    def dealt(self, generator: np.random.Generator) -> np.ndarray:
        """The edges in a random order, in which they get each other's scores."""
        return generator.permutation(self.n_edges)

    def edge_name(self, u: int, v: int) -> str:
        """The name of an edge by its indices, `a0.h1->a3.h2<q>`."""
        return f"{self.forward_nodes[u]}->{self.backward_nodes[v]}"

    def edges_named(self, name: str) -> list[tuple[int, int]]:
        """Indices of the edges that a name stands for: one, or those into all three inputs where it names a head.

        One that names no role stands for the edge at all of them.

        Raises:
            ValueError: if the graph has no such edge.
        """
        letters = QKV if re.search(r"->a\d+\.h\d+$", name) else ()
        targets = [f"{name}<{letter}>" for letter in letters] or [name]
        if not self.roles or "@" in name:
            return [self.edge_index(full) for full in targets]
        found = [self.plain.edge_index(full) for full in targets]
        everywhere = [(role * self.n_nodes + u, v) for role in range(self.n_roles) for u, v in found]
        return [edge for edge in everywhere if self.edge_mask[edge]]

    def edge_index(self, name: str) -> tuple[int, int]:
        """Indices of an edge by name, e.g. `a0.h1->a3.h2<q>`; a ValueError if the graph has no such edge."""
        source, arrow, target = name.partition("->")
        if not arrow:
            raise ValueError(f"{name}: not an edge; write it as source->target")
        try:
            u, v = self._indices[0][source], self._indices[1][target]
        except KeyError as missing:
            raise ValueError(f"{name}: the graph has no node {missing}") from None
        if not self.edge_mask[u, v]:
            raise ValueError(f"{name}: {target} does not read {source}")
        return u, v

    @cached_property
    def _indices(self) -> tuple[dict[str, int], ...]:
        return tuple({name: n for n, name in enumerate(nodes)} for nodes in (self.forward_nodes, self.backward_nodes))
