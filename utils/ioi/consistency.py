"""Does the algorithm that solves IOI stay the same? Three levels of heads, recognised by effect and by role.

Tigges et al. 2024 (arXiv 2407.10827, section 4), after Wang et al. 2022 (arXiv 2211.00593). From the logits backwards:

    name_movers    heads -> logits                 name movers (copy score), copy-suppression heads (CSPA)
    s_inhibition   heads -> queries of name movers S-inhibition heads (effect, position signal)
    induction      heads -> values of S-inhibition induction and duplicate-token heads (effect, score)

A head's effect is path-patched: the change of the mean logit difference where only the named edges carry what the head
writes in the corrupted prompt, as a share of the clean one. -0.1 says that a tenth is lost. From its receivers a path
goes on to the logits: name mover -> logits, and S-inhibition head -> queries of name movers -> logits. Paths from the
sender to its receivers that lead through MLPs count with `through_mlps` alone. Each level reports

    percent = 100 * sum of |effect| over the heads that play a role / sum of |effect| over the circuit's heads.

Signals. S-inhibition heads tell the name movers where S stands. Each candidate's output at the answer's token is
exchanged for that in four variants of the prompt: S the same token or another, the names in the same order or the
opposite (`utils/tasks/ioi.py`); everything after it is recomputed. With the same token and the opposite order the logit
difference has to fall, and the name movers that read the head have to attend less to IO and more to S1.

A level without receivers, as in early checkpoints, has no percentage but a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from edge_attribution_patching.paths import Head, Receivers
from edge_attribution_patching.weights import ModelWeights
from utils.ioi.effects import NAMES, PairedRuns, Swap, name_attention
from utils.ioi.inputs import HeadFacts, IoiInputs, OfHeads, gather
from utils.ioi.keys import IoiConsistencyConfig, Thresholds
from utils.models.checkpoint import LoadedCheckpoint
from utils.results.kinds import IOI_CONSISTENCY, IOI_CONSISTENCY_HEADS, IOI_CONSISTENCY_SIGNALS
from utils.results.store import Result
from utils.tasks import Prompts, Task

LEVELS = ("name_movers", "s_inhibition", "induction")
CLEAN, OPPOSITE_ORDER = "same_token_same_order", "same_token_opposite_order"
RESAMPLES = 1000


@dataclass(frozen=True)
class Consistency:
    """The tables of one checkpoint.

    Attributes:
        levels: one row a level, columns of `IOI_CONSISTENCY`; percent is empty where there is a reason.
        heads: one row per measured level and head of the circuit.
        signals: one row per candidate for S-inhibition and variant.
    """

    levels: pd.DataFrame
    heads: pd.DataFrame
    signals: pd.DataFrame


@dataclass(frozen=True)
class Role:
    """What a head is up for at a level, and whether it passes."""

    name: str
    passes: bool


@dataclass
class _Resampled:
    """Means over prompts and over resampled prompts; both as shares of the clean logit difference.

    Attributes:
        clean: logit difference of every prompt, float64.
        counts: how often each resample holds each prompt.
    """

    clean: np.ndarray
    seed: int
    counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.clean)
        self.counts = np.random.default_rng(self.seed).multinomial(n, [1 / n] * n, size=RESAMPLES)

    @property
    def logit_diff(self) -> float:
        return float(self.clean.mean())

    @property
    def logit_diff_se(self) -> float:
        return float((self.counts @ self.clean / len(self.clean)).std()) if len(self.clean) > 1 else float("nan")

    def effects(self, patched: Float[Tensor, "sender prompt"]) -> tuple[np.ndarray, np.ndarray]:
        """Effects [sender], and those of the resamples [resample, sender]."""
        change = patched.double().numpy() - self.clean
        with np.errstate(divide="ignore", invalid="ignore"):
            resampled = (self.counts @ change.T) / (self.counts @ self.clean)[:, None]
        return change.mean(axis=1) / self.clean.mean(), resampled


def measure(
    checkpoint: LoadedCheckpoint, config: IoiConsistencyConfig, inputs: IoiInputs, task: Task | None
) -> dict[str, Result]:
    """The levels of one checkpoint and their heads."""
    facts = gather(checkpoint, config, inputs)
    found = ioi_consistency(checkpoint.weights, inputs.prompts, inputs.variants, facts, config)
    return {
        "ioi_consistency": Result(found.levels, json={"inputs": facts.sources}),
        "ioi_consistency_heads": Result(found.heads),
        "ioi_consistency_signals": Result(found.signals),
    }


def ioi_consistency(
    weights: ModelWeights,
    prompts: Prompts,
    variants: Mapping[str, Int[Tensor, "n width"]],
    facts: HeadFacts,
    config: IoiConsistencyConfig,
) -> Consistency:
    """Measure the three levels.

    Args:
        weights: the model.
        prompts: IOI prompts with their corruptions.
        variants: `utils.tasks.ioi.signal_variants` of the prompts.
        facts: circuit and head scores.
        config: thresholds and how to measure.
    """
    return _Measurement(weights, prompts.to(weights.device), variants, facts, config).run()


class _Measurement:
    """One checkpoint's levels, in order: each needs the heads that the one before it identified."""

    def __init__(
        self,
        weights: ModelWeights,
        prompts: Prompts,
        variants: Mapping[str, Tensor],
        facts: HeadFacts,
        config: IoiConsistencyConfig,
    ) -> None:
        self.weights, self.prompts, self.variants = weights, prompts, variants
        self.facts, self.config = facts, config
        self.names = torch.stack([prompts.positions[name] for name in NAMES], dim=1)
        self.circuit: list[Head] = [(layer, head) for layer, head in facts.in_circuit.nonzero().tolist()]
        self.levels: list[dict[str, Any]] = []
        self.heads: list[dict[str, Any]] = []
        self.signals: list[dict[str, Any]] = []

    def run(self) -> Consistency:
        runs = self._runs(self.prompts.corrupted)
        self.statistics = _Resampled(runs.clean().double().numpy(), self.config.seed)
        if reason := self._nothing_to_explain():
            for level in LEVELS:
                self._leave_out(level, None, reason)
            return self._tables()
        from_end, from_s2 = self._attention("end", "s2")
        through_mlps = self.config.through_mlps

        patched = runs.along_paths(self.circuit, through_mlps=True) if through_mlps else runs.direct(self.circuit)
        effects, _ = measured = self.statistics.effects(patched)
        roles = writing_roles(self.circuit, self.facts, self.config.thresholds)
        self._report("name_movers", measured, roles, from_end, None)

        movers = [head for head, role in roles.items() if role.name == "name_mover"]
        if not movers:
            reason = f"no name movers: no head of the circuit has a copy score above {self._shown('copy_score')}%"
            self._leave_out("s_inhibition", 0, reason)
            self._leave_out("induction", 0, "no S-inhibition heads: there are no name movers to inhibit")
            return self._tables()
        queries = Receivers(tuple(movers), "q")
        effects, _ = measured = self.statistics.effects(
            runs.along_paths(self.circuit, [queries], through_mlps=through_mlps)
        )
        limit = self.config.thresholds.s_inhibition_effect
        candidates = [head for head, effect in zip(self.circuit, effects, strict=True) if effect < limit]
        roles = self._test_signals(candidates, movers, from_end)
        self._report("s_inhibition", measured, roles, from_end, len(movers))

        inhibitors = [head for head, role in roles.items() if role.passes]
        if not inhibitors:
            reason = f"no S-inhibition heads: none of {len(candidates)} candidates passes the signal test"
            if not candidates:
                reason = f"no S-inhibition heads: no effect on name movers' queries is below {limit:g}"
            self._leave_out("induction", 0, reason)
            return self._tables()
        values = Receivers(tuple(inhibitors), "v")
        effects, _ = measured = self.statistics.effects(
            runs.along_paths(self.circuit, [values, queries], through_mlps=through_mlps)
        )
        roles = reading_roles(self.circuit, effects, self.facts, self.config.thresholds)
        self._report("induction", measured, roles, from_s2, len(inhibitors))
        return self._tables()

    def _nothing_to_explain(self) -> str:
        if self.facts.status != "found":
            return f"no circuit: {self.facts.status}"
        if not self.circuit:
            return "no circuit: it holds no heads"
        if not self.statistics.logit_diff > 0:
            return f"the logit difference is {self.statistics.logit_diff:.3g}, not above 0: nothing can be lost"
        return ""

    def _test_signals(
        self, candidates: Sequence[Head], movers: Sequence[Head], from_end: Float[Tensor, "name layer head"]
    ) -> dict[Head, Role]:
        """Exchange the candidates' outputs at the answer for those in each variant."""
        if not candidates:
            return {}
        swaps = {CLEAN: Swap.unchanged(candidates, movers, torch.from_numpy(self.statistics.clean), from_end)}
        for name, tokens in self.variants.items():
            if name != CLEAN:
                swaps[name] = self._runs(tokens.to(self.weights.device)).swapped(candidates, movers, self.names)
        differences = {name: swap.logit_difference.double().mean(dim=1).tolist() for name, swap in swaps.items()}
        attention = {name: swap.mean_attention() for name, swap in swaps.items()}
        roles = {}
        for row, head in enumerate(candidates):
            change = differences[OPPOSITE_ORDER][row] - differences[CLEAN][row]
            to_io, to_s1, _ = (attention[OPPOSITE_ORDER][row] - attention[CLEAN][row]).tolist()
            limits = self.config.thresholds
            passes = change < limits.logit_diff_change and (
                to_io < limits.attention_io_change and to_s1 > limits.attention_s1_change
            )
            roles[head] = Role("s_inhibition", passes)
            for name, swap in swaps.items():
                line = {"layer": head[0], "head": head[1], "variant": name, "logit_diff": differences[name][row]}
                line |= {f"attention_{at}": float(x) for at, x in zip(NAMES, attention[name][row], strict=True)}
                self.signals.append(line | {"n_name_movers": int(swap.reads[row].sum()), "passes": passes})
        return roles

    def _report(
        self,
        level: str,
        measured: tuple[np.ndarray, np.ndarray],
        roles: Mapping[Head, Role],
        attention: Float[Tensor, "name layer head"],
        n_receivers: int | None,
    ) -> None:
        """Add a level's row and those of its heads."""
        effects, resampled = measured
        facts = self.facts
        for column, (layer, head) in enumerate(self.circuit):
            role = roles.get((layer, head), Role("", False))
            row: dict[str, Any] = {"level": level, "layer": layer, "head": head, "role": role.name}
            row |= {"effect": effects[column], "effect_se": _spread(resampled[:, column], len(self.statistics.clean))}
            scores = (facts.copy, facts.cspa, facts.induction, facts.duplicate_token)
            names = ("copy_score", "cspa", "induction", "duplicate_token")
            row |= {name: float(score[layer, head]) for name, score in zip(names, scores, strict=True)}
            row |= {f"attention_{name}": float(attention[i, layer, head]) for i, name in enumerate(NAMES)}
            self.heads.append(row | {"passes": role.passes})
        identified = np.array([head in roles and roles[head].passes for head in self.circuit])
        total = float(np.abs(effects).sum())
        if total == 0:
            self._leave_out(level, n_receivers, "no head of the circuit has an effect")
            return
        shares = 100 * np.abs(resampled) @ identified / np.abs(resampled).sum(axis=1)
        self._add_level(
            level,
            n_receivers,
            percent=100 * float(np.abs(effects) @ identified) / total,
            percent_se=_spread(shares, len(self.statistics.clean)),
            n_heads=int(identified.sum()),
            total_effect=total,
        )

    def _leave_out(self, level: str, n_receivers: int | None, reason: str) -> None:
        self._add_level(level, n_receivers, reason=reason)

    def _add_level(self, level: str, n_receivers: int | None, **values: Any) -> None:
        row = {"level": level, "n_measured": len(self.circuit), "n_receivers": n_receivers}
        row |= {"logit_diff": self.statistics.logit_diff, "logit_diff_se": self.statistics.logit_diff_se}
        self.levels.append(row | values)

    def _tables(self) -> Consistency:
        levels = pd.DataFrame(self.levels, columns=list(IOI_CONSISTENCY.columns))
        counts = dict.fromkeys(("n_heads", "n_measured", "n_receivers"), "Int64")
        return Consistency(
            levels.astype({"percent": float, "total_effect": float, "percent_se": float, **counts}),
            pd.DataFrame(self.heads, columns=list(IOI_CONSISTENCY_HEADS.columns)),
            pd.DataFrame(self.signals, columns=list(IOI_CONSISTENCY_SIGNALS.columns)),
        )

    def _runs(self, others: Tensor) -> PairedRuns:
        return PairedRuns(self.weights, self.prompts, others, self.config.batch_size, self.config.memory_budget_gb)

    def _attention(self, *queries: str) -> Float[Tensor, "query name layer head"]:
        prompts = self.prompts
        at = torch.stack([prompts.positions[name] for name in queries], dim=1)
        return name_attention(self.weights, prompts.clean, prompts.lengths, at, self.names, self.config.batch_size)

    def _shown(self, threshold: str) -> str:
        return f"{getattr(self.config.thresholds, threshold):g}"


