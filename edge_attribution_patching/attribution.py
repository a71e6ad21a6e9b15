"""Edge attribution patching with integrated gradients (EAP-IG).

    score(u -> v) = mean over prompts of the sum over positions of (a_u(clean) - a_u(corrupted)) . mean_k dM/dx_v(k)

Step k runs the model on embeddings e_corrupted + alpha_k (e_clean - e_corrupted); x_v is the residual stream that v
reads, a_u what u writes to it. A positive score says that the edge raises the metric. One step at alpha = 1: plain EAP.
Sources: Syed et al. 2023, "Attribution Patching Outperforms Automated Circuit Discovery" (EAP); Hanna et al. 2024,
"Have Faith in Faithfulness" (EAP-IG, arXiv 2403.17806).

How it is computed. Gradients are taken at the outputs of the q, k and v projections, at the MLP's input and at the
final residual stream: no weight needs one, and no residual stream is copied per head. With n the normalised residual
stream and 1/s its scale, a head that projects q = n W + b and receives the gradient g has at its own residual input

    dM/dx = (g W^T - n (g . (q - b)) / d_model) / s        (backward through LayerNorm; W is centred)

which is a part of d_head numbers, summed over the steps before it is multiplied out, and one coefficient for n per
step. The difference of activations does not depend on the step, so it is contracted with the gradients once per batch
and layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from edge_attribution_patching.forward import LayerActivations, embed, forward, prefix_cache, unembed
from edge_attribution_patching.graph import Graph
from edge_attribution_patching.layout import Layout, PrefixCache
from edge_attribution_patching.pairs import Metric, PairBatch, TokenPairs
from edge_attribution_patching.weights import ModelWeights

Quadrature = Literal["left", "right", "midpoint", "gauss-legendre"]

GB = 1e9
# Float numbers per token, layer and d_model that autograd keeps for one integration step (measured: 25 to 30).
AUTOGRAD_COPIES = 30


def quadrature_points(quadrature: Quadrature, steps: int) -> tuple[list[float], list[float]]:
    """Points alpha in [0, 1] and their weights, which add up to 1.

    `left`: k/m for k = 0..m-1 (the published EAP-IG); `right`: k = 1..m (one step: plain EAP); `midpoint`: (k + 1/2)/m;
    `gauss-legendre`: exact for polynomials up to degree 2m - 1.
    """
    if steps < 1:
        raise ValueError(f"ig_steps={steps}: at least 1 is needed")
    if quadrature == "gauss-legendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return ((points + 1) / 2).tolist(), (weights / 2).tolist()
    offsets = {"left": 0.0, "right": 1.0, "midpoint": 0.5}
    if quadrature not in offsets:
        raise ValueError(f"quadrature={quadrature}: unknown (known: {', '.join(get_args(Quadrature))})")
    return [(k + offsets[quadrature]) / steps for k in range(steps)], [1 / steps] * steps


@dataclass
class NodeOutputs:
    """What every node of one run computed, at the packed tokens (last layer: at the answers)."""

    embedded: Float[Tensor, "token d_model"]
    z: list[Float[Tensor, "token head d_head"]] = field(default_factory=list)
    mlp_out: list[Float[Tensor, "token d_model"]] = field(default_factory=list)

    def keep(self, layer: LayerActivations) -> None:
        self.z.append(layer.z.detach())
        self.mlp_out.append(layer.mlp_out.detach())


@dataclass
class _LayerGradients:
    """Gradients of one layer's inputs, summed over integration steps; see the module's docstring."""

    heads: Tensor  # sum_k g_k / s_k, [3 head, token, d_head]
    coefficients: list[Tensor]  # per chunk of steps (g_k . (q_k - b)) / (d_model s_k), [step, token, 3 head]
    normalised: list[Tensor]  # per chunk of steps n_k, [step, token, d_model]
    mlp: Tensor  # sum_k dM/d(mlp input), [token, d_model]


def attribute(
    weights: ModelWeights,
    pairs: TokenPairs,
    metric: Metric,
    *,
    steps: int = 12,
    quadrature: Quadrature = "left",
    batch_size: int = 32,
    memory_budget_gb: float = 1.0,
    share_prefix: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "n_forward n_backward"]:
    """EAP-IG score of every edge, float32 on the CPU; 0 where there is no edge.

    Args:
        weights: the model.
        pairs: clean and corrupted prompts on the model's device.
        metric: per-prompt metric of the logits at the answer, differentiable.
        steps: integration steps.
        quadrature: where the steps lie, see `quadrature_points`.
        batch_size: prompts a pass.
        memory_budget_gb: bounds what autograd keeps and what the contraction holds; the work is split to stay below it.
        share_prefix: run only the positions from each pair's first difference on (the rest cannot contribute).
        progress: called with the number of prompts done after each batch.

    Raises:
        ValueError: for an unknown quadrature or no steps.
        FloatingPointError: if scores are not finite (float16 overflows in some models).
    """
    graph = Graph.of(weights)
    scores = torch.zeros(graph.n_forward, graph.n_backward, dtype=torch.float32, device=weights.device)
    points = quadrature_points(quadrature, steps)
    for batch in pairs.batches(batch_size, share_prefix=share_prefix):
        _add_batch(scores, graph, weights, batch, metric, points, memory_budget_gb * GB)
        if progress is not None:
            progress(len(batch.index))
    scores = (scores / len(pairs)).cpu() * graph.edge_mask
    if not bool(scores.isfinite().all()):
        raise FloatingPointError(f"scores are not finite in {weights.dtype}")
    return scores


def _add_batch(
    scores: Tensor,
    graph: Graph,
    weights: ModelWeights,
    batch: PairBatch,
    metric: Metric,
    points: tuple[list[float], list[float]],
    budget: float,
) -> None:
    layout = batch.layout
    prefix = prefix_cache(weights, layout, batch.clean)
    clean = NodeOutputs(embed(weights, layout, layout.pack(batch.clean)))
    with torch.no_grad():
        forward(weights, layout, clean.embedded, prefix=prefix, visit=clean.keep, last_layer="answers")
    corrupted = NodeOutputs(embed(weights, layout, layout.pack(batch.corrupted)))
    alphas, step_weights = points
    if alphas[0] != 0.0:  # otherwise the first step is the corrupted run
        with torch.no_grad():
            forward(weights, layout, corrupted.embedded, prefix=prefix, visit=corrupted.keep, last_layer="answers")

    step_bytes = AUTOGRAD_COPIES * weights.n_layers * layout.n_tokens * weights.d_model * weights.embed.element_size()
    chunk = max(1, int(budget // step_bytes))
    gradients: list[_LayerGradients] = []
    final = torch.zeros(layout.n_prompts, weights.d_model, dtype=torch.float32, device=weights.device)
    for start in range(0, len(alphas), chunk):
        final += _step_gradients(
            gradients,
            weights,
            batch,
            metric,
            alphas[start : start + chunk],
            step_weights[start : start + chunk],
            prefix,
            clean.embedded,
            corrupted,
        )
        held = 4 * sum(part.numel() for layer in gradients for part in layer.normalised)
        if held > budget or start + chunk >= len(alphas):
            _contract(scores, graph, weights, layout, clean, corrupted, gradients, final, budget)
            gradients.clear()
            final.zero_()


def _step_gradients(
    gradients: list[_LayerGradients],
    weights: ModelWeights,
    batch: PairBatch,
    metric: Metric,
    alphas: list[float],
    step_weights: list[float],
    prefix: PrefixCache | None,
    clean_embedded: Tensor,
    corrupted: NodeOutputs,
) -> Float[Tensor, "prompt d_model"]:
    """One stacked forward and backward pass over some integration steps; returns the final residual's gradient."""
    layout = batch.layout
    activations: list[LayerActivations] = []
    take_corrupted = not corrupted.z

    def visit(layer: LayerActivations) -> None:
        activations.append(layer)
        if take_corrupted:
            corrupted.z.append(layer.z[0].detach())
            corrupted.mlp_out.append(layer.mlp_out[0].detach())

    alpha = torch.tensor(alphas, dtype=weights.dtype, device=weights.device)[:, None, None]
    x = corrupted.embedded + alpha * (clean_embedded - corrupted.embedded)
    with torch.enable_grad():
        x.requires_grad_(True)
        final = forward(weights, layout, x, prefix=prefix, visit=visit, last_layer="answers")
        logits = unembed(weights, final)
        per_step = torch.stack([metric(step, batch.index).float().sum() for step in logits])
        total = per_step @ torch.tensor(step_weights, device=weights.device)
        inputs = [layer.qkv for layer in activations] + [layer.mlp_in for layer in activations] + [final]
        *grads, final_gradient = torch.autograd.grad(total, inputs)

    n_layers = weights.n_layers
    if not gradients:
        gradients.extend(_LayerGradients(None, [], [], None) for _ in range(n_layers))  # type: ignore[arg-type]
    with torch.no_grad():
        for accumulated, layer, g, g_mlp in zip(
            gradients, activations, grads[:n_layers], grads[n_layers:], strict=True
        ):
            g = g.float()
            inverse_scale = layer.inverse_scale.float()
            unbiased = layer.qkv.detach().float() - weights.layers[layer.layer].b_qkv.float()
            coefficients = (g * unbiased).sum(-1).flatten(-2) * (inverse_scale / weights.d_model)
            heads = (g * inverse_scale[..., None, None]).sum(0).flatten(1, 2).transpose(0, 1).contiguous()
            mlp = g_mlp.float().sum(0)
            accumulated.heads = heads if accumulated.heads is None else accumulated.heads + heads
            accumulated.mlp = mlp if accumulated.mlp is None else accumulated.mlp + mlp
            accumulated.coefficients.append(coefficients)
            accumulated.normalised.append(layer.normalised.detach())
    return final_gradient.float().sum(0)


