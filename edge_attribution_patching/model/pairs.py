"""Pairs of clean and corrupted prompts, in batches that run only what differs between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .memory import pairs_within
from .packed_tokens import PackedTokens
from .transfer import Movable, to_device
from .weights import ModelWeights

GB = 1e9
"""Bytes of the unit in which memory budgets are given."""

Metric = Callable[[Float[Tensor, "batch vocab"], Int[Tensor, " batch"]], Float[Tensor, " batch"]]
"""Per prompt: logits at the answer, and which prompts they belong to -> values."""

COUNTED = ("cpu",)
"""Devices on which a batch has a number of pairs. On others it has what fits: there few large kernels are fastest."""

BAR_DELAY = 3.0
"""Seconds after which a progress bar appears: what is over sooner needs none."""

T = TypeVar("T")


def pairs_at_once(weights: ModelWeights, width: int, batch_size: int, memory_budget_gb: float) -> int:
    """How many pairs of prompts of up to `width` tokens go in one batch.

    So many that one integration step of all stays within the budget, or one pair; on the CPU, whose caches are small,
    `batch_size`.
    """
    if weights.device.type in COUNTED:
        return batch_size
    return pairs_within(weights, width, weights.embed.element_size(), memory_budget_gb * GB)


@dataclass(frozen=True)
class PairBatch(Movable):
    """Some prompt pairs and where their tokens run."""

    index: Int[Tensor, " batch"]  # which prompts of the whole set these are
    clean: Int[Tensor, "batch position"]
    corrupted: Int[Tensor, "batch position"]
    layout: PackedTokens  # with prefix sharing each pair starts at the first position where it differs
    rows: np.ndarray  # `index` on the CPU
    tokens_of_roles: Sequence[Int[Tensor, " token"]] = ()  # of every role its packed tokens, if they have roles


@dataclass(frozen=True)
class TokenRoles:
    """What each token of some prompts is to the task, such as a name that comes twice.

    Attributes:
        names: in the order of the prompts; last that of the answer's token, which no other token has.
        attends: by role and role, whether tokens of the first attend to some of the second, in any prompt of the task.
        of_token: the role of each token, on the CPU; any at padding.
    """

    names: tuple[str, ...]
    attends: tuple[tuple[bool, ...], ...]
    of_token: Int[Tensor, "prompt position"]

    @classmethod
    def of(
        cls, names: Sequence[str], of_token: Int[Tensor, "prompt position"], lengths: Int[Tensor, " prompt"]
    ) -> TokenRoles:
        """By the names in any order, those of no token left out, and each token's role among them."""
        positions = torch.arange(of_token.shape[1])
        is_role = (of_token == torch.arange(len(names))[:, None, None]) & (positions < lengths[:, None])
        there, present = is_role.any(2), is_role.any(2).any(1)
        mean = (is_role * positions).sum((1, 2)) / is_role.sum((1, 2)).clamp(min=1)
        last = of_token[0, lengths[0] - 1]
        order = [role for role in mean.argsort(stable=True).tolist() if present[role] and role != last] + [int(last)]
        first, final = is_role.int().argmax(2), of_token.shape[1] - 1 - is_role.flip(2).int().argmax(2)
        sees = ((first[None] <= final[:, None]) & there[None] & there[:, None]).any(2)
        renumbered = torch.tensor([order.index(role) if role in order else -1 for role in range(len(names))])
        attends = tuple(tuple(sees[reader, order].tolist()) for reader in order)
        return cls(tuple(names[role] for role in order), attends, renumbered[of_token])

    def named_as(self, names: Sequence[str]) -> TokenRoles:
        """By the names, in their order, of other prompts of the task; a ValueError if these lack one.

        So edges go by the same numbers. A role of theirs that no token has here keeps its place.
        """
        if missing := [name for name in self.names if name not in names]:
            raise ValueError(f"no token of the others has the role {missing[0]!r}")
        place = [names.index(name) for name in self.names]
        attends = torch.zeros(len(names), len(names), dtype=torch.bool)
        attends[torch.tensor(place)[:, None], place] = torch.tensor(self.attends)
        renumbered = torch.tensor([*place, -1])[self.of_token]  # -1 stays, at padding.
        return TokenRoles(tuple(names), tuple(map(tuple, attends.tolist())), renumbered)

    def select(self, rows: Int[Tensor, " row"]) -> TokenRoles:
        """Those of some prompts."""
        return replace(self, of_token=self.of_token[rows.cpu()])


