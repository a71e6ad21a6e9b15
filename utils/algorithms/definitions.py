"""How effects are measured: as in the `study`, or `frozen`. The default, `standard`, measures them as the study does.

Both patch a path from a sender (a head, at all tokens) to the receivers of its level, and compare the mean logit
difference LD with that of the clean prompts. They differ in what else may change, in the unit, and in which heads
count:

    study     Tigges et al. 2024 (arXiv 2407.10827), after Wang et al. 2022 (arXiv 2211.00593). The receivers read what
              they would if the sender alone were corrupted, other heads frozen and MLPs free; everything after them is
              recomputed. Receivers: the final residual stream; the name movers' queries; the values of those
              S-inhibition heads that are not copy-suppression heads (`definitions: study`: with an effect below 0). All
              heads of the model count.
              effect = (LD_patched - LD_clean) / (LD_clean - LD_corrupted): 0 nothing lost, -1 all of it.
    frozen    The strictest notion of a path: everything off it keeps its clean value. From the receivers the path goes
              on to the logits: name mover -> logits, S-inhibition head -> name movers' queries -> logits. Heads of the
              circuit count.
              effect = (LD_patched - LD_clean) / LD_clean: -0.1 means that a tenth is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.patching.paths import Head, Receivers

from .effects import PairedRuns


@dataclass(frozen=True)
class EffectDefinition:
    """How effects are measured, and which heads can hold a role."""

    name: Literal["standard", "study", "frozen"]
    # Under `frozen`, also count paths through MLPs from a sender to the receivers of its level.
    through_mlps: bool = False

    @property
    def is_frozen(self) -> bool:
        """Whether everything off the path keeps its clean value. If not, negative name movers count at level 1."""
        return self.name == "frozen"

    @property
    def unit(self) -> str:
        """What an effect is a share of."""
        return "LD_clean" if self.is_frozen else "LD_clean - LD_corrupted"

    def divisor(self, clean: Float[Tensor, " prompt"], corrupted: Float[Tensor, " prompt"]) -> Float[Tensor, " prompt"]:
        """A value per prompt. Its mean divides the mean change of the logit difference."""
        return clean if self.is_frozen else clean - corrupted

    def why_nothing(self, clean: float, corrupted: float) -> str:
        """Why effects have no unit with these mean logit differences; empty if they have one."""
        if clean > (0 if self.is_frozen else corrupted):
            return ""
        beside = "not above 0" if self.is_frozen else f"and {corrupted:.3g} in corrupted prompts"
        return f"the logit difference is {clean:.3g}, {beside}: nothing can be lost"

    def on_logits(self, runs: PairedRuns, heads: Sequence[Head]) -> Float[Tensor, "sender prompt"]:
        """Logit differences with each head patched into the first level's receivers."""
        if not self.is_frozen or self.through_mlps:
            return runs.along_paths(heads, through_mlps=True)
        return runs.direct(heads)

    def on_queries(
        self, runs: PairedRuns, heads: Sequence[Head], movers: Sequence[Head]
    ) -> Float[Tensor, "sender prompt"]:
        """The same for the second level's receivers."""
        queries = Receivers(tuple(movers), "q")
        if not self.is_frozen:
            return runs.recomputed_after(heads, queries)
        return runs.along_paths(heads, [queries], through_mlps=self.through_mlps)

    def on_values(
        self, runs: PairedRuns, heads: Sequence[Head], inhibitors: Sequence[Head], movers: Sequence[Head]
    ) -> Float[Tensor, "sender prompt"]:
        """The same for the third level's receivers."""
        values = Receivers(tuple(inhibitors), "v")
        if not self.is_frozen:
            return runs.recomputed_after(heads, values)
        return runs.along_paths(heads, [values, Receivers(tuple(movers), "q")], through_mlps=self.through_mlps)
