"""The three levels of the IOI algorithm in one checkpoint, from the logits backwards.

    name_movers    heads -> logits                    name movers, copy-suppression heads, negative name movers
    s_inhibition   heads -> queries of name movers    S-inhibition heads
    induction      heads -> values of S-inhibition    induction and duplicate-token heads

How effects are measured is in `definitions.py`, who holds a role in `roles.py`, what backs up the name movers in
`backup.py`. Each level reports

    percent = 100 * sum of |effect| over the heads that hold a role / sum of |effect| over the circuit's heads.

A level without receivers, as in early checkpoints, has no percentage, but a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits_over_time.edge_attribution_patching.model.transfer import checked_at_the_end, to_cpu
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.patching.paths import Head
from circuits_over_time.edge_attribution_patching.statistics import standard_error

from ..models.checkpoint import LoadedCheckpoint
from ..results.kinds import WITH_CIRCUIT
from ..results.store import Result
from ..tasks import Prompts, Task
from .attention import NAMES, name_attention
from .backup import backup_table, without_backup
from .definitions import EffectDefinition
from .effects import Exchange, FinalMetric, PairedRuns, reads
from .inputs import COMPUTED, HeadFacts, IoiInputs, gather
from .keys import IoiConsistencyConfig
from .roles import CLEAN, Roles, give_roles, holders, inhibition_roles, reading_roles, writing_roles
from .shares import Scale
from .tables import Consistency, Tables

STUDY_CSPA_EFFECT = -0.01
"""By the study's definitions, heads with an effect of this or more get no CSPA score unless one is stored."""

LEVELS = ("name_movers", "s_inhibition", "induction")


