"""Where to draw a circuit's nodes: layers go upwards, heads of a layer side by side, with its MLP half a row above."""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

_HEAD = re.compile(r"a(\d+)\.h(\d+)")
_MLP = re.compile(r"m(\d+)")
_SWEEPS = 8
ENDS = {"input": -1, "logits": 1_000_000}
BOX_WIDTH, BOX_HEIGHT = 0.84, 0.36


@dataclass(frozen=True)
class CircuitLayout:
    """Positions of a circuit's nodes.

    Attributes:
        positions: centre (x, y) of every node's box; boxes are BOX_WIDTH by BOX_HEIGHT.
        rows: y and name of every row, from below.
        half_width: all boxes lie within [-half_width, half_width].
    """

    positions: dict[str, tuple[float, float]]
    rows: list[tuple[float, str]]
    half_width: float

    @property
    def height(self) -> float:
        """Height of the topmost row."""
        return self.rows[-1][0]


def level(node: str) -> tuple[int, int]:
    """Layer and sub-row of a node: `input` lowest, a layer's heads, then its MLP, `logits` highest.

    Raises:
        ValueError: if the node is none of `input`, `a{l}.h{h}`, `m{l}`, `logits`.
    """
    if node in ENDS:
        return ENDS[node], 0
    if match := _HEAD.fullmatch(node) or _MLP.fullmatch(node):
        return int(match[1]), int(node[0] == "m")
    raise ValueError(f"'{node}' is not a node of a circuit; nodes are input, a0.h1, m0, logits")


def lay_out(edges: Iterable[tuple[str, str]]) -> CircuitLayout:
    """Place the nodes that edges (source node, target node) join.

    Rows without nodes take no space. Within a row, nodes are ordered by the mean position of their neighbours, in
    sweeps up and down as in Sugiyama's layered drawings, so that fewer edges cross. MLPs are to the right of all heads.
    """
    neighbours: dict[str, list[str]] = {}
    for source, target in edges:
        neighbours.setdefault(source, []).append(target)
        neighbours.setdefault(target, []).append(source)
    ordered = sorted(neighbours, key=lambda name: (level(name), _number(name)))
    by_level = {key: list(nodes) for key, nodes in itertools.groupby(ordered, level)}
    heads = {key: nodes for key, nodes in by_level.items() if _HEAD.fullmatch(nodes[0])}
    widest = max((len(nodes) for nodes in heads.values()), default=1)
    side = (widest + 1) / 2
    x = {node: 0.0 if _MLP.fullmatch(node) is None else side for nodes in by_level.values() for node in nodes}
    for nodes in heads.values():
        x.update(_spread(nodes))
    for sweep in range(_SWEEPS):
        for key in sorted(heads, reverse=bool(sweep % 2)):
            means = {node: sum(x[other] for other in neighbours[node]) / len(neighbours[node]) for node in heads[key]}
            heads[key].sort(key=lambda node: (means[node], _number(node)))
            x.update(_spread(heads[key]))
    y, rows, height, previous = {}, [], 0.0, None
    for key in sorted(by_level):
        if previous is not None:
            height += 0.5 if key == (previous[0], 1) else 1.0
        previous = key
        y.update(dict.fromkeys(by_level[key], height))
        node = by_level[key][0]
        name = node if node in ENDS else "" if key[1] else f"layer {key[0]}"
        rows.append((height, name))
    has_mlp = any(_MLP.fullmatch(node) for node in x)
    half_width = side + BOX_WIDTH / 2 if has_mlp else max(side - 1 + BOX_WIDTH / 2, BOX_WIDTH / 2)
    return CircuitLayout({node: (x[node], y[node]) for node in x}, rows, half_width)


def _number(node: str) -> int:
    match = _HEAD.fullmatch(node)
    return int(match[2]) if match else 0


def _spread(nodes: list[str]) -> dict[str, float]:
    return {node: i - (len(nodes) - 1) / 2 for i, node in enumerate(nodes)}
