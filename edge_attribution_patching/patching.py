"""The patched forward: one primitive for every intervention.

Given two runs of the same prompts, `base` and `source`, and a mask over edges, every backward node reads

    base residual stream + sum over its edges u -> v in the mask of (patched output of u - base output of u)

and everything downstream is recomputed; `input` writes the source run's embeddings. With base = corrupted and
source = clean this is circuit evaluation (edges in the circuit carry the clean prompt, all others the corrupted one):
the full mask gives the clean run, the empty mask the corrupted run. With base = clean and source = corrupted it is path
patching: only the edges of the named paths carry the corrupted prompt (Wang et al. 2022, "Interpretability in the
Wild"; Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching").

How it is computed. Only differences to the base run are propagated. A node none of whose edges carries one keeps its
base value; a node that reads everything from nodes at their source value has its source value; neither is computed, and
neither is a node that cannot reach the logits. The other inputs of a layer are one matrix product of the mask with the
differences, kept centred over d_model, so that LayerNorm is a scalar per token and is never written out. Several masks
are stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from edge_attribution_patching.forward import (
    LayerActivations,
    attend,
    embed,
    forward,
    mlp,
    pad_keys,
    prefix_cache,
    rotate,
    unembed,
)
from edge_attribution_patching.graph import Graph
from edge_attribution_patching.layout import Layout, PrefixCache
from edge_attribution_patching.pairs import Metric, PairBatch
from edge_attribution_patching.weights import LayerWeights, ModelWeights

# Told of the attention of recomputed heads: which masks of all, layer, heads [head], and pattern
# [mask, prompt, head, query, key] with the queries of `Layout.queries` (in the last layer `Layout.answers`).
Observer = Callable[[slice, int, Tensor, Tensor], None]

GB = 1e9
BASE, SOURCE, COMPUTED = 0, 1, 2
# Adding up the rows that inputs read beats a matrix product with zeros while fewer than this share of the entries are
# edges (measured at 160m shape: 0.1 to 0.2); with one input the product is bound by memory and never wins.
DENSE = 0.15


@dataclass
class RunActivations:
    """One run at the packed tokens; in the last layer q, z and what follows only at the answers."""

    embedded: Tensor
    resid_pre: list[Tensor] = field(default_factory=list)  # centred, [token, d_model]
    mlp_in: list[Tensor] = field(default_factory=list)  # centred
    qkv: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # after rotary, each [token, head, d_head]
    z: list[Tensor] = field(default_factory=list)
    mlp_out: list[Tensor] = field(default_factory=list)
    final: Tensor = field(init=False)  # centred, [prompt, d_model]


@dataclass(frozen=True)
class PreparedRuns:
    """Both runs of one batch, shared by all masks evaluated on it."""

    batch: PairBatch
    prefix: PrefixCache | None
    base: RunActivations
    source: RunActivations

    @property
    def layout(self) -> Layout:
        return self.batch.layout

    @property
    def nbytes(self) -> int:
        tensors: list[Tensor] = []
        for run in (self.base, self.source):
            tensors += [*run.resid_pre, *run.mlp_in, *run.z, *run.mlp_out, *(x for qkv in run.qkv for x in qkv)]
        if self.prefix is not None:
            tensors += [*self.prefix.keys, *self.prefix.values]
        return sum({x.data_ptr(): x.numel() * x.element_size() for x in tensors}.values())


def _centred(weights: ModelWeights, x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True) if weights.final_norm.center else x


def prepare_runs(
    weights: ModelWeights, batch: PairBatch, base: Literal["corrupted", "clean"] = "corrupted"
) -> PreparedRuns:
    """Run both prompts of a batch once and keep what masks are evaluated from.

    Args:
        weights: the model.
        batch: prompt pairs on the model's device.
        base: which run carries the edges outside of a mask; the other is the source.
    """
    layout = batch.layout
    prefix = prefix_cache(weights, layout, batch.clean)
    tokens = (batch.corrupted, batch.clean) if base == "corrupted" else (batch.clean, batch.corrupted)
    runs = [RunActivations(embed(weights, layout, layout.pack(padded))) for padded in tokens]

    def keep(layer: LayerActivations) -> None:
        resid_pre = _centred(weights, layer.resid_pre)
        cut = weights.parallel and layer.layer == weights.n_layers - 1
        mlp_in = resid_pre if weights.parallel else _centred(weights, layer.mlp_in)
        v = layer.v.contiguous()
        for index, run in enumerate(runs):
            run.resid_pre.append(resid_pre[index])
            run.mlp_in.append(mlp_in[index][layout.last] if cut else mlp_in[index])
            run.qkv.append((layer.q[index], layer.k[index], v[index]))
            run.z.append(layer.z[index])
            run.mlp_out.append(layer.mlp_out[index])

    with torch.no_grad():
        x = torch.stack([run.embedded for run in runs])
        finals = _centred(weights, forward(weights, layout, x, prefix=prefix, visit=keep, last_layer="answers"))
    for run, final in zip(runs, finals, strict=True):
        run.final = final
    return PreparedRuns(batch, prefix, *runs)


def evaluate_masks(
    weights: ModelWeights,
    runs: PreparedRuns,
    masks: Bool[Tensor, "mask n_forward n_backward"],
    *,
    memory_budget_gb: float = 1.0,
    shortcuts: bool = True,
) -> Float[Tensor, "mask prompt vocab"]:
    """Logits at the answers under each mask.

    Args:
        weights: the model.
        runs: both runs of a batch (`prepare_runs`).
        masks: edges that carry the source run, any device; entries that are not edges are ignored.
        memory_budget_gb: bounds the differences that are held at once; masks are stacked up to it.
        shortcuts: take nodes that are wholly at their source value from the source run instead of recomputing them.
    """
    finals = evaluate_masks_final(weights, runs, masks, memory_budget_gb=memory_budget_gb, shortcuts=shortcuts)
    return unembed(weights, finals)


def evaluate_masks_final(
    weights: ModelWeights,
    runs: PreparedRuns,
    masks: Bool[Tensor, "mask n_forward n_backward"],
    *,
    memory_budget_gb: float = 1.0,
    shortcuts: bool = True,
    observe: Observer | None = None,
) -> Float[Tensor, "mask prompt d_model"]:
    """The final residual stream (centred where the final norm centres) at the answers under each mask.

    Args:
        weights, runs, masks, memory_budget_gb, shortcuts: see `evaluate_masks`.
        observe: called with the attention of the heads that are recomputed under some mask of a stack; under those
            masks of the stack that leave a head alone it is that of the run the head is taken from.
    """
    graph = Graph.of(weights)
    masks = masks.cpu() & graph.edge_mask
    with torch.no_grad():
        plan = _Plan.of(graph, masks, shortcuts)
        token_bytes = runs.layout.n_tokens * weights.d_model * weights.embed.element_size()
        parts = plan.chunks(memory_budget_gb * GB, token_bytes, 3 * graph.n_heads + 1)
        finals = []
        for part in parts:
            see = None if observe is None else partial(observe, part)
            finals.append(_PatchedPass(graph, weights, runs, masks[part], plan.select(part), see).run())
        return torch.cat(finals)


def evaluate_metric(
    weights: ModelWeights,
    runs: PreparedRuns,
    masks: Bool[Tensor, "mask n_forward n_backward"],
    metric: Metric,
    *,
    memory_budget_gb: float = 1.0,
) -> Float[Tensor, "mask prompt"]:
    """The metric of every prompt of the batch under each mask, float32."""
    finals = evaluate_masks_final(weights, runs, masks, memory_budget_gb=memory_budget_gb)
    return torch.stack([metric(unembed(weights, final), runs.batch.index).float() for final in finals])


def run_metric(weights: ModelWeights, runs: PreparedRuns, metric: Metric) -> tuple[Tensor, Tensor]:
    """The metric of every prompt of the batch in the source and in the base run, each [prompt]."""
    source, base = (metric(unembed(weights, run.final), runs.batch.index).float() for run in (runs.source, runs.base))
    return source, base


@dataclass(frozen=True)
class _Plan:
    """What each mask makes of each node and input.

    Attributes:
        node: BASE, SOURCE or COMPUTED for each forward node.
        inputs: the same for each backward node.
        needed: forward nodes whose difference reaches the logits through computed inputs.
    """

    node: Tensor  # [mask, n_forward]
    inputs: Tensor  # [mask, n_backward]
    needed: Tensor  # [mask, n_forward]

    @classmethod
    def of(cls, graph: Graph, masks: Tensor, shortcuts: bool) -> _Plan:
        n_masks = len(masks)
        node = torch.zeros(n_masks, graph.n_forward, dtype=torch.int8)
        inputs = torch.zeros(n_masks, graph.n_backward, dtype=torch.int8)
        node[:, 0] = SOURCE

        def read(columns: slice | int, n_before: int) -> Tensor:
            """States of some inputs [mask, input] from the states of the nodes that they read."""
            edges = masks[:, :n_before, columns].reshape(n_masks, n_before, -1)
            before = node[:, :n_before, None]
            touched = (edges & (before != BASE)).any(1)
            whole = (edges & (before == SOURCE)).all(1) & shortcuts
            return torch.where(whole, SOURCE, torch.where(touched, COMPUTED, BASE)).to(torch.int8)

        for layer in range(graph.n_layers):
            heads = read(graph.qkv_inputs(layer), graph.n_before_heads(layer))
            inputs[:, graph.qkv_inputs(layer)] = heads
            heads = heads.view(n_masks, 3, graph.n_heads)
            joint = torch.where((heads == SOURCE).all(1), SOURCE, torch.where((heads == BASE).all(1), BASE, COMPUTED))
            node[:, graph.head(layer) : graph.mlp(layer)] = joint.to(torch.int8)
            mlp_state = read(graph.mlp_input(layer), graph.n_before_mlp(layer))[:, 0]
            inputs[:, graph.mlp_input(layer)] = mlp_state
            node[:, graph.mlp(layer)] = mlp_state
        inputs[:, graph.logits] = read(graph.logits, graph.n_forward)[:, 0]

        needed = torch.zeros(n_masks, graph.n_forward, dtype=torch.bool)
        computed = inputs == COMPUTED
        needed_by = torch.zeros(
            n_masks, graph.n_backward, dtype=torch.bool
        )  # computed inputs of needed, computed nodes
        needed_by[:, graph.logits] = computed[:, graph.logits]
        for u in range(graph.n_forward - 1, -1, -1):
            needed[:, u] = (node[:, u] != BASE) & (masks[:, u] & needed_by).any(1)
            if u > 0:
                mine = (graph.forward_of_backward == u).nonzero()[:, 0]
                needed_by[:, mine] = computed[:, mine] & (needed[:, u] & (node[:, u] == COMPUTED))[:, None]
        return cls(node, inputs, needed)

    def select(self, part: slice) -> _Plan:
        return _Plan(self.node[part], self.inputs[part], self.needed[part])

    def chunks(self, budget: float, token_bytes: int, layer_inputs: int) -> Iterator[slice]:
        """Runs of masks whose differences together stay within the budget, one mask at least."""
        start = 0
        while start < len(self.node):
            union = self.needed[start].clone()
            stop = start + 1
            while stop < len(self.node):
                grown = union | self.needed[stop]
                widest = int(grown.sum()) + 1 + layer_inputs
                if (stop + 1 - start) * widest * token_bytes > budget:
                    break
                union, stop = grown, stop + 1
            yield slice(start, stop)
            start = stop


class _PatchedPass:
    """One pass of stacked masks through the layers."""

    def __init__(
        self,
        graph: Graph,
        weights: ModelWeights,
        runs: PreparedRuns,
        masks: Tensor,
        plan: _Plan,
        observe: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> None:
        self.graph, self.weights, self.runs, self.plan = graph, weights, runs, plan
        self.observe = observe
        self.layout = runs.layout
        self.n_masks = len(masks)
        self.device, self.dtype = weights.device, weights.dtype
        kept = plan.needed.any(0).nonzero()[:, 0]
        self.edges = masks[:, kept]  # the kept nodes' rows
        self.reads_input = bool(len(kept)) and int(kept[0]) == 0
        self.n_filled = 0
        # Row 0 is the base residual stream of whoever reads next, then come the kept nodes' differences of every mask.
        shape = (1 + self.n_masks * len(kept), self.layout.n_tokens, weights.d_model)
        self.rows = torch.empty(shape, device=self.device, dtype=self.dtype)

    @property
    def differences(self) -> Float[Tensor, "mask node token d_model"]:
        """Patched minus base output of each kept node, a view of `rows`."""
        return self.rows[1:].view(self.n_masks, -1, *self.rows.shape[1:])

    def run(self) -> Float[Tensor, "mask prompt d_model"]:
        runs, graph = self.runs, self.graph
        state = self.plan.inputs[:, graph.logits].to(self.device)[:, None, None]
        final = torch.where(state == SOURCE, runs.source.final, runs.base.final)
        if not bool((state == COMPUTED).any()):
            return final
        rotation = self.layout.rotation(self.weights)
        if self.reads_input:
            self.differences[:, 0] = _centred(self.weights, runs.source.embedded - runs.base.embedded)
            self.n_filled = 1
        for index, layer in enumerate(self.weights.layers):
            self._heads(index, layer, rotation)
            if index == graph.n_layers - 1:
                self._to_answers()
            self._mlp(index, layer)
        computed = self._read(torch.tensor([graph.logits]), runs.base.final)[0]
        return torch.where(state == COMPUTED, computed, final)

    def _to_answers(self) -> None:
        """From the last layer's heads on, only the answers' tokens matter."""
        if self.rows.shape[1] != self.layout.n_prompts:
            self.rows = self.rows[:, self.layout.last]

    def _read(self, columns: Tensor, base: Tensor, rows: Tensor | None = None) -> Tensor:
        """The centred residual inputs of some backward nodes, [input, mask, token, d_model]."""
        rows = self.rows if rows is None else rows
        rows[0] = base
        flat = rows.flatten(1)
        edges = self.edges[:, : self.n_filled, columns].permute(2, 0, 1)  # [input, mask, node]
        n_inputs, n_masks, n_nodes = edges.shape
        if int(edges.sum()) < n_masks * n_nodes * max(1.0, DENSE * n_inputs):
            # Few edges: add up the rows that each input reads, the base row first.
            of_mask = 1 + torch.arange(n_masks)[:, None] * self.edges.shape[1] + torch.arange(n_nodes)
            reads = F.pad(edges, (1, 0), value=True)
            index = F.pad(of_mask, (1, 0)).expand_as(reads)[reads]
            counts = reads.sum(-1).flatten()
            starts = counts.cumsum(0) - counts
            mixed = F.embedding_bag(index.to(self.device), flat, starts.to(self.device), mode="sum")
        else:
            differences = flat[1:].view(n_masks, -1, flat.shape[-1])[:, :n_nodes]
            share = edges.to(self.device, self.dtype)
            mixed = flat.new_empty(n_inputs, n_masks, flat.shape[-1])
            for one in range(n_masks):
                torch.mm(share[:, one], differences[one], out=mixed[:, one])
            mixed += flat[0]
        return mixed.view(n_inputs, n_masks, *rows.shape[1:])

    def _project(self, layer: LayerWeights, which: Tensor, x: Tensor) -> Tensor:
        """q, k or v of some head inputs (indices into the folded projections) from their centred residual inputs."""
        W = layer.W_qkv.flatten(0, 1)[which]
        b = layer.b_qkv.flatten(0, 1)[which]
        d_model = x.shape[-1]
        norm = torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
        inverse_scale = torch.rsqrt(norm.square() / d_model + layer.attn_norm.eps).to(x.dtype)
        out = torch.bmm(x.flatten(1, 2), W.transpose(1, 2)).view(*x.shape[:-1], -1)
        return out * inverse_scale[..., None] + b[:, None, None]

    def _heads(self, index: int, layer: LayerWeights, rotation: tuple[Tensor, Tensor] | None) -> None:
        graph, runs, plan = self.graph, self.runs, self.plan
        nodes = torch.arange(graph.head(index), graph.mlp(index))
        wanted = plan.needed[:, nodes]
        heads = (wanted & (plan.node[:, nodes] == COMPUTED)).any(0).nonzero()[:, 0]
        states = plan.inputs[:, graph.qkv_inputs(index)].view(self.n_masks, 3, graph.n_heads)
        last = index == graph.n_layers - 1
        outputs = {}
        if len(heads):
            letters = []
            for letter in range(3):
                base, source = runs.base.qkv[index][letter], runs.source.qkv[index][letter]
                state = states[:, letter, heads]  # [mask, head]
                computed = (state == COMPUTED).any(0)
                where_ = state.to(self.device)[:, None, :, None]
                at = heads.to(self.device)
                x = torch.where(where_ == SOURCE, source[:, at], base[:, at])
                if bool(computed.any()):
                    which = letter * graph.n_heads + heads[computed]
                    at_answers = last and letter == 0
                    answers = self.rows[:, self.layout.last] if at_answers else None
                    resid = runs.base.resid_pre[index]
                    resid = resid[self.layout.last] if at_answers else resid
                    residual = self._read(which + graph.qkv_inputs(index).start, resid, answers)
                    fresh = self._project(layer, which.to(self.device), residual).permute(1, 2, 0, 3)
                    if letter < 2:
                        turn = rotation
                        if at_answers and rotation is not None:
                            turn = rotation[0][self.layout.last], rotation[1][self.layout.last]
                        fresh = rotate(fresh, turn)
                    among = computed.nonzero()[:, 0].to(self.device)
                    x[:, :, among] = torch.where(where_[:, :, among] == COMPUTED, fresh, x[:, :, among])
                letters.append(x)
            q, k, v = letters
            keys, values = (
                pad_keys(x, self.layout, prefix[index][:, at] if prefix else None)
                for x, prefix in (
                    (k, runs.prefix and runs.prefix.keys),
                    (v, runs.prefix and runs.prefix.values),
                )
            )
            queries = self.layout.answers if last else self.layout.queries
            z, pattern = attend(q, keys, values, self.layout, queries)
            if self.observe is not None:
                self.observe(index, heads, pattern)
            whole = (plan.node[:, nodes[heads]] == SOURCE).to(self.device)[:, None, :, None]
            if bool(whole.any()):  # Recomputed for another mask of the stack; runs may be cut to fewer tokens.
                z = torch.where(whole, runs.source.z[index][:, at], z)
            change = (z - runs.base.z[index][:, at]).transpose(1, 2)  # [mask, head, token, d_head]
            outputs = {int(head): change[:, row] for row, head in enumerate(heads)}
        self._write_heads(index, layer, wanted, nodes, outputs)

    def _write_heads(
        self, index: int, layer: LayerWeights, wanted: Tensor, nodes: Tensor, computed: dict[int, Tensor]
    ) -> None:
        """Write the differences of a layer's heads: computed ones, and those at their source value."""
        runs, plan = self.runs, self.plan
        writing = wanted.any(0).nonzero()[:, 0].tolist()
        if not writing:
            return
        if index == self.graph.n_layers - 1:
            self._to_answers()
        changes = []
        for head in writing:
            if head in computed:
                changes.append(computed[head])
            else:
                change = runs.source.z[index][:, head] - runs.base.z[index][:, head]
                moved = (plan.node[:, nodes[head]] == SOURCE).to(self.device, self.dtype)
                changes.append(moved[:, None, None] * change)
        W_O = _centred(self.weights, layer.W_O[writing])
        stacked = torch.stack(changes, dim=1)  # [mask, head, token, d_head]
        slots = slice(self.n_filled, self.n_filled + len(writing))
        for one in range(self.n_masks):
            torch.bmm(stacked[one], W_O, out=self.differences[one, slots])
        self.n_filled += len(writing)

    def _mlp(self, index: int, layer: LayerWeights) -> None:
        graph, runs, plan = self.graph, self.runs, self.plan
        node = graph.mlp(index)
        if not bool(plan.needed[:, node].any()):
            return
        state = plan.inputs[:, graph.mlp_input(index)].to(self.device)[:, None, None]
        change = runs.source.mlp_out[index] - runs.base.mlp_out[index]
        change = torch.where(state == SOURCE, change, torch.zeros_like(change))
        if bool((state == COMPUTED).any()):
            x = self._read(torch.tensor([graph.mlp_input(index)]), runs.base.mlp_in[index])[0]
            fresh = mlp(self.weights, layer, x) - runs.base.mlp_out[index]
            change = torch.where(state == COMPUTED, fresh, change)
        self.differences[:, self.n_filled] = _centred(self.weights, change)
        self.n_filled += 1
