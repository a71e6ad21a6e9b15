"""Who holds each role of the IOI algorithm, and from when to when: where one head takes over from another."""

from __future__ import annotations

import pandas as pd

from ..results.kinds import IOI_CONSISTENCY, ROLES
from ..results.store import Store
from .keys import IoiConsistencyConfig

SUMMARY = "role_handover"


def role_handover(heads: pd.DataFrame, steps: list[int]) -> pd.DataFrame:
    """The summary's row for each role and head, in the order of their first steps; all steps are measured ones."""
    held = heads[heads["passes"].astype(bool)].sort_values("step", ignore_index=True)
    by_head = held.groupby(["role", "layer", "head"])
    ends = {f"{end}_{column}": (column, end) for column in ("step", "tokens") for end in ("first", "last")}
    table = by_head.agg(**ends, n_held=("step", "size")).reset_index()
    spans = zip(table["first_step"], table["last_step"], strict=True)
    table["n_between"] = [sum(first <= step <= last for step in steps) for first, last in spans]
    peaks = held.loc[[of_head["effect"].abs().idxmax() for _, of_head in by_head]]
    table["peak_step"], table["peak_effect"] = peaks["step"].to_numpy(), peaks["effect"].to_numpy()
    table["order"] = pd.Categorical(table["role"], ROLES, ordered=True)
    table = table.sort_values(["order", "first_step", "last_step", "layer", "head"], kind="stable", ignore_index=True)
    return table[list(IOI_CONSISTENCY.summaries[SUMMARY])]


def write_handover(config: IoiConsistencyConfig, store: Store, model: str) -> None:
    """Write `role_handover.csv`, over all steps that are there, next to a model's levels."""
    heads = store.read_tables("ioi_consistency_heads", model)
    table = role_handover(heads, store.folder("ioi_consistency_heads", model).steps())
    store.folder("ioi_consistency", model).write_summary(SUMMARY, table)
