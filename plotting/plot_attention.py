"""Draw what heads attend to, and which tokens they raise and lower (figures/attention_<model>_<task>_step<n>.html).

A matrix per head: attention of every token (row) of a prompt to those up to it. Above it stand the tokens whose logits
the head raises and lowers the most, its roles over training, and its matches in other models.

    python plotting/plot_attention.py -r results -m toy -t ioi --step 1350 --heads a3.h1
"""

from collections.abc import Mapping, Sequence

import numpy as np

from circuits_over_time.plotting.parts import head_attention
from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.head_attention import HeadsSeen, in_words
from circuits_over_time.plotting.parts.panels import grid_of_matrices, wrapped
from circuits_over_time.plotting.parts.style import Drawing, colour_bar, finish
from circuits_over_time.plotting.parts.tables import Results, as_text, logger
from circuits_over_time.plotting.parts.theme import painted_scale
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.tasks.registry import task_label

# Pixels: a matrix, its labels and what is beside it, and a line of the text above it.
CELLS, _BESIDE, _LINE = 330, 110, 18
_LETTERS = 52
SHOWN = 6
"""How many heads are drawn, unless some are named: those that move a token the most."""


def draw_attention(
    seen: HeadsSeen, heads: Sequence[str], about: Mapping[str, Sequence[str]], title: str, left_out: str = ""
) -> Drawing:
    """The matrices of some heads; `about` has further lines on a head."""
    titles = [_title(seen, head, about.get(head, ())) for head in heads]
    columns = min(3, len(heads))
    rows = -(-len(heads) // columns)
    above = _LINE * (1 + max(title.count("<br>") for title in titles)) + 10
    height = rows * (CELLS + _BESIDE + above)
    beside = _BESIDE / (columns * (CELLS + _BESIDE))
    vertical = (_BESIDE + above) / height
    figure, places = grid_of_matrices(titles, columns, horizontal_spacing=beside, vertical_spacing=vertical)
    # Numbered, because a token may come twice.
    tokens = map(as_text, map(head_attention.token_label, seen.tokens))
    labels = [f"{token} {n}" for n, token in enumerate(tokens, start=seen.left_out + 1)]
    for head, where in zip(heads, places, strict=True):
        matrix = np.full((len(labels), len(labels)), np.nan)
        for query, attention in enumerate(seen.patterns[head]):
            matrix[query, : query + 1] = attention
        figure.add_heatmap(
            z=matrix,
            x=labels,
            y=labels,
            zmin=0,
            zmax=1,
            colorscale=painted_scale("Blues"),
            showscale=where is places[0],
            colorbar=colour_bar(CELLS, text="attention"),
            hovertemplate=f"{head}<br>from %{{y}}<br>to %{{x}}<br>attention %{{z:.3f}}<extra></extra>",
            hoverongaps=False,
            **where,
        )
        figure.update_xaxes(type="category", tickangle=-60, tickfont_size=10, showgrid=False, title_text="to", **where)
        figure.update_yaxes(type="category", autorange="reversed", tickfont_size=10, showgrid=False, **where)
        figure.update_yaxes(title_text="from", **where)
    figure.update_annotations(font_size=12)
    subtitle = f"Attention in {seen.prompt}; raised and lowered: tokens' logits, directly, at its end{left_out}"
    width = 100 + columns * (CELLS + _BESIDE)
    drawing = finish(figure, title, subtitle, width=width, height=height + 40, legend=False)
    figure.update_layout(margin={"l": 96, "r": 96, "t": above + 10})
    return drawing


def _title(seen: HeadsSeen, head: str, about: Sequence[str]) -> str:
    """The head's name, and what is known of it in lines that are no wider than its matrix."""
    raised, lowered = ([one for one in seen.moved[head] if (one[1] > 0) == up] for up in (True, False))
    moved = [f"{verb} {in_words(tokens)}" for verb, tokens in (("raises", raised), ("lowers", lowered)) if tokens]
    return "<br>".join([f"<b>{head}</b>", *(wrapped(as_text(text), _LETTERS) for text in (*moved, *about) if text)])


def draw(results: Results) -> dict[str, Drawing]:
    """Every model and task asked for, at the step asked for or the last of which there are heads."""
    asked, drawn = results.arguments, {}
    results.table("attention")  # Says what is missing.
    for model in results.models("attention"):
        roles, matches = head_attention.roles_of(results, model), head_attention.matches_of(results, model)
        for task in results.tasks("attention", model):
            by_step = head_attention.heads_seen(results, model, task)
            step = max(by_step, default=None) if asked.step is None else asked.step
            if step not in by_step or step is None:
                there = ", ".join(map(str, by_step)) or "none"
                logger.warning("%s %s: no heads at step %s; left out (there: %s)", model, task, step, there)
                continue
            seen = by_step[step]
            heads = list(seen.patterns)[:SHOWN] if asked.heads is None else asked.heads
            if absent := [head for head in heads if head not in seen.patterns]:
                raise UserError(
                    f"--heads {absent[0]}: not kept of {model} {task}, step {step} (there: {', '.join(seen.patterns)})"
                )
            few = f"; {len(heads)} of {len(seen.patterns)} heads" if len(heads) < len(seen.patterns) else ""
            title = f"What heads look at: {task_label(as_text(task))}, {as_text(model)} at step {step:,}"
            matched = {head: [f"matched: {of_head}"] for head, of_head in matches.items()}
            about = {head: [roles.get(head, ""), *matched.get(head, ())] for head in heads}
            drawn[f"attention_{model}_{task}_step{step:06d}"] = draw_attention(seen, heads, about, title, few)
    if not drawn:
        raise UserError(f"--step {asked.step}: no heads of that step in {results.store.root}/attention")
    return drawn


# The report shows the same of every head that is clicked.
FIGURE = Figure(
    draw,
    options={
        "--step": {"type": int, "metavar": "N", "help": "checkpoint (the last with heads)"},
        "--heads": {"nargs": "+", "metavar": "NAME", "help": f"heads (the {SHOWN} that move a token the most)"},
    },
)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