def writing_roles(circuit: Sequence[Head], facts: HeadFacts, thresholds: Thresholds) -> dict[Head, Role]:
    """Level 1: name movers by copy score, copy-suppression heads by CSPA; a head that is both is a name mover."""
    roles = {}
    for head in circuit:
        if facts.copy[head] > thresholds.copy_score:
            roles[head] = Role("name_mover", True)
        elif facts.cspa[head] > thresholds.cspa:  # nan is not
            roles[head] = Role("copy_suppression", True)
    return roles


def reading_roles(
    circuit: Sequence[Head], effects: np.ndarray, facts: HeadFacts, thresholds: Thresholds
) -> dict[Head, Role]:
    """Level 3: the score that is the highest multiple of its mean over all heads, if above; passes by effect."""
    relative: dict[str, OfHeads] = {
        name: score / score.mean().clamp(min=1e-12)
        for name, score in (("induction", facts.induction), ("duplicate_token", facts.duplicate_token))
    }
    roles = {}
    for head, effect in zip(circuit, effects, strict=True):
        name = max(relative, key=lambda score: float(relative[score][head]))
        if relative[name][head] > thresholds.score_over_mean:
            roles[head] = Role(name, bool(effect < thresholds.induction_effect))
    return roles


def _spread(resampled: np.ndarray, n_prompts: int) -> float:
    """Standard deviation over resampled prompts; nan where there is one prompt alone."""
    return float(resampled.std()) if n_prompts > 1 else float("nan")
