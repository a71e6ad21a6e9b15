"""What could be measured next, as commands that can be pasted: they follow from the run.json of what was measured."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from circuits_over_time.utils.config.keys import as_list
from circuits_over_time.utils.results.commands import StoredRun, command, how_to_compare, stored_runs
from circuits_over_time.utils.results.comparison import ComparisonFolder
from circuits_over_time.utils.results.kinds import KINDS, WITH_CIRCUIT
from circuits_over_time.utils.tasks.registry import TASKS, task_label

from ..parts.style import task_order
from ..parts.tables import Results
from .heads import sound_matches

# A kind of every analysis, and what the analysis measures.
ANALYSES = {
    "graphs": "circuits",
    "transfer": "circuits in the models of neighbouring checkpoints and of other tasks",
    "matched_transfer": "circuits of other models in this one, by matched heads",
    "task_performance": "how well the tasks are done",
    "components": "induction, previous-token, duplicate-token and copy scores of heads",
    "successor": "succession scores of heads",
    "cspa": "copy suppression of heads",
    "ioi_consistency": "the IOI algorithm, and which heads hold its roles",
    "greater_than_consistency": "the greater-than algorithm, and which heads and MLPs hold its roles",
}
IN_OTHERS = ("transfer", "matched_transfer")
NEEDS = {
    "components": TASKS,
    "successor": TASKS,
    "ioi_consistency": ("ioi",),
    "greater_than_consistency": ("greater_than",),
}
COMPARISON = "whether circuits change by more than noise, when things emerge, and which edges come and go"


class Advice(NamedTuple):
    """What a command would measure, and the command."""

    what: str
    command: str


def unfinished(results: Results) -> list[Advice]:
    """What a run was asked for and has not measured: checkpoints, and circuits in the models of others."""
    runs = [run for model in results.every_model for run in stored_runs(results.store.root, model)]
    # Whoever asks for a schedule by its name asks for all steps that another run of the same name found there.
    scheduled: dict[tuple[str, str], set[int]] = {}
    for run in runs:
        scheduled.setdefault((run.model, str(run.given["checkpoints"])), set()).update(_steps(results, run))
    outdated = {(run.script, run.model, run.task) for run in runs if run.outdated}
    left: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        # A script writes all of its kinds together, and transfer after the others.
        if run.kind not in ANALYSES or run.given.get("on_duplicate_weights") == "skip":
            continue
        schedule, done = run.given["checkpoints"], _steps(results, run)
        asked = set(schedule) if isinstance(schedule, list) else scheduled[run.model, schedule]
        kind, missing = run.kind, len(asked - done)
        if not missing and kind == "graphs" and run.given.get("transfer"):
            kind, missing = "transfer", len(asked - set(results.store.folder("transfer", run.model, run.task).steps()))
        again = {"overwrite": True} if (run.script, run.model, run.task) in outdated else {}
        if missing and (made := command(KINDS[kind], run.given, results.store.root, **again)):
            task = "" if run.task is None else f", {task_label(run.task)}"
            left.setdefault((kind, made), []).append(f"{run.model}{task}: {missing} of {len(asked)} checkpoints")
    return [Advice(f"{ANALYSES[kind]} ({'; '.join(of)})", made) for (kind, made), of in left.items()]


def also_possible(results: Results) -> list[Advice]:
    """Analyses of the models and tasks on the page that nobody has asked for yet."""
    runs = {model: list(stored_runs(results.store.root, model)) for model in results.every_model}
    baselines = results.table_if_any("baselines")
    there = set() if baselines is None else set(baselines.loc[baselines["status"].isin(WITH_CIRCUIT), "model"])
    with_circuit = {model: of_model for model, of_model in runs.items() if model in there}
    matched = {model: of_model for model, of_model in with_circuit.items() if sound_matches(results, model)}
    among = {"transfer": with_circuit, "matched_transfer": matched}
    found = [advice for kind in ANALYSES for advice in _further(results, kind, among.get(kind, runs))]
    compared = any(ComparisonFolder(results.store.root).path.glob("*.csv"))
    pairs = [(model, task) for model in results.models("graphs") for task in results.tasks("graphs", model)]
    folders = [results.store.folder("graphs", *pair) for pair in pairs]
    # Comparisons need the scores of two steps.
    if not compared and any(sum(folder.has(step, ".pt") for step in folder.steps()) > 1 for folder in folders):
        found.append(Advice(COMPARISON, how_to_compare(results.store.root)))
    return found


def _further(results: Results, kind: str, runs_by_model: Mapping[str, list[StoredRun]]) -> Iterator[Advice]:
    """One command for all models whose runs were asked for in the same way."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for model, runs in runs_by_model.items():
        if runs and model not in results.models(kind) and (wanted := _wanted(runs, kind)) is not None:
            alike.setdefault(json.dumps(wanted | {"model": None}), []).append(wanted)
    for group in alike.values():
        models = [wanted["model"] for wanted in group]
        wanted = group[0] | {"model": models[0] if len(models) == 1 else models}
        made = command(KINDS[kind], wanted, results.store.root, same_script=kind in IN_OTHERS)
        # Few tokenizers have the words of built-in tasks and of succession. Where no config says that the model's does,
        # a task that was measured must.
        words = NEEDS.get(kind)
        if made is not None and (words is None or " -c " in made or set(words) & set(as_list(wanted.get("task")))):
            yield Advice(f"{ANALYSES[kind]} ({', '.join(models)})", made)


def _wanted(runs: list[StoredRun], kind: str) -> dict[str, Any] | None:
    """The config of a model's runs, with all of their tasks; None if it does not go with the kind."""
    if kind in IN_OTHERS:
        runs = [run for run in runs if run.kind == "graphs"]
        if kind == "matched_transfer":  # which carries circuits of edges
            runs = [run for run in runs if run.given.get("level") == "edge" and not run.given.get("positions")]
        if not runs or runs[0].given.get(kind):
            return None
    with_task = [run for run in runs if run.task is not None]
    tasks = task_order(name for run in with_task if (name := run.given_task(run.task)))
    task = {"task": tasks[0] if len(tasks) == 1 else tasks} if tasks else {}
    again = {"overwrite": True} if kind in IN_OTHERS and any(run.outdated for run in runs) else {}
    return (with_task or runs)[0].given | task | again


def _steps(results: Results, run: StoredRun) -> set[int]:
    return set(results.store.folder(run.kind, run.model, run.task).steps())
