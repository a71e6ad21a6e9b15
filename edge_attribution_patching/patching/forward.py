"""The patched forward: one primitive for every intervention.

Given two runs of the same prompts, `base` and `source`, and a mask over edges, every backward node reads

    base residual stream + sum over its edges u -> v in the mask of (patched output of u - base output of u)

and everything downstream is recomputed; `input` writes the embeddings of the source run. With base = corrupted and
source = clean this evaluates circuits: edges in the circuit carry the clean prompt, all others the corrupted one. The
full mask gives the clean run and the empty mask the corrupted run. Masks over edges and roles of tokens (`Graph.roles`)
say so for the tokens of each role, where v reads. With base = clean and source = corrupted it is path
patching: only the edges of the named paths carry the corrupted prompt (Wang et al. 2022, "Interpretability in the
Wild"; Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching"). Where a path is not a set of edges,
because a node on it would have to carry two values, heads can be given an input or an output instead
(`ActivationOverrides`).

How it is computed. Only differences to the base run are propagated. `plan.py` says which nodes keep the value of one of
the two runs (`runs.py`) and which cannot reach the logits; none of these is computed. The other inputs of a layer are
one matrix product of the mask with the differences (`differences.py`), kept centred over d_model, so that LayerNorm is
a scalar per token and is never written out. Several masks are stacked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..choices import QKV, QKVName
from ..graph import Graph
from ..model.forward import at_places, attend, clamp, clamp_norm_rotate, mlp, rotate, with_prefix
from ..model.norms import Norm, centred, inverse_rms
from ..model.pairs import COUNTED, GB, Metric, bar
from ..model.weights import ModelWeights
from .differences import Differences
from .plan import NO_OVERRIDES, ActivationOverrides, Given, Plan, spanning_norms
from .runs import PreparedRuns, metric_of_finals
from .steps import HeadInputs, LayerSteps, Steps

SPARE = 2e7
"""On the CPU, a pass by itself costs as much as to compute so many bytes of differences (measured: SmolLM2-135M)."""


@dataclass(frozen=True)
class HeadAttention:
    """The attention of recomputed heads of a layer; in the last layer q and what heads write are at the answers alone.

    Attributes:
        there: `heads` where the layer is.
        masks: under which masks of all, on the CPU.
        pattern: padded, with the queries of `PackedTokens.queries` (in the last layer `PackedTokens.answers`).
        written: what comes of them, before W_O_scaled.
    """

    layer: int
    heads: list[int]
    there: Int[Tensor, " head"]
    masks: Int[Tensor, " mask"]
    q: Float[Tensor, "mask token head d_head"]
    k: Float[Tensor, "mask token head d_head"]
    v: Float[Tensor, "mask token head d_head"]
    pattern: Float[Tensor, "mask prompt head query key"]
    written: Float[Tensor, "mask token head d_head"]


Observer = Callable[[HeadAttention], None]
"""Told what the recomputed heads of a layer attend to."""


def evaluate_masks_final(
    weights: ModelWeights,
    runs: PreparedRuns,
    masks: Bool[Tensor, "mask n_forward n_backward"],
    *,
    overrides: ActivationOverrides = NO_OVERRIDES,
    memory_budget_gb: float = 1.0,
    shortcuts: bool = True,
    observe: Observer | None = None,
    spare: float = math.inf,
) -> Float[Tensor, "mask prompt d_model"]:
    """The final residual stream (centred where the final norm centres) at the answers under each mask.

    Args:
        runs: both runs of a batch (`prepare_runs`).
        masks: edges that carry the source run, any device; entries that are not edges are ignored. With roles only for
            batches whose tokens have them.
        overrides: what heads are given whatever their edges carry.
        memory_budget_gb: bounds the differences that are held at once; masks are stacked up to it.
        shortcuts: take nodes that are wholly at their source value from the source run. Otherwise they are recomputed,
            which is slower and gives the same: tests use it to show that recomputing gives back the model.
        observe: called with the attention of the heads that are recomputed under some mask of a stack. Under masks of
            the stack that leave a head alone, it is the attention in the run that the head is taken from.
        spare: bytes that may be computed for nobody so that masks are stacked (`Plan.stacks`).
    """
    steps = plan_steps(weights, runs, masks, overrides.nodes, memory_budget_gb, shortcuts, spare)
    return run_steps(weights, runs, next(Steps.sent([steps], weights)), overrides, observe)


def plan_steps(
    weights: ModelWeights,
    runs: PreparedRuns,
    masks: Bool[Tensor, "mask n_forward n_backward"],
    given: Given,
    memory_budget_gb: float,
    shortcuts: bool = True,
    spare: float = math.inf,
) -> list[Steps]:
    """What `evaluate_masks_final` does, stack by stack, on the CPU."""
    plan = Plan.of(Graph.of(weights), masks, spanning_norms(weights), given=given, shortcuts=shortcuts)
    token_bytes = runs.layout.n_tokens * weights.d_model * weights.embed.element_size()
    return [Steps.of(weights, plan, part) for part in plan.stacks(memory_budget_gb * GB, token_bytes, spare)]


def run_steps(
    weights: ModelWeights,
    runs: PreparedRuns,
    stacks: Sequence[Steps],
    overrides: ActivationOverrides = NO_OVERRIDES,
    observe: Observer | None = None,
) -> Float[Tensor, "mask prompt d_model"]:
    """What `evaluate_masks_final` gives, from steps that are where the model is."""
    with torch.no_grad():
        passes = bar(stacks, "circuits and patches")
        return torch.cat([_PatchedPass(weights, runs, steps, overrides, observe).run() for steps in passes])


def evaluate_metric(
    weights: ModelWeights,
    runs: PreparedRuns,
    masks: Bool[Tensor, "mask n_forward n_backward"],
    metric: Metric,
    *,
    memory_budget_gb: float = 1.0,
) -> Float[Tensor, "mask prompt"]:
    """The metric of every prompt of the batch under each mask, float32."""
    spare = SPARE if weights.device.type in COUNTED else math.inf
    finals = evaluate_masks_final(weights, runs, masks, memory_budget_gb=memory_budget_gb, spare=spare)
    # Logits of some masks at a time: they, and what a metric makes of them, take about four numbers for each.
    mask_bytes = 4 * runs.layout.n_prompts * weights.d_vocab * 4
    at_once = max(1, int(memory_budget_gb * GB // mask_bytes))
    with torch.no_grad():
        return torch.cat([metric_of_finals(weights, some, runs.batch.index, metric) for some in finals.split(at_once)])


class _PatchedPass:
    """One pass of stacked masks through the layers.

    All that a layer knows of a mask is the state of its nodes. So for every quantity there are three candidates, that
    of the base run, that of the source run and the computed one, and a `Choice` takes the right one for each mask.
    """

    def __init__(
        self,
        weights: ModelWeights,
        runs: PreparedRuns,
        steps: Steps,
        overrides: ActivationOverrides,
        observe: Observer | None,
    ) -> None:
        self.weights, self.runs, self.steps, self.observe = weights, runs, steps, observe
        self.graph, self.layout, self.overrides = Graph.of(weights), runs.layout, overrides.select(steps.part)
        self.last_layer = weights.n_layers - 1
        self.rotations = runs.layout.rotations(weights)
        self.masks = torch.arange(steps.part.start, steps.part.stop)
        self.differences = Differences(len(self.masks), steps.n_kept, runs.base.embedded, runs.batch.tokens_of_roles)

    def run(self) -> Float[Tensor, "mask prompt d_model"]:
        runs, steps = self.runs, self.steps
        # Masks by which nothing, or the whole source run, reaches the logits need no pass at all.
        final = torch.where(steps.source, runs.source.final, runs.base.final)
        if steps.computed is None or steps.logits is None:
            return final
        if steps.from_input:
            of_input = runs.source.embedded - runs.base.embedded
            self.differences.of_next(1)[:, 0] = centred(self.weights.final_norm, of_input)
        for index, layer in enumerate(steps.layers):
            self.differences.move(self.weights.layers[index].device)
            self.layout = runs.layout.on(self.differences.device, self.weights)
            change = self._change_of_heads(index, layer) if len(layer.heads) else None
            if index == self.last_layer and self.layout.n_tokens > self.layout.n_prompts:
                self.differences.keep_tokens(self.layout.last)  # From here on only the answers matter.
            if change is not None:
                self._write_heads(index, layer, change)
            if layer.mlp_source is not None:
                self._write_mlp(index, layer)
        computed = self.differences.read(steps.logits, runs.base.final.to(self.differences.device))[0]
        return torch.where(steps.computed, computed.to(final.device), final)

    def _change_of_heads(self, index: int, steps: LayerSteps) -> Float[Tensor, "mask head token d_head"]:
        """What some heads of a layer write, patched minus base, before W_O_scaled."""
        base, source = (run.layers[index].written[:, steps.heads] for run in (self.runs.base, self.runs.source))
        fresh = None
        if steps.choice.computed is not None:
            attended = self._attend(index, steps)
            if self.weights.layers[index].attn_post_norm is not None:
                z = attended.written
                attended = replace(attended, written=z * self._post_inverse_scale(index, steps, z))
            if self.observe is not None:
                self.observe(attended)
            fresh = attended.written if steps.kept is None else attended.written[:, :, steps.kept]
        written = steps.choice(base, source, fresh)
        _override(written, self.overrides.outputs, [self.graph.head(index, head) for head in steps.on_cpu[0]])
        return rearrange(written - base, "mask token head d_head -> mask head token d_head")

    def _post_inverse_scale(self, index: int, steps: LayerSteps, fresh: Tensor) -> Tensor:
        """1 / s of the norm of what all heads of a layer write under every mask, [mask, token, 1, 1]."""
        layer = self.weights.layers[index]
        assert layer.attn_post_norm is not None
        assert steps.all_heads is not None
        z = steps.all_heads(self.runs.base.layers[index].z, self.runs.source.layers[index].z, fresh)
        out = z.flatten(-2) @ layer.W_O.flatten(0, 1) + layer.b_O  # what all heads write together, before the norm
        return inverse_rms(layer.attn_post_norm, out)[..., None].to(fresh.dtype)

    def _attend(self, index: int, steps: LayerSteps) -> HeadAttention:
        """The attention of some heads under every mask, and their z as what they write."""
        layer, last = self.weights.layers[index], index == self.last_layer
        # Each query head has its own k and v here: under a mask, heads of one group may read different things.
        q, k, v = (self._qkv(index, letter, steps) for letter in QKV)
        prefix = self.runs.prefix[index]
        prefix = None if prefix is None else prefix[:, steps.prefix]
        queries = self.layout.answers if last else self.layout.queries
        # [mask, prompt, place, head, d_head]; in the last layer there is one query a prompt.
        keys_and_values = at_places(with_prefix(torch.cat((k, v), dim=-2), prefix), self.layout.keys)
        q_padded = q[:, :, None] if last else at_places(q, queries.tokens)
        laid = torch.cat((q_padded, *keys_and_values.chunk(2, dim=-2)), dim=-3).transpose(-3, -2)
        z, pattern = attend(layer, laid.contiguous(), queries)
        z = at_places(z.transpose(-3, -2).flatten(1, 2), queries.places)
        return HeadAttention(index, steps.on_cpu[1], steps.attending, self.masks, q, k, v, pattern, z)

    def _qkv(self, index: int, letter: QKVName, steps: LayerSteps) -> Float[Tensor, "mask token head d_head"]:
        """q, k or v of the heads that attend under every mask: a run's, or computed."""
        inputs = steps.qkv[QKV.index(letter)]
        base, source = (
            getattr(run.layers[index], letter)[:, inputs.of_runs] for run in (self.runs.base, self.runs.source)
        )
        fresh = None
        if inputs.choice.computed is not None:
            fresh = self._clamp_norm_rotate(index, letter, inputs, self._project(index, letter, inputs))
            fresh = fresh if inputs.kept is None else fresh[:, :, inputs.kept]
        x = inputs.choice(base, source, fresh)
        nodes = [self.graph.head_input(index, head, letter) for head in steps.on_cpu[1]]
        _override(x, self.overrides.inputs, nodes)
        return x

    def _project(self, index: int, letter: QKVName, inputs: HeadInputs) -> Float[Tensor, "mask token head d_head"]:
        """The projections of some heads from the residual streams that they read."""
        layer, tokens = self.weights.layers[index], None
        resid = self.runs.base.layers[index].resid_pre
        if self._at_answers(index, letter):
            tokens = self.layout.last
            resid = resid[tokens]
        assert inputs.reading is not None
        x = self.differences.read(inputs.reading, resid, tokens)  # [head or 1, mask, token, d_model]
        # [head, mask * token, d_model] @ [head, d_model, d_head]
        n_heads = len(inputs.rows)
        out = torch.bmm(x.flatten(1, 2).expand(n_heads, -1, -1), layer.W_qkv[inputs.rows].transpose(1, 2))
        out = out.view(n_heads, *x.shape[1:-1], -1)
        if layer.attn_norm is not None:  # x is centred, and gain and bias are folded in: a norm is its scale alone.
            out = out * inverse_rms(layer.attn_norm, x).to(x.dtype)
        out = out + layer.b_qkv[inputs.rows][:, None, None]
        return rearrange(out, "head mask token d_head -> mask token head d_head")

    def _clamp_norm_rotate(
        self, index: int, letter: QKVName, inputs: HeadInputs, x: Float[Tensor, "mask token head d_head"]
    ) -> Float[Tensor, "mask token head d_head"]:
        """q, k or v of some heads as they attend, from what was projected."""
        layer, rotation = self.weights.layers[index], self.rotations[index]
        if rotation is not None and self._at_answers(index, letter):
            rotation = rotation.at(self.layout.last)
        norm = layer.norm_of(letter)
        if norm is None or inputs.spanning is None:
            return clamp_norm_rotate(layer, letter, x, rotation)
        # One norm spans all heads, of which only some are here: its scale is put together from sums of squares.
        x = clamp(layer, x)
        gain = norm.gain.view(-1, x.shape[-1])[inputs.kv]
        return rotate((x * self._spanning_inverse_scale(index, letter, norm, inputs, x) * gain).to(x.dtype), rotation)

    def _spanning_inverse_scale(
        self, index: int, letter: QKVName, norm: Norm, inputs: HeadInputs, x: Tensor
    ) -> Float[Tensor, "mask token head 1"]:
        """1 / s of a norm that covers q or k of all heads: x where a head's is computed, else that of a run.

        Of the query heads that share a key-value head, each has its own key; the first, second, ... of every group are
        normalised together.
        """
        group = 1 if letter == "q" else self.weights.layers[index].group
        base, source = (
            getattr(run.layers[index], f"{letter}_squares").repeat_interleave(group, dim=-1)
            for run in (self.runs.base, self.runs.source)
        )
        fresh = x.to(base.dtype).square().sum(-1, keepdim=True)
        assert inputs.spanning is not None
        squares = inputs.spanning(base[..., None], source[..., None], fresh)[..., 0]
        total = rearrange(squares, "mask token (row group) -> mask token row group", group=group).sum(-2)
        return torch.rsqrt(total / len(norm.gain) + norm.eps)[:, :, inputs.heads % group, None]

    def _at_answers(self, index: int, letter: QKVName) -> bool:
        """Whether only the answers' tokens are asked for: of the last layer, its queries and what follows."""
        return index == self.last_layer and letter == "q"

    def _write_heads(self, index: int, steps: LayerSteps, change: Tensor) -> None:
        """Write the differences of some heads of a layer."""
        W_O = centred(self.weights.final_norm, self.weights.layers[index].W_O_scaled[steps.heads])
        written = self.differences.of_next(len(steps.heads))
        for mask in range(len(self.masks)):  # One mask at a time: its rows lie together in memory, and need no copy.
            torch.bmm(change[mask], W_O, out=written[mask])

    def _write_mlp(self, index: int, steps: LayerSteps) -> None:
        """Write the difference of a layer's MLP."""
        base, source = (run.layers[index] for run in (self.runs.base, self.runs.source))
        assert steps.mlp_source is not None
        out = torch.where(steps.mlp_source, source.mlp_out, base.mlp_out)
        if steps.mlp is not None:
            x = self.differences.read(steps.mlp, base.mlp_in)[0]
            out = torch.where(steps.mlp_computed, mlp(self.weights.layers[index], x), out)
        self.differences.of_next(1)[:, 0] = centred(self.weights.final_norm, out - base.mlp_out)


def _override(x: Float[Tensor, "mask token head d_head"], given: Mapping[int, Tensor], nodes: Sequence[int]) -> None:
    """Put what is given in the place of some heads' nodes."""
    for place, node in enumerate(nodes):
        if node in given:
            x[:, :, place] = given[node]
