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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..choices import QKVName
from ..graph import Graph
from ..model.forward import LayerActivations, Writer, clamp_norm_rotate, forward, mlp_hidden, mlp_shares, unembed
from ..model.packed_tokens import KVCache, PackedTokens, Rotation
from ..model.pairs import Metric, PairBatch
from ..model.reference import Reference
from ..model.transfer import Movable, to_device
from ..model.weights import LayerWeights, ModelWeights


@dataclass
class NodeOutputs:
    """What every node computed in one run or in a stack of them, at the packed tokens (last layer: at the answers).

    With `of_neurons`, also what the hidden units of MLPs write, times W_out_scaled.
    """

    embedded: Float[Tensor, "*stack token d_model"]
    z: list[Float[Tensor, "*stack token head d_head"]] = field(default_factory=list)  # a head writes z W_O_scaled
    mlp_out: list[Float[Tensor, "*stack token d_model"]] = field(default_factory=list)
    shares: list[Float[Tensor, "*stack token d_mlp"]] = field(default_factory=list)
    of_neurons: ModelWeights | None = None

    @classmethod
    def of_run(
        cls,
        weights: ModelWeights,
        layout: PackedTokens,
        embedded: Float[Tensor, "token d_model"],
        prefix: KVCache,
        *,
        neurons: bool = False,
    ) -> NodeOutputs:
        """Run embedded prompts."""
        outputs = cls(embedded, of_neurons=weights if neurons else None)
        with torch.no_grad():
            forward(weights, layout, embedded, prefix=prefix, visit=outputs.keep, in_place=True, last_layer="answers")
        return outputs

    @classmethod
    def of_reference(cls, reference: Reference, layout: PackedTokens, *, neurons: bool = False) -> NodeOutputs:
        """What ablated nodes write, and neurons if the reference was made for them."""
        embedded, *totals = reference.totals
        outputs, last = cls(reference.at(embedded, layout)), len(reference.heads) - 1
        for index, (heads, of_mlp) in enumerate(zip(reference.heads, totals[1::2], strict=True)):
            outputs.z.append(reference.at(heads, layout, answers=index == last))
            outputs.mlp_out.append(reference.at(of_mlp, layout, answers=index == last))
            if neurons:
                outputs.shares.append(reference.at(reference.shares[index], layout, answers=index == last))
        return outputs

    def keep(self, layer: LayerActivations) -> None:
        """Add a layer; a visitor of the forward pass."""
        self.z.append(layer.written.detach())
        self.mlp_out.append(layer.mlp_out.detach())
        if self.of_neurons is not None:
            block = self.of_neurons.layers[layer.layer]
            self.shares.append(mlp_shares(block, mlp_hidden(block, layer.mlp_in.detach())))

    def of_step(self, step: int) -> NodeOutputs:
        """One run of a stack."""
        z, mlp_out, shares = ([x[step] for x in of_layers] for of_layers in (self.z, self.mlp_out, self.shares))
        return NodeOutputs(self.embedded[step], z, mlp_out, shares)

    def minus(self, other: NodeOutputs) -> NodeOutputs:
        """What the nodes compute here beyond what they compute in another run."""
        z, mlp_out, shares = (
            [here - there for here, there in zip(*both, strict=True)]
            for both in ((self.z, other.z), (self.mlp_out, other.mlp_out), (self.shares, other.shares))
        )
        return NodeOutputs(self.embedded - other.embedded, z, mlp_out, shares)

    def write(
        self, weights: ModelWeights, index: int, slots: Slots, out: Float[Tensor, "n_forward slot d_model"]
    ) -> None:
        """What a layer's nodes write to the residual stream at some tokens, in float32, where the layer is.

        Of the last layer only what it writes at the answers; the rest nothing reads, and it is 0.
        """
        graph = Graph.of(weights)
        z, mlp_out, at = self.z[index].float(), self.mlp_out[index].float(), slots.tokens
        if index == graph.n_layers - 1:
            z, mlp_out, at = F.pad(z, (0, 0, 0, 0, 0, 1)), F.pad(mlp_out, (0, 0, 0, 1)), slots.answers
        heads, mlp = slice(graph.head(index), graph.mlp(index)), graph.mlp(index)
        torch.bmm(z[at].transpose(0, 1), weights.layers[index].W_O_scaled.float(), out=out[heads])
        out[mlp] = mlp_out[at]


