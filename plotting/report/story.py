"""What the first screen says of every task, in a sentence made from the tables, and what is not sure about it.

Nothing is worked out here: onsets and changes are those of `results/comparison`, sizes and their intervals those of the
figure of circuits, and random circuits those of the figure of controls. Without comparisons, the status of the
checkpoints says when a task is learned.
"""

from typing import Any, NamedTuple

import pandas as pd

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.config.keys import task_and_method
from circuits_over_time.utils.results.kinds import GIVEN, NOT_LEARNED, UNCONFIRMED
from circuits_over_time.utils.tasks.registry import task_label

from ..parts.style import task_order
from ..parts.tables import Results, as_text
from ..plot_circuits import selected_circuits, task_metrics
from ..plot_controls import CIRCUIT, control_points
from .runs import counted

# An interval whose ends are further apart than this ratio says little about a size.
WIDE = 2.0
LEVEL = 0.05
Rows = list[dict[Any, Any]]


class Sentence(NamedTuple):
    """What is found of a task in a model.

    Attributes:
        label: the task's, with which `text` begins.
        learned: the checkpoints between which it is learned, the first None if it is by the second; None if never.
        changed: the checkpoints whose circuit differs by more than noise from the one before.
    """

    model: str
    task: str
    label: str
    text: str
    unsure: list[str]
    learned: tuple[int | None, int] | None
    changed: list[int]


def story(results: Results) -> list[Sentence]:
    """A sentence for every model and task with circuits or the search for some, in the order of the page."""
    baselines = results.table_if_any("baselines")
    if baselines is None:
        return []
    faithfulness, controls = results.table_if_any("faithfulness"), results.table_if_any("controls")
    chosen = baselines if faithfulness is None else selected_circuits(faithfulness, baselines)
    random = pd.DataFrame()
    if controls is not None:
        points = control_points(baselines, controls, None, None)
        random = points[(points["panel"] == "circuit") & (points["line"] == CIRCUIT)]
    emergence, similarity = (_comparison(results, name) for name in ("emergence", "similarity"))
    performance = results.table_if_any("task_performance")
    metrics = task_metrics(results, baselines)
    sentences = []
    for model in results.models("baselines"):
        for task in task_order(results.tasks("baselines", model)):
            circuits = _of(chosen, model, task).sort_values("step").to_dict("records")
            if circuits:
                measured_as = task_and_method(as_text(task))[0]  # Its metric, whatever found its circuits.
                curve = _of(emergence, model, measured_as)
                onset = curve[curve["score"] == metrics[as_text(task)]].to_dict("records") if len(curve) else []
                changes = _of(similarity, model, task)
                measured = performance is not None and not _of(performance, model, measured_as).empty
                about = _of(random, model, task)
                sentences.append(sentence(model, task, circuits, onset[:1], changes, about, measured))
    return sentences


def sentence(
    model: str,
    task: str,
    circuits: Rows,
    onset: Rows,
    changes: pd.DataFrame,
    random: pd.DataFrame,
    measured: bool = True,
) -> Sentence:
    """The sentence about one model and task.

    Args:
        circuits: rows of `plot_circuits.selected_circuits`, by step.
        onset: the row of `emergence` about the task's metric, if there is one.
        changes: rows of `similarity` that compare circuits as found with those of the checkpoint before.
        random: rows `step, n_random, n_beaten`.
        measured: whether the task's performance, which onsets are worked out from, is measured.
    """
    label, unsure = task_label(task), list[str]()
    learned, text = _learned(circuits, onset, unsure, measured)
    changed = sorted(int(row["step"]) for row in changes.to_dict("records") if row["changed"] in (True, "True"))
    found = [row for row in circuits if _known(row.get("n_edges"))]
    if learned and not found:
        text += "; at no checkpoint does a circuit reach the threshold of faithfulness"
    elif found:
        last = found[-1]
        text += f"{';' if learned else ', yet'} its circuit {_size(last, circuits, unsure)}"
        text += _chance(last, random, unsure) + _stability(found, changes, changed, unsure)
    return Sentence(model, task, label, f"{label} {text}.", unsure, learned, changed)


