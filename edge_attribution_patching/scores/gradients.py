"""Gradients at the inputs of all nodes, and their product with what the nodes before them write.

Gradients are taken at the outputs of the q, k and v projections, at the MLP's input and at the final residual stream:
no weight needs one, and no residual stream is copied per head. With n the normalised residual stream and 1/s its scale,
a head that projects q = n W + b and receives the gradient g has at its own residual input

    dM/dx = (g W^T - n (g . (q - b)) / d_model) / s        (backward through LayerNorm; W is centred)

which is a part of d_head numbers, summed over the integration steps before it is multiplied out, and one coefficient
for n per step; without a norm before attention (OLMo-2) it is g W^T. What follows the projection, a clamp, a norm of q
and k, and rotary, is autograd's. Query heads that share a key-value head have a k and a v input each
(`LayerGradients._of_shared`). Behind a norm of what attention writes, a head writes its share of the norm's output, at
the scale of that run. The product with the differences of node outputs is taken once for all the steps that share them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..choices import QKV, QKVName
from ..graph import Graph
from ..model.forward import LayerActivations, Writer, clamp_norm_rotate, forward, pad_keys, pad_queries, unembed
from ..model.packed_tokens import KVCache, PackedTokens, Rotation, TokenPart
from ..model.pairs import Metric, PairBatch
from ..model.weights import LayerWeights, ModelWeights


@dataclass
class NodeOutputs:
    """What every node computed in one run or in a stack of them, at the packed tokens (last layer: at the answers)."""

    embedded: Float[Tensor, "*stack token d_model"]
    z: list[Float[Tensor, "*stack token head d_head"]] = field(default_factory=list)  # a head writes z W_O_scaled
    mlp_out: list[Float[Tensor, "*stack token d_model"]] = field(default_factory=list)

    @classmethod
    def of_run(
        cls,
        weights: ModelWeights,
        layout: PackedTokens,
        embedded: Float[Tensor, "token d_model"],
        prefix: KVCache,
    ) -> NodeOutputs:
        """Run embedded prompts."""
        outputs = cls(embedded)
        with torch.no_grad():
            forward(weights, layout, embedded, prefix=prefix, visit=outputs.keep, last_layer="answers")
        return outputs

    def keep(self, layer: LayerActivations) -> None:
        """Add a layer; a visitor of the forward pass."""
        self.z.append(layer.written.detach())
        self.mlp_out.append(layer.mlp_out.detach())

    def of_step(self, step: int) -> NodeOutputs:
        """One run of a stack."""
        return NodeOutputs(self.embedded[step], [z[step] for z in self.z], [out[step] for out in self.mlp_out])

    def minus(self, other: NodeOutputs) -> NodeOutputs:
        """What the nodes compute here beyond what they compute in another run."""
        z, mlp_out = (
            [here - there for here, there in zip(*both, strict=True)]
            for both in ((self.z, other.z), (self.mlp_out, other.mlp_out))
        )
        return NodeOutputs(self.embedded - other.embedded, z, mlp_out)

    def written(self, weights: ModelWeights, part: TokenPart) -> Float[Tensor, "n_forward token d_model"]:
        """What every node writes to the residual stream at some tokens, float32.

        Of the last layer only what it writes at the answers; the rest nothing reads, and it is left 0.
        """
        graph = Graph.of(weights)
        out = torch.zeros(graph.n_forward, len(part.tokens), weights.d_model, device=weights.device)
        out[0] = self.embedded[part.tokens]
        for index, layer in enumerate(weights.layers):
            heads, mlp = slice(graph.head(index), graph.mlp(index)), graph.mlp(index)
            z = rearrange(self.z[index].float(), "token head d_head -> head token d_head")
            mlp_out, W_O = self.mlp_out[index].float(), layer.W_O_scaled.float()
            if index == graph.n_layers - 1:
                out[heads, part.answers] = torch.bmm(z[:, part.prompts], W_O)
                out[mlp, part.answers] = mlp_out[part.prompts]
            else:
                torch.bmm(z[:, part.tokens], W_O, out=out[heads])
                out[mlp] = mlp_out[part.tokens]
        return out


class LayerGradients:
    """Gradients at the inputs of one block, summed over integration steps (module docstring).

    Everything that depends on how a block reads the residual stream is here: the tensors to differentiate by, how their
    gradients add up, and what they are at the residual stream.

    Args:
        rotation, prefix: of the block's keys, and its keys and values before the layout.
        frozen: whether gradients follow RelP's rules (`forward`).
        last: whether it is the last block, whose MLP reads the answers' tokens alone.
    """

    def __init__(
        self,
        layer: LayerWeights,
        layout: PackedTokens,
        rotation: Rotation | None,
        prefix: tuple[Tensor | None, Tensor | None],
        *,
        last: bool,
        frozen: bool = False,
    ) -> None:
        n_heads, d_head, d_model = layer.W_O.shape
        self.layer, self.layout, self.last, self.frozen = layer, layout, last, frozen
        self.rotation, self.prefix = rotation, prefix
        # The sum over steps k of g_k / s_k, and of dM/dx_k for the MLP.
        self.heads = torch.zeros(3 * n_heads, layout.n_tokens, d_head, device=layer.W_qkv.device)
        n_read = layout.n_prompts if last else layout.n_tokens
        self.mlp = torch.zeros(n_read, d_model, device=layer.W_qkv.device)
        # Per chunk of steps: (g_k . (q_k - b)) / (d_model s_k) [step, token, input], and n_k [step, token, d_model].
        # They cannot be summed over steps yet: n differs from step to step.
        self.coefficients: list[Tensor] = []
        self.normalised: list[Tensor] = []

    def add(self, activations: LayerActivations, gradients: Sequence[Tensor]) -> None:
        """Add some steps: the gradients [step, token, ...] at q, k, v as projected, at the MLP's input, and where heads
        share k and v at z."""
        of_qkv, of_mlp, *of_z = gradients
        self.mlp += of_mlp.float().sum(0)
        layer, inverse_scale = self.layer, activations.inverse_scale
        projected = activations.qkv.detach()
        # Autograd adds up a shared k or v over its query heads; each of these is an input of the graph by itself.
        of_letters = self._of_shared(activations, of_z[0]) if of_z else {}
        of_projections, of_normalised = [], []
        for letter in QKV:
            rows = layer.rows(letter)
            g = of_letters.get(letter, of_qkv[..., rows, None, :]).float()  # [step, token, projection, group, d_head]
            if inverse_scale is not None:
                if not self.frozen:  # A scale that is a constant passes nothing on.
                    unbiased = projected[..., rows, :].float() - layer.b_qkv[rows].float()
                    of_normalised.append((g * unbiased[..., None, :]).sum(-1).flatten(-2))
                g = g * inverse_scale.float()[..., None, None]
            of_projections.append(g.sum(0).flatten(1, 2))
        self.heads += rearrange(torch.cat(of_projections, dim=1), "token input d_head -> input token d_head")
        if inverse_scale is not None and of_normalised:
            share = inverse_scale.float() / activations.normalised.shape[-1]
            self.coefficients.append(torch.cat(of_normalised, dim=-1) * share)
            self.normalised.append(activations.normalised.detach())

    def _of_shared(
        self, activations: LayerActivations, of_z: Float[Tensor, "step query head d_head"]
    ) -> dict[QKVName, Float[Tensor, "step token kv_head group d_head"]]:
        """Gradients at k and v as projected, one for each query head of a group: attention's backward pass by hand."""
        layer, layout = self.layer, self.layout
        queries = layout.answers if self.last else layout.queries
        q, of_z = (pad_queries(x.detach(), layout, queries) for x in (activations.q, of_z))
        keys, values = (
            pad_keys(x.detach(), layout, before)
            for x, before in zip((activations.k, activations.v), self.prefix, strict=True)
        )
        # A group's queries stand one after the other, so that keys and values are not copied for each of its heads.
        heads, groups = "... (kv group) query width", "... kv (group query) width"
        by_group = partial(rearrange, pattern=f"{heads} -> {groups}", group=layer.group)
        by_head = partial(rearrange, pattern=f"{groups} -> {heads}", group=layer.group)
        pattern = activations.pattern.detach()
        of_pattern = by_head(by_group(of_z) @ values.transpose(-2, -1))
        of_scores = (
            0 * pattern if self.frozen else pattern * (of_pattern - (of_pattern * pattern).sum(-1, keepdim=True))
        )  # backward through softmax
        if layer.attn_softcap is not None:
            scores = by_head(by_group(q) @ keys.transpose(-2, -1)) * layer.attn_scale
            of_scores = of_scores * (1 - torch.tanh(scores / layer.attn_softcap).square())
        of_k = layer.attn_scale * of_scores.transpose(-2, -1) @ q
        of_v = pattern.transpose(-2, -1) @ of_z
        return {"k": self._of_projected("k", activations, of_k), "v": self._of_projected("v", activations, of_v)}

    def _of_projected(
        self, letter: QKVName, activations: LayerActivations, gradient: Float[Tensor, "step prompt head key d_head"]
    ) -> Float[Tensor, "step token kv_head group d_head"]:
        """Through rotary, norm and clamp back to the projection, for one query head of every group at a time."""
        layer = self.layer
        packed = rearrange(gradient, "... prompt head key d_head -> ... (prompt key) head d_head")
        packed = packed.index_select(-3, self.layout.key_index)
        by_member = rearrange(packed, "... token (kv group) d_head -> group ... token kv d_head", group=layer.group)
        with torch.enable_grad():
            projected = activations.qkv[..., layer.rows(letter), :].detach().requires_grad_(True)
            attended = clamp_norm_rotate(layer, letter, projected, self.rotation)
            members = [torch.autograd.grad(attended, projected, g, retain_graph=True)[0] for g in by_member]
        return torch.stack(members, dim=-2)

    def at(self, part: TokenPart) -> Float[Tensor, "3_head_plus_1 token d_model"]:
        """dM/dx at some tokens of q of all heads, then k, then v, then the MLP, each at its residual input."""
        layer, n_heads = self.layer, self.layer.n_heads
        out = self.mlp.new_zeros(3 * n_heads + 1, len(part.tokens), self.mlp.shape[-1])
        for number, letter in enumerate(QKV):
            W = layer.W_qkv[layer.rows(letter)].float()
            inputs = slice(number * n_heads, (number + 1) * n_heads)
            # The heads of a group stand one after the other; their projection is one.
            grouped = rearrange(
                self.heads[inputs, part.tokens], "(row group) token d_head -> row (group token) d_head", row=len(W)
            )
            torch.bmm(grouped, W, out=out[inputs].view(len(W), -1, W.shape[-1]))
        if self.normalised:
            along_normalised = torch.bmm(
                rearrange(torch.cat(self.coefficients)[:, part.tokens], "step token input -> token input step"),
                rearrange(
                    torch.cat(self.normalised)[:, part.tokens].float(), "step token d_model -> token step d_model"
                ),
            )
            out[:-1] -= rearrange(along_normalised, "token input d_model -> input token d_model")
        if self.last:
            out[-1, part.answers] = self.mlp[part.prompts]
        else:
            out[-1] = self.mlp[part.tokens]
        return out