@dataclass(frozen=True)
class Slots(Movable):
    """Some packed tokens, fold by fold, each fold filled up to as many as the others.

    Attributes:
        tokens: which token is in each slot; any in one that is filled up.
        gradients: the same, and one after the last token in a slot that is filled up.
        answers: the prompt that ends with the token in each slot; one after the last prompt where none does.
        folds: which these are.
    """

    tokens: Int[Tensor, " fold_x_slot"]
    gradients: Int[Tensor, " fold_x_slot"]
    answers: Int[Tensor, " fold_x_slot"]
    folds: Int[Tensor, " fold"]

    @classmethod
    def of(
        cls, layout: PackedTokens, fold_of: Int[Tensor, " prompt"], tokens: Int[Tensor, " token"] | None = None
    ) -> Slots:
        """Those of all tokens of a layout, or of some, from the folds of its prompts, on the CPU."""
        starts, lengths = map(torch.from_numpy, layout.on_cpu)
        counts = lengths - starts
        fold_of_token = fold_of.repeat_interleave(counts)
        tokens = torch.arange(len(fold_of_token)) if tokens is None else tokens
        sizes = fold_of_token[tokens].bincount()
        folds = sizes.nonzero()[:, 0]
        width = int(sizes.max())
        # Tokens sorted by fold; each fold's go to the front of its slots.
        order = tokens[fold_of_token[tokens].argsort(stable=True)]
        filled = torch.arange(width) < sizes[folds][:, None]
        n_tokens, n_prompts = len(fold_of_token), len(fold_of)
        gradients = torch.full(filled.shape, n_tokens)
        gradients[filled] = order
        ending = torch.full((n_tokens + 1,), n_prompts)
        ending[counts.cumsum(0) - 1] = torch.arange(n_prompts)
        return cls(gradients.clamp(max=n_tokens - 1), gradients, ending[gradients], folds)

    def split(self, at_once: int) -> Iterator[Slots]:
        """In parts of so many slots in all, at least one of each fold."""
        width = max(1, at_once // len(self.folds))
        for part in torch.stack((self.tokens, self.gradients, self.answers)).split(width, dim=2):
            tokens, gradients, answers = part.flatten(1)
            yield Slots(tokens, gradients, answers, self.folds)


class LayerGradients:
    """Gradients at the inputs of one block, summed over integration steps (module docstring).

    Everything that depends on how a block reads the residual stream is here: the tensors to differentiate by, how their
    gradients add up, and what they are at the residual stream.

    Args:
        rotation: of the block's queries and keys.
        frozen: whether gradients follow RelP's rules (`forward`).
        last: whether it is the last block, whose MLP reads the answers' tokens alone.
    """

    def __init__(
        self,
        layer: LayerWeights,
        layout: PackedTokens,
        rotation: Rotation | None,
        *,
        last: bool,
        frozen: bool = False,
    ) -> None:
        self.layer, self.layout, self.last, self.frozen, self.rotation = layer, layout, last, frozen, rotation
        # The sum over steps k of g_k / s_k, with one token more that has none, and of dM/dx_k for the MLP.
        self.heads: Tensor | None = None
        self.mlp: Tensor | None = None
        # Per chunk of steps: (g_k . (q_k - b)) / (d_model s_k) [step, token, input], and n_k [step, token, d_model].
        # They cannot be summed over steps yet: n differs from step to step.
        self.coefficients: list[Tensor] = []
        self.normalised: list[Tensor] = []

    def add(self, activations: LayerActivations, gradients: Sequence[Tensor]) -> None:
        """Add some steps: the gradients [step, token, ...] at q, k, v as projected, at the MLP's input, and where heads
        share k and v at z."""
        of_qkv, of_mlp, *of_z = gradients
        layer, inverse_scale = self.layer, activations.inverse_scale
        projected = activations.qkv.detach()
        g, bias = of_qkv.float(), layer.b_qkv.float()
        if of_z:
            # Autograd adds up a shared k or v over its query heads; each of these is an input of the graph by itself.
            of_k, of_v = self._of_shared(activations, of_z[0])
            g = torch.cat(
                (g[..., : layer.n_heads, :], of_k.float().flatten(-3, -2), of_v.float().flatten(-3, -2)), dim=-2
            )
            projected, bias = projected.index_select(-2, layer.row_of_input), bias[layer.row_of_input]
        if inverse_scale is not None:
            if not self.frozen:  # A scale that is a constant passes nothing on.
                share = inverse_scale.float() / activations.normalised.shape[-1]
                self.coefficients.append((g * (projected.float() - bias)).sum(-1) * share)
                self.normalised.append(activations.normalised.detach())
            g = g * inverse_scale.float()[..., None]
        of_heads, of_mlp = g.sum(0), of_mlp.float().sum(0)
        self.heads = of_heads if self.heads is None else self.heads + of_heads
        self.mlp = of_mlp if self.mlp is None else self.mlp + of_mlp

    def _of_shared(
        self, activations: LayerActivations, of_z: Float[Tensor, "step query head d_head"]
    ) -> tuple[Float[Tensor, "step token kv_head group d_head"], Float[Tensor, "step token kv_head group d_head"]]:
        """Gradients at k and v as projected, one for each query head of a group: attention's backward pass by hand."""
        layer, layout = self.layer, self.layout
        queries = layout.answers if self.last else layout.queries
        rows = layout.rows(layer, answers=self.last).z
        # z's gradient at the places that attention has, none at padding.
        of_z = F.pad(of_z.flatten(-3, -2), (0, 0, 0, 1)).index_select(-2, rows.inverse)
        n_keys = layout.width
        q, keys, values = activations.laid.detach().split((layer.group * queries.width, n_keys, n_keys), dim=-2)
        # A group's queries stand one after the other, so that keys and values are not copied for each of its heads.
        heads, groups = "... (kv group) query width", "... kv (group query) width"
        by_group = partial(rearrange, pattern=f"{heads} -> {groups}", group=layer.group)
        by_head = partial(rearrange, pattern=f"{groups} -> {heads}", group=layer.group)
        pattern = activations.pattern.detach()
        of_z = of_z.view(*pattern.shape[:-1], -1)
        of_pattern = by_head(by_group(of_z) @ values.transpose(-2, -1))
        of_scores = (
            0 * pattern if self.frozen else pattern * (of_pattern - (of_pattern * pattern).sum(-1, keepdim=True))
        )  # backward through softmax
        if layer.attn_softcap is not None:
            scores = by_head(q @ keys.transpose(-2, -1)) * layer.attn_scale
            of_scores = of_scores * (1 - torch.tanh(scores / layer.attn_softcap).square())
        of_k = layer.attn_scale * of_scores.transpose(-2, -1) @ by_head(q)
        of_v = pattern.transpose(-2, -1) @ of_z
        return self._of_projected("k", activations, of_k), self._of_projected("v", activations, of_v)

    def _of_projected(
        self, letter: QKVName, activations: LayerActivations, gradient: Float[Tensor, "step prompt head key d_head"]
    ) -> Float[Tensor, "step token kv_head group d_head"]:
        """Through rotary, norm and clamp back to the projection, for one query head of every group at a time."""
        layer = self.layer
        packed = rearrange(gradient, "... prompt head key d_head -> ... (prompt key) head d_head")
        packed = packed.index_select(-3, self.layout.key_places)
        by_member = rearrange(packed, "... token (kv group) d_head -> group ... token kv d_head", group=layer.group)
        with torch.enable_grad():
            projected = activations.qkv[..., layer.rows(letter), :].detach().requires_grad_(True)
            attended = clamp_norm_rotate(layer, letter, projected, self.rotation)
            members = [torch.autograd.grad(attended, projected, g, retain_graph=True)[0] for g in by_member]
        return torch.stack(members, dim=-2)

    def at(self, slots: Slots) -> Float[Tensor, "input slot d_model"]:
        """dM/dx at some tokens of q of all heads, then k, then v, then the MLP, each at its residual input."""
        assert self.heads is not None
        assert self.mlp is not None
        layer, n_inputs = self.layer, self.heads.shape[1]
        W = layer.W_qkv if layer.group == 1 else layer.W_qkv[layer.row_of_input]
        out = self.mlp.new_empty(n_inputs + 1, len(slots.tokens), self.mlp.shape[-1])
        # What is filled up gets no gradient: it stands for a token after the last one.
        heads = F.pad(self.heads, (0, 0, 0, 0, 0, 1))[slots.gradients]
        torch.bmm(heads.transpose(0, 1), W.float(), out=out[:-1])
        if self.normalised:
            coefficients, normalised = (
                one[0] if len(one) == 1 else torch.cat(one) for one in (self.coefficients, self.normalised)
            )
            coefficients = F.pad(coefficients, (0, 0, 0, 1))[:, slots.gradients]
            out[:-1] -= torch.einsum("stv,std->vtd", coefficients, normalised[:, slots.tokens].float())
        out[-1] = F.pad(self.mlp, (0, 0, 0, 1))[slots.answers if self.last else slots.gradients]
        return out


class Gradients:
    """Gradients of a batch's metric at every node's input, summed over the integration steps added so far."""

    def __init__(
        self,
        weights: ModelWeights,
        batch: PairBatch,
        metric: Metric,
        prefix: KVCache,
        *,
        frozen: bool = False,
        neurons: bool = False,
    ) -> None:
        self.weights, self.batch, self.metric, self.prefix, self.frozen = weights, batch, metric, prefix, frozen
        self.neurons = neurons  # whether outputs hold what neurons write
        self.clear()

    def clear(self) -> None:
        """Forget all steps."""
        weights, layout = self.weights, self.batch.layout
        last = weights.n_layers - 1
        rotations = layout.rotations(weights)
        self.layers = [
            LayerGradients(layer, layout.on(layer.device, weights), rotation, last=index == last, frozen=self.frozen)
            for index, (layer, rotation) in enumerate(zip(weights.layers, rotations, strict=True))
        ]
        self.final: Tensor | None = None

    def forget_readers_of_input(self) -> None:
        """Forget the steps at the nodes that read embeddings alone."""
        first = self.layers[0]
        assert first.heads is not None
        assert first.mlp is not None
        first.coefficients, first.normalised, first.heads = [], [], torch.zeros_like(first.heads)
        if self.weights.parallel:  # Else its MLP reads its heads too.
            first.mlp = torch.zeros_like(first.mlp)

    @property
    def nbytes(self) -> int:
        """What grows with the steps added so far, in float32; 0 without any."""
        return 4 * sum(chunk.numel() for layer in self.layers for chunk in layer.normalised)

    def add(
        self,
        embedded: Float[Tensor, "step token d_model"],
        step_weights: Float[Tensor, " step"],
        write: Writer | None = None,
    ) -> NodeOutputs:
        """Run some integration steps forward and backward, stacked, and add their gradients.

        Args:
            embedded: the residual stream before layer 0 in each step.
            step_weights: what each step's gradients are multiplied with.
            write: may replace what the nodes of a layer write (`forward`).

        Returns what the nodes computed in each of these steps.
        """
        outputs = NodeOutputs(embedded, of_neurons=self.weights if self.neurons else None)
        activations: list[LayerActivations] = []
        with torch.enable_grad():
            x = embedded.detach().requires_grad_(True)
            final = forward(
                self.weights,
                self.batch.layout,
                x,
                prefix=self.prefix,
                visit=activations.append,
                in_place=True,
                last_layer="answers",
                frozen=self.frozen,
                write=write,
            )
            logits = unembed(self.weights, final, frozen=self.frozen)
            values = self.metric(logits.flatten(0, 1), self.batch.index.repeat(len(logits))).float()
            total = values.view(len(logits), -1).sum(1) @ step_weights.to(values.dtype)
            shared = self.weights.layers[0].group > 1
            by_layer = [(layer.qkv, layer.mlp_in, *([layer.z] if shared else [])) for layer in activations]
            # One backward pass for all layers: autograd returns a flat list, dealt out to the layers again below.
            *of_layers, of_final = torch.autograd.grad(total, [*itertools.chain(*by_layer), final])
        with torch.no_grad():
            of_final = of_final.float().sum(0)
            self.final = of_final if self.final is None else self.final + of_final
            left = iter(of_layers)
            for gradients, layer, inputs in zip(self.layers, activations, by_layer, strict=True):
                outputs.keep(layer)
                gradients.add(layer, list(itertools.islice(left, len(inputs))))
        return outputs

    def contract(
        self,
        difference: NodeOutputs,
        memory_budget: float,
        slots: Slots,
        into: Float[Tensor, "fold n_forward n_backward"],
    ) -> None:
        """Add to every fold its tokens' sum of (what u writes) . (gradient at v's input), for every edge u -> v.

        Args:
            difference: node outputs of one run minus those of another.
            memory_budget: bytes that may be held at once; tokens are taken in parts to stay below it.
            slots: the batch's tokens by fold.
            into: entries that are no edges get numbers without a meaning.
        """
        assert self.final is not None
        weights, graph = self.weights, Graph.of(self.weights)
        # What a token takes: what all nodes write, and a layer's gradients as they are and as a product.
        token_bytes = 4 * weights.d_model * (graph.n_forward + 2 * (3 * graph.n_heads + 1))
        at_once = max(1, int(memory_budget // token_bytes))
        # The sum over positions and d_model: of a layer
        # [fold, u, slot * d_model] @ [fold, slot * d_model, v].
        for part in slots.split(at_once):

            def by_fold(x: Float[Tensor, "node fold_x_slot d_model"]) -> Float[Tensor, "fold node slot_x_d_model"]:
                return x.view(len(x), len(slots.folds), -1).transpose(0, 1)

            # What nodes write goes along from device to device: all that is read in a layer is where the layer is.
            here, written = part, torch.empty(graph.n_forward, len(part.tokens), weights.d_model, device=into.device)
            written[0] = difference.embedded[part.tokens]
            for index, (gradients, layer) in enumerate(zip(self.layers, weights.layers, strict=True)):
                if written.device != layer.device:
                    below, here = written[: graph.head(index)], to_device(part, layer.device)
                    written = torch.empty(written.shape, device=layer.device)
                    written[: len(below)] = below
                difference.write(weights, index, here, written)
                # The nodes that the MLP reads are all that any input of the layer reads. In a sequential block they
                # hold the layer's own heads too; what those get at q, k and v are no edges.
                inputs = slice(graph.qkv_inputs(index).start, graph.mlp_input(index) + 1)
                n_before, of_inputs = graph.n_before_mlp(index), gradients.at(here)
                products = torch.bmm(by_fold(written)[:, :n_before], by_fold(of_inputs).transpose(1, 2))
                into[:, :n_before, inputs].index_add_(0, part.folds, products.to(into.device))
            at_answers = by_fold(F.pad(self.final, (0, 0, 0, 1))[part.answers][None]).to(written.device)
            products = torch.bmm(by_fold(written), at_answers.transpose(1, 2))[..., 0]
            into[:, :, graph.logits].index_add_(0, part.folds, products.to(into.device))

    def contract_neurons(
        self, difference: NodeOutputs, memory_budget: float, slots: Slots, into: Float[Tensor, "fold neuron 1"]
    ) -> None:
        """Add to every fold its tokens' sum of (what a neuron writes) . (gradient at all that reads its node).

        So the scores of a node's neurons add up to those of the edges that leave it. Arguments are as of `contract`.
        """
        assert self.final is not None
        weights = self.weights
        token_bytes = 4 * (2 * weights.d_model * (3 * weights.n_heads + 2) + 4 * weights.d_mlp)
        for part in slots.split(max(1, int(memory_budget // token_bytes))):
            # [slot, d_model], from the logits down: the sum over everything that reads what a layer writes.
            behind = F.pad(self.final, (0, 0, 0, 1))[part.answers]
            start = into.shape[1]
            for index in reversed(range(weights.n_layers)):
                layer = weights.layers[index]
                behind, here = behind.to(layer.device), to_device(part, layer.device)
                of_inputs = self.layers[index].at(here)
                of_heads = behind if weights.parallel else behind + of_inputs[-1]
                z, shares, at = difference.z[index].flatten(1), difference.shares[index], here.tokens
                if index == weights.n_layers - 1:
                    z, shares, at = F.pad(z, (0, 0, 0, 1)), F.pad(shares, (0, 0, 0, 1)), here.answers
                products = (
                    z[at].float() * (of_heads @ layer.W_O_scaled.flatten(0, 1).float().T),
                    shares[at].float() * (behind @ layer.W_out_scaled.float().T),
                )
                of_layer = torch.cat(products, dim=1).unflatten(0, (len(part.folds), -1)).sum(1)  # [fold, neuron]
                into[:, start - of_layer.shape[1] : start, 0].index_add_(0, part.folds, of_layer.to(into.device))
                start -= of_layer.shape[1]
                behind = behind + of_inputs.sum(0)
