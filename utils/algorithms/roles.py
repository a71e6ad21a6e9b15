"""The criteria by which heads hold a role in the IOI algorithm, level by level.

    name_movers    name movers (copy score, effect below 0), copy-suppression heads (CSPA score),
                   negative name movers (negative copy score)
    s_inhibition   S-inhibition heads (effect, and the position signal that they send to the name movers)
    induction      induction and duplicate-token heads (effect, score)

S-inhibition heads tell the name movers where S is. Each candidate's output at the answer's token is replaced with that
in four variants of the prompt: S the same token or another, the names in the same order or the opposite
(`utils/tasks/ioi.py`). With the same token and the opposite order, the logit difference must fall, and the name movers
that read the head must attend less to IO and more to S1.

By the study's rule (Tigges et al. 2024), the measured values alone decide. By default each criterion must be met
beyond its error too: a head's p-value for a role is the largest of those of its criteria, so it is small only if all
of them hold (Berger 1982, an intersection-union test). Heads of the first level need an effect of some size then. The
p-values of all heads for all roles of a level are one family, and corrected for the false discovery rate (Benjamini and
Hochberg 1995). Where no head has a role, that is the chance that any seems to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool

from circuits_over_time.edge_attribution_patching.patching.paths import Head, Sender

from ..base.multiple_tests import adjusted_p_values
from .effects import Exchange
from .inputs import HeadFacts
from .keys import Thresholds
from .shares import NAN, Effects, PValues, p_mean_above

CLEAN, OPPOSITE_ORDER = "same_token_same_order", "same_token_opposite_order"

Mask = Bool[np.ndarray, " head"]


@dataclass(frozen=True)
class Evidence:
    """What speaks for a role at a level, of every head that can hold it."""

    role: str
    candidate: Mask
    meets: Mask  # whether the measured values meet all criteria
    p_values: PValues  # how likely they are to, were one of the criteria just not met; nan where nothing is tested


@dataclass(frozen=True)
class Role:
    """The role that a head holds at a level, or is a candidate for (`""`: none), and how sure that is.

    Without a role, `p_value` and `q_value` are the smallest of the level's roles.
    """

    name: str
    passes: bool
    p_value: float = NAN
    q_value: float = NAN


Roles = Mapping[Head, Role]
Node = TypeVar("Node", Head, Sender)


def holders(roles: Mapping[Node, Role], *names: str) -> tuple[Node, ...]:
    """The heads (or nodes) that hold one of these roles, or any role."""
    return tuple(head for head, role in roles.items() if role.passes and (not names or role.name in names))


def give_roles(
    heads: Sequence[Node], level: Sequence[Evidence], false_discovery_rate: float | None
) -> dict[Node, Role]:
    """The role of every head (or node): the first that it holds, or else the first that it is a candidate for.

    The roles of a level are in order of precedence. Without a rate for q-values, the measured values decide.
    """
    p_values = np.stack([evidence.p_values for evidence in level])
    q_values = adjusted_p_values(p_values.flatten()).reshape(p_values.shape)
    passes = np.stack([evidence.meets for evidence in level])
    if false_discovery_rate is not None:
        passes = passes & (q_values <= false_discovery_rate)
    candidate = np.stack([evidence.candidate for evidence in level])
    roles = {}
    for column, head in enumerate(heads):
        # The first row of those that pass, or else of the candidates; without either, that of the smallest p-value.
        either = passes[:, column] if passes[:, column].any() else candidate[:, column]
        tested = np.where(np.isnan(p_values[:, column]), 2, p_values[:, column])
        row = int(either.argmax() if either.any() else tested.argmin())
        numbers = float(p_values[row, column]), float(q_values[row, column])
        roles[head] = Role(level[row].role if either.any() else "", bool(passes[row, column]), *numbers)
    return roles


def writing_roles(
    heads: Sequence[Head],
    effects: Effects,
    facts: HeadFacts,
    thresholds: Thresholds,
    *,
    negative_name_movers: bool,
    study: bool,
) -> list[Evidence]:
    """Level 1. In the `study` the sign of an effect is enough for a name mover, and others need none."""
    limit = 0.0 if study else thresholds.name_movers_effect
    low = effects.values.numpy() < limit
    large = np.ones(len(heads), bool) if study else effects.values.abs().numpy() >= -limit
    of_score = {"copy": thresholds.copy_score, "cspa": thresholds.cspa, "negative_copy": thresholds.negative_copy_score}
    above = {name: facts.at(getattr(facts, name) > limit, heads) for name, limit in of_score.items()}
    p_score = {name: facts.p_above(name, limit, heads) for name, limit in of_score.items()}
    p_low, p_large = effects.p_below(limit), effects.p_larger(-limit)
    level = [Evidence("name_mover", above["copy"], above["copy"] & low, np.maximum(p_score["copy"], p_low))]
    for name, role in (("cspa", "copy_suppression"), ("negative_copy", "negative_name_mover")):
        if name == "cspa" or negative_name_movers:
            level.append(Evidence(role, above[name], above[name] & large, np.maximum(p_score[name], p_large)))
    return level


def inhibition_roles(
    heads: Sequence[Head],
    candidates: Sequence[Head],
    p_effect: PValues,
    exchanges: Mapping[str, Exchange],
    thresholds: Thresholds,
) -> list[Evidence]:
    """Level 2, from the exchanges of candidates, whose effect is low enough, by variant.

    `p_effect` tests that each head's effect is; nan for heads that cannot hold the role.
    """
    rows = np.array([heads.index(head) for head in candidates], dtype=int)
    candidate, meets, p_values = np.zeros(len(heads), bool), np.zeros(len(heads), bool), p_effect.copy()
    candidate[rows] = True
    if candidates:
        before, after = exchanges[CLEAN], exchanges[OPPOSITE_ORDER]
        # Changes by prompt, [candidate, prompt], and what their means are to be above.
        falls = before.logit_difference.double() - after.logit_difference.double()
        to_io, to_s1, _ = (after.attention_by_prompt() - before.attention_by_prompt()).movedim(-1, 0)
        limits = -thresholds.logit_diff_change, -thresholds.attention_io_change, thresholds.attention_s1_change
        tests = [p_mean_above(change, limit) for change, limit in zip((falls, -to_io, to_s1), limits, strict=True)]
        p_values[rows] = np.max([p_values[rows], *tests], axis=0)
        means = after.logit_difference.double().mean(dim=1) - before.logit_difference.double().mean(dim=1)
        io, s1, _ = (after.mean_attention() - before.mean_attention()).T
        lower = (means < thresholds.logit_diff_change) & (io < thresholds.attention_io_change)
        meets[rows] = (lower & (s1 > thresholds.attention_s1_change)).numpy()
    return [Evidence("s_inhibition", candidate, meets, p_values)]


def reading_roles(
    heads: Sequence[Head], effects: Effects, facts: HeadFacts, thresholds: Thresholds, *, over_chance: bool
) -> list[Evidence]:
    """Level 3: a candidate's role is that of the score that is the highest multiple of its mean over heads.

    With `over_chance`, scores must be above a multiple of chance too.
    """
    scores = {"induction": facts.induction, "duplicate_token": facts.duplicate_token}
    relative = torch.stack([score / score.mean().clamp(min=1e-12) for score in scores.values()])
    highest = relative.argmax(dim=0)
    low = effects.values.numpy() < thresholds.induction_effect
    p_effect = effects.p_below(thresholds.induction_effect)
    level = []
    for number, (name, score) in enumerate(scores.items()):
        enough = (highest == number) & (relative[number] > thresholds.score_over_mean)
        p_score = facts.p_above(name, thresholds.score_over_mean * score.mean(), heads, thresholds.score_over_mean)
        if over_chance:
            least = thresholds.score_over_chance * facts.chance[name]
            enough &= score > least
            p_score = np.maximum(p_score, facts.p_above(name, least, heads))
        candidate = facts.at(enough, heads)
        level.append(Evidence(name, candidate, candidate & low, np.maximum(p_score, p_effect)))
    return level
