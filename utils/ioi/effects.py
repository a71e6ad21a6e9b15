"""What a head does to the logit difference of IOI prompts, by patching.

Everything is an edge mask of the patched forward with base = clean prompts (`edge_attribution_patching/paths.py`): the
named edges carry what the head writes in another prompt, all others the clean run. Results are logit differences
logit(IO) - logit(S) per prompt; shares and thresholds are left to `utils/ioi/consistency.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edge_attribution_patching.forward import LayerActivations, Unembedding, embed, forward
from edge_attribution_patching.graph import Graph
from edge_attribution_patching.layout import Layout
from edge_attribution_patching.norms import normalise
from edge_attribution_patching.pairs import TokenPairs
from edge_attribution_patching.patching import Attended, evaluate_masks_final
from edge_attribution_patching.patching_runs import PreparedBatches, PreparedRuns, at_answers
from edge_attribution_patching.paths import Head, Receivers, path_masks, swap_masks
from edge_attribution_patching.weights import ModelWeights
from utils.tasks import Prompts

NAMES = ("io", "s1", "s2")
"""The positions whose attention is reported."""


class LogitDifference:
    """Logit difference from final residual streams: two rows of the unembedding instead of all.

    Args:
        weights: the model.
        prompts: one right and one wrong answer each.
    """

    def __init__(self, weights: ModelWeights, prompts: Prompts) -> None:
        right, wrong = (tokens[:, 0].to(weights.device) for tokens in (prompts.answers.right, prompts.answers.wrong))
        unembedding = Unembedding(weights)
        self._norm = weights.final_norm
        self._direction = unembedding.rows(right) - unembedding.rows(wrong)
        self._constant = unembedding.bias(right) - unembedding.bias(wrong)

    def __call__(
        self, finals: Float[Tensor, "*stack prompt d_model"], index: Int[Tensor, " prompt"]
    ) -> Float[Tensor, "*stack prompt"]:
        """The logit difference of some prompts, float32 or better."""
        normalised, _ = normalise(self._norm, finals.to(self._direction.dtype))
        return (normalised * self._direction[index]).sum(-1) + self._constant[index]


class PairedRuns:
    """Clean prompts and others of the same lengths, run once, batch by batch.

    Args:
        weights: the model.
        prompts: the clean prompts and where their answers stand, on the model's device.
        others: token ids the senders' outputs are taken from.
        batch_size: prompts that run at once.
        memory_budget_gb: what is kept for later passes; what does not fit is run again. The patched forward may take
            as much on top.
    """

    def __init__(
        self,
        weights: ModelWeights,
        prompts: Prompts,
        others: Int[Tensor, "prompt position"],
        batch_size: int,
        memory_budget_gb: float,
    ) -> None:
        self.weights, self.graph = weights, Graph.of(weights)
        self.n_prompts = len(prompts)
        self.logit_difference = LogitDifference(weights, prompts)
        self.memory_budget_gb = memory_budget_gb
        batches = TokenPairs(prompts.clean, others, prompts.lengths).batches(batch_size)
        self._batches = PreparedBatches(weights, batches, "clean", memory_budget_gb)

    def clean(self) -> Float[Tensor, " prompt"]:
        """The logit difference of the clean prompts."""
        values = self._empty(())
        for runs in self._batches:
            values[runs.batch.index] = self.logit_difference(runs.base.final, runs.batch.index)
        return values.cpu()

    def direct(self, senders: Sequence[Head]) -> Float[Tensor, "sender prompt"]:
        """The logit difference where the logits alone read a head's other output, in closed form.

        The final residual stream changes by what the head writes at the answer, and goes through the final norm.
        """
        values = self._empty((len(senders),))
        for runs in self._batches:
            for layer in sorted({layer for layer, _ in senders}):
                rows = [row for row, (of, _) in enumerate(senders) if of == layer]
                heads = [senders[row][1] for row in rows]
                change = runs.source.layers[layer].written[:, heads] - runs.base.layers[layer].written[:, heads]
                if layer < self.graph.n_layers - 1:  # the last layer's is at the answers already
                    change = change[runs.layout.last]
                written = torch.bmm(change.transpose(0, 1), self.weights.layers[layer].W_written[heads])
                finals = runs.base.final + written
                at = torch.tensor(rows, device=values.device)[:, None], runs.batch.index[None]
                values[at] = self.logit_difference(finals, runs.batch.index)
        return values.cpu()

    def along_paths(
        self, senders: Sequence[Head], stages: Sequence[Receivers] = (), *, through_mlps: bool = False
    ) -> Float[Tensor, "sender prompt"]:
        """The logit difference where the path senders -> stages -> logits alone carries the senders' other output."""
        masks = path_masks(self.graph, senders, stages, through_mlps=through_mlps)
        # Where heads are entered by their queries, what happens at other tokens cannot reach the answer.
        cut = all(stage.letter == "q" for stage in stages)
        values = self._empty((len(senders),))
        for runs in self._batches:
            finals = self._evaluate(at_answers(runs) if cut else runs, masks)
            values[:, runs.batch.index] = self.logit_difference(finals, runs.batch.index)
        return values.cpu()

    def swapped(self, senders: Sequence[Head], movers: Sequence[Head], positions: Int[Tensor, "prompt name"]) -> Swap:
        """What happens where a head writes its other output at the answer's token, and everything after is recomputed.

        Args:
            senders: heads whose output is exchanged, one at a time.
            movers: heads whose attention from the answer's token is watched.
            positions: of the tokens attended to.
        """
        values = self._empty((len(senders),))
        attention = self._empty((len(senders), len(movers)), positions.shape[1])
        masks = swap_masks(self.graph, senders)
        places = {mover: row for row, mover in enumerate(movers)}
        for runs in self._batches:
            index = runs.batch.index

            def watch(rows: Tensor, attended: Attended, index: Tensor = index) -> None:
                pattern = attended.pattern[:, :, :, 0]  # [mask, prompt, head, key]
                of_names = positions[index][None, :, None, :].expand(len(pattern), -1, pattern.shape[2], -1)
                to_names = pattern.gather(3, of_names).to(attention.dtype)  # [mask, prompt, head, name]
                for column, head in enumerate(attended.heads.tolist()):
                    if (place := places.get((attended.layer, head))) is not None:
                        attention[rows[:, None], place, index[None]] = to_names[:, :, column]

            finals = evaluate_masks_final(
                self.weights, at_answers(runs), masks, memory_budget_gb=self.memory_budget_gb, observe=watch
            )
            values[:, index] = self.logit_difference(finals, index)
        return Swap(values.cpu(), attention.mean(dim=2).cpu(), _reads(senders, movers))

    def _evaluate(self, runs: PreparedRuns, masks: Tensor) -> Tensor:
        return evaluate_masks_final(self.weights, runs, masks, memory_budget_gb=self.memory_budget_gb)

    def _empty(self, leading: tuple[int, ...], *trailing: int) -> Tensor:
        dtype = torch.promote_types(self.weights.dtype, torch.float32)
        return torch.zeros(*leading, self.n_prompts, *trailing, dtype=dtype, device=self.weights.device)


