"""`self_check: true`: where a measurement in low precision disagrees with the same one in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..results.kinds import ResultSchema

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from ..results.store import Result

VERDICTS = ("role", "status", "size")
"""Columns that say what was found, and not how much."""


def disagreements(
    kinds: Sequence[ResultSchema], low: Mapping[str, Result], exact: Mapping[str, Result]
) -> Iterator[str]:
    """In words, kind by kind: which rows are in one alone, how the ranks of numbers agree, and which verdicts differ.

    Rows are matched by texts and head; a kind of many rows without either is left out. Of numbers the first column of
    real ones counts, and of a graph the scores of all edges.
    """
    for kind in kinds:
        ours, theirs = low[kind.name], exact[kind.name]
        named = [name for name in kind.columns if name in (kind.texts or ()) or name in ("layer", "head")]
        keys = [name for name in named if name not in (*VERDICTS, "reason") and name in ours.table]
        keys = [] if kind.one_row else keys
        if not (keys or kind.one_row) or (ours.table.empty and theirs.table.empty):
            continue
        indexed = [one.table.set_index(keys) if keys else one.table for one in (ours, theirs)]
        if not all(one.index.is_unique for one in indexed):
            continue
        both = indexed[0].index.intersection(indexed[1].index)
        of_both = [one.loc[both] for one in indexed]
        said = [f"{len(both)} of {len(indexed[0].index.union(indexed[1].index))} rows in both"] if keys else []
        said += _ranks(ours, theirs, of_both)
        said += [line for name in VERDICTS if name in of_both[0] for line in _verdicts(name, *of_both)]
        if said:
            yield f"{kind.name}: {', '.join(said)}"


def _ranks(ours: Result, theirs: Result, of_both: Sequence[pd.DataFrame]) -> Iterator[str]:
    numbers = [name for name, column in of_both[0].items() if column.dtype.kind == "f"]
    if ours.tensors and theirs.tensors and "scores" in ours.tensors:
        one, other = (of.tensors["scores"].flatten().float().numpy() for of in (ours, theirs) if of.tensors)
        there = (one != 0) | (other != 0)  # Entries that are no edges are 0 in both.
        yield f"rank correlation of all scores {_spearman(one[there], other[there])}"
    elif len(of_both[0]) > 1 and numbers:
        yield f"rank correlation of {numbers[0]} {_spearman(*(one[numbers[0]] for one in of_both))}"


def _spearman(one: ArrayLike, other: ArrayLike) -> str:
    from scipy import stats

    return f"{stats.spearmanr(one, other, nan_policy='omit').statistic:.3f}"


def _verdicts(name: str, ours: pd.DataFrame, theirs: pd.DataFrame) -> Iterator[str]:
    one, other = (table[name].astype(str).where(table[name].notna(), "none") for table in (ours, theirs))
    differs = int((one != other).sum())
    if len(one) == 1:
        yield f"{name} {one.iloc[0]} (float32: {other.iloc[0]})"
    elif differs:
        yield f"{differs} of {len(one)} with another {name}"
