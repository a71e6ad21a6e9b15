"""EAP-IG over activations: the nodes of one layer at a time go from what they write in the corrupted run to the clean.

    score(u -> v) = mean over prompts of the sum over positions of
                    (a_u(clean) - a_u(corrupted)) . mean over n, k of dM/dx_v(n, k)

Node layer n is the input, the heads of a layer, or its MLP: 2L + 1 of them. Pass (n, k) runs the clean prompt, but what
the nodes of n write is a_n(corrupted) + k/m (a_n(clean) - a_n(corrupted)), a constant. So gradients flow to x_v by all
paths but those through n, and the mean over n falls short of a gradient by the share of n through which v acts. Where
the embeddings are constants and nothing is added to them, because the model embeds no positions, what reads them alone
has no gradient in the passes of the input. All this is what the published program computes (EAP-IG-activations of Hanna
et al. 2024, arXiv 2403.17806), kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..model.pairs import bar
from ..model.transfer import to_device
from ..model.weights import ModelWeights
from .gradients import Gradients, NodeOutputs


def by_node_layers(
    gradients: Gradients, clean: NodeOutputs, corrupted: NodeOutputs, steps: int, at_once: int, memory_budget: float
) -> Iterator[tuple[Gradients, NodeOutputs]]:
    """The mean gradients of all passes, and what they are multiplied with: clean minus corrupted.

    Args:
        gradients: of the batch, without any step.
        clean, corrupted: what all nodes compute in the two runs.
        steps: m.
        at_once: how many passes run stacked.
        memory_budget: bytes that gradients may take; beyond it they come in parts.

    Raises:
        ValueError: for no steps.
    """
    if steps < 1:
        raise ValueError(f"ig_steps={steps}: take at least 1")
    weights, difference = gradients.weights, clean.minus(corrupted)
    node_layers = 2 * weights.n_layers + 1
    passes = [(n, k / steps) for n in range(node_layers) for k in range(1, steps + 1)]
    # The passes of the input are chunks of their own: some inputs forget them.
    chunks = [part[i : i + at_once] for part in (passes[:steps], passes[steps:]) for i in range(0, len(part), at_once)]
    for chunk in bar(chunks, "integrated gradients"):
        layers, alphas = zip(*chunk, strict=True)
        interpolation = _Interpolation(weights, difference, layers, alphas)
        embedded = interpolation(0, clean.embedded.expand(len(layers), *clean.embedded.shape))
        gradients.add(embedded, embedded.new_full((len(layers),), 1 / len(passes)), interpolation)
        if layers[-1] == 0 and weights.position_embed is None:
            gradients.forget_readers_of_input()
        if gradients.nbytes > memory_budget or chunk is chunks[-1]:
            yield gradients, difference
            gradients.clear()


class _Interpolation:
    """What node layers write in some stacked passes (a `forward.Writer`).

    Args:
        difference: what the nodes compute in the clean run minus in the corrupted one.
        layers, alphas: of each pass, the node layer that does not write what it writes in the clean run, and where.
    """

    def __init__(
        self, weights: ModelWeights, difference: NodeOutputs, layers: Sequence[int], alphas: Sequence[float]
    ) -> None:
        self.weights, self.difference, self.layers = weights, difference, layers
        of_passes = torch.tensor(layers)[:, None, None], 1 - torch.tensor(alphas, dtype=weights.dtype)[:, None, None]
        self.layer_of_pass, self.beta = to_device(of_passes, weights.device)

    def __call__(self, n: int, written: Float[Tensor, "step token d_model"]) -> Float[Tensor, "step token d_model"]:
        if n not in self.layers:
            return written
        # All nodes before n are those of the clean run, and so is what n would write.
        layer_of_pass, beta = to_device((self.layer_of_pass, self.beta), written.device)
        moved = written.detach() - beta * self._difference(n)
        return torch.where(layer_of_pass == n, moved, written)

    def _difference(self, n: int) -> Float[Tensor, "token d_model"]:
        """What node layer n writes in the clean run minus in the corrupted one."""
        if n == 0:
            return self.difference.embedded
        index, is_mlp = divmod(n - 1, 2)
        if is_mlp:
            return self.difference.mlp_out[index]
        W_O = self.weights.layers[index].W_O_scaled
        # Where a norm follows attention, its scale is of float32, and z with it.
        return self.difference.z[index].flatten(-2).to(W_O.dtype) @ W_O.flatten(0, 1)
