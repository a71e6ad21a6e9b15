"""Roles of heads in IOI: their names and colours, the levels of the algorithm, and who holds which role when."""

import pandas as pd

from circuits_over_time.utils.results.store import Store

from .style import in_order
from .theme import paint

# In the order of the algorithm: name in the tables -> label and colour, the same everywhere. Edges in drawings of
# circuits are blue or orange, so no role is.
ROLES = {
    "name_mover": ("name mover", "#332288"),
    "copy_suppression": ("copy suppression", "#882255"),
    "negative_name_mover": ("negative name mover", "#CC6677"),
    "s_inhibition": ("S-inhibition", "#DDAA33"),
    "induction": ("induction", "#44AA99"),
    "duplicate_token": ("duplicate token", "#88CCEE"),
}
# How much of a role's colour a box has, so that its name stays readable.
ROLE_TINT = 0.5
_OTHER_ROLE = "#999933"
# Level -> which heads act on what, and the roles that count.
LEVELS = {
    "name_movers": ("Heads to logits", ("name_mover", "copy_suppression", "negative_name_mover")),
    "s_inhibition": ("Heads to name movers' queries", ("s_inhibition",)),
    "induction": ("Heads to S-inhibition values", ("induction", "duplicate_token")),
}
# The family that `make circuits` trains, and what to tell whoever finds its panels empty.
TOY = "toy"
HINT = (
    "The toy strikes out the repeated name; its circuit has no name movers. "
    "Try configs/toy_ioi_family.yml or make real."
)

Roles = dict[str, tuple[str, ...]]
"""Head (`a3.h1`) -> the roles that it holds, in the order of the algorithm."""


def role_look(role: str) -> tuple[str, str]:
    """Label of a role that a table names, and its colour as it is drawn."""
    label, colour = ROLES.get(role, (role.replace("_", " "), _OTHER_ROLE))
    return label, paint(colour)


def role_chip(role: str) -> str:
    """A square of the role's colour and its label, in plotly's markup."""
    label, colour = role_look(role)
    return f"<span style='color:{colour}'>■</span>\xa0{label}"


def roles_by_step(heads: pd.DataFrame) -> dict[int, Roles]:
    """The roles at every step at which heads were measured; heads without one are left out.

    Args:
        heads: `ioi_consistency_heads` of one model: `step, layer, head, role, passes`.
    """
    roles: dict[int, dict[str, set[str]]] = {int(step): {} for step in heads["step"].unique()}
    held = heads[heads["passes"].astype(bool)]
    for step, layer, head, role in held[["step", "layer", "head", "role"]].itertuples(index=False):
        roles[int(step)].setdefault(f"a{layer}.h{head}", set()).add(str(role))
    return {
        step: {head: tuple(in_order(held_by, ROLES)) for head, held_by in by_head.items()}
        for step, by_head in roles.items()
    }


def stored_roles(store: Store, model: str) -> dict[int, Roles]:
    """The roles of a model's heads by step; empty if they were not measured."""
    if model not in store.models("ioi_consistency_heads"):
        return {}
    return roles_by_step(store.read_tables("ioi_consistency_heads", model))


def why_none(level: pd.DataFrame) -> str:
    """Why no head ever holds a role: the reason that the level gives at its last checkpoint, if it gives one there."""
    last = level[level["step"] == level["step"].max()]
    reasons = last["reason"].dropna() if "reason" in last else pd.Series(dtype=str)
    return f"no head holds it: {reasons.iloc[-1]}" if len(reasons) else "no head holds it"
