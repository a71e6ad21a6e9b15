"""The list of a circuit's edges: `source`, `target` and `input`, the input of a head that an edge goes into.

So a graph library reads it as it is (`networkx.from_pandas_edgelist`). Lists of older versions have no `input`: they
name it in the target (`a5.h0<q>`), as the graph does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def with_inputs(edges: pd.DataFrame) -> pd.DataFrame:
    """A list of edges with plain targets and the column `input` behind them: q, k, v, or empty text."""
    if "input" in edges:
        return edges.assign(input=edges["input"].astype(edges["target"].dtype).fillna(""))
    targets = edges["target"].astype("str")
    split = edges.assign(target=targets.str.replace("<.*", "", regex=True))
    split.insert(
        list(split.columns).index("target") + 1, "input", targets.str.extract("<(.)>", expand=False).fillna("")
    )
    return split


def named_targets(edges: pd.DataFrame) -> pd.Series:
    """The target of each edge as the graph names it: `a5.h0<q>`, `m5`, `logits`."""
    split = with_inputs(edges)
    return split["target"].where(split["input"] == "", split["target"] + "<" + split["input"] + ">")