@dataclass(frozen=True)
class Swap:
    """One head's output exchanged at the answer's token, for several heads.

    Attributes:
        logit_difference: of every prompt.
        attention: of the movers from the answer's token, mean over prompts; meaningless where a mover does not read the
            sender.
        reads: whether a mover reads the sender.
    """

    logit_difference: Float[Tensor, "sender prompt"]
    attention: Float[Tensor, "sender mover name"]
    reads: Bool[Tensor, "sender mover"]

    @classmethod
    def unchanged(
        cls,
        senders: Sequence[Head],
        movers: Sequence[Head],
        logit_difference: Float[Tensor, " prompt"],
        attention: Float[Tensor, "name layer head"],
    ) -> Swap:
        """A swap with the prompt itself, from what is known of the clean run: every head's attention."""
        of_movers = torch.stack([attention[:, layer, head] for layer, head in movers])
        n = len(senders)
        return cls(logit_difference.expand(n, -1), of_movers.expand(n, -1, -1), _reads(senders, movers))

    def mean_attention(self) -> Float[Tensor, "sender name"]:
        """Mean over the movers that read the sender; nan where none does."""
        reads = self.reads[:, :, None]
        return self.attention.masked_fill(~reads, 0.0).sum(dim=1) / reads.sum(dim=1)


def _reads(senders: Sequence[Head], movers: Sequence[Head]) -> Bool[Tensor, "sender mover"]:
    return torch.tensor([[mover[0] > sender[0] for mover in movers] for sender in senders], dtype=torch.bool)


def name_attention(
    weights: ModelWeights,
    tokens: Int[Tensor, "prompt position"],
    lengths: Int[Tensor, " prompt"],
    queries: Int[Tensor, "prompt query"],
    names: Int[Tensor, "prompt name"],
    batch_size: int,
) -> Float[Tensor, "query name layer head"]:
    """Mean attention of every head from some positions of each prompt to others, in [0, 1]."""
    total = torch.zeros(queries.shape[1], names.shape[1], weights.n_layers, weights.n_heads)
    for index in torch.arange(len(tokens), device=tokens.device).split(batch_size):
        layout = Layout.whole(lengths[index])
        rows = torch.arange(len(index), device=tokens.device)[:, None]

        def add(layer: LayerActivations, index: Tensor = index, rows: Tensor = rows) -> None:
            from_queries = layer.pattern.transpose(1, 2)[rows, queries[index]]  # [prompt, query, head, key]
            keys = names[index][:, None, None].expand(*from_queries.shape[:3], -1)
            seen = from_queries.gather(3, keys).float().sum(dim=0)  # [query, head, name]
            total[:, :, layer.layer] += seen.transpose(1, 2).cpu()

        with torch.no_grad():
            forward(weights, layout, embed(weights, layout, layout.pack(tokens[index])), visit=add)
    return total / len(tokens)
