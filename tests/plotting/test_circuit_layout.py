"""Where the boxes and lines of a drawn circuit go."""

import itertools

import numpy as np
import pandas as pd
import pytest

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.plotting.parts.circuit_layout import BOX_HEIGHT, BOX_WIDTH, at_roles, lay_out, level
from circuits_over_time.plotting.parts.theme import NEGATIVE, POSITIVE, translucent
from circuits_over_time.plotting.plot_circuit import draw_circuit, edge_ends, edge_path
from tests.support.synthetic_results import random_circuit


@pytest.fixture(params=range(5))
def circuit(request: pytest.FixtureRequest):
    return random_circuit(20 * (request.param + 1), np.random.default_rng(request.param))


def edges(circuit) -> list[tuple[str, str]]:
    return list(zip(circuit["source"], circuit["target"].str.partition("<")[0], strict=True))


def test_boxes_do_not_overlap_and_lie_within_the_width(circuit) -> None:
    layout = lay_out(edges(circuit))
    for (x0, y0), (x1, y1) in itertools.combinations(layout.positions.values(), 2):
        assert abs(x0 - x1) >= BOX_WIDTH or abs(y0 - y1) >= BOX_HEIGHT
    assert all(abs(x) + BOX_WIDTH / 2 <= layout.half_width + 1e-9 for x, _ in layout.positions.values())


def test_layers_go_upwards(circuit) -> None:
    positions = lay_out(edges(circuit)).positions
    ranked = sorted(positions, key=level)
    for lower, upper in itertools.pairwise(ranked):
        assert (positions[lower][1] < positions[upper][1]) == (level(lower) < level(upper))
    assert ranked[0] == "input"
    assert ranked[-1] == "logits"


def test_every_edge_leaves_its_source_on_top_and_reaches_its_target_from_below(circuit) -> None:
    layout = lay_out(edges(circuit))
    for source, target in zip(circuit["source"], circuit["target"], strict=True):
        start, end = edge_ends(source, target, layout)
        (x0, y0), (x1, y1) = layout.positions[source], layout.positions[target.partition("<")[0]]
        assert start[1] == pytest.approx(y0 + BOX_HEIGHT / 2)
        assert end[1] == pytest.approx(y1 - BOX_HEIGHT / 2)
        assert abs(start[0] - x0) < BOX_WIDTH / 2
        assert abs(end[0] - x1) < BOX_WIDTH / 2
        x, y = edge_path(start, end, x0)
        assert [x[0], y[0], x[-1], y[-1]] == pytest.approx([*start, *end])
        assert (np.diff(y) > 0).all()


def test_an_edge_that_stays_in_its_column_runs_beside_the_boxes_between() -> None:
    nodes = ["m0", "m1", "m2", "m5", "logits"]
    layout = lay_out([*itertools.pairwise(nodes), ("m0", "m5"), ("m1", "m5"), ("m0", "m2")])
    boxes = [layout.positions[node] for node in nodes]
    for source, target in (("m0", "m5"), ("m1", "m5"), ("m0", "m2")):
        middle = layout.positions[source][0]
        x, y = edge_path(*edge_ends(source, target, layout), middle)
        inside = [(abs(x - left) < BOX_WIDTH / 2) & (abs(y - at) < BOX_HEIGHT / 2 - 1e-9) for left, at in boxes]
        assert not np.any(inside), (source, target)
        assert max(abs(x - middle)) < 1 - BOX_WIDTH / 2, "nor behind those of the next column"


def test_the_drawing_shows_every_node_and_every_edge_in_the_colour_of_its_sign(circuit) -> None:
    figure = draw_circuit(circuit, "a circuit", "").figure
    written = {note.text for note in figure.layout.annotations}
    assert set(circuit["source"]) | set(circuit["target"].str.partition("<")[0]) <= written
    assert len(figure.layout.shapes) == len(lay_out(edges(circuit)).positions)
    drawn = {POSITIVE: 0, NEGATIVE: 0}
    for trace in figure.data:
        for colour in drawn:
            if (
                trace.mode == "lines"
                and trace.showlegend is False
                and trace.line.color.startswith(translucent(colour, 0)[:-3])
            ):
                drawn[colour] += sum(value is None for value in trace.x)
    assert drawn == {POSITIVE: (circuit["score"] >= 0).sum(), NEGATIVE: (circuit["score"] < 0).sum()}
    named = {point[0] for trace in figure.data if trace.mode == "markers" for point in trace.customdata}
    assert len(named) == len(circuit)


