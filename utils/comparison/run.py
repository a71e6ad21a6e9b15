"""The run of compare_circuits.py: reads stored results, works everything out, writes `results/comparison`.

Similarities cost most. Their rows are kept as soon as a model and task is done, under a hash of everything that they
follow from, so that a run that was stopped, or one with a new model, works out only what is missing.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations

import pandas as pd

from ..base.errors import UserError, suggest
from ..base.files import require_writable
from ..base.progress import Progress, duration
from ..results.comparison import COMPARISONS, ComparisonFolder, fingerprint
from ..results.record import recorded_parameters
from ..results.store import Store
from .changes import CircuitPair, Comparer, flagged, pairs_between, pairs_over_training
from .curves import Curve, best_head_curves, circuit_curves, head_curves, metric_curves
from .handovers import handovers
from .inputs import ModelTask, Trajectory, fixed_sizes, model_tasks, read_trajectory
from .keys import ComparisonConfig
from .scale import scale_table
from .seeds import seed_emergence, seed_groups, seeds_table
from .tables import change_points_table, curves_table, edges_tables, emergence_table, order_table

log = logging.getLogger(__name__)

PACKAGES = ("torch", "numpy", "scipy", "pandas", "ruptures", "diptest")
METHOD = 2
"""Count up when rows of similarities are worked out otherwise: those kept from before are not used then."""


def compare(config: ComparisonConfig) -> dict[str, pd.DataFrame]:
    """Compare all circuits of a results folder, and write the tables.

    Returns:
        The tables, by name.

    Raises:
        UserError: if there is nothing to compare, or a name or step of the config does not exist.
    """
    store = Store(config.results_dir)
    trajectories = {key: read_trajectory(store, *key) for key in model_tasks(store, config)}
    sizes = fixed_sizes(trajectories, config)
    references = {key: _reference(trajectory, config) for key, trajectory in trajectories.items()}
    groups = _groups(config, trajectories)
    longest = max(len(trajectory.steps) for trajectory in trajectories.values())
    if config.emergence.sustained > longest:
        raise UserError(
            f"emergence.sustained: {config.emergence.sustained} checkpoints in a row, but there are only {longest}"
        )
    folder = ComparisonFolder(store.root)
    require_writable(folder.path, "results_dir")
    similarity = _similarity(config, trajectories, sizes, references, folder)
    tables = {"similarity": similarity} | _other_tables(
        config, store, trajectories, sizes, references, groups, similarity
    )
    tables = {name: tables[name] for name in COMPARISONS}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    folder.write_all(
        tables, {"config": config.model_dump(mode="json"), "sizes": sizes, "versions": versions} | _gaps(store)
    )
    _log_changes(similarity)
    log.info("wrote %s: %s", folder.path, ", ".join(f"{name}.csv" for name in COMPARISONS))
    return tables


def _gaps(store: Store) -> dict[str, list[str]]:
    """What was left out because it is damaged, for run.json; nothing if all is sound."""
    return {"left_out": store.left_out} if store.left_out else {}


def _similarity(
    config: ComparisonConfig,
    trajectories: Mapping[ModelTask, Trajectory],
    sizes: Mapping[str, int],
    references: Mapping[ModelTask, int],
    folder: ComparisonFolder,
) -> pd.DataFrame:
    """All rows of `similarity`: what is kept from an earlier run, and the rest worked out with a progress bar."""
    jobs: dict[str, tuple[str, list[CircuitPair], str]] = {}  # key -> name, pairs, task
    keys = config.model_dump(mode="json", include={"pairs", "permutations", "seed"}) | {"method": METHOD}
    for (model, task), trajectory in trajectories.items():
        reference = references[model, task]
        settings = keys | {"size": sizes[task], "reference": reference, "what": "training"}
        key = fingerprint((), [trajectory.fingerprint, settings])
        jobs[key] = (f"{model} {task}", list(pairs_over_training(trajectory, reference)), task)
    for first, second in _comparable(config, trajectories):
        settings = keys | {"size": sizes[first.task], "what": "between"}
        key = fingerprint((), [first.fingerprint, second.fingerprint, settings])
        jobs[key] = (f"{first.model} and {second.model} {first.task}", list(pairs_between(first, second)), first.task)
    kept = {key: folder.part(key) for key in jobs}
    progress = Progress("compare_circuits", sum(len(jobs[key][1]) for key, rows in kept.items() if rows is None))
    frames = []
    for key, (name, pairs, task) in jobs.items():
        rows = kept[key]
        if rows is None:
            progress.say(name)
            comparer, measured = Comparer(config, sizes[task]), []
            for pair in pairs:
                measured += comparer.rows(pair)
                progress.advance()
            rows = pd.DataFrame(measured)
            folder.keep_part(key, rows)
        frames.append(rows)
    progress.close()
    log.info("%d pairs of circuits compared in %s", progress.done, duration(progress.seconds))
    folder.drop_parts(besides=jobs)
    return flagged(pd.concat(frames, ignore_index=True), config.false_discovery_rate)


def _other_tables(
    config: ComparisonConfig,
    store: Store,
    trajectories: Mapping[ModelTask, Trajectory],
    sizes: Mapping[str, int],
    references: Mapping[ModelTask, int],
    groups: Mapping[str, list[str]],
    similarity: pd.DataFrame,
) -> dict[str, pd.DataFrame]:
    """All tables but `similarity`: first model by model, then those about several models."""
    models = list(dict.fromkeys(model for model, _ in trajectories))
    frames: dict[str, list[pd.DataFrame]] = defaultdict(list)  # table -> its rows, model by model
    curves: dict[str, list[Curve]] = {}
    common: dict[str, list[Curve]] = {}  # of names that seeds have in common
    best: list[Curve] = []
    progress = Progress("compare_circuits", len(models))
    for model in models:
        progress.say(f"{model}: emergence")
        own = {task: trajectory for (name, task), trajectory in trajectories.items() if name == model}
        circuits = [
            curve
            for task, trajectory in own.items()
            for curve in circuit_curves(trajectory, references[model, task], sizes[task], config)
        ]
        metrics, heads = list(metric_curves(store, model, config)), list(head_curves(store, model, config))
        best_heads = list(best_head_curves(heads))
        best += best_heads
        curves[model], common[model] = [*heads, *metrics, *circuits], [*best_heads, *metrics, *circuits]
        table, leading = emergence_table(curves[model], config)
        frames["emergence"].append(table)
        frames["common emergence"].append(emergence_table(common[model], config)[0])
        frames["order"].append(order_table(model, leading, config.resamples))
        if model in store.models("ioi_consistency_heads"):
            roles = store.read_tables("ioi_consistency_heads", model)
            frames["handovers"].append(handovers(roles, config.seed, config.resamples))
        for task, trajectory in own.items():
            turned, lived = edges_tables(trajectory, sizes[task])
            frames["turnover"].append(turned)
            frames["lifetimes"].append(lived)
        progress.advance()
    progress.close()
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}
    tables.setdefault("handovers", pd.DataFrame(columns=list(COMPARISONS["handovers"])))
    every_curve = [curve for model in models for curve in curves[model]]
    tables["curves"] = curves_table([*every_curve, *best])
    tables["change_points"] = change_points_table(similarity, every_curve)
    tables["seeds"] = seeds_table(common, groups)
    common_emergence = tables.pop("common emergence")
    rate = config.false_discovery_rate
    tables["seed_emergence"] = seed_emergence(common_emergence, tables["seeds"], groups, rate)
    faithfulness = pd.concat([store.read_tables("faithfulness", *key) for key in trajectories], ignore_index=True)
    parameters = {model: count for model in models if (count := recorded_parameters(store, model)) is not None}
    tables["scale"] = scale_table(faithfulness, parameters, config.seed, config.resamples)
    return tables


def _reference(trajectory: Trajectory, config: ComparisonConfig) -> int:
    if config.reference is None:
        return trajectory.steps[-1]
    if config.reference not in trajectory.checkpoints:
        steps = ", ".join(map(str, trajectory.steps[-5:]))
        raise UserError(
            f"reference: {trajectory.model} {trajectory.task} has no results of step {config.reference}; name another "
            f"step (..., {steps}) or leave it out for the last one"
        )
    return config.reference


def _comparable(
    config: ComparisonConfig, trajectories: Mapping[ModelTask, Trajectory]
) -> list[tuple[Trajectory, Trajectory]]:
    """Pairs of models of one shape, with their task."""
    if config.between == "none":
        return []
    pairs = [
        (first, second)
        for first, second in combinations(trajectories.values(), 2)
        if first.task == second.task and first.graph == second.graph
    ]
    for first, second in pairs:
        if first.rule.grows() != second.rule.grows():
            raise UserError(
                f"between: the {first.task} circuits of {first.model} ({first.rule}) and {second.model} "
                f"({second.rule}) were grown by different rules; measure one of them again, name models of one rule "
                "(model=...), or pass between=none"
            )
    return pairs


def _groups(config: ComparisonConfig, trajectories: Mapping[ModelTask, Trajectory]) -> Mapping[str, list[str]]:
    shapes = {model: trajectory.graph for (model, _), trajectory in trajectories.items()}
    if config.seeds is None:
        return seed_groups(shapes, lambda first, second: shapes[first] == shapes[second])
    for group, members in config.seeds.items():
        for model in members:
            if model not in shapes:
                raise UserError(f"seeds.{group}: '{model}' is not compared{suggest(model, shapes)}")
    return config.seeds


def _log_changes(similarity: pd.DataFrame) -> None:
    """Log how many changes between checkpoints are more than noise, for every model and task."""
    wanted = (similarity["against"] == "previous") & (similarity["measure"] == "edge_jaccard")
    for (model, task), rows in similarity[wanted].groupby(["model", "task"], sort=False):
        by_size = rows.groupby("at", sort=True)
        counts = [f"{int(at_size['changed'].sum())} of {len(at_size)} at fixed {at}" for at, at_size in by_size]
        log.info("%s %s: edges change by more than the prompts explain in %s", model, task, ", ".join(counts))
