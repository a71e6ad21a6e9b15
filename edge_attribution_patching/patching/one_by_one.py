"""Circuits as the published study's code evaluates them: absent edges one by one, in the weights' number format.

The model runs on the clean prompt. A node of the circuit reads its residual stream, off which for every edge outside
the circuit what the source wrote is taken, before what it writes in the base run is added. Nodes outside the circuit
read it as it is. Without rounding this is what `forward.py` computes (Tigges et al. 2024, arXiv 2407.10827), but where
a norm ties the heads of a layer together: here all are normalised with what the others write in this run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..choices import QKVName
from ..graph import Graph
from ..model.forward import attend, clamp_norm_rotate, mlp
from ..model.norms import inverse_rms, normalise
from ..model.packed_tokens import Rotation
from ..model.pairs import Metric, bar
from ..model.transfer import to_device
from ..model.weights import LayerWeights, ModelWeights
from .plan import spanning_norms
from .runs import PreparedRuns, metric_of_finals


def evaluate_one_by_one(
    weights: ModelWeights, runs: PreparedRuns, masks: Bool[Tensor, "mask n_forward n_backward"], metric: Metric
) -> Float[Tensor, "mask prompt"]:
    """The metric of every prompt under masks over edges, float32; `runs` are of whole prompts, without a prefix.

    One mask at a time holds what all nodes write, in its run and in the base run.
    """
    graph = Graph.of(weights)
    masks = masks.cpu() & graph.edge_mask
    with torch.no_grad():
        finals = [_final(weights, runs, graph, mask) for mask in bar(masks, "circuits edge by edge")]
        return metric_of_finals(weights, torch.stack(finals), runs.batch.index, metric)


def read(
    stream: Float[Tensor, "token d_model"],
    here: Sequence[Float[Tensor, "token d_model"]],
    base: Sequence[Float[Tensor, "token d_model"]],
    absent: Bool[Tensor, "n_forward input"],
) -> Float[Tensor, "input token d_model"]:
    """What some inputs read of a residual stream that the first nodes have written `here`, and in the `base` run."""
    absent = absent[: len(here)]
    lacking = absent.any(0)
    some = stream.repeat(int(lacking.sum()), 1, 1)
    for edges, mine, others in zip(absent[:, lacking], here, base, strict=True):
        if edges.any():  # Most are absent, so those that are not get back what they had.
            present = (~edges).nonzero()[:, 0]
            kept = some[present]
            some.sub_(mine).add_(others)
            some[present] = kept
    x = stream.repeat(len(lacking), 1, 1)
    x[lacking] = some
    return x


def _final(
    weights: ModelWeights, runs: PreparedRuns, graph: Graph, edges: Bool[Tensor, "n_forward n_backward"]
) -> Float[Tensor, "prompt d_model"]:
    """The final residual stream at the answers."""
    if not edges[:, graph.logits].any():
        return runs.base.final
    layout = runs.layout
    # Of what nodes of the circuit read, and the logits; where a norm ties heads together, of what any node reads.
    held = edges.any(1) | any(map(any, spanning_norms(weights)))
    absent = ~edges & F.pad(held, (0, 1), value=True)[graph.forward_of_backward]
    stream, rotations = runs.source.embedded, runs.layout.rotations(weights)
    here, base = [stream], [runs.base.embedded]
    for index, (layer, run, rotation) in enumerate(zip(weights.layers, runs.base.layers, rotations, strict=True)):
        stream, here, base = to_device((stream, here, base), layer.device)
        at = layout.on(layer.device, weights)
        of_q, of_k, of_v = absent[:, graph.qkv_inputs(index)].split(graph.n_heads, dim=1)
        k = _attending(layer, "k", read(stream, here, base, of_k), rotation)
        v = _attending(layer, "v", read(stream, here, base, of_v), rotation)
        last = index == weights.n_layers - 1
        if last:  # From here on only the answers matter.
            stream, here, base = stream[at.last], [x[at.last] for x in here], [x[at.last] for x in base]
            rotation = None if rotation is None else rotation.at(at.last)
        q = _attending(layer, "q", read(stream, here, base, of_q), rotation)
        queries = at.answers if last else at.queries
        laid = torch.cat((q[:, None] if last else q[queries.tokens], k[at.keys], v[at.keys]), dim=1)
        z, _ = attend(layer, laid.transpose(1, 2).contiguous(), queries)
        z = z.transpose(1, 2).flatten(0, 1)[queries.places]
        out = F.linear(z.flatten(1), layer.W_O.flatten(0, 1).T, layer.b_O)
        if layer.attn_post_norm is not None:
            scale = inverse_rms(layer.attn_post_norm, out)
            z = (z * scale[..., None]).to(z.dtype)
            out = (out * scale * layer.attn_post_norm.gain).to(out.dtype)
        after, of_mlp = stream + out, absent[:, graph.mlp_input(index), None]
        mlp_in = read(stream, here, base, of_mlp) if weights.parallel else None
        for written, nodes in ((z, here), (run.written, base)):
            nodes.extend(torch.einsum("thd,hdm->htm", written, layer.W_O_scaled).unbind())
        mlp_in = read(after, here, base, of_mlp) if mlp_in is None else mlp_in
        here.append(mlp(layer, mlp_in[0]))
        base.append(run.mlp_out)
        stream = after + here[-1]
    return read(stream, here, base, absent[:, graph.logits, None])[0].to(weights.device)


def _attending(
    layer: LayerWeights, letter: QKVName, x: Float[Tensor, "head token d_model"], rotation: Rotation | None
) -> Float[Tensor, "token head d_head"]:
    """q, k or v of every query head from what it reads; those that share a key-value head may read different things."""
    group = 1 if letter == "q" else layer.group
    W, b = (part[layer.rows(letter)].repeat_interleave(group, 0) for part in (layer.W_qkv, layer.b_qkv))
    normalised = x if layer.attn_norm is None else normalise(layer.attn_norm, x)[0]
    out = torch.bmm(normalised, W.transpose(1, 2)) + b[:, None]
    # A norm of all heads covers the first of every group, then the second, ...
    out = rearrange(out, "(kv group) token d_head -> group token kv d_head", group=group)
    out = clamp_norm_rotate(layer, letter, out, rotation)
    return rearrange(out, "group token kv d_head -> token (kv group) d_head")
