"""Gradients at k and v of every query head, where a group of query heads shares a key-value head.

The key-value head's own gradient is the sum over its group, and autograd gives no more. What each query head adds to
it follows from the gradient at that head's z: with the pattern P, dv = P^T dz; with dS the gradient at its attention
scores, dk = scale dS^T q. So neither keys nor values are copied for each query head.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from edge_attribution_patching.forward import LayerActivations, pad_keys, pad_queries, to_attend
from edge_attribution_patching.layout import Layout, Rotation
from edge_attribution_patching.weights import LayerWeights, Letter


def grouped_gradients(
    layer: LayerWeights,
    layout: Layout,
    activations: LayerActivations,
    z_gradient: Float[Tensor, "*stack query head d_head"],
    rotation: Rotation | None,
    prefix: tuple[Tensor | None, Tensor | None],
) -> dict[Letter, Float[Tensor, "*stack token kv_head group d_head"]]:
    """Gradients at k and v as projected, one for each query head of a group.

    Args:
        layer: the block.
        layout: where the tokens sit.
        activations: what the block computed.
        z_gradient: the metric's gradient at z.
        rotation: of the keys.
        prefix: the block's keys and values before the layout.
    """
    queries = layout.answers if z_gradient.shape[-3] == layout.n_prompts else layout.queries
    q, of_z = (pad_queries(x.detach(), layout, queries) for x in (activations.q, z_gradient))
    keys, values = (
        pad_keys(x.detach(), layout, before) for x, before in zip((activations.k, activations.v), prefix, strict=True)
    )
    pattern = activations.pattern.detach()

    def by_group(x: Tensor) -> Tensor:
        return rearrange(x, "... (kv group) query width -> ... kv (group query) width", group=layer.group)

    def by_head(x: Tensor) -> Tensor:
        return rearrange(x, "... kv (group query) width -> ... (kv group) query width", group=layer.group)

    of_pattern = by_head(by_group(of_z) @ values.transpose(-2, -1))
    of_scores = pattern * (of_pattern - (of_pattern * pattern).sum(-1, keepdim=True))
    if layer.attn_softcap is not None:
        scores = by_head(by_group(q) @ keys.transpose(-2, -1)) * layer.attn_scale
        of_scores = of_scores * (1 - torch.tanh(scores / layer.attn_softcap).square())
    attended: dict[Letter, Tensor] = {
        "k": layer.attn_scale * of_scores.transpose(-2, -1) @ q,
        "v": pattern.transpose(-2, -1) @ of_z,
    }
    return {letter: _of_projected(layer, layout, letter, activations, g, rotation) for letter, g in attended.items()}


def _of_projected(
    layer: LayerWeights,
    layout: Layout,
    letter: Letter,
    activations: LayerActivations,
    gradient: Float[Tensor, "*stack prompt head key d_head"],
    rotation: Rotation | None,
) -> Float[Tensor, "*stack token kv_head group d_head"]:
    """Through rotary, norm and clamp back to the projection, for one query head of every group at a time."""
    packed = rearrange(gradient, "... prompt head key d_head -> ... (prompt key) head d_head")
    packed = packed.index_select(-3, layout.key_index)
    by_member = rearrange(packed, "... token (kv group) d_head -> group ... token kv d_head", group=layer.group)
    with torch.enable_grad():
        projected = activations.qkv[..., layer.rows(letter), :].detach().requires_grad_(True)
        attended = to_attend(layer, letter, projected, rotation)
        members = [torch.autograd.grad(attended, projected, g, retain_graph=True)[0] for g in by_member]
    return torch.stack(members, dim=-2)
