"""Draw the circuit itself at one checkpoint (figures/circuit_<model>_<task>_step<n>.html).

Layers go upwards, and an edge into a head ends at its q, k or v. Blue edges raise the task metric, orange ones lower
it, wider ones do so more, and other prompts would often have given a circuit without the faint ones. A head has the
colour of its roles in IOI. A circuit by the role of the token has a column for each role: a node stands where it
writes, and an edge into k or v goes from the token that is attended to to wherever the circuit reads the head.

    python plotting/plot_circuit.py -r results -m pythia-160m -t ioi --step 143000
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from circuits_over_time.plotting.parts import circuit_layout
from circuits_over_time.plotting.parts.circuit_layout import BOX_HEIGHT, BOX_WIDTH, CircuitLayout
from circuits_over_time.plotting.parts.circuit_similarity import nodes_of
from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.roles import ROLE_TINT, ROLES, Roles, role_look, stored_roles
from circuits_over_time.plotting.parts.style import Drawing, add_key, finish, in_order, note
from circuits_over_time.plotting.parts.tables import Results, as_text, logger
from circuits_over_time.plotting.parts.theme import FAINT, INK, NEGATIVE, POSITIVE, WHITE, paint, tint, translucent
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results import edges as lists
from circuits_over_time.utils.results.edges import bare
from circuits_over_time.utils.tasks.registry import task_label

# Where on a box's lower side an edge ends, as a share of its width.
PORTS = {"q": -0.3, "k": 0.0, "v": 0.3}
WIDTH_CLASSES = 8
OPACITY_CLASSES = 6
FAINTEST, STRONGEST = 0.12, 0.9
THINNEST, WIDEST = 0.7, 6.5
# How far from the middle of a column an edge runs beside its boxes, and how far up it takes to get there.
_BESIDE, _TURN = 0.5, 0.55
FILL = {"a": "#eef3f7", "m": "#f6efe2"}


def edge_ends(source: str, target: str, layout: CircuitLayout) -> tuple[tuple[float, float], tuple[float, float]]:
    """The point an edge leaves its source at (top) and the one it reaches its target at (bottom, at its port)."""
    node, _, letter = target.partition("<")
    (x0, y0), (x1, y1) = layout.positions[source], layout.positions[node]
    # Away from ports, edges spread over the side of the box in the direction they take.
    lean = 0.4 * np.tanh((x1 - x0) / 3)
    port = PORTS[letter.rstrip(">")] if letter else -lean
    return (x0 + lean * BOX_WIDTH, y0 + BOX_HEIGHT / 2), (x1 + port * BOX_WIDTH, y1 - BOX_HEIGHT / 2)


def edge_path(start: tuple[float, float], end: tuple[float, float], column: float) -> tuple[np.ndarray, np.ndarray]:
    """A curve that leaves and arrives upwards.

    One that stays in the column of its source, whose middle is at `column`, runs beside the boxes between.
    """
    (x0, y0), (x1, y1) = start, end
    rise = y1 - y0
    if abs(x1 - x0) < BOX_WIDTH and rise > 1:
        y = np.linspace(y0, y1, int(np.ceil(rise / 0.06)))
        # It has left the column before the next row's box, and comes back after the last one's.
        away = np.clip(np.minimum(y - y0, y1 - y) / _TURN, 0, 1)
        share = away**2 * (3 - 2 * away)
        beside = column + (_BESIDE if column >= 0 else -_BESIDE)
        return share * beside + (1 - share) * np.where(y - y0 < y1 - y, x0, x1), y
    t = np.linspace(0, 1, 20)
    x = x0 + (x1 - x0) * (3 * t**2 - 2 * t**3)
    return x, y0 + rise * (1.35 * (1 - t) ** 2 * t + 1.65 * (1 - t) * t**2 + t**3)


def draw_circuit(
    edges: pd.DataFrame, title: str, subtitle: str, roles: Roles | None = None, columns: Sequence[str] = ()
) -> Drawing:
    """The drawing of a circuit's list of edges, with `score_se, stability, inclusion` as far as they are known.

    Of a list of nodes or neurons, the nodes: their colour says the score, and a second line how many neurons are in it.
    A list of edges between nodes at roles of tokens (`at_roles`) has these roles as columns; one of edges with roles
    is drawn without them.
    """
    roles = roles or {}
    edges = edges if columns else lists.over_roles(edges)
    edges = lists.with_inputs(edges.reindex(edges["score"].abs().sort_values(kind="stable").index))
    nodes = lists.by_node(edges).set_index("source") if not columns and lists.is_of_units(edges) else None
    ends = list(zip(edges["source"], edges["target"], strict=True))
    if nodes is not None:
        ends = [end for node in nodes.index for end in (("input", node), (node, "logits"))]
    layout = circuit_layout.lay_out(ends, columns)
    edges = edges.assign(target=lists.named_targets(edges))
    figure = go.Figure()
    for colour, name in ((POSITIVE, "raises the metric"), (NEGATIVE, "lowers the metric")):
        add_key(figure, name, mode="lines", line={"color": paint(colour), "width": 3})
    if nodes is None:
        _draw_edges(figure, edges, layout)
    else:
        roles, some = {}, nodes["units"].max() > 1
        known = zip(nodes.index, nodes["score"], nodes["units"], strict=True)
        points = [(*layout.positions[u], u, score, f"<br>{n} neurons" if some else "") for u, score, n in known]
        _add_hover(figure, points, {"size": 24})
    _draw_nodes(figure, layout, roles, nodes)
    held = {role for node in layout.positions for role in roles.get(bare(node), ())}
    for role in in_order(held, ROLES):
        label, colour = role_look(role)
        marker = {"symbol": "square", "size": 12, "color": tint(colour, ROLE_TINT)}
        add_key(figure, label, mode="markers", marker=marker)
    row = float(np.clip(1000 / (layout.height + 1), 62, 104))
    width = int(max(820, 190 + 64 * 2 * layout.half_width))
    height = int(142 + row * (layout.height + 0.6))
    drawing = finish(figure, title, subtitle, width=width, height=height)
    figure.update_layout(hovermode="closest", margin={"l": 84, "b": 30, "r": 30})
    figure.update_xaxes(visible=False, range=[-layout.half_width - 0.9, layout.half_width + 0.9])
    if layout.columns:
        middles = [sum(ends) / 2 for ends in layout.columns.values()]
        figure.update_layout(margin_b=60)
        figure.update_xaxes(visible=True, showgrid=False, showline=False, zeroline=False, tickfont_size=12)
        figure.update_xaxes(tickvals=middles, ticktext=[escape(name) for name in layout.columns])
        for _, end in list(layout.columns.values())[:-1]:
            figure.add_vline(end, line={"color": paint(FAINT), "width": 1, "dash": "dot"}, layer="below")
    ticks, names = zip(*((y, name) for y, name in layout.rows if name), strict=True)
    figure.update_yaxes(range=[-0.5, layout.height + 0.5], tickvals=ticks, ticktext=names)
    figure.update_yaxes(showgrid=False, showline=False, zeroline=False, tickfont_size=12)
    return drawing


def _draw_edges(figure: go.Figure, edges: pd.DataFrame, layout: CircuitLayout) -> None:
    """Edges by sign, class of width and class of opacity, thin ones first; each class is one trace."""
    strongest = float(edges["score"].abs().max()) or 1.0
    share = np.sqrt(edges["score"].abs() / strongest)
    classes = np.minimum((share * WIDTH_CLASSES).astype(int), WIDTH_CLASSES - 1)
    opacities = _opacities(edges, classes)
    for positive, colour in ((True, POSITIVE), (False, NEGATIVE)):
        of_sign = (edges["score"] >= 0) == positive
        for size, opacity in sorted(set(zip(classes[of_sign], opacities[of_sign], strict=True))):
            xs: list[float | None] = []
            ys: list[float | None] = []
            middles = []
            for row in edges[(classes == size) & (opacities == opacity) & of_sign].to_dict("records"):
                x, y = edge_path(*edge_ends(row["source"], row["target"], layout), layout.positions[row["source"]][0])
                xs += [*x.tolist(), None]
                ys += [*y.tolist(), None]
                middles += [(x[at], y[at], *_edge_hover(row)) for at in (len(x) // 4, len(x) // 2, 3 * len(x) // 4)]
            width = THINNEST + (WIDEST - THINNEST) * (size + 0.5) / WIDTH_CLASSES
            line = {"color": translucent(colour, opacity), "width": width}
            figure.add_scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", showlegend=False)
            _add_hover(figure, middles, {"size": 9, "color": paint(colour)})


def _add_hover(figure: go.Figure, points: list[tuple[Any, ...]], marker: dict[str, Any]) -> None:
    """Points (x, y, name, score, what else is known) that only answer the pointer: plotly shows no text along lines."""
    figure.add_scatter(
        x=[point[0] for point in points],
        y=[point[1] for point in points],
        mode="markers",
        marker=marker | {"opacity": 0},
        customdata=[point[2:] for point in points],
        hovertemplate="%{customdata[0]}<br>score %{customdata[1]:+.4g}%{customdata[2]}<extra></extra>",
        showlegend=False,
    )


def _opacities(edges: pd.DataFrame, classes: pd.Series) -> pd.Series:
    """Opacity of every edge: by its stability in a few classes, or by its width where stability is not known."""
    by_width = 0.3 + 0.6 * classes / WIDTH_CLASSES
    if "stability" not in edges:
        return by_width
    classed = (edges["stability"].astype(float) * (OPACITY_CLASSES - 1)).round() / (OPACITY_CLASSES - 1)
    return (FAINTEST + (STRONGEST - FAINTEST) * classed).round(3).fillna(by_width)


def _edge_hover(row: dict[str, Any]) -> tuple[str, float, str]:
    """What pointing at an edge shows: its name, its score and, as far as that is known, how sure it is."""
    name = f"{row['source']} → {row['target']}".replace("<", "&lt;").replace(">", "&gt;")
    known = {key: float(row[key]) for key in ("score_se", "stability", "inclusion") if pd.notna(row.get(key))}
    lines = [f" ± {known['score_se']:.2g}" if "score_se" in known else ""]
    if "stability" in known:
        lines.append(f"in {known['stability']:.0%} of resampled circuits")
    if "inclusion" in known:
        lines.append(f"in the circuits of {known['inclusion']:.0%} of thresholds")
    return name, float(row["score"]), "<br>".join(lines)


def _draw_nodes(figure: go.Figure, layout: CircuitLayout, roles: Roles, scored: pd.DataFrame | None) -> None:
    """The boxes: in the colours of their roles, or of their scores where these are given (`by_node`)."""
    scores, units = ({}, {}) if scored is None else (scored["score"].to_dict(), scored["units"].to_dict())
    strongest = max(map(abs, scores.values()), default=0) or 1.0
    # All at once: plotly copies what there is for each that is added.
    shapes, notes = [], []
    for node, (x, y) in layout.positions.items():
        held = roles.get(bare(node), ())
        left, side = x - BOX_WIDTH / 2, {"type": "rect", "y0": y - BOX_HEIGHT / 2, "y1": y + BOX_HEIGHT / 2}
        # Several roles share the box.
        width = BOX_WIDTH / max(len(held), 1)
        for i, role in enumerate(held):
            ends = {"x0": left + i * width, "x1": left + (i + 1) * width}
            shapes.append(side | ends | {"line": {"width": 0}, "fillcolor": tint(role_look(role)[1], ROLE_TINT)})
        fill = None if held else paint(FILL.get(node[0] if node[1:2].isdigit() else "", WHITE))
        if node in scores:
            colour = POSITIVE if scores[node] >= 0 else NEGATIVE
            fill = tint(paint(colour), FAINTEST + 0.6 * abs(scores[node]) / strongest)
        outline = {"x0": left, "x1": left + BOX_WIDTH, "line": {"color": paint(FAINT), "width": 1}}
        shapes.append(side | outline | {"fillcolor": fill})
        # Annotations, because plotly draws shapes over the text of traces.
        has_ports = not scores and "." in node
        name = f"{node}: {units[node]}" if max(units.values(), default=1) > 1 and node in units else bare(node)
        notes.append(note(name, x, y, size=9 if ":" in name else 11, colour=INK, yshift=5 if has_ports else 0))
        for letter, port in PORTS.items() if has_ports else ():
            notes.append(note(letter, x + port * BOX_WIDTH, y - BOX_HEIGHT / 2, size=8, yshift=5))
    figure.update_layout(shapes=shapes, annotations=notes)


def draw(results: Results) -> dict[str, Drawing]:
    """Every model and task asked for, at the step asked for or the last with a circuit."""
    if (strongest := results.arguments.strongest) < 1:
        raise UserError(f"--strongest: {strongest} edges asked for; ask for at least 1")
    drawn = {}
    for (model, task), by_step in results.circuits(with_roles=True).items():
        step = max(by_step) if results.arguments.step is None else results.arguments.step
        if step not in by_step:
            there = ", ".join(map(str, by_step))
            logger.warning("%s %s: no circuit at step %d; left out (there: %s)", model, task, step, there)
            continue
        edges = by_step[step]
        few = edges.loc[edges["score"].abs().nlargest(strongest).index]
        n_nodes = len(nodes_of(zip(edges["source"], edges["target"], strict=True)))
        what, also, look = "edges", f", {n_nodes} nodes", "width"
        if lists.is_of_units(edges):
            what, look = "heads and MLPs", "colour"
            also = f", {edges['units'].sum()} neurons" if "units" in edges else ""
        size = f"{len(edges)} {what}{also}"
        if len(few) < len(edges):
            size += f"; the {len(few)} strongest {what} drawn"
        stable = look == "width" and "stability" in few and bool(few["stability"].notna().any())
        in_words = f"{size}; {look} grows with |score|{', opacity with stability' if stable else ''}"
        title = f"{task_label(as_text(task))} circuit of {as_text(model)} at step {step:,}"
        columns: tuple[str, ...] = ()
        if lists.has_roles(few):
            graph = circuit_layout.graph_of_roles(results.store.folder("graphs", model, task), step, edges)
            few, columns = circuit_layout.at_roles(edges, graph).loc[few.index].reset_index(drop=True), graph.roles
        drawing = draw_circuit(few, title, in_words, stored_roles(results.store, model).get(step), columns)
        drawn[f"circuit_{model}_{task}_step{step:06d}"] = drawing
    if not drawn:
        raise UserError(f"--step {results.arguments.step}: no circuit of that step in {results.store.root}/graphs")
    return drawn


FIGURE = Figure(
    draw,
    order=None,  # The report has a drawing of its own.
    options={
        "--step": {"type": int, "metavar": "N", "help": "checkpoint (the last with a circuit)"},
        "--strongest": {"type": int, "default": 200, "metavar": "N", "help": "how many edges, by |score| (200)"},
    },
)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