class Gradients:
    """Gradients of a batch's metric at every node's input, summed over the integration steps added so far."""

    def __init__(
        self, weights: ModelWeights, batch: PairBatch, metric: Metric, prefix: KVCache, *, frozen: bool = False
    ) -> None:
        self.weights, self.batch, self.metric, self.prefix, self.frozen = weights, batch, metric, prefix, frozen
        self._rotations = batch.layout.rotations(weights)
        self.clear()

    def clear(self) -> None:
        """Forget all steps."""
        weights, layout = self.weights, self.batch.layout
        self.layers = [self._layer(index) for index in range(weights.n_layers)]
        self.final = torch.zeros(layout.n_prompts, weights.d_model, device=weights.device)

    def forget_readers_of_input(self) -> None:
        """Forget the steps at the nodes that read embeddings alone."""
        mlp = self.layers[0].mlp
        self.layers[0] = self._layer(0)
        if not self.weights.parallel:  # Its MLP reads its heads too.
            self.layers[0].mlp = mlp

    def _layer(self, index: int) -> LayerGradients:
        layers, last = self.weights.layers, index == self.weights.n_layers - 1
        at = self.batch.layout, self._rotations[index], self.prefix[index]
        return LayerGradients(layers[index], *at, last=last, frozen=self.frozen)

    @property
    def nbytes(self) -> int:
        """What grows with the steps added so far, in float32; 0 without any."""
        return 4 * sum(chunk.numel() for layer in self.layers for chunk in layer.normalised)

    def add(
        self,
        embedded: Float[Tensor, "step token d_model"],
        step_weights: Sequence[float],
        write: Writer | None = None,
    ) -> NodeOutputs:
        """Run some integration steps forward and backward, stacked, and add their gradients.

        Args:
            embedded: the residual stream before layer 0 in each step.
            step_weights: what each step's gradients are multiplied with.
            write: may replace what the nodes of a layer write (`forward`).

        Returns what the nodes computed in each of these steps.
        """
        outputs = NodeOutputs(embedded)
        activations: list[LayerActivations] = []
        with torch.enable_grad():
            x = embedded.detach().requires_grad_(True)
            final = forward(
                self.weights,
                self.batch.layout,
                x,
                prefix=self.prefix,
                visit=activations.append,
                last_layer="answers",
                frozen=self.frozen,
                write=write,
            )
            logits = unembed(self.weights, final, frozen=self.frozen)
            per_step = torch.stack([self.metric(step, self.batch.index).float().sum() for step in logits])
            total = per_step @ torch.tensor(step_weights, device=per_step.device)
            shared = self.weights.layers[0].group > 1
            by_layer = [(layer.qkv, layer.mlp_in, *([layer.z] if shared else [])) for layer in activations]
            # One backward pass for all layers: autograd returns a flat list, dealt out to the layers again below.
            *of_layers, of_final = torch.autograd.grad(total, [*itertools.chain(*by_layer), final])
        with torch.no_grad():
            self.final += of_final.float().sum(0)
            left = iter(of_layers)
            for gradients, layer, inputs in zip(self.layers, activations, by_layer, strict=True):
                outputs.keep(layer)
                gradients.add(layer, list(itertools.islice(left, len(inputs))))
        return outputs

    def contract(
        self,
        difference: NodeOutputs,
        memory_budget: float,
        fold_of: Int[Tensor, " prompt"],
        into: Float[Tensor, "fold n_forward n_backward"],
    ) -> None:
        """Add to every fold its tokens' sum of (what u writes) . (gradient at v's input), for every edge u -> v.

        Args:
            difference: node outputs of one run minus those of another.
            memory_budget: bytes that may be held at once; tokens are taken in parts to stay below it.
            fold_of: the fold of each prompt of the batch.
        """
        weights, layout, graph = self.weights, self.batch.layout, Graph.of(self.weights)
        width = weights.d_model
        # What a token takes: what all nodes write, and a layer's gradients as they are and as a product.
        token_bytes = 4 * width * (graph.n_forward + 2 * (3 * graph.n_heads + 1))
        at_once = max(1, int(memory_budget // token_bytes))
        fold_of_token = fold_of[layout.prompt]
        # The sum over positions and d_model is one matrix product [u, token * d_model] @ [token * d_model, v] a layer.
        # Tokens are sorted by fold, so that a fold's share of it is a slice of the columns and needs no copy.
        for tokens in fold_of_token.argsort(stable=True).split(at_once):
            part = layout.part(tokens)
            counts = fold_of_token[tokens].bincount(minlength=len(into)).tolist()
            columns_of = {
                fold: slice((end - count) * width, end * width)
                for fold, (count, end) in enumerate(zip(counts, itertools.accumulate(counts), strict=True))
                if count
            }
            written = difference.written(weights, part)
            flat = written.flatten(1)
            for index, gradients in enumerate(self.layers):
                # The nodes that the MLP reads are all that any input of the layer reads. In a sequential block they
                # hold the layer's own heads too; what those get at q, k and v are no edges and is masked at the end.
                n_before = graph.n_before_mlp(index)
                inputs = slice(graph.qkv_inputs(index).start, graph.mlp_input(index) + 1)
                of_inputs = gradients.at(part).flatten(1)
                for fold, columns in columns_of.items():
                    into[fold, :n_before, inputs] += flat[:n_before, columns] @ of_inputs[:, columns].T
            # `logits` reads the answers' tokens alone: few, so every fold's sum is a product with its members.
            at_answers = torch.einsum("utd,td->ut", written[:, part.answers], self.final[part.prompts])
            members = torch.nn.functional.one_hot(fold_of[part.prompts], len(into)).to(at_answers)
            into[:, :, graph.logits] += (at_answers @ members).T
