"""The two definitions of an effect: `study` and `frozen`.

Both patch a path from a sender (a head, at all tokens) to the receivers of its level, and compare the mean logit
difference LD with that of the clean prompts. They differ in what else may change, in the unit, and in which heads
count:

    study     Tigges et al. 2024 (arXiv 2407.10827), after Wang et al. 2022 (arXiv 2211.00593). The receivers read what
              they would if the sender alone were corrupted, other heads frozen and MLPs free; everything after them is
              recomputed. Receivers: the final residual stream; the name movers' queries; the values of those
              S-inhibition heads that are not copy-suppression heads. All heads of the model count.
              effect = (LD_patched - LD_clean) / (LD_clean - LD_corrupted): 0 nothing lost, -1 all of it.
    frozen    The strictest notion of a path: everything off it keeps its clean value. From the receivers the path goes
              on to the logits: name mover -> logits, S-inhibition head -> name movers' queries -> logits. Heads of the
              circuit count.
              effect = (LD_patched - LD_clean) / LD_clean: -0.1 means that a tenth is lost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from circuits_over_time.edge_attribution_patching.patching.paths import Head, Receivers

from .effects import Exchange, PairedRuns
from .inputs import HeadFacts
from .keys import IoiConsistencyConfig, Thresholds
from .roles import is_copy_suppression

ByPrompt = Float[Tensor, "sender prompt"]


class Definition(ABC):
    """How effects are measured, and which heads can hold a role.

    Attributes:
        name: as in the config.
        unit: what an effect is a share of.
        negative_name_movers: whether they count at the first level.
    """

    name: str
    unit: str
    negative_name_movers: bool

    @abstractmethod
    def heads(self, facts: HeadFacts) -> list[Head]:
        """The heads among which roles are looked for, in order."""

    @abstractmethod
    def divisor(self, clean: Float[Tensor, " prompt"], corrupted: Float[Tensor, " prompt"]) -> Float[Tensor, " prompt"]:
        """A value per prompt. Its mean divides the mean change of the logit difference."""

    @abstractmethod
    def why_nothing(self, clean: float, corrupted: float) -> str:
        """Why effects have no unit with these mean logit differences; empty if they have one."""

    @abstractmethod
    def on_logits(self, runs: PairedRuns, heads: Sequence[Head]) -> ByPrompt:
        """Logit differences with each head patched into the first level's receivers."""

    @abstractmethod
    def on_queries(self, runs: PairedRuns, heads: Sequence[Head], movers: Sequence[Head]) -> ByPrompt:
        """The same for the second level's receivers."""

    @abstractmethod
    def on_values(
        self, runs: PairedRuns, heads: Sequence[Head], inhibitors: Sequence[Head], movers: Sequence[Head]
    ) -> ByPrompt:
        """The same for the third level's receivers."""

    @abstractmethod
    def exchange(
        self,
        runs: PairedRuns,
        candidates: Sequence[Head],
        movers: Sequence[Head],
        positions: Int[Tensor, "prompt name"],
    ) -> Exchange:
        """Replace what candidates for S-inhibition write at the answer with what they write in the other prompts."""

    @abstractmethod
    def may_inhibit(self, head: Head, movers: Sequence[Head], facts: HeadFacts) -> bool:
        """Whether a head with an effect is a candidate for S-inhibition."""

    @abstractmethod
    def value_receivers(self, inhibitors: Sequence[Head], facts: HeadFacts, thresholds: Thresholds) -> tuple[Head, ...]:
        """The S-inhibition heads whose values are the third level's receivers."""


