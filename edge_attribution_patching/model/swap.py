"""Components of one model's weights in the place of another's: the same architecture, at another step of training.

What a node is: a head has its rows of q, k and v (with the gain and the bias of the norm before attention, which are
folded in) and of the output; `m3` has layer 3's MLP with its norms; `input` the embeddings; `logits` the final norm and
the unembedding. Query heads that share a key-value head move together where k or v moves. What all heads of a layer
share (the output's bias, the norms of q and k, the norm after attention) moves once all of them move.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..choices import QKV, Part
from ..graph import Graph, head_named
from .architectures import Shape
from .norms import Norm
from .weights import LayerWeights, ModelWeights

PARTS: tuple[Part, ...] = get_args(Part)

_OF_MLP = ("mlp_norm", "W_in", "b_in", "W_out", "b_out", "activation", "W_gate", "b_gate", "mlp_post_norm")
_OF_INPUT = ("embed", "position_embed", "embed_scale")
_OF_LOGITS = ("unembed", "unembed_bias", "final_norm", "logit_softcap")


def moved_together(nodes: Collection[str], shape: Shape, parts: Collection[Part] = PARTS) -> list[str]:
    """Nodes, in the order of the graph, with all query heads that share a key-value head with one of them.

    Without k and v among the parts, a query head moves by itself. A ValueError names a node that the model has not.
    """
    names = [*Graph.of(shape).forward_nodes, "logits"]
    if unknown := sorted(set(nodes) - set(names)):
        raise ValueError(f"{unknown[0]} is not a node of the model; nodes are input, a0.h0, m0, ..., logits")
    group = shape.n_heads // shape.n_kv_heads if {"k", "v"} & set(parts) else 1
    heads = {(layer, head // group) for layer, head in _heads(nodes)}
    return [
        name
        for name in names
        if name in nodes or any((layer, head // group) in heads for layer, head in _heads([name]))
    ]


def swapped(
    into: ModelWeights, source: ModelWeights, nodes: Collection[str], parts: Collection[Part] = PARTS
) -> ModelWeights:
    """A model with some nodes of another. Tensors are shared with the two where nothing in them is mixed.

    Args:
        nodes: names as of `Graph.forward_nodes`, and `logits`; `moved_together` says what moves with them.
        parts: what moves of heads.

    Raises:
        ValueError: if the two models have another shape, or the model has no such node.
    """
    if _shape(into) != _shape(source):
        raise ValueError(f"a model of {_shape(into)} cannot take weights of {_shape(source)}")
    moved = set(moved_together(nodes, into, parts))
    heads: dict[int, list[int]] = {}
    for layer, head in _heads(moved):
        heads.setdefault(layer, []).append(head)
    layers = []
    for number, (own, other) in enumerate(zip(into.layers, source.layers, strict=True)):
        changes = _taken(other, _OF_MLP) if f"m{number}" in moved else {}
        layers.append(replace(own, **changes, **_heads_taken(own, other, sorted(heads.get(number, [])), parts)))
    changes = _taken(source, _OF_INPUT) if "input" in moved else {}
    changes |= _taken(source, _OF_LOGITS) if "logits" in moved else {}
    return replace(into, layers=tuple(layers), **changes)


def _heads_taken(
    own: LayerWeights, other: LayerWeights, heads: Sequence[int], parts: Collection[Part]
) -> dict[str, Any]:
    """The fields of a layer's attention with some heads of another."""
    if not heads:
        return {}
    everything, kv_heads = len(heads) == own.n_heads, sorted({head // own.group for head in heads})
    changes: dict[str, Any] = {}
    # Rows of q, k and v in W_qkv that move.
    rows = [
        own.rows(letter).start + row
        for letter in QKV
        if letter in parts
        for row in (heads if letter == "q" else kv_heads)
    ]
    if rows:
        changes |= {name: _mixed(getattr(own, name), getattr(other, name), rows) for name in ("W_qkv", "b_qkv")}
    if "v" in parts:
        changes["V_mean"] = _mixed(own.V_mean, other.V_mean, kv_heads)
    if "q" in parts:
        changes["q_norm"] = _norm_taken(own, other, "q", heads, everything=everything)
    if "k" in parts:
        changes["k_norm"] = _norm_taken(own, other, "k", kv_heads, everything=everything)
    if "o" in parts:
        changes["W_O"] = _mixed(own.W_O, other.W_O, heads)
        if everything:
            changes |= _taken(other, ("b_O", "attn_post_norm"))
    if everything and set(QKV) <= set(parts):
        changes["attn_norm"] = other.attn_norm
    return changes


def _norm_taken(
    own: LayerWeights, other: LayerWeights, letter: Literal["q", "k"], heads: Sequence[int], *, everything: bool
) -> Norm | None:
    """The norm of q or k: the entries of heads where it has some for each, else all of it or nothing."""
    norm, theirs = own.norm_of(letter), other.norm_of(letter)
    if everything or norm is None or theirs is None:
        return theirs if everything else norm
    if not own.norm_spans_heads(letter):
        return norm
    d_head = own.W_O.shape[1]
    entries = [head * d_head + entry for head in heads for entry in range(d_head)]
    return replace(norm, gain=_mixed(norm.gain, theirs.gain, entries), bias=_mixed(norm.bias, theirs.bias, entries))


def _mixed(own: Tensor, other: Tensor, rows: Sequence[int]) -> Tensor:
    """A tensor with some rows of another."""
    index = torch.tensor(rows, device=own.device)
    return own.index_copy(0, index, other[index])


def _taken(source: LayerWeights | ModelWeights, names: Collection[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def _heads(nodes: Collection[str]) -> list[tuple[int, int]]:
    """Layer and number of the heads among some nodes."""
    return [head for name in nodes if (head := head_named(name))]


def _shape(weights: ModelWeights) -> Shape:
    return Shape(**{field.name: getattr(weights, field.name) for field in fields(Shape)})
