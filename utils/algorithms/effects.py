"""What a head or MLP does to the metric of prompts, by patching.

Everything is the patched forward with base = clean prompts (`edge_attribution_patching/patching/paths.py`). Along
named paths the model reads what a head writes in another prompt; along all others it reads what it reads in the clean
run. Results are metrics per prompt: of IOI the logit difference logit(IO) - logit(S). Shares and thresholds are up to
the levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.forward import Unembedding, softcap
from circuits_over_time.edge_attribution_patching.model.norms import normalise
from circuits_over_time.edge_attribution_patching.model.pairs import GB, TokenPairs
from circuits_over_time.edge_attribution_patching.model.transfer import checked_at_the_end, to_cpu, to_device
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.patching.forward import evaluate_masks_final
from circuits_over_time.edge_attribution_patching.patching.paths import (
    Head,
    Receivers,
    Sender,
    at_the_difference,
    path_masks,
    recompute_after,
    swap_masks,
)
from circuits_over_time.edge_attribution_patching.patching.runs import PreparedBatches, PreparedRuns, at_answers

from ..tasks import Prompts
from .attention import AttentionWatch

FinalMetric = Callable[[Float[Tensor, "stack prompt d_model"], Int[Tensor, " prompt"]], Float[Tensor, "stack prompt"]]
Finals = Callable[[PreparedRuns], Float[Tensor, "row prompt d_model"]]
"""Makes final residual streams of the runs of a batch."""
MASK_BYTES = 2**28
"""How much the edge masks of some senders may take."""


class LogitDifference:
    """Logit difference from final residual streams: two rows of the unembedding instead of all.

    Prompts have one right and one wrong answer each.
    """

    def __init__(self, weights: ModelWeights, prompts: Prompts) -> None:
        # Row 0 holds the right answers' unembedding directions, row 1 the wrong ones', [2, prompt, d_model].
        right, wrong = to_device((prompts.answers.right[:, 0], prompts.answers.wrong[:, 0]), weights.device)
        unembedding = Unembedding(weights)
        self._norm, self._softcap = weights.final_norm, weights.logit_softcap
        self._rows = torch.stack((unembedding.rows(right), unembedding.rows(wrong)))
        self._bias = torch.stack((unembedding.bias(right), unembedding.bias(wrong)))

    def __call__(
        self, finals: Float[Tensor, "*stack prompt d_model"], index: Int[Tensor, " prompt"]
    ) -> Float[Tensor, "*stack prompt"]:
        """The logit difference of some prompts, float32 or better."""
        # [*stack, prompt, d_model]; the norm's gain and bias are in the rows.
        normalised, _ = normalise(self._norm, finals.to(self._rows.dtype))
        right, wrong = (
            (normalised * rows[index]).sum(-1) + bias[index] for rows, bias in zip(self._rows, self._bias, strict=True)
        )
        if self._softcap is not None:
            right, wrong = softcap(right, self._softcap), softcap(wrong, self._softcap)
        return right - wrong

    def of_part(
        self,
        written: Float[Tensor, "*stack prompt d_model"],
        final: Float[Tensor, "prompt d_model"],
        index: Int[Tensor, " prompt"],
    ) -> Float[Tensor, "*stack prompt"]:
        """What a part of the final residual stream adds to the logit difference, at the norm scale of the whole.

        Parts that add up to `final` add up to its logit difference, less a constant. A soft cap is left out.
        """
        _, inverse_scale = normalise(self._norm, final.to(self._rows.dtype))
        direction = self._rows[0, index] - self._rows[1, index]
        return (written.to(direction.dtype) * direction).sum(-1) * inverse_scale[..., 0]


class PairedRuns:
    """Clean prompts and others of the same lengths, run once, batch by batch.

    Args:
        prompts: the clean prompts and their answers, best on the CPU.
        others: token ids of the prompts that senders take their output from.
        memory_budget_gb: how much to keep for later passes; the patched forward may use as much on top.
        metric: of final residual streams and of the prompts they belong to; by default the logit difference.
    """

    def __init__(
        self,
        weights: ModelWeights,
        prompts: Prompts,
        others: Int[Tensor, "prompt position"],
        batch_size: int,
        memory_budget_gb: float,
        metric: FinalMetric | None = None,
    ) -> None:
        self.weights, self.graph = weights, Graph.of(weights)
        self.n_prompts, self._prompts = len(prompts), prompts
        self._metric = metric or self.logit_difference
        self.memory_budget_gb = memory_budget_gb
        pairs = TokenPairs(prompts.clean, others, prompts.lengths)
        batches = pairs.batches(batch_size, weights=weights, memory_budget_gb=memory_budget_gb, at_answers=True)
        self._cut: dict[int, PreparedRuns] = {}
        self._batches = PreparedBatches(weights, batches, "clean", memory_budget_gb)

    @cached_property
    def logit_difference(self) -> LogitDifference:
        """That of the prompts."""
        return LogitDifference(self.weights, self._prompts)

    def __iter__(self) -> Iterator[PreparedRuns]:
        """The runs of every batch, base = clean."""
        return iter(self._batches)

    def at_answers(self) -> Iterator[PreparedRuns]:
        """The same at the answers' tokens alone; prefixes are kept up to the memory budget, for passes to share."""
        for number, runs in enumerate(self):
            cut = self._cut.get(number) or at_answers(runs)
            if sum(kept.nbytes for kept in self._cut.values()) + cut.nbytes <= self.memory_budget_gb * GB:
                self._cut[number] = cut
            yield cut

    def both(self) -> Float[Tensor, "2 prompt"]:
        """The metric of the clean and of the other prompts, both for the clean prompts' answers."""
        return self._metrics(2, lambda runs: torch.stack((runs.base.final, runs.source.final)))

    def direct(self, senders: Sequence[Head]) -> Float[Tensor, "sender prompt"]:
        """The logit difference if only the logits read a head's other output, in closed form.

        The final residual stream changes by what the head writes at the answer, and goes through the final norm.
        """
        rows = sorted(range(len(senders)), key=lambda row: senders[row][0])  # layer by layer
        by_layer = groupby(rows, lambda row: senders[row][0])
        of_layers = {layer: torch.tensor([senders[row][1] for row in group]) for layer, group in by_layer}
        order, heads_of = to_device((torch.tensor(rows).argsort(), of_layers), self.weights.device)

        def final(runs: PreparedRuns) -> Float[Tensor, "sender prompt d_model"]:
            changes = []
            for layer, heads in heads_of.items():
                block = self.weights.layers[layer]
                heads = heads.to(block.device)
                change = runs.source.layers[layer].written[:, heads] - runs.base.layers[layer].written[:, heads]
                if layer < self.graph.n_layers - 1:  # That of the last layer is at the answers already.
                    change = change[runs.layout.last.to(block.device)]
                # [head, prompt, d_head] @ [head, d_head, d_model]
                written = torch.bmm(change.transpose(0, 1), block.W_O_scaled[heads])
                changes.append(written.to(self.weights.device))
            return runs.base.final + torch.cat(changes)[order]

        return self._metrics(len(senders), final)

    def along_paths(
        self,
        senders: Sequence[Sender],
        stages: Sequence[Receivers] = (),
        *,
        through_mlps: bool = False,
        only_at_the_difference: bool = False,
    ) -> Float[Tensor, "sender prompt"]:
        """The metric where the path senders -> stages -> logits alone carries the senders' other output.

        With `only_at_the_difference`, only what they write at the token where the prompts begin to differ.
        """
        memory, at_once = self.memory_budget_gb, max(1, MASK_BYTES // self.graph.edge_mask.numel())
        some_senders = [senders[start : start + at_once] for start in range(0, len(senders), at_once)]
        # Where keys and values are left alone, what happens at other tokens cannot reach the answer.
        batches = self.at_answers() if all(stage.letter in ("q", None) for stage in stages) else iter(self)
        batches = map(at_the_difference, self) if only_at_the_difference else batches

        def final(runs: PreparedRuns) -> Float[Tensor, "sender prompt d_model"]:
            masks_of = partial(path_masks, self.graph, stages=stages, through_mlps=through_mlps)
            evaluate = partial(evaluate_masks_final, self.weights, runs, memory_budget_gb=memory)
            return torch.cat([evaluate(masks_of(some)) for some in some_senders])

        return self._metrics(len(senders), final, batches)

    def recomputed_after(self, senders: Sequence[Head], receivers: Receivers) -> Float[Tensor, "sender prompt"]:
        """The metric if receivers read a head's other output and everything after them is recomputed."""
        memory = self.memory_budget_gb
        return self._metrics(
            len(senders), lambda runs: recompute_after(self.weights, runs, senders, receivers, memory_budget_gb=memory)
        )

    def exchanged(
        self,
        senders: Sequence[Head],
        movers: Sequence[Head],
        positions: Int[Tensor, "prompt name"],
        *,
        only_into_queries: bool,
    ) -> tuple[Float[Tensor, "sender prompt"], AttentionWatch]:
        """The metric if a head writes its other output at the answer's token, and what reads it is recomputed.

        And the movers' attention from there; both are still on the device.

        Args:
            movers: heads whose attention is watched.
            positions: where the tokens attended to are, on the model's device.
            only_into_queries: only the movers' queries read the other output, directly and through MLPs (at the
                answer's token), and what follows them is recomputed. Otherwise everything after the sender reads it.
        """
        watch = AttentionWatch(movers, positions, len(senders))
        queries, masks = Receivers(tuple(movers), "q"), swap_masks(self.graph, senders)
        weights, memory = self.weights, self.memory_budget_gb

        def final(runs: PreparedRuns) -> Float[Tensor, "sender prompt d_model"]:
            observe = partial(watch.observe, runs.batch)
            if only_into_queries:
                return recompute_after(weights, runs, senders, queries, memory_budget_gb=memory, observe=observe)
            return evaluate_masks_final(weights, runs, masks, memory_budget_gb=memory, observe=observe)

        return self._on_device(len(senders), final, map(at_answers, self)), watch

    def _metrics(
        self, n_rows: int, final: Finals, batches: Iterable[PreparedRuns] | None = None
    ) -> Float[Tensor, "row prompt"]:
        """Of all prompts, on the CPU."""
        with checked_at_the_end():
            return to_cpu(self._on_device(n_rows, final, batches or self))

    def _on_device(self, n_rows: int, final: Finals, batches: Iterable[PreparedRuns]) -> Float[Tensor, "row prompt"]:
        dtype = torch.promote_types(self.weights.dtype, torch.float32)
        values = torch.zeros(n_rows, self.n_prompts, dtype=dtype, device=self.weights.device)
        for runs in batches:
            values[:, runs.batch.index] = self._metric(final(runs), runs.batch.index).to(dtype)
        return values


@dataclass(frozen=True)
class Exchange:
    """One head's output exchanged at the answer's token, for several heads."""

    logit_difference: Float[Tensor, "sender prompt"]
    # Attention of the movers from the answer's token; meaningless if a mover does not read the sender.
    attention: Float[Tensor, "sender mover prompt name"]
    reads: Bool[Tensor, "sender mover"]  # whether a mover reads the sender

    def attention_by_prompt(self) -> Float[Tensor, "sender prompt name"]:
        """Mean over the movers that read the sender; nan if none does."""
        reads = self.reads[:, :, None, None]
        return self.attention.masked_fill(~reads, 0.0).sum(dim=1) / reads.sum(dim=1)

    def mean_attention(self) -> Float[Tensor, "sender name"]:
        """The same, averaged over prompts first."""
        reads = self.reads[:, :, None]
        return self.attention.mean(dim=2).masked_fill(~reads, 0.0).sum(dim=1) / reads.sum(dim=1)


def reads(senders: Sequence[Head], movers: Sequence[Head]) -> Bool[Tensor, "sender mover"]:
    """Whether each mover is above each sender."""
    return torch.tensor([[mover[0] > sender[0] for mover in movers] for sender in senders], dtype=torch.bool)
