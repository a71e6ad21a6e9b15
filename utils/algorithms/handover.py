"""Who holds each role of the IOI algorithm, and from when to when: where one head takes over from another."""

from __future__ import annotations

import pandas as pd

from ..results.kinds import IOI_CONSISTENCY, ROLES
from ..results.store import Store
from .keys import IoiConsistencyConfig

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
    held = heads[heads["passes"].astype(bool)].sort_values("step", ignore_index=True)
    by_head = held.groupby(["role", "layer", "head"])
    table = by_head.agg(
        first_step=("step", "first"),
        last_step=("step", "last"),
        first_tokens=("tokens", "first"),
        last_tokens=("tokens", "last"),
        n_held=("step", "size"),
    ).reset_index()
    spans = zip(table["first_step"], table["last_step"], strict=True)
    peaks = held.loc[[of_head["effect"].abs().idxmax() for _, of_head in by_head], ["step", "effect"]]
    table["n_between"] = [sum(first <= step <= last for step in steps) for first, last in spans]
    table["peak_step"], table["peak_effect"] = peaks["step"].to_numpy(), peaks["effect"].to_numpy()
    order = pd.Categorical(table["role"], ROLES, ordered=True)
    return table.assign(order=order).sort_values(
        ["order", "first_step", "last_step", "layer", "head"], kind="stable", ignore_index=True
    )[COLUMNS]


def write_handover(config: IoiConsistencyConfig, store: Store, model: str) -> None:
    """Write `role_handover.csv`, over all steps that are there, next to a model's levels."""
    heads = store.read_tables("ioi_consistency_heads", model)
    table = role_handover(heads, store.folder("ioi_consistency_heads", model).steps())
    store.folder("ioi_consistency", model).write_summary(SUMMARY, table)