def _learned(
    circuits: Rows, onset: Rows, unsure: list[str], measured: bool
) -> tuple[tuple[int | None, int] | None, str]:
    """The checkpoints between which the task is learned, and in words."""
    for row in onset:
        if not _known(row["step"]):
            return None, f"is never learned: its metric {row['reason']}"
        ends = row["low_step"], row["high_step"]
        if _known(ends[0]) and ends != (row["after_step"], row["step"]):
            until = f"step {ends[1]:,.0f}" if _known(ends[1]) else "the last checkpoint or later"
            unsure.append(f"it is learned between step {ends[0]:,.0f} and {until} (95%)")
        return _between(row["after_step"], row["step"])
    unlearned = [place for place, row in enumerate(circuits) if row["status"] == NOT_LEARNED]
    if unlearned and unlearned[-1] == len(circuits) - 1:
        return None, "is never learned" if len(unlearned) == len(circuits) else "is not learned at the last checkpoint"
    scripts = (
        "compare_circuits.py works" if measured else "get_model_task_performance.py, then compare_circuits.py work"
    )
    unsure.append(f"when it is learned has no interval; {scripts} one out")
    if not unlearned:
        return _between(None, circuits[0]["step"])
    return _between(circuits[unlearned[-1]]["step"], circuits[unlearned[-1] + 1]["step"])


def _between(before: Any, step: Any) -> tuple[tuple[int | None, int], str]:
    if not _known(before):
        return (None, int(step)), f"is learned by the first checkpoint (step {step:,.0f})"
    return (int(before), int(step)), f"is learned between steps {before:,.0f} and {step:,.0f}"


def _size(last: dict[Any, Any], circuits: Rows, unsure: list[str]) -> str:
    low, high = (last.get(f"n_edges_{end}", float("nan")) for end in ("low", "high"))
    interval = ""
    if _known(low) and _known(high):
        interval = "" if low == high else f" (95%: {low:,.0f} to {high:,.0f})"
        if high >= WIDE * max(low, 1):
            unsure.append(f"the circuit may have {low:,.0f} or {high:,.0f} edges")
    elif last["status"] != GIVEN:
        unsure.append("the circuit's size has no interval")
    if last["status"] == UNCONFIRMED:
        unsure.append("no larger circuit was tried to confirm the circuit's size")
    at = "" if last is circuits[-1] else f" at step {last['step']:,.0f}, the last at which there is one"
    return f"has {counted(int(last['n_edges']), 'edge')}{interval}{at}"


def _chance(last: dict[Any, Any], random: pd.DataFrame, unsure: list[str]) -> str:
    rows = random[random["step"] == last["step"]].to_dict("records") if len(random) else []
    if not rows or not rows[0]["n_random"] > 0:
        unsure.append("the circuit was not compared with random ones")
        return ""
    n, beaten = int(rows[0]["n_random"]), int(rows[0]["n_beaten"])
    # The circuit is one of n + 1 that may as well have come out in any order.
    if (1 + n - beaten) / (n + 1) > LEVEL:
        if beaten < n:
            return f", is not shown to be better than chance: {n - beaten} of {n} random circuits do at least as well"
        unsure.append(f"{n} random circuits are too few to rule out chance")
    return f", beats {'all' if beaten == n else f'{beaten} of'} {n} random circuits"


def _stability(found: list[dict[Any, Any]], changes: pd.DataFrame, changed: list[int], unsure: list[str]) -> str:
    if changes.empty:
        return ""
    latest = changes.sort_values("step").iloc[-1]
    if changed and changed[-1] == latest["step"]:
        return f", and still changes at the end, between steps {latest['other_step']:,.0f} and {latest['step']:,.0f}"
    since = changed[-1] if changed else int(found[0]["step"])
    floor = changes.loc[changes["step"] > since, "noise_low"].min()
    if _known(floor) and floor < 1:
        unsure.append(
            f"prompts alone move its edges to an overlap of {floor:.2f} (Jaccard); smaller changes do not show"
        )
    return f", and does not change by more than noise from step {since:,} on"


def _comparison(results: Results, name: str) -> pd.DataFrame:
    """Rows of a table of comparisons: of `similarity`, circuits as found against those of the checkpoint before."""
    try:
        table = results.comparison(name, whole=True)
    except UserError:
        return pd.DataFrame()
    if name != "similarity":
        return table[table["kind"] == "metric"]
    wanted = (table["against"] == "previous") & (table["at"] == "faithfulness") & (table["measure"] == "edge_jaccard")
    return table[wanted]


def _of(table: pd.DataFrame, model: str, task: str) -> pd.DataFrame:
    return table if table.empty else table[(table["model"] == model) & (table["task"] == task)]


def _known(value: Any) -> bool:
    return value is not None and not pd.isna(value)