class Study(Definition):
    """Receivers read the sender, and everything after them is recomputed (see the module)."""

    name = "study"
    unit = "LD_clean - LD_corrupted"
    negative_name_movers = True

    def heads(self, facts: HeadFacts) -> list[Head]:
        n_layers, n_heads = facts.copy.shape
        return [(layer, head) for layer in range(n_layers) for head in range(n_heads)]

    def divisor(self, clean: Float[Tensor, " prompt"], corrupted: Float[Tensor, " prompt"]) -> Float[Tensor, " prompt"]:
        return clean - corrupted

    def why_nothing(self, clean: float, corrupted: float) -> str:
        if clean > corrupted:
            return ""
        return f"the logit difference is {clean:.3g}, and {corrupted:.3g} in corrupted prompts: nothing can be lost"

    def on_logits(self, runs: PairedRuns, heads: Sequence[Head]) -> ByPrompt:
        return runs.along_paths(heads, through_mlps=True)

    def on_queries(self, runs: PairedRuns, heads: Sequence[Head], movers: Sequence[Head]) -> ByPrompt:
        return runs.recomputed_after(heads, Receivers(tuple(movers), "q"))

    def on_values(
        self, runs: PairedRuns, heads: Sequence[Head], inhibitors: Sequence[Head], movers: Sequence[Head]
    ) -> ByPrompt:
        return runs.recomputed_after(heads, Receivers(tuple(inhibitors), "v"))

    def exchange(
        self,
        runs: PairedRuns,
        candidates: Sequence[Head],
        movers: Sequence[Head],
        positions: Int[Tensor, "prompt name"],
    ) -> Exchange:
        return runs.exchanged(candidates, movers, positions, only_into_queries=True)

    def may_inhibit(self, head: Head, movers: Sequence[Head], facts: HeadFacts) -> bool:
        return facts.writes_to_queries(head, movers)

    def value_receivers(self, inhibitors: Sequence[Head], facts: HeadFacts, thresholds: Thresholds) -> tuple[Head, ...]:
        return tuple(head for head in inhibitors if not is_copy_suppression(head, facts, thresholds))


class Frozen(Definition):
    """Everything off the path keeps its clean value (see the module).

    Args:
        through_mlps: also count paths through MLPs from a sender to the receivers of its level.
    """

    name = "frozen"
    unit = "LD_clean"
    negative_name_movers = False

    def __init__(self, *, through_mlps: bool = False) -> None:
        self.through_mlps = through_mlps

    def heads(self, facts: HeadFacts) -> list[Head]:
        return facts.circuit_heads

    def divisor(self, clean: Float[Tensor, " prompt"], corrupted: Float[Tensor, " prompt"]) -> Float[Tensor, " prompt"]:
        return clean

    def why_nothing(self, clean: float, corrupted: float) -> str:
        return "" if clean > 0 else f"the logit difference is {clean:.3g}, not above 0: nothing can be lost"

    def on_logits(self, runs: PairedRuns, heads: Sequence[Head]) -> ByPrompt:
        return runs.along_paths(heads, through_mlps=True) if self.through_mlps else runs.direct(heads)

    def on_queries(self, runs: PairedRuns, heads: Sequence[Head], movers: Sequence[Head]) -> ByPrompt:
        return runs.along_paths(heads, [Receivers(tuple(movers), "q")], through_mlps=self.through_mlps)

    def on_values(
        self, runs: PairedRuns, heads: Sequence[Head], inhibitors: Sequence[Head], movers: Sequence[Head]
    ) -> ByPrompt:
        stages = [Receivers(tuple(inhibitors), "v"), Receivers(tuple(movers), "q")]
        return runs.along_paths(heads, stages, through_mlps=self.through_mlps)

    def exchange(
        self,
        runs: PairedRuns,
        candidates: Sequence[Head],
        movers: Sequence[Head],
        positions: Int[Tensor, "prompt name"],
    ) -> Exchange:
        return runs.exchanged(candidates, movers, positions, only_into_queries=False)

    def may_inhibit(self, head: Head, movers: Sequence[Head], facts: HeadFacts) -> bool:
        return True

    def value_receivers(self, inhibitors: Sequence[Head], facts: HeadFacts, thresholds: Thresholds) -> tuple[Head, ...]:
        return tuple(inhibitors)


def definition_of(config: IoiConsistencyConfig) -> Definition:
    """The definition that a config names."""
    return Study() if config.definitions == "study" else Frozen(through_mlps=config.through_mlps)
