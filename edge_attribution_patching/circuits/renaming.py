"""The nodes and edges of one model under the names of another, where heads of the two were matched.

Which number a head has in its layer is chance, and so is its layer, within limits. `Renaming` says which node of the
first model a node of the second is. `input` and `logits` are the same in both. MLPs keep their layer; in models of
other depth, those at the same share of it stand for each other. A head without a match is a node that the first model
does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..choices import QKV
from ..graph import Graph

HeadPlace = tuple[int, int]
"""Layer and number of a head."""


@dataclass(frozen=True)
class Renaming:
    """Attributes:
    heads: head of the second model -> head of the first; no head of the first twice.
    """

    first: Graph
    second: Graph
    heads: Mapping[HeadPlace, HeadPlace]

    def nodes(self) -> Int[np.ndarray, " node"]:
        """For every forward node of the second model, and then `logits`, its index among those of the first.

        Nodes that the first model lacks have indices after those of its own.
        """
        first, second = self.first, self.second
        found = np.arange(second.n_forward + 1) + first.n_forward + 1
        found[[0, -1]] = 0, first.n_forward
        for (layer, head), (other_layer, other_head) in self.heads.items():
            found[second.head(layer, head)] = first.head(other_layer, other_head)
        shallow = min(first.n_layers, second.n_layers)
        of_first, of_second = (np.linspace(0, graph.n_layers - 1, shallow).round() for graph in (first, second))
        for layer, other in zip(of_second.astype(int).tolist(), of_first.astype(int).tolist(), strict=True):
            found[second.mlp(layer)] = first.mlp(other)
        return found

    def edges(self, flat: Int[Tensor, " edge"]) -> Int[Tensor, " renamed"]:
        """The edges of the first model that some of the second's are, as flat indices; others are left out."""
        sources, nodes, inputs = edge_ends(self.second, flat)
        names = self.nodes()
        edges = [
            source * self.first.n_backward + target
            for source, node, letter in zip(
                names[sources].tolist(), names[nodes].tolist(), inputs.tolist(), strict=True
            )
            if source < self.first.n_forward
            and (target := _backward(self.first, node, letter)) is not None
            and bool(self.first.edge_mask[source, target])
        ]
        return torch.tensor(sorted(edges), dtype=torch.long)


def deals(graph: Graph, seed: int, n: int) -> Iterator[dict[HeadPlace, HeadPlace]]:
    """n times, heads -> heads, after those of each layer have changed places at random."""
    rng, shape = np.random.default_rng(seed), (graph.n_layers, graph.n_heads)
    for _ in range(n):
        places = rng.permuted(np.tile(np.arange(shape[1]), (shape[0], 1)), axis=1)
        yield {(layer, head): (layer, int(places[layer, head])) for layer, head in np.ndindex(*shape)}


def edge_ends(graph: Graph, flat: Int[Tensor, " edge"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of some edges the forward node they leave, the one they go into (`logits` last), and which input of it.

    The input is 0, 1, 2 for q, k and v, and 3 for MLPs and logits.
    """
    sources, targets = graph.ends(flat).T
    place = torch.arange(graph.n_backward) % (3 * graph.n_heads + 1)
    return sources.numpy(), graph.forward_of_backward[targets].numpy(), (place // graph.n_heads)[targets].numpy()


def _backward(graph: Graph, node: int, letter: int) -> int | None:
    """The input of a node, by its number in `edge_ends`; None if the graph has none."""
    if node == graph.n_forward:
        return graph.logits
    if not 0 < node < graph.n_forward:
        return None
    layer, head = divmod(node - 1, graph.n_heads + 1)
    return graph.mlp_input(layer) if head == graph.n_heads else graph.head_input(layer, head, QKV[letter])
