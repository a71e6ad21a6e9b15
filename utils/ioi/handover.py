"""Who holds each role of the IOI algorithm, and from when to when: where one head takes over from another."""

from __future__ import annotations

import pandas as pd

from ..results.kinds import IOI_CONSISTENCY
from ..results.store import Store
from .keys import IoiConsistencyConfig
from .roles import ROLES

SUMMARY = "role_handover"
COLUMNS = list(IOI_CONSISTENCY.summaries[SUMMARY])


def role_handover(heads: pd.DataFrame, steps: list[int]) -> pd.DataFrame:
    """The step at which each head first and last holds each role.

    Args:
        heads: `ioi_consistency_heads` of all steps of one model: `step, tokens, layer, head, role, effect, passes`. A
            head holds its role at the steps where it passes.
        steps: all measured steps, even those without any head.

    Returns:
        One row per role and head, within a role in the order of their first steps: `first_step, last_step` and the
        tokens seen by then; `n_held`, at how many checkpoints the head holds the role, out of `n_between` measured from
        the first to the last (if fewer, it lost the role in between); `peak_step, peak_effect`, where its effect is
        largest while it holds the role.
    """
    holding = heads[heads["passes"].astype(bool)]
    rows = []
    for _, group in holding.groupby(["role", "layer", "head"], sort=False):
        group = group.sort_values("step")
        first, last = group.iloc[0], group.iloc[-1]
        peak = group.iloc[int(group["effect"].abs().argmax())]
        rows.append(
            {
                "role": first["role"],
                "layer": int(first["layer"]),
                "head": int(first["head"]),
                "first_step": int(first["step"]),
                "last_step": int(last["step"]),
                "first_tokens": int(first["tokens"]),
                "last_tokens": int(last["tokens"]),
                "n_held": len(group),
                "n_between": sum(first["step"] <= step <= last["step"] for step in steps),
                "peak_step": int(peak["step"]),
                "peak_effect": float(peak["effect"]),
            }
        )
    table = pd.DataFrame(rows, columns=COLUMNS)
    order = pd.Categorical(table["role"], ROLES, ordered=True)
    return table.assign(order=order).sort_values(
        ["order", "first_step", "last_step", "layer", "head"], kind="stable", ignore_index=True
    )[COLUMNS]


def write_handover(config: IoiConsistencyConfig, store: Store, model: str) -> None:
    """Write `role_handover.csv`, over all steps that are there, next to a model's levels."""
    heads = store.read_tables("ioi_consistency_heads", model)
    table = role_handover(heads, store.folder("ioi_consistency_heads", model).steps())
    store.folder("ioi_consistency", model).write_summary(SUMMARY, table)
