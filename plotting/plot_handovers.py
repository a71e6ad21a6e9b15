"""Draw which head is the strongest in each role of the IOI algorithm, over training (figures/handovers_<model>.html).

There is a row per role. A segment spans the checkpoints at which one head has the largest effect of those that hold the
role; in a gap no head does. Triangles mark hand-overs, with the share of resamples in which they hold. Checkpoints
stand at equal distances.

    python plotting/plot_handovers.py -r results
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import for_both_widths, wrapped
from circuits_over_time.plotting.parts.roles import LEVELS, role_chip, role_look, why_none
from circuits_over_time.plotting.parts.style import Drawing, finish, write
from circuits_over_time.plotting.parts.tables import Results, escaped, models_in
from circuits_over_time.plotting.parts.theme import FAINT, INK, SERIES, paint
from circuits_over_time.plotting.parts.time_axis import CheckpointAxis

SURE = 0.95
_ROW, _FRAME, _WIDTH, _NAMES, _PHONE = 52, 110, 960, 160, 320
# Pixels of a letter of a head's name, and what two shares need between them.
_LETTER, _SHARE = 6.8, 30
# Characters in a line of a reason.
_LINE, _NARROW_LINE = 110, 46
_LEFT: dict[str, Any] = {"xanchor": "left", "align": "left", "borderpad": 0}


@dataclass(frozen=True)
class Segment:
    """A head that is the strongest of a role from one checkpoint to another, both counted, as places."""

    head: str
    first: int
    last: int
    effects: tuple[float, float]


def segments(heads: pd.DataFrame, role: str, axis: CheckpointAxis) -> list[Segment]:
    """Who holds a role when, in order, from rows of `ioi_consistency_heads` of one model.

    Neighbours differ in the head, or have a checkpoint without any between them.
    """
    held = heads[(heads["role"] == role) & heads["passes"].astype(bool)]
    in_order: list[Segment] = []
    for step, at in held.groupby("step", sort=True):
        best = at.iloc[int(at["effect"].abs().argmax())]
        name, place, effect = f"a{best['layer']}.h{best['head']}", axis.place(int(str(step))), float(best["effect"])
        segment = Segment(name, place, place, (effect, effect))
        if in_order and (in_order[-1].head, in_order[-1].last) == (name, place - 1):
            before = in_order.pop()
            segment = Segment(name, before.first, place, (before.effects[0], effect))
        in_order.append(segment)
    return in_order


def draw_handovers(
    heads: pd.DataFrame, handovers: pd.DataFrame, levels: pd.DataFrame, model: str, *, narrow: bool = False
) -> Drawing:
    """The figure of one model, from rows of `ioi_consistency_heads`, `handovers` and `ioi_consistency`."""
    heads, handovers, levels = (table[table["model"] == model] for table in (heads, handovers, levels))
    # Steps of damaged tables are left out, perhaps of one kind only.
    steps = pd.concat([levels["step"], heads["step"], handovers["after_step"], handovers["step"]])
    axis = CheckpointAxis.of(steps.dropna())
    roles = {role: level for level, (_, held) in LEVELS.items() for role in held}
    figure = go.Figure()
    pixels = (_PHONE if narrow else _WIDTH - _NAMES - 28) / (len(axis.steps) + 0.2)
    colours: dict[str, str] = {}
    for row, (role, level) in enumerate(roles.items()):
        held = segments(heads, role, axis)
        if not held:
            why = wrapped(why_none(levels[levels["level"] == level]), _NARROW_LINE if narrow else _LINE)
            write(figure, why, -0.5, row + 0.05, **_LEFT)
        for segment in held:
            colour = colours.setdefault(segment.head, SERIES[len(colours) % len(SERIES)])
            _draw_segment(figure, segment, role, colour, axis, row, pixels)
        _draw_marks(figure, handovers[handovers["role"] == role], axis, row, pixels)
    chips = [role_chip(role) for role in roles]
    drawing = finish(
        figure,
        f"Who is the strongest head of each role in {model}",
        "Triangles: hand-overs, with the share of resamples in which they hold; filled from 95%",
        width=_WIDTH,
        height=_FRAME + _ROW * len(roles),
        legend=False,
    )
    figure.update_layout(margin={"l": 18 if narrow else _NAMES, "t": 18, "r": 18})
    axis.apply(figure, 6 if narrow else 14)
    figure.update_yaxes(range=[len(roles) - 0.5, -0.7], tickvals=list(range(len(roles))), ticktext=chips)
    figure.update_yaxes(showticklabels=not narrow, tickfont_size=12, showgrid=False, zeroline=False)
    for row, chip in enumerate(chips) if narrow else ():
        write(figure, chip, -0.5, row - 0.4, colour=INK, **_LEFT)
    return drawing


def _draw_segment(
    figure: go.Figure, segment: Segment, role: str, colour: str, axis: CheckpointAxis, row: int, pixels: float
) -> None:
    left, right = segment.first - 0.48, segment.last + 0.48
    first, last = axis.steps[segment.first], axis.steps[segment.last]
    span = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
    middle = (left + right) / 2
    figure.add_scatter(
        x=[left, right, right, left, left],
        y=[row - 0.18, row - 0.18, row + 0.3, row + 0.3, row - 0.18],
        fill="toself",
        mode="lines",
        fillcolor=paint(colour),
        line={"width": 0, "color": paint(colour)},
        name=f"{role}: {segment.head}",
        hoverinfo="skip",
    )
    # What the pointer finds: a point in the middle, because outlines have no text of their own inside.
    figure.add_scatter(
        x=list(range(segment.first, segment.last + 1)),
        y=[row + 0.06] * (segment.last - segment.first + 1),
        mode="markers",
        marker={"size": 16, "color": paint(colour), "opacity": 0},
        name=segment.head,
        hovertemplate=f"<b>{segment.head}</b>: {role_look(role)[0]}<br>{span}"
        f"<br>effect {segment.effects[0]:.3g} → {segment.effects[1]:.3g}<extra></extra>",
    )
    room = (right - left) * pixels
    for name, size in ((segment.head, 11), (segment.head.replace(".", "<br>"), 10)):
        if max(map(len, name.split("<br>"))) * _LETTER <= room:
            write(figure, name, middle, row + 0.06, size=size, on=colour, borderpad=0)
            break


def _draw_marks(figure: go.Figure, handovers: pd.DataFrame, axis: CheckpointAxis, row: int, pixels: float) -> None:
    handovers = handovers[handovers[["after_step", "step"]].isin(axis.steps).all(axis=1)].sort_values("step")
    if handovers.empty:
        return
    rows = handovers.to_dict("records")
    x = [(axis.place(change["after_step"]) + axis.place(change["step"])) / 2 for change in rows]
    symbols = ["triangle-down" if change["share"] >= SURE else "triangle-down-open" for change in rows]
    cells = handovers[["from_head", "to_head", "after_step", "step"]].assign(share=handovers["share"].map(_share))
    figure.add_scatter(
        x=x,
        y=[row - 0.27] * len(rows),
        mode="markers",
        marker={"symbol": symbols, "size": 9, "color": paint(INK)},
        name="hand-over",
        customdata=cells.to_numpy(),
        hovertemplate="<b>%{customdata[0]} → %{customdata[1]}</b><br>between steps %{customdata[2]:,} and "
        "%{customdata[3]:,}<br>in %{customdata[4]} of the resamples<extra></extra>",
    )
    written = float("-inf")
    for at, change in zip(x, rows, strict=True):
        if pd.notna(change["share"]) and (at - written) * pixels >= _SHARE:
            write(figure, _share(change["share"]), at, row - 0.44, size=10, colour=FAINT, borderpad=0)
            written = at


def _share(share: float) -> str:
    return "an unknown share" if pd.isna(share) else f"{share:.0%}"


def draw(results: Results) -> dict[str, Drawing]:
    handovers = escaped(results.comparison("handovers", whole=True))
    heads, levels = (escaped(results.table(kind)) for kind in ("ioi_consistency_heads", "ioi_consistency"))
    return {
        f"handovers_{model}": for_both_widths(draw_handovers, heads, handovers, levels, model)
        for model in models_in(heads)
    }


FIGURE = Figure(draw, order=140)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
