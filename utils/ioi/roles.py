"""The criteria by which heads hold a role in the IOI algorithm, level by level.

    name_movers    name movers (copy score, effect below 0), copy-suppression heads (CSPA score),
                   negative name movers (negative copy score)
    s_inhibition   S-inhibition heads (effect, and the position signal that they send to the name movers)
    induction      induction and duplicate-token heads (effect, score)

S-inhibition heads tell the name movers where S is. Each candidate's output at the answer's token is replaced with that
in four variants of the prompt: S the same token or another, the names in the same order or the opposite
(`utils/tasks/ioi.py`). With the same token and the opposite order, the logit difference must fall, and the name movers
that read the head must attend less to IO and more to S1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.patching.paths import Head

from .effects import Exchange
from .inputs import HeadFacts, OfHeads
from .keys import Thresholds

ROLES = ("name_mover", "copy_suppression", "negative_name_mover", "s_inhibition", "induction", "duplicate_token")
CLEAN, OPPOSITE_ORDER = "same_token_same_order", "same_token_opposite_order"


@dataclass(frozen=True)
class Role:
    """The role that a head is a candidate for at a level, and whether it passes."""

    name: str
    passes: bool


Roles = Mapping[Head, Role]


def holders(roles: Roles, *names: str) -> tuple[Head, ...]:
    """The heads that hold one of these roles, or any role."""
    return tuple(head for head, role in roles.items() if role.passes and (not names or role.name in names))


def writing_roles(
    heads: Sequence[Head],
    effects: Float[Tensor, " head"],
    facts: HeadFacts,
    thresholds: Thresholds,
    *,
    negative_name_movers: bool,
) -> dict[Head, Role]:
    """Level 1. A head with several roles has the first of: name mover, copy suppression, negative name mover."""
    roles = {}
    for head, effect in zip(heads, effects.tolist(), strict=True):
        copies = bool(facts.copy[head] > thresholds.copy_score)
        if copies and effect < 0:
            roles[head] = Role("name_mover", True)
        elif is_copy_suppression(head, facts, thresholds):
            roles[head] = Role("copy_suppression", True)
        elif negative_name_movers and facts.negative_copy[head] > thresholds.negative_copy_score:
            roles[head] = Role("negative_name_mover", True)
        elif copies:
            roles[head] = Role("name_mover", False)
    return roles


def is_copy_suppression(head: Head, facts: HeadFacts, thresholds: Thresholds) -> bool:
    """Whether a head's CSPA score is high enough. A head without one (nan) does not count."""
    return bool(facts.cspa[head] > thresholds.cspa)


def inhibition_roles(
    candidates: Sequence[Head], exchanges: Mapping[str, Exchange], thresholds: Thresholds
) -> dict[Head, Role]:
    """Level 2: the candidates. They pass if they send the position signal.

    Args:
        exchanges: by variant, including `CLEAN` (nothing exchanged) and `OPPOSITE_ORDER`.
    """
    if not candidates:
        return {}
    # Averages over prompts, one row a candidate.
    before, after = exchanges[CLEAN], exchanges[OPPOSITE_ORDER]
    logit_diff = (after.logit_difference.double().mean(dim=1) - before.logit_difference.double().mean(dim=1)).tolist()
    to_io, to_s1, _ = (after.mean_attention() - before.mean_attention()).T.tolist()
    return {
        head: Role(
            "s_inhibition",
            logit_diff[row] < thresholds.logit_diff_change
            and to_io[row] < thresholds.attention_io_change
            and to_s1[row] > thresholds.attention_s1_change,
        )
        for row, head in enumerate(candidates)
    }


def reading_roles(
    heads: Sequence[Head], effects: Float[Tensor, " head"], facts: HeadFacts, thresholds: Thresholds
) -> dict[Head, Role]:
    """Level 3: the role of the score that is the highest multiple of its mean over heads; passes by effect."""
    relative: dict[str, OfHeads] = {
        name: score / score.mean().clamp(min=1e-12)
        for name, score in (("induction", facts.induction), ("duplicate_token", facts.duplicate_token))
    }
    roles = {}
    for head, effect in zip(heads, effects.tolist(), strict=True):
        name = max(relative, key=lambda score: float(relative[score][head]))
        if relative[name][head] > thresholds.score_over_mean:
            roles[head] = Role(name, effect < thresholds.induction_effect)
    return roles
