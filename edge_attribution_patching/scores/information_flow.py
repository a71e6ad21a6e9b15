"""Information flow routes: how much of what a node reads comes from each node before it (Ferrando and Voita 2024).

    proximity(u -> v) = max(0, |x_v| - |x_v - a_u|)                     |.|: the sum of absolute values over d_model
    score(u -> v) = mean over prompts and positions of proximity(u -> v) / sum over u' of proximity(u' -> v)

x_v is the residual stream that v reads in the clean run, and a_u is what u writes to it. So the scores of all edges
into v add up to 1, wherever anything comes near x_v. No metric and no corrupted prompt is asked: a node that copies a
comma counts as much as one that finds the answer. Positions count alike, as in the published EAP-IG (arXiv 2403.00824
begins at the answer's instead). q, k and v of all heads of a layer read the same, so their edges have the same scores.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..graph import Graph
from ..model.forward import LayerActivations, embed, forward
from ..model.packed_tokens import PackedTokens
from ..model.pairs import GB, TokenPairs, bar
from ..model.weights import ModelWeights
from .folds import FoldScores, fold_sizes


def information_flow(
    weights: ModelWeights,
    pairs: TokenPairs,
    fold_of: Int[Tensor, " prompt"] | None = None,
    *,
    batch_size: int = 32,
    memory_budget_gb: float = 1.0,
) -> FoldScores:
    """The score of every edge, on all prompts and kept apart for each fold of them, at one forward pass.

    Args:
        pairs: prompts on the model's device; the clean ones count.
        fold_of: as of `attribution.attribute`.
        memory_budget_gb: bounds what is held of what nodes write; prompts are taken in smaller batches to stay below.
    """
    graph = Graph.of(weights, pairs.roles)
    fold_of, sizes = fold_sizes(fold_of, len(pairs))
    fold_of = fold_of.to(weights.device)
    sums = torch.zeros(len(sizes) * graph.n_roles, graph.n_nodes, graph.n_backward, device=weights.device)
    # What all nodes write, and what is left of a layer's input without each of them, in float32.
    prompt_bytes = 2 * 4 * graph.n_nodes * pairs.clean.shape[1] * weights.d_model
    at_once = max(1, min(batch_size, int(memory_budget_gb * GB // prompt_bytes)))
    for batch in bar(list(pairs.batches(at_once, share_prefix=False, weights=weights)), "information flow"):
        # Of every token its fold, and in it its role.
        part_of = graph.n_roles * fold_of[batch.index][batch.layout.prompt]
        for role, tokens in enumerate(batch.tokens_of_roles):
            part_of[tokens] += role
        routes = _Routes(weights, batch.layout, part_of, sums)
        with torch.no_grad():
            embedded = embed(weights, batch.layout, batch.layout.pack(batch.clean))
            routes.written[0] = embedded
            final = forward(weights, batch.layout, embedded, visit=routes)
            routes.read(graph.n_nodes, slice(graph.logits, None), final)
    by_fold = sums.cpu().view(len(sizes), graph.n_forward, -1)
    return FoldScores(graph, by_fold * graph.edge_mask, sizes)


class _Routes:
    """Looks at the layers of one batch as they run (a `forward.Visitor`)."""

    def __init__(
        self,
        weights: ModelWeights,
        layout: PackedTokens,
        part_of: Int[Tensor, " token"],
        sums: Float[Tensor, "fold_x_role n_nodes n_backward"],
    ) -> None:
        self.weights, self.sums, self.graph = weights, sums, Graph.of(weights)
        self.written = torch.zeros(self.graph.n_forward, layout.n_tokens, weights.d_model, device=weights.device)
        # What each token counts in its part: the mean over the positions of its prompt.
        self.shares = torch.nn.functional.one_hot(part_of, len(sums)) / layout.lengths[layout.prompt, None]

    def __call__(self, layer: LayerActivations) -> None:
        graph, index = self.graph, layer.layer
        self.read(graph.head(index), graph.qkv_inputs(index), layer.resid_pre)
        W_O = self.weights.layers[index].W_O_scaled.float().to(self.written.device)
        self.written[graph.head(index) : graph.mlp(index)] = layer.written.float().transpose(0, 1) @ W_O
        self.read(graph.n_before_mlp(index), slice(graph.mlp_input(index), graph.mlp_input(index) + 1), layer.mlp_in)
        self.written[graph.mlp(index)] = layer.mlp_out

    def read(self, n_before: int, inputs: slice, x: Float[Tensor, "token d_model"]) -> None:
        """Add the edges into some inputs, which all read x, what the first `n_before` nodes have written."""
        x = x.float()
        proximity = (x.abs().sum(-1) - (x - self.written[:n_before]).abs().sum(-1)).clamp(min=0)  # [node, token]
        total = proximity.sum(0)
        importance = torch.where(total > 0, proximity / total, 0)
        self.sums[:, :n_before, inputs] += (importance @ self.shares).T[:, :, None]