def test_stronger_edges_are_wider() -> None:
    circuit = random_circuit(40, np.random.default_rng(0))
    figure = draw_circuit(circuit, "a circuit", "").figure
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.showlegend is False]
    points = [trace for trace in figure.data if trace.mode == "markers"]
    found = [
        (trace.line.width, max(abs(p[1]) for p in dots.customdata)) for trace, dots in zip(lines, points, strict=True)
    ]
    for (width, strength), (other_width, other_strength) in itertools.combinations(found, 2):
        assert (width > other_width) == (strength > other_strength) or width == other_width


def test_unstable_edges_are_fainter_and_say_how_stable_they_are() -> None:
    circuit = random_circuit(40, np.random.default_rng(0))
    circuit["stability"] = np.linspace(0, 1, len(circuit))
    figure = draw_circuit(circuit, "a circuit", "").figure
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.showlegend is False]
    points = [trace for trace in figure.data if trace.mode == "markers"]
    stability = {f"{source} → {target}": share for source, target, _, share in circuit.itertuples(index=False)}
    found = []
    for trace, dots in zip(lines, points, strict=True):
        opacity = float(trace.line.color.rpartition(",")[2].rstrip(")"))
        for name, _, told in dots.customdata:
            share = stability[name.replace("&lt;", "<").replace("&gt;", ">")]
            assert f"in {share:.0%} of resampled circuits" in told
            found.append((share, opacity))
    found.sort()
    assert [opacity for _, opacity in found] == sorted(opacity for _, opacity in found)
    assert found[0][1] == 0.12
    assert found[-1][1] == 0.9


def test_a_name_that_is_no_node_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'a1\.2' is not a node of a circuit"):
        lay_out([("input", "a1.2"), ("a1.2", "logits")])


ROLES = ("s1", "io", "end")
GRAPH = Graph(3, 2, True, ROLES, tuple(tuple(read <= reader for read in range(3)) for reader in range(3)))


def of_roles(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    edges = pd.DataFrame(rows, columns=["source", "target", "input", "role"])
    return edges.assign(score=np.linspace(2, -1, len(edges)))


@pytest.mark.parametrize("letter", ["k", "v"])
def test_keys_and_values_go_to_the_later_roles_where_the_head_is_read_and_all_else_stays(letter: str) -> None:
    read = [("a1.h0", "m2", "", "s1"), ("a1.h0", "m2", "", "io"), ("a1.h0", "logits", "", "end")]
    edges = at_roles(of_roles(*read, ("m0", "a1.h0", letter, "io"), ("m0", "a1.h0", "q", "end")), GRAPH)
    ends = list(zip(edges.index, edges["source"], edges["target"], strict=True))
    assert ends == [
        (0, "a1.h0@s1", "m2@s1"),
        (1, "a1.h0@io", "m2@io"),
        (2, "a1.h0@end", "logits@end"),
        (3, "m0@io", "a1.h0@io"),  # not at s1, which comes before
        (3, "m0@io", "a1.h0@end"),
        (4, "m0@end", "a1.h0@end"),
    ]


def test_roles_are_columns_in_the_order_of_the_prompt() -> None:
    rng = np.random.default_rng(0)
    nodes, targets = GRAPH.plain.forward_nodes, [name.rstrip(">").partition("<") for name in GRAPH.backward_nodes]
    rows = [
        (nodes[u % len(nodes)], targets[v][0], targets[v][2], ROLES[u // len(nodes)])
        for u, v in rng.permutation(GRAPH.edge_mask.nonzero())[:60]
    ]
    edges = at_roles(of_roles(*rows), GRAPH).reset_index(drop=True)
    layout = lay_out(zip(edges["source"], edges["target"], strict=True), ROLES)
    assert tuple(layout.columns) == ROLES
    assert all(before[1] == after[0] for before, after in itertools.pairwise(layout.columns.values()))
    for node, (x, _) in layout.positions.items():
        left, right = layout.columns[node.partition("@")[2]]
        assert left < x - BOX_WIDTH / 2 < x + BOX_WIDTH / 2 < right
    for (x0, y0), (x1, y1) in itertools.combinations(layout.positions.values(), 2):
        assert abs(x0 - x1) >= BOX_WIDTH or abs(y0 - y1) >= BOX_HEIGHT
    rows_of = {level(node): y for node, (_, y) in layout.positions.items()}
    assert sorted(rows_of.values()) == [rows_of[key] for key in sorted(rows_of)]
    figure = draw_circuit(edges, "", "", columns=ROLES).figure
    assert list(figure.layout.xaxis.ticktext) == list(ROLES)
    assert [sum(ends) / 2 for ends in layout.columns.values()] == list(figure.layout.xaxis.tickvals)
    names = [note.text for note in figure.layout.annotations if len(note.text) > 1]
    assert sorted(names) == sorted(node.partition("@")[0] for node in layout.positions)