class Levels:
    """One checkpoint's levels, in order: each needs the heads that the one before it has identified."""

    def __init__(
        self,
        weights: ModelWeights,
        prompts: Prompts,
        variants: Mapping[str, Int[Tensor, "n width"]],  # `signal_variants` of the prompts
        facts: HeadFacts,
        config: IoiConsistencyConfig,
    ) -> None:
        self.weights, self.prompts, self.variants = weights, prompts, variants
        self.facts, self.config, self.limits = facts, config, config.thresholds
        self.definition = EffectDefinition(config.definitions, config.through_mlps)
        # The study lets the measured values decide.
        self.rate = None if config.definitions == "study" else config.false_discovery_rate
        self.names = torch.stack([prompts.positions[name] for name in NAMES], dim=1)
        self.runs = self._runs_with(prompts, prompts.corrupted)
        self.clean, corrupted = self.runs.both()
        self.scale = Scale(self.clean, self.definition.divisor(self.clean, corrupted), config.seed)
        logit_diffs = {
            "logit_diff": float(self.clean.double().mean()),
            "logit_diff_se": standard_error(self.clean),
            "corrupted_logit_diff": float(corrupted.double().mean()),
        }
        self.tables = Tables(self.definition, facts, self.scale, logit_diffs)
        self.heads = self.tables.measured

    def run(self) -> tuple[Consistency, Roles]:
        """The tables, and who holds a role at the first level."""
        if reason := self._nothing_to_explain():
            for level in LEVELS:
                self.tables.add_row(level, None, reason=reason)
            return self.tables.done(), {}
        # Heads of the first two levels act at the end of the prompt, those of the third where S comes again.
        clean, lengths, at = self.prompts.clean, self.prompts.lengths, self.prompts.positions
        queries, batch_size = torch.stack((at["end"], at["s2"]), dim=1), self.config.batch_size
        by_prompt, means = name_attention(self.weights, clean, lengths, queries, self.names, batch_size)
        from_end, from_s2 = means
        writing = self._name_movers(from_end)
        movers = holders(writing, "name_mover")
        inhibitors, none_because = self._s_inhibition(movers, from_end, by_prompt[0])
        self._induction(inhibitors, none_because, movers, from_s2)
        return self.tables.done(), writing

    def _runs_with(
        self, prompts: Prompts, others: Int[Tensor, "prompt position"], metric: FinalMetric | None = None
    ) -> PairedRuns:
        """Clean prompts together with others."""
        budget = self.config.budget_gb(*self.weights.devices)
        return PairedRuns(self.weights, prompts, others, self.config.batch_size, budget, metric)

    def _nothing_to_explain(self) -> str:
        if self.facts.status not in WITH_CIRCUIT:
            return f"no circuit: {self.facts.status}"
        if not self.facts.circuit_heads:
            return "no circuit: it holds no heads"
        means = self.tables.logit_diffs
        return self.definition.why_nothing(means["logit_diff"], means["corrupted_logit_diff"])

    def _name_movers(self, attention: Float[Tensor, "name layer head"]) -> Roles:
        effects = self.scale.effects(self.definition.on_logits(self.runs, self.heads))
        self.lowered = {head for head, effect in zip(self.heads, effects.values.tolist(), strict=True) if effect < 0}
        if self.rate is None and self.facts.sources.get("cspa") == COMPUTED:
            # Where no scores are stored, the study's code computes those of heads with some effect alone.
            cspa = self.facts.cspa.clone()
            cspa[tuple(torch.tensor(self.heads)[effects.values >= STUDY_CSPA_EFFECT].T)] = torch.nan
            self.facts = replace(self.facts, cspa=cspa)
        kinds = {"negative_name_movers": not self.definition.is_frozen, "study": self.rate is None}
        roles = give_roles(self.heads, writing_roles(self.heads, effects, self.facts, self.limits, **kinds), self.rate)
        self.tables.add_level("name_movers", effects, roles, attention, None)
        return roles

    def _s_inhibition(
        self,
        movers: Sequence[Head],
        attention: Float[Tensor, "name layer head"],
        by_prompt: Float[Tensor, "name layer head prompt"],
    ) -> tuple[tuple[Head, ...], str]:
        """The S-inhibition heads, and what to say if there are none."""
        beyond = "" if self.rate is None else ", beyond their errors"
        if not movers:
            limit = 0 if self.rate is None else self.limits.name_movers_effect
            why = f"no head has a copy score above {self.limits.copy_score:g}% and an effect below {limit:g}{beyond}"
            self.tables.add_row("s_inhibition", 0, reason=f"no name movers: {why}")
            return (), "no S-inhibition heads: there are no name movers to inhibit"
        # An effect makes a head a candidate; the signal that it sends decides.
        effects = self.scale.effects(self.definition.on_queries(self.runs, self.heads, movers))
        limit = self.limits.s_inhibition_effect
        below = [head for head, effect in zip(self.heads, effects.values.tolist(), strict=True) if effect < limit]
        candidates, p_effect = below, effects.p_below(limit)
        if not self.definition.is_frozen:
            joined = [head for head in self.heads if self.facts.writes_to_queries(head, movers)]
            candidates = [head for head in below if head in joined]
            p_effect[[head not in joined for head in self.heads]] = np.nan
        exchanges = self._exchange(candidates, movers, by_prompt)
        level = inhibition_roles(self.heads, candidates, p_effect, exchanges, self.limits)
        roles = give_roles(self.heads, level, self.rate)
        self.tables.add_signals(candidates, exchanges, roles)
        self.tables.add_level("s_inhibition", effects, roles, attention, len(movers))
        if not below:
            missing = f"no effect on name movers' queries is below {limit:g}"
        elif not candidates:
            missing = f"no edge of the circuit joins any of {len(below)} candidates to a name mover's query"
        else:
            missing = f"none of {len(candidates)} candidates passes the signal test{beyond}"
        return holders(roles), f"no S-inhibition heads: {missing}"

    def _exchange(
        self, candidates: Sequence[Head], movers: Sequence[Head], attention: Float[Tensor, "name layer head prompt"]
    ) -> dict[str, Exchange]:
        """Replace what the candidates write at the answer with what they write in each variant of the prompt."""
        if not candidates:
            return {}
        # The variants are prompts of one set, to share its passes.
        variants = {name: tokens for name, tokens in self.variants.items() if name != CLEAN}
        n_prompts, difference = len(self.prompts), self.runs.logit_difference
        rows = torch.arange(n_prompts).repeat(len(variants))
        repeated, others = self.prompts.select(rows), torch.cat(list(variants.values()))
        runs = self._runs_with(repeated, others, lambda finals, index: difference(finals, index % n_prompts))
        with checked_at_the_end():
            positions, frozen = self.names[rows].to(self.weights.device), self.definition.is_frozen
            values, watch = to_cpu(runs.exchanged(candidates, movers, positions, only_into_queries=not frozen))
        by_variant = zip(variants, values.split(n_prompts, 1), watch.attention().split(n_prompts, 2), strict=True)
        # What the clean prompt itself would give is known already.
        joined, n = reads(candidates, movers), len(candidates)
        of_movers = torch.stack([attention[:, layer, head].T for layer, head in movers])
        exchanges = {CLEAN: Exchange(self.clean.expand(n, -1), of_movers.expand(n, -1, -1, -1), joined)}
        return exchanges | {name: Exchange(after, attended, joined) for name, after, attended in by_variant}

    def _induction(
        self,
        inhibitors: Sequence[Head],
        none_because: str,
        movers: Sequence[Head],
        attention: Float[Tensor, "name layer head"],
    ) -> None:
        receivers = inhibitors
        if not self.definition.is_frozen:
            # nan, where a head has no score, is not above the limit.
            suppress = {head for head in inhibitors if self.facts.cspa[head] > self.limits.cspa}
            # The study's code leaves out only those of them that have an effect below 0 at the first level.
            suppress &= self.lowered if self.rate is None else suppress
            receivers = [head for head in inhibitors if head not in suppress]
        if inhibitors and not receivers:
            none_because = "no receivers: every S-inhibition head is a copy-suppression head too"
        if not receivers:
            self.tables.add_row("induction", 0, reason=none_because)
            return
        effects = self.scale.effects(self.definition.on_values(self.runs, self.heads, receivers, movers))
        level = reading_roles(self.heads, effects, self.facts, self.limits, over_chance=self.rate is not None)
        roles = give_roles(self.heads, level, self.rate)
        self.tables.add_level("induction", effects, roles, attention, len(receivers))


def measure(
    checkpoint: LoadedCheckpoint, config: IoiConsistencyConfig, inputs: IoiInputs, task: Task | None
) -> dict[str, Result]:
    """The levels of one checkpoint, their heads, and what backs up the name movers."""
    facts = gather(checkpoint, config, inputs)
    levels = Levels(checkpoint.weights, inputs.prompts, inputs.variants, facts, config)
    found, roles = levels.run()
    if config.backup:
        backup = backup_table(levels.runs, roles, config.backup_ablation, levels.scale, config.backup_of)
    else:
        backup = without_backup("not measured: backup is false")
    return {
        "ioi_consistency": Result(found.levels, json={"inputs": facts.sources}),
        "ioi_consistency_heads": Result(found.heads),
        "ioi_consistency_signals": Result(found.signals),
        "ioi_backup": Result(backup.assign(definitions=config.definitions)),
    }