@dataclass(frozen=True)
class TokenPairs:
    """Right-padded token ids of clean and corrupted prompts of equal length; with `roles`, edges have them.

    Raises:
        ValueError: if shapes disagree or a prompt is empty.
    """

    clean: Int[Tensor, "prompt position"]
    corrupted: Int[Tensor, "prompt position"]
    lengths: Int[Tensor, " prompt"]
    roles: TokenRoles | None = None

    def __post_init__(self) -> None:
        if self.clean.shape != self.corrupted.shape or len(self.lengths) != len(self.clean):
            raise ValueError(
                f"clean {tuple(self.clean.shape)}, corrupted {tuple(self.corrupted.shape)} and lengths "
                f"{tuple(self.lengths.shape)} do not describe the same prompts"
            )
        if len(self.lengths) == 0 or int(self.lengths.min()) < 1 or int(self.lengths.max()) > self.clean.shape[1]:
            raise ValueError("every prompt needs between 1 token and the width of the padded ids")

    def __len__(self) -> int:
        return len(self.lengths)

    def batches(
        self,
        batch_size: int,
        *,
        share_prefix: bool = True,
        weights: ModelWeights | None = None,
        memory_budget_gb: float | None = None,
        device: torch.device | None = None,
        at_answers: bool = False,
    ) -> Iterator[PairBatch]:
        """All pairs. Those whose tails have similar lengths come together, so that attention pads little.

        Args:
            weights: the model that will run them: what it asks for is sent along.
            memory_budget_gb: with the model, how much a pass may take where batches go by memory (`pairs_at_once`).
            device: where the batches go; by default to the model's, or without one to that of the tokens. Nobody waits
                if the tokens are on the CPU.
            at_answers: send along what passes over the answers' tokens alone ask for.
        """
        if weights is not None and memory_budget_gb is not None:
            batch_size = pairs_at_once(weights, self.clean.shape[1], batch_size, memory_budget_gb)
        if device is None:
            device = self.clean.device if weights is None else weights.device
        clean, corrupted, lengths = (one.cpu() for one in (self.clean, self.corrupted, self.lengths))
        starts = torch.zeros_like(lengths)
        if share_prefix:  # The first position where each pair differs; the last position of a pair that never does.
            differs = (clean != corrupted) & (torch.arange(clean.shape[1]) < lengths[:, None])
            starts = torch.where(differs.any(dim=1), differs.int().argmax(dim=1), lengths - 1)
        order = torch.argsort((lengths - starts) * (clean.shape[1] + 1) + lengths, stable=True)
        for index in order.split(batch_size):
            width = int(lengths[index].max())
            layout = PackedTokens(starts[index], lengths[index])
            if weights is not None:
                layout.made_for(weights)
            if at_answers:
                layout.at_last_tokens()
            of_roles: tuple[Tensor, ...] = ()
            if self.roles is not None:
                of_token = self.roles.of_token[index][layout.prompt, layout.position]
                of_roles = tuple((of_token == role).nonzero()[:, 0] for role in range(len(self.roles.names)))
            on_cpu = PairBatch(index, clean[index, :width], corrupted[index, :width], layout, index.numpy(), of_roles)
            yield to_device(on_cpu, device)


def bar(items: Iterable[T], what: str) -> Iterable[T]:
    """The items, with a bar below the sweep's own while they are worked on; none where stderr is no terminal."""
    from tqdm.auto import tqdm  # Slow to import in a notebook.

    watched: Iterable[T] = tqdm(items, desc=f"  {what}", leave=False, delay=BAR_DELAY, disable=None, dynamic_ncols=True)
    return watched