def _contract(
    scores: Tensor,
    graph: Graph,
    weights: ModelWeights,
    layout: Layout,
    clean: NodeOutputs,
    corrupted: NodeOutputs,
    gradients: list[_LayerGradients],
    final: Tensor,
    budget: float,
) -> None:
    """Add (difference of node outputs) . (gradient at node inputs) to the scores, some tokens at a time."""
    n_inputs = 3 * graph.n_heads + 1
    token_bytes = 4 * weights.d_model * (graph.n_forward + 2 * n_inputs)
    last_at = torch.full((layout.n_tokens,), -1, device=weights.device)
    last_at[layout.last] = torch.arange(layout.n_prompts, device=weights.device)
    for tokens in torch.arange(layout.n_tokens, device=weights.device).split(max(1, int(budget // token_bytes))):
        answers = last_at[tokens]
        at = (answers >= 0).nonzero()[:, 0]  # which of these tokens are answers, and whose
        answers = answers[at]
        difference = _output_difference(graph, weights, clean, corrupted, tokens, at, answers)
        flat = difference.flatten(1)
        for index, gradient in enumerate(gradients):
            G = _input_gradients(weights, index, gradient, tokens, at, answers)
            n_before = graph.n_before_mlp(index)
            columns = slice(graph.qkv_inputs(index).start, graph.mlp_input(index) + 1)
            scores[:n_before, columns] += flat[:n_before] @ G.flatten(1).T
        scores[:, graph.logits] += difference[:, at].flatten(1) @ final[answers].flatten()


def _output_difference(
    graph: Graph,
    weights: ModelWeights,
    clean: NodeOutputs,
    corrupted: NodeOutputs,
    tokens: Tensor,
    at: Tensor,
    answers: Tensor,
) -> Float[Tensor, "n_forward token d_model"]:
    """a_u(clean) - a_u(corrupted) of every node; the last layer's only at the answers (the rest is unread)."""
    difference = torch.zeros(graph.n_forward, len(tokens), weights.d_model, device=weights.device)
    difference[0] = (clean.embedded - corrupted.embedded)[tokens]
    for index, layer in enumerate(weights.layers):
        heads = slice(graph.head(index), graph.mlp(index))
        z = (clean.z[index] - corrupted.z[index]).float().transpose(0, 1)  # [head, token, d_head]
        mlp_out = (clean.mlp_out[index] - corrupted.mlp_out[index]).float()
        W_O = layer.W_O.float()
        if index == graph.n_layers - 1:
            difference[heads, at] = torch.bmm(z[:, answers], W_O)
            difference[graph.mlp(index), at] = mlp_out[answers]
        else:
            torch.bmm(z[:, tokens], W_O, out=difference[heads])
            difference[graph.mlp(index)] = mlp_out[tokens]
    return difference


def _input_gradients(
    weights: ModelWeights, index: int, gradient: _LayerGradients, tokens: Tensor, at: Tensor, answers: Tensor
) -> Float[Tensor, "3_head_plus_1 token d_model"]:
    """dM/dx of every head input (q of all heads, then k, then v) and of the MLP of one layer, at its residual input."""
    W = weights.layers[index].W_qkv.flatten(0, 1).float()  # [3 head, d_head, d_model]
    G = torch.empty(len(W) + 1, len(tokens), weights.d_model, device=weights.device)
    torch.bmm(gradient.heads[:, tokens], W, out=G[:-1])
    coefficients = torch.cat(gradient.coefficients)[:, tokens].permute(1, 2, 0)  # [token, 3 head, step]
    normalised = torch.cat(gradient.normalised)[:, tokens].float().transpose(0, 1)  # [token, step, d_model]
    G[:-1] -= torch.bmm(coefficients, normalised).transpose(0, 1)
    if index == weights.n_layers - 1:
        G[-1] = 0
        G[-1, at] = gradient.mlp[answers]
    else:
        G[-1] = gradient.mlp[tokens]
    return G
