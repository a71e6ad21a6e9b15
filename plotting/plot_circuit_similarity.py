"""Draw how circuits change over training (figures/circuit_similarity.html).

There is a column per task. Rows: Jaccard similarity of nodes, of edges, and of edges weighted by score, with the
checkpoint before or with one checkpoint (--reference); and the edges added and removed. Strong lines are exponentially
weighted moving averages. figures/circuit_similarity.csv has the numbers.

    python plotting/plot_circuit_similarity.py -r results --alpha 0.5
    python plotting/plot_circuit_similarity.py -r results --reference 143000
    python plotting/plot_circuit_similarity.py -r results --raw                absolute scores, as in the study
"""

from dataclasses import replace

import pandas as pd

from circuits_over_time.plotting.parts.circuit_similarity import similarity_over_training
from circuits_over_time.plotting.parts.export import Figure, figure_main
from circuits_over_time.plotting.parts.panels import task_panels
from circuits_over_time.plotting.parts.style import Drawing, Looks
from circuits_over_time.plotting.parts.tables import Results, escaped, logger
from circuits_over_time.utils.base.errors import UserError

MEASURES = {
    "node_jaccard": "nodes, Jaccard",
    "edge_jaccard": "edges, Jaccard",
    "weighted_edge_jaccard": "edges, score-weighted",
}


def moving_average(values: pd.Series, alpha: float) -> pd.Series:
    """Exponentially weighted moving average from the first value on: s = alpha x + (1 - alpha) s.

    A missing value leaves the average as it is, and is missing in the result too.
    """
    return values.ewm(alpha=alpha, adjust=False, ignore_na=True).mean().where(values.notna())


def similarities(
    circuits: dict[tuple[str, str], dict[int, pd.DataFrame]], reference: int | None, alpha: float, raw: bool = False
) -> pd.DataFrame:
    """`similarity_over_training` of edge tables by (model, task) and step; those without the reference are left out.

    Returns:
        Its columns and `model, task, tokens`, `<measure>_average` (moving averages).
    """
    frames = []
    for (model, task), by_step in sorted(circuits.items()):
        if reference is not None and reference not in by_step:
            logger.warning("%s %s: no circuit at reference step %d; left out", model, task, reference)
            continue
        table = similarity_over_training(by_step, reference, raw)
        for measure in MEASURES:
            table[f"{measure}_average"] = moving_average(table[measure], alpha)
        tokens = {step: edges["tokens"].iloc[0] for step, edges in by_step.items()}
        frames.append(table.assign(model=model, task=task, tokens=table["step"].map(tokens)))
    if not frames:
        raise UserError(f"--reference {reference}: no model has a circuit at that step")
    table = pd.concat(frames, ignore_index=True)
    if table.empty:
        raise UserError(
            "a circuit's change needs two checkpoints with a circuit; measure more checkpoints or give --reference"
        )
    return table


def draw_similarity(table: pd.DataFrame, looks: Looks, against: str) -> Drawing:
    """The figure. `against` says what circuits are compared with."""
    last = len(MEASURES) + 1
    panels, tasks = task_panels(table, last, 180)
    for column, task in enumerate(tasks, 1):
        part = table[table["task"] == task]
        for row, measure in enumerate(MEASURES, 1):
            average = f"{measure}_average"
            panels.draw_models(part, average, looks, row, column, markers=False, width=2.5, hover=(measure,))
            panels.draw_models(part, measure, looks, row, column, width=1, opacity=0.4)
            panels.figure.update_yaxes(range=[-0.03, 1.05], row=row, col=column)
        panels.draw_models(part, "edges_added", looks, last, column, hover=("n_edges",))
        panels.draw_models(part, "edges_removed", looks, last, column, dash="dot", hover=("n_edges",))
    panels.name_rows([*MEASURES.values(), "edges"])
    panels.key("edges added", "solid")
    panels.key("edges removed", "dot")
    return panels.done(
        "Circuit similarity over training",
        f"Against {against}; strong lines are moving averages, 1 is the same circuit",
    )


def draw(results: Results) -> dict[str, Drawing]:
    reference, alpha = results.arguments.reference, results.arguments.alpha
    if not 0 < alpha <= 1:
        raise UserError(f"--alpha: {alpha} is not in (0, 1]")
    table = similarities(results.circuits(), reference, alpha, results.arguments.raw)
    against = "the checkpoint before" if reference is None else f"step {reference:,}"
    drawing = draw_similarity(escaped(table), looks=results.looks(), against=against)
    return {"circuit_similarity": replace(drawing, table=table)}


FIGURE = Figure(
    draw,
    order=40,
    options={
        "--reference": {"type": int, "metavar": "STEP", "help": "compare with this step's circuit (the one before)"},
        "--raw": {"action": "store_true", "help": "weigh edges by |score| as it is (by shares of the sum)"},
        "--alpha": {"type": float, "default": 0.5, "help": "moving average's weight of the newest value (0.5)"},
    },
)

if __name__ == "__main__":
    raise SystemExit(figure_main(FIGURE))
