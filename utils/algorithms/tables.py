"""The tables of one checkpoint, row by row: levels, heads, and the candidates for S-inhibition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.patching.paths import Head
from circuits_over_time.edge_attribution_patching.statistics import standard_errors

from ..results.kinds import IOI_CONSISTENCY, IOI_CONSISTENCY_HEADS, IOI_CONSISTENCY_SIGNALS, ResultSchema
from .attention import NAMES
from .definitions import EffectDefinition
from .effects import Exchange
from .inputs import HeadFacts
from .roles import Node, Role, Roles, holders
from .shares import Effects, Scale


@dataclass(frozen=True)
class Consistency:
    """The tables of one checkpoint."""

    levels: pd.DataFrame  # one row per level; percent is empty if there is a reason
    heads: pd.DataFrame  # one row per measured level and head
    signals: pd.DataFrame  # one row per candidate for S-inhibition and variant


class Tables:
    """Collects what is measured; `logit_diffs` are columns of every level."""

    def __init__(
        self, definition: EffectDefinition, facts: HeadFacts, scale: Scale, logit_diffs: Mapping[str, float]
    ) -> None:
        self.facts, self.scale, self.logit_diffs = facts, scale, logit_diffs
        # The heads among which roles are looked for: all of the model, or with `frozen` those of the circuit.
        everywhere = facts.in_circuit if definition.is_frozen else torch.ones_like(facts.in_circuit)
        self.measured: list[Head] = [(layer, head) for layer, head in everywhere.nonzero().tolist()]
        self._stamp: dict[str, Any] = {"definitions": definition.name, "unit": definition.unit}
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
        """Add the row of a level, of which so many heads have their inputs patched, and those of its heads.

        `attention` is from the token that counts at this level.
        """
        facts = self.facts
        in_circuit = torch.tensor([bool(facts.in_circuit[head]) for head in self.measured], dtype=torch.bool)
        rows, _, of_level = measured_level("head", self.measured, roles, effects, self.scale, in_circuit)
        scores = {"copy_score": facts.copy, "negative_copy_score": facts.negative_copy, "cspa": facts.cspa}
        scores |= {"induction": facts.induction, "duplicate_token": facts.duplicate_token}
        scores |= {f"attention_{name}": of_name for name, of_name in zip(NAMES, attention, strict=True)}
        for row, (layer, head) in zip(rows, self.measured, strict=True):
            row |= {"level": level, "layer": layer, "head": head} | self._stamp
            self._heads.append(row | {name: float(score[layer, head]) for name, score in scores.items()})
        self.add_row(level, n_receivers, **of_level)

    def add_row(self, level: str, n_receivers: int | None, **values: Any) -> None:
        """Add a level with what there is of it: its numbers, or the reason why it has no percentage."""
        row = {"level": level, "n_measured": len(self.measured), "n_receivers": n_receivers}
        self._levels.append(self._stamp | row | dict(self.logit_diffs) | values)

    def add_signals(self, candidates: Sequence[Head], exchanges: Mapping[str, Exchange], roles: Roles) -> None:
        """Add a row per candidate and variant of the prompt."""
        for name, exchange in exchanges.items():
            logit_diffs = exchange.logit_difference.double().mean(dim=1).tolist()
            logit_diff_errors = standard_errors(exchange.logit_difference).tolist()
            attention = exchange.mean_attention().tolist()
            attention_errors = standard_errors(exchange.attention_by_prompt().transpose(1, 2)).tolist()
            for row, (layer, head) in enumerate(candidates):
                line: dict[str, Any] = self._stamp | {"layer": layer, "head": head, "variant": name}
                line |= {"logit_diff": logit_diffs[row], "logit_diff_se": logit_diff_errors[row]}
                line |= {f"attention_{at}": x for at, x in zip(NAMES, attention[row], strict=True)}
                line |= {f"attention_{at}_se": x for at, x in zip(NAMES, attention_errors[row], strict=True)}
                line |= {"n_name_movers": int(exchange.reads[row].sum()), "passes": roles[layer, head].passes}
                self._signals.append(line)

    def done(self) -> Consistency:
        """Everything that was added."""
        signals = pd.DataFrame(self._signals, columns=list(IOI_CONSISTENCY_SIGNALS.columns))
        return Consistency(
            typed_table(self._levels, IOI_CONSISTENCY),
            pd.DataFrame(self._heads, columns=list(IOI_CONSISTENCY_HEADS.columns)),
            signals.sort_values(["layer", "head"], kind="stable", ignore_index=True),
        )


def measured_level(
    what: str,
    nodes: Sequence[Node],
    roles: Mapping[Node, Role],
    effects: Effects,
    scale: Scale,
    in_circuit: Bool[Tensor, " node"],
) -> tuple[list[dict[str, Any]], Bool[Tensor, " node"], dict[str, Any]]:
    """What every algorithm reports of a level: columns of its nodes, which hold its role, and columns of the level.

    These are shares, or the reason why there are none. `what` nodes are called: `head` or `node`.
    """
    errors = scale.bootstrap.error(effects.resampled).tolist()
    rows, held = list[dict[str, Any]](), set(holders(roles))
    for at, node in enumerate(nodes):
        role = roles.get(node, Role("", False))
        row = {"role": role.name, "passes": role.passes, "p_value": role.p_value, "q_value": role.q_value}
        row |= {"effect": float(effects.values[at]), "effect_se": errors[at], "in_circuit": bool(in_circuit[at])}
        rows.append(row)
    identified = torch.tensor([node in held for node in nodes], dtype=torch.bool)
    if effects.sum(in_circuit) == 0:
        return rows, identified, {"reason": f"no {what} of the circuit has an effect"}
    columns: dict[str, Any] = {"circuit_effect": effects.sum(in_circuit)}
    for where, some in (("", identified), ("_in_circuit", identified & in_circuit)):
        percent, low, high = scale.percentage(effects, some, in_circuit)
        columns |= {f"percent{where}": percent, f"percent{where}_low": low, f"percent{where}_high": high}
        columns |= {f"n_{what}s{where}": int(some.sum()), f"identified{where}_effect": effects.sum(some)}
    return rows, identified, columns


def typed_table(rows: Sequence[Mapping[str, Any]], kind: ResultSchema) -> pd.DataFrame:
    """Rows as a table of a kind. Columns that are empty in every row have no type of their own."""
    columns = list(kind.columns)
    counts = [name for name in columns if name in ("layer", "head") or name.startswith("n_")]
    numbers = [name for name in columns if name not in (*counts, *(kind.texts or ()))]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype(dict.fromkeys(counts, "Int64") | dict.fromkeys(numbers, "float64"))
