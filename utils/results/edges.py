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
    edges = edges.astype({"source": "str", "target": "str"})  # Without rows a file does not say.
    if "input" in edges:
        return edges.assign(input=edges["input"].astype("str").fillna(""))
    targets = edges["target"]
    split = edges.assign(target=targets.str.replace("<.*", "", regex=True))
    split.insert(
        list(split.columns).index("target") + 1, "input", targets.str.extract("<(.)>", expand=False).fillna("")
    )
    return split


def by_node(units: pd.DataFrame) -> pd.DataFrame:
    """The list of a circuit of nodes or neurons as one of nodes: `source, score, units`, sums and counts, in its order.

    Neurons are named by their nodes: `m3.17`, `a0.h1.5`.
    """
    nodes = units["source"].astype("str").str.replace(r"^(a\d+\.h\d+|m\d+)\.\d+$", r"\1", regex=True)
    if "units" in units:
        return units[["source", "score", "units"]]
    return units["score"].groupby(nodes, sort=False).agg(score="sum", units="size").reset_index()


def is_of_units(edges: pd.DataFrame) -> bool:
    """Whether a list is one of nodes or neurons: edges of a circuit begin at `input`."""
    return len(edges) > 0 and not bool((edges["source"] == "input").any())


def has_roles(edges: pd.DataFrame) -> bool:
    """Whether a list tells edges apart by the role of the token."""
    return "role" in edges and bool(edges["role"].notna().any())


def named_sources(edges: pd.DataFrame) -> pd.Series:
    """The source of each edge as the graph names it: `a0.h1`, or `a0.h1@s2` where edges have roles of tokens."""
    sources = edges["source"].astype("str")
    if "role" not in edges:
        return sources
    roles = edges["role"].fillna("").astype("str")
    return sources.where(roles == "", sources + "@" + roles)


def bare(node: str) -> str:
    """The node of one at a role: `a0.h1` of `a0.h1@s2`."""
    return node.partition("@")[0]


def over_roles(edges: pd.DataFrame) -> pd.DataFrame:
    """A list of edges with roles of tokens as one of edges: of each the sum of its scores, strongest first.

    What else is known of it is what holds of its strongest role.
    """
    if not has_roles(edges):
        return edges
    edges, ends = with_inputs(edges), ["source", "target", "input"]
    sums = edges.groupby(ends, observed=True)["score"].transform("sum")
    strongest = edges["score"].abs().sort_values(ascending=False, kind="stable").index
    one_each = edges.assign(score=sums).loc[strongest].drop_duplicates(ends).drop(columns="role")
    ranked = one_each["score"].abs().sort_values(ascending=False, kind="stable").index
    return one_each.loc[ranked].reset_index(drop=True)


def named_targets(edges: pd.DataFrame) -> pd.Series:
    """The target of each edge as the graph names it: `a5.h0<q>`, `m5`, `logits`."""
    split = with_inputs(edges)
    return split["target"].where(split["input"] == "", split["target"] + "<" + split["input"] + ">")
