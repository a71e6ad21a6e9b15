"""Where to draw a circuit's nodes: layers go upwards, heads of a layer side by side, with its MLP half a row above.

With roles of tokens each role has a column, and a node `a0.h1@s2` stands in that of the tokens where it writes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.edges import bare, with_inputs

if TYPE_CHECKING:
    from circuits_over_time.edge_attribution_patching.graph import Graph
    from circuits_over_time.utils.results.store import ResultsFolder

_HEAD = re.compile(r"a(\d+)\.h(\d+)")
_MLP = re.compile(r"m(\d+)")
_SWEEPS = 8
ENDS = {"input": -1, "logits": 1_000_000}
BOX_WIDTH, BOX_HEIGHT = 0.84, 0.36


@dataclass(frozen=True)
class CircuitLayout:
    """Positions of a circuit's nodes.

    Attributes:
        positions: centre (x, y) of every node's box, which is BOX_WIDTH by BOX_HEIGHT.
        rows: y and name of every row, from below.
        half_width: all boxes lie within [-half_width, half_width].
        columns: of the roles that have nodes, from the left: where their columns begin and end.
    """

    positions: dict[str, tuple[float, float]]
    rows: list[tuple[float, str]]
    half_width: float
    columns: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def height(self) -> float:
        """Height of the topmost row."""
        return self.rows[-1][0]


def graph_of_roles(folder: ResultsFolder, step: int, edges: pd.DataFrame) -> Graph:
    """The graph of a stored circuit whose list of edges has roles; a UserError if it has no such role."""
    graph = folder.read_circuit(step)[0].graph
    if unknown := set(edges["role"].dropna()) - set(graph.roles):
        raise UserError(f"{folder.file(step)}: role {min(unknown)!r} is not one of its .pt: {', '.join(graph.roles)}")
    return graph


def at_roles(edges: pd.DataFrame, graph: Graph) -> pd.DataFrame:
    """A list of edges with roles as one of edges between nodes at roles, `a0.h1@s2`; an edge keeps its index.

    One into q, an MLP or the logits stays at its role. One into k or v moves what it carries to wherever the head
    writes: it is there once for each later role at which an edge of the list reads the head.

    Raises:
        ValueError: if the graph has no such role.
    """
    edges, rows, index = with_inputs(edges), [], []
    writes = set(zip(edges["source"].astype("str"), edges["role"].astype("str"), strict=True))
    for label, row in zip(edges.index, edges.to_dict("records"), strict=True):
        source, target, role = row["source"], row["target"], row["role"]
        place, to = graph.roles.index(role), [role]
        if row["input"] in ("k", "v"):
            later = [name for name, sees in zip(graph.roles, graph.attends, strict=True) if sees[place]]
            to = [name for name in later if (target, name) in writes] or to
        rows += [row | {"source": f"{source}@{role}", "target": f"{target}@{name}"} for name in to]
        index += [label] * len(to)
    return pd.DataFrame(rows, index=index, columns=edges.columns)


def level(node: str) -> tuple[int, int]:
    """Layer and sub-row of a node: `input` lowest, a layer's heads, then its MLP, `logits` highest.

    Raises:
        ValueError: if the node is none of `input`, `a{l}.h{h}`, `m{l}`, `logits`.
    """
    node = bare(node)
    if node in ENDS:
        return ENDS[node], 0
    if match := _HEAD.fullmatch(node) or _MLP.fullmatch(node):
        return int(match[1]), int(node[0] == "m")
    raise ValueError(f"'{node}' is not a node of a circuit; nodes are input, a0.h1, m0, logits")


def lay_out(edges: Iterable[tuple[str, str]], roles: Sequence[str] = ()) -> CircuitLayout:
    """Place the nodes that edges (source node, target node) join; with `roles`, those at each in a column of its own.

    Rows without nodes take no space. Within a row, nodes are ordered by the mean position of their neighbours, in
    sweeps up and down as in Sugiyama's layered drawings, so that fewer edges cross. MLPs are to the right of all heads,
    or in the middle of their role's column.
    """
    neighbours: dict[str, list[str]] = {}
    for source, target in edges:
        neighbours.setdefault(source, []).append(target)
        neighbours.setdefault(target, []).append(source)
    ordered = sorted(neighbours, key=lambda name: (level(name), _number(name)))
    by_level = {key: list(nodes) for key, nodes in itertools.groupby(ordered, level)}
    cells: dict[tuple[tuple[int, int], str], list[str]] = {}
    for node in ordered:
        cells.setdefault((level(node), node.partition("@")[2]), []).append(node)
    heads = {key: nodes for key, nodes in cells.items() if _HEAD.match(nodes[0])}
    roles = [role for role in roles if any(role == of_cell for _, of_cell in cells)]
    widths = [
        max((len(nodes) for (_, of_cell), nodes in heads.items() if of_cell == role), default=1)
        for role in roles or [""]
    ]
    edge, columns = -sum(widths) / 2, {}
    for role, width in zip(roles, widths, strict=False):
        columns[role] = edge, (edge := edge + width)
    side = (max(widths) + 1) / 2

    def spread(nodes: list[str], role: str) -> dict[str, float]:
        """Side by side in the middle; in a column on its grid, so that edges run between the boxes of all rows."""
        left, right = columns.get(role, (-len(nodes) / 2, len(nodes) / 2))
        return {node: left + (right - left - len(nodes)) // 2 + i + 0.5 for i, node in enumerate(nodes)}

    x: dict[str, float] = {}
    for (_, role), nodes in cells.items():
        x.update(spread(nodes, role))
    if not roles:
        x.update(dict.fromkeys(filter(_MLP.fullmatch, ordered), side))
    for sweep in range(_SWEEPS):
        for cell in sorted(heads, reverse=bool(sweep % 2)):
            means = {node: sum(x[other] for other in neighbours[node]) / len(neighbours[node]) for node in heads[cell]}
            heads[cell].sort(key=lambda node: (means[node], _number(node)))
            x.update(spread(heads[cell], cell[1]))
    y, rows, height, previous = {}, [], 0.0, None
    for key in sorted(by_level):
        if previous is not None:
            height += (0.7 if roles else 0.5) if key == (previous[0], 1) else 1.0
        previous = key
        y.update(dict.fromkeys(by_level[key], height))
        node = bare(by_level[key][0])
        name = node if node in ENDS else "" if key[1] else f"layer {key[0]}"
        rows.append((height, name))
    has_mlp = any(_MLP.fullmatch(node) for node in x)
    half_width = side + BOX_WIDTH / 2 if has_mlp else max(side - 1 + BOX_WIDTH / 2, BOX_WIDTH / 2)
    half_width = sum(widths) / 2 if roles else half_width
    return CircuitLayout({node: (x[node], y[node]) for node in x}, rows, half_width, columns)


def _number(node: str) -> int:
    match = _HEAD.match(node)
    return int(match[2]) if match else 0
