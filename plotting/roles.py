"""Which heads hold which role in IOI, checkpoint by checkpoint."""

import pandas as pd

from plotting.style import ROLES

Roles = dict[str, tuple[str, ...]]
"""Head (`a3.h1`) -> the roles that it holds, in the order of the algorithm."""


def roles_by_step(heads: pd.DataFrame) -> dict[int, Roles]:
    """The roles at every step at which heads were measured; heads without one are left out.

    Args:
        heads: `ioi_consistency_heads` of one model: `step, layer, head, role, passes`.
    """
    order = list(ROLES)
    found: dict[int, dict[str, set[str]]] = {int(step): {} for step in heads["step"].unique()}
    held = heads[heads["passes"].astype(bool)]
    for step, layer, head, role in held[["step", "layer", "head", "role"]].itertuples(index=False):
        found[int(step)].setdefault(f"a{layer}.h{head}", set()).add(str(role))

    def place(role: str) -> tuple[int, str]:
        return (order.index(role) if role in order else len(order), role)

    return {
        step: {head: tuple(sorted(roles, key=place)) for head, roles in by_head.items()}
        for step, by_head in found.items()
    }
