"""How many bytes scores and circuits take above the weights, from a model's sizes and a batch's alone.

What is counted is what lives when most does: the tensors that are kept layer by layer, and what one layer, the logits
or a product take beside them. Batches, and stacks of integration steps, are as large as this allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .architecture_table import ARCHITECTURES

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Of one number in each format."""
LOGITS = 4
"""Copies of the logits while a difference of some of them and its gradient are computed."""


class Sizes(Protocol):
    """What counts of a model's sizes, as `Shape` has them."""

    @property
    def architecture(self) -> str: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def d_head(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_mlp(self) -> int: ...
    @property
    def d_vocab(self) -> int: ...
    @property
    def parallel(self) -> bool: ...


@dataclass(frozen=True)
class BatchSizes:
    """How large a batch is: its pairs, the tokens that run, and of the longest pair all tokens and those that run."""

    n_prompts: int
    n_tokens: int
    width: int
    n_queries: int

    @classmethod
    def of(cls, lengths: Sequence[int], runs: Sequence[int]) -> BatchSizes:
        """From the lengths of the pairs and how many tokens of each run."""
        return cls(len(lengths), sum(runs), max(lengths), max(runs))


@dataclass(frozen=True)
class Memory:
    """What a batch takes in a model whose numbers have so many bytes.

    Args:
        budget: bytes, `memory_budget_gb` of the computation: stacks and products are as large as fits it.
    """

    sizes: Sizes
    batch: BatchSizes
    number: int
    budget: float

    @property
    def _heads(self) -> tuple[int, int]:
        """Numbers of a token's queries, and of its keys."""
        return self.sizes.n_heads * self.sizes.d_head, self.sizes.n_kv_heads * self.sizes.d_head

    @property
    def _nodes(self) -> tuple[int, int]:
        """Nodes that write, and inputs of a layer's heads."""
        return 1 + self.sizes.n_layers * (self.sizes.n_heads + 1), 3 * self.sizes.n_heads

    @property
    def _prefix(self) -> int:
        batch = self.batch
        return self.number * self.sizes.n_layers * (batch.n_prompts * batch.width - batch.n_tokens) * 2 * self._heads[1]

    def _kept(self) -> tuple[int, int, int]:
        """Numbers that a step keeps of all layers: for the backward pass alone, for more, and gradients at inputs."""
        sizes, batch, (d_z, d_kv), d = self.sizes, self.batch, self._heads, self.sizes.d_model
        known = ARCHITECTURES.get(sizes.architecture)  # Weights made by hand are of none, and have no gates.
        of_hidden = (3 if known is not None and known.mlp_gate is not None else 1) * sizes.d_mlp
        hidden, kept, gradients = 0, 0, 0
        # The last layer's queries, and what follows them, are at the answers alone.
        for n, tokens, queries in ((sizes.n_layers - 1, batch.n_tokens, batch.n_queries), (1, batch.n_prompts, 1)):
            # The residual stream and its normalised form, and q, k, v as projected and as they attend.
            of_layer = batch.n_tokens * 2 * (d + d_z + 2 * d_kv)
            # q, k and v as attention lays them out, and the pattern.
            of_layer += batch.n_prompts * (queries * d_z + 2 * batch.width * d_kv)
            of_layer += batch.n_prompts * sizes.n_heads * queries * batch.width
            # z, what the MLP reads where that is another stream, and what it writes.
            of_layer += tokens * (d_z + (1 if sizes.parallel and n > 1 else 2) * d)
            hidden, kept = hidden + n * tokens * of_hidden, kept + n * of_layer
            gradients += n * (batch.n_tokens * (d_z + 2 * d_kv) + tokens * (d + (0 if d_z == d_kv else d_z)))
        return hidden, kept, gradients

    @property
    def step(self) -> int:
        """Bytes of one integration step, forward and backward."""
        hidden, kept, gradients = self._kept()
        return self.number * (kept + max(hidden, gradients) + LOGITS * self.batch.n_prompts * self.sizes.d_vocab)

    @property
    def steps_at_once(self) -> int:
        """How many may run stacked."""
        return max(1, int(self.budget // self.step))

    def attribution(self, steps: int, folds: int = 1) -> int:
        """The peak of scoring all edges of a batch, with sums for so many folds."""
        n_layers, d, tokens, number = self.sizes.n_layers, self.sizes.d_model, self.batch.n_tokens, self.number
        (n_forward, inputs), at_once = self._nodes, min(steps, self.steps_at_once)
        hidden, kept, gradients = self._kept()
        heads = inputs * self.sizes.d_head
        fixed = 4 * folds * n_forward * (n_layers * (inputs + 1) + 1) + self._prefix + 2 * number * tokens * d
        # Of gradients the sum over steps, float32, and what cannot be summed: as many steps as the budget keeps.
        sums, unsummed = 4 * n_layers * tokens * (heads + d), n_layers * tokens * (number * d + 4 * inputs)
        earlier = min(steps - at_once, int(self.budget // (4 * n_layers * tokens * d)))
        forward = at_once * number * (kept + hidden + LOGITS * self.batch.n_prompts * self.sizes.d_vocab)
        # A layer's gradients, float32, while they are multiplied.
        products = 4 * tokens * heads * (2 if number > 2 else 4)
        backward = at_once * (number * (kept + gradients) + products) + sums
        # The last stack's outputs, those of both runs and their difference; a layer's gradients at some tokens.
        outputs = (at_once + 3) * number * n_layers * tokens * (self._heads[0] + d)
        of_layer = 4 * tokens * (2 * heads + (earlier + at_once) * d * 2) + (0 if number > 2 else 4 * heads * d)
        contracted = outputs + of_layer + min(self.budget, 4 * tokens * d * (n_forward + 2 * (inputs + 1)))
        after = sums + at_once * unsummed + contracted
        return int(fixed + earlier * unsummed + max(forward, backward, after))

    def runs(self) -> int:
        """What the two runs of a batch take that masks are evaluated from."""
        d, (d_z, d_kv), batch = self.sizes.d_model, self._heads, self.batch
        streams = 2 if self.sizes.parallel else 3
        whole = batch.n_tokens * (streams * d + 2 * d_z + 3 * d_kv)
        last = batch.n_tokens * (d + d_z + 3 * d_kv) + batch.n_prompts * (2 * d + d_z)
        return self._prefix + 2 * self.number * ((self.sizes.n_layers - 1) * whole + last)

    def evaluation(self, masks: int, nodes: int | None = None, batches: int = 1) -> int:
        """The peak of evaluating masks on this batch, one of several alike.

        Args:
            nodes: how many need computing under some mask; all by default.
        """
        sizes, batch, number = self.sizes, self.batch, self.number
        d, tokens, (n_forward, inputs) = sizes.d_model, batch.n_tokens, self._nodes
        nodes = n_forward if nodes is None else nodes
        at_once = min(masks, max(1, int(self.budget // (number * tokens * d * (nodes + inputs + 2)))))
        # What a layer's heads read, and their q, k and v as they are chosen, padded and laid out; or an MLP.
        heads = min(sizes.n_heads, nodes)
        of_layer = max(2 * heads * d + 8 * heads * sizes.d_head, 2 * sizes.d_mlp)
        stack = number * (at_once * tokens * (nodes * d + of_layer) + d * heads * sizes.d_head)
        preparing = number * 2 * tokens * 2 * sizes.d_mlp
        logits = min(self.budget / 4, number * max(masks, 2) * batch.n_prompts * sizes.d_vocab)
        runs = self.runs()
        kept = min(batches * runs, max(runs, self.budget // runs * runs))
        return int(kept + max(stack, preparing, logits))


def pairs_within(sizes: Sizes, width: int, number: int, budget: float) -> int:
    """How many pairs of so many tokens one integration step has room for in a budget of bytes; one at least."""
    return max(1, int(budget // Memory(sizes, BatchSizes.of([width], [width]), number, budget).step))


def layers_by_device(sizes: Sizes, number: int, rooms: Sequence[float]) -> list[int]:
    """How many layers go to each of several devices, one block after the other, and at least one to the first.

    What a layer takes besides its weights depends on the prompts. So that the device with the least room for each of
    its layers has as much as can be, layers are dealt out one by one by D'Hondt's rule.

    Args:
        number: bytes of a number.
        rooms: bytes of each device. The first also has the embeddings, the unembedding and what becomes of the logits.
    """
    shared = 2 * sizes.d_vocab * sizes.d_model * number
    left = [room - shared * (place == 0) for place, room in enumerate(rooms)]
    counts = [1] + [0] * (len(left) - 1)
    for _ in range(sizes.n_layers - 1):
        counts[max(range(len(left)), key=lambda place: left[place] / (counts[place] + 1))] += 1
    return counts
