"""The tables of one checkpoint, row by row: levels, heads, and the candidates for S-inhibition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.patching.paths import Head

from ..results.kinds import IOI_CONSISTENCY, IOI_CONSISTENCY_HEADS, IOI_CONSISTENCY_SIGNALS
from .attention import NAMES
from .definitions import EffectDefinition
from .effects import Exchange
from .inputs import HeadFacts
from .roles import Role, Roles, holders
from .shares import Effects, Scale

_COUNTS = ("n_heads", "n_heads_in_circuit", "n_measured", "n_receivers")
_PERCENTAGES = ("percent", "percent_in_circuit")
_NUMBERS = (
    *(f"{name}{end}" for name in _PERCENTAGES for end in ("", "_low", "_high")),
    *("identified_effect", "identified_in_circuit_effect", "circuit_effect"),
)


@dataclass(frozen=True)
class Consistency:
    """The tables of one checkpoint.

    Attributes:
        levels: one row per level, with the columns of `IOI_CONSISTENCY`; percent is empty if there is a reason.
        heads: one row per measured level and head.
        signals: one row per candidate for S-inhibition and variant.
    """

    levels: pd.DataFrame
    heads: pd.DataFrame
    signals: pd.DataFrame


class Tables:
    """Collects what is measured.

    Args:
        logit_diffs: mean logit difference of the clean prompts, its standard error, and the mean of the corrupted ones.
    """

    def __init__(
        self, definition: EffectDefinition, facts: HeadFacts, scale: Scale, logit_diffs: Mapping[str, float]
    ) -> None:
        self.definition, self.facts, self.scale = definition, facts, scale
        self.logit_diffs = logit_diffs
        self.measured = definition.heads(facts)
        self._levels: list[dict[str, Any]] = []
        self._heads: list[dict[str, Any]] = []
        self._signals: list[dict[str, Any]] = []

    def add_level(
        self,
        level: str,
        effects: Effects,
        roles: Roles,
        attention: Float[Tensor, "name layer head"],
        n_receivers: int | None,
    ) -> None:
        """Add the row of a level and those of its heads.

        Args:
            roles: of those that have one.
            attention: from the token that counts at this level.
            n_receivers: how many heads have their inputs patched; None at the first level.
        """
        self._add_heads(level, effects, roles, attention)
        role_holders = set(holders(roles))
        identified = torch.tensor([head in role_holders for head in self.measured], dtype=torch.bool)
        in_circuit = torch.tensor([bool(self.facts.in_circuit[head]) for head in self.measured], dtype=torch.bool)
        share = self.scale.percentage(effects, identified, in_circuit)
        inside = self.scale.percentage(effects, identified & in_circuit, in_circuit)
        if share.denominator == 0:
            self.leave_out(level, n_receivers, "no head of the circuit has an effect")
            return
        self._add(
            level,
            n_receivers,
            percent=share.percent,
            percent_low=share.low,
            percent_high=share.high,
            percent_in_circuit=inside.percent,
            percent_in_circuit_low=inside.low,
            percent_in_circuit_high=inside.high,
            identified_effect=share.numerator,
            identified_in_circuit_effect=inside.numerator,
            circuit_effect=share.denominator,
            n_heads=int(identified.sum()),
            n_heads_in_circuit=int((identified & in_circuit).sum()),
        )

    def leave_out(self, level: str, n_receivers: int | None, reason: str) -> None:
        """Add a level that has no percentage."""
        self._add(level, n_receivers, reason=reason)

    def add_signals(self, candidates: Sequence[Head], exchanges: Mapping[str, Exchange], roles: Roles) -> None:
        """Add a row per candidate and variant of the prompt."""
        for name, exchange in exchanges.items():
            logit_diffs = exchange.logit_difference.double().mean(dim=1).tolist()
            attention = exchange.mean_attention().tolist()
            for row, (layer, head) in enumerate(candidates):
                line: dict[str, Any] = {"definitions": self.definition.name, "layer": layer, "head": head}
                line |= {"variant": name, "logit_diff": logit_diffs[row]}
                line |= {f"attention_{at}": x for at, x in zip(NAMES, attention[row], strict=True)}
                line |= {"n_name_movers": int(exchange.reads[row].sum()), "passes": roles[layer, head].passes}
                self._signals.append(line)

    def done(self) -> Consistency:
        """Everything that was added."""
        levels = pd.DataFrame(self._levels, columns=list(IOI_CONSISTENCY.columns))
        types = dict.fromkeys(_NUMBERS, "float64") | dict.fromkeys(_COUNTS, "Int64")
        signals = pd.DataFrame(self._signals, columns=list(IOI_CONSISTENCY_SIGNALS.columns))
        return Consistency(
            levels.astype(types),
            pd.DataFrame(self._heads, columns=list(IOI_CONSISTENCY_HEADS.columns)),
            signals.sort_values(["layer", "head"], kind="stable", ignore_index=True),
        )

    def _add(self, level: str, n_receivers: int | None, **values: Any) -> None:
        row: dict[str, Any] = {"level": level, "definitions": self.definition.name, "unit": self.definition.unit}
        row |= {"n_measured": len(self.measured), "n_receivers": n_receivers}
        self._levels.append(row | dict(self.logit_diffs) | values)

    def _add_heads(
        self, level: str, effects: Effects, roles: Roles, attention: Float[Tensor, "name layer head"]
    ) -> None:
        facts, errors = self.facts, self.scale.errors(effects).tolist()
        scores = {
            "copy_score": facts.copy,
            "negative_copy_score": facts.negative_copy,
            "cspa": facts.cspa,
            "induction": facts.induction,
            "duplicate_token": facts.duplicate_token,
        }
        for at, (layer, head) in enumerate(self.measured):
            role = roles.get((layer, head), Role("", False))
            row: dict[str, Any] = {"level": level, "definitions": self.definition.name, "layer": layer, "head": head}
            row |= {"role": role.name}
            row |= {"effect": float(effects.values[at]), "effect_se": errors[at], "unit": self.definition.unit}
            row |= {name: float(score[layer, head]) for name, score in scores.items()}
            row |= {f"attention_{name}": float(attention[i, layer, head]) for i, name in enumerate(NAMES)}
            self._heads.append(row | {"in_circuit": bool(facts.in_circuit[layer, head]), "passes": role.passes})
