"""What ablated nodes write: nothing, or a mean over reference prompts, instead of what the corrupted prompt gives.

| ablation | what a node writes |
|---|---|
| `zero` | nothing: a head not even its value bias, an MLP not even its output bias |
| `mean` | its mean over all tokens of the reference prompts, each token counted once |
| `mean_positional` | at each position its mean over the reference prompts that are so long |

Padding is no token: unlike in the published EAP-IG, prompts of different lengths change no mean. What no node writes,
the bias of attention's output, stays.

Neurons hold 0 or their mean likewise, and a norm behind them is that of what all neurons of the layer hold then. The
output bias of an MLP is no neuron's: it stays as long as any neuron is there. Where all heads of a layer, or an MLP,
lose all their neurons, they write what these nodes do ablated. So all neurons are the model, and without any every node
is ablated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..choices import Ablation
from .forward import LayerActivations, embed, forward, mlp_shares
from .norms import apply_norm
from .packed_tokens import PackedTokens
from .transfer import checked_at_the_end, to_device
from .weights import ModelWeights


@dataclass(frozen=True)
class Reference:
    """What ablated nodes write, at each position, or at all of them alike: then there is one. Each is with its layer.

    Attributes:
        totals: of the input, then of the heads (with the output's bias) and the MLP of each layer.
        heads: what each head of a layer writes, before W_O_scaled.
        z: the same before a norm of what all heads write; which is what their neurons hold.
        hidden, shares: what the hidden units of each MLP hold, and what they write, before W_out_scaled; for circuits
            and scores of neurons.
    """

    positional: bool
    totals: list[Float[Tensor, "position d_model"]]
    heads: list[Float[Tensor, "position head d_head"]]
    z: list[Float[Tensor, "position head d_head"]]
    hidden: list[Float[Tensor, "position d_mlp"]] = field(default_factory=list)
    shares: list[Float[Tensor, "position d_mlp"]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        weights: ModelWeights,
        ablation: Ablation,
        tokens: Int[Tensor, "prompt position"],
        lengths: Int[Tensor, " prompt"],
        batch_size: int = 32,
        *,
        neurons: bool = False,
    ) -> Reference | None:
        """That of a model, from right-padded reference prompts (of `zero` none are run); None for `patching`.

        The means cost one forward pass over the prompts. Memory grows with their length for `mean_positional` alone;
        `neurons` take 2 d_mlp numbers of each layer and position more.
        """
        if ablation == "patching":
            return None
        if ablation == "zero":
            nothing = weights.embed.new_zeros(1, weights.d_model)
            biases = [apply_norm(layer.attn_post_norm, layer.b_O[None]) for layer in weights.layers]
            none = [layer.b_qkv.new_zeros(1, *layer.W_O.shape[:2]) for layer in weights.layers]
            of_layers = (one for bias in biases for one in (bias, torch.zeros_like(bias)))
            hidden = [layer.b_in.new_zeros(1, len(layer.b_in)) for layer in weights.layers if neurons]
            return cls(False, [nothing, *of_layers], none, none, hidden, hidden)
        positional = ablation == "mean_positional"
        width = int(lengths.max()) if positional else 1
        sums: list[Tensor] = []
        with torch.no_grad(), checked_at_the_end():
            for index in torch.arange(len(lengths)).split(batch_size):
                layout = PackedTokens.whole(lengths[index].cpu()).made_for(weights)
                # Which tokens each mean is of.
                of_tokens = layout.position == torch.arange(width)[:, None] if positional else layout.prompt[None] >= 0
                batch = to_device((layout, of_tokens, tokens[index]), weights.device)
                found = [of_tokens.sum(1).to(weights.device), *_sums(weights, *batch, neurons=neurons)]
                sums = [before + now for before, now in zip(sums, found, strict=True)] if sums else found
        counts, *others = sums
        means = ((one / counts.to(one.device).view(-1, *[1] * (one.ndim - 1))).to(weights.dtype) for one in others)
        n = weights.n_layers
        return cls(positional, *(list(islice(means, size)) for size in (2 * n + 1, n, n, n, n)))

    def at(
        self, x: Float[Tensor, "position ..."], layout: PackedTokens, *, answers: bool = False
    ) -> Float[Tensor, "token ..."]:
        """One of its tensors at all packed tokens, or at the answers' alone.

        Raises:
            ValueError: if a prompt is longer than all reference prompts, by position.
        """
        positions = layout.position[layout.last] if answers else layout.position
        if not self.positional:
            return x.expand(len(positions), *x.shape[1:])
        if layout.width > len(x):
            raise ValueError(
                f"a prompt has {layout.width} tokens, but no reference prompt more than {len(x)}; there is no mean at "
                "its last positions"
            )
        return x[positions.to(x.device)]


def _sums(
    weights: ModelWeights,
    layout: PackedTokens,
    of_tokens: Tensor,
    tokens: Int[Tensor, "prompt position"],
    *,
    neurons: bool,
) -> Iterator[Float[Tensor, "position ..."]]:
    """The sums of `Reference`'s tensors over some tokens of a batch, in float32 or better."""
    precise = torch.promote_types(weights.dtype, torch.float32)
    share = of_tokens.to(precise)
    totals, heads, z, hidden, shares = [], [], [], [], []

    def added(x: Float[Tensor, "token ..."]) -> Float[Tensor, "position ..."]:
        return (share.to(x.device) @ x.flatten(1).to(precise)).unflatten(1, x.shape[1:])

    def write(node_layer: int, out: Tensor) -> Tensor:
        totals.append(added(out))
        return out

    def hold(n: int, x: Tensor) -> Tensor:
        if n % 2 == 0:
            hidden.append(added(x))
            shares.append(added(mlp_shares(weights.layers[n // 2 - 1], x)))
        return x

    def visit(layer: LayerActivations) -> None:
        heads.append(added(layer.written))
        z.append(added(layer.z))

    embedded = embed(weights, layout, layout.pack(tokens))
    totals.append(added(embedded))
    forward(weights, layout, embedded, visit=visit, in_place=True, write=write, hold=hold if neurons else None)
    yield from (*totals, *heads, *z, *hidden, *shares)
