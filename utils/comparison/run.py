"""The run of compare_circuits.py: reads stored results, works everything out, writes `results/comparison`.

Similarities cost most. The rows of every pair of circuits are kept as soon as they are there, under a hash of all that
they follow from, so that a run that was stopped, or one with a new model or task, works out only what is missing.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations, pairwise

import pandas as pd
import yaml

from ..base.errors import UserError, suggest
from ..base.files import require_writable
from ..base.progress import Progress, about, duration
from ..config.keys import is_execution, task_and_method
from ..results.comparison import COMPARISONS, ComparisonFolder, fingerprint
from ..results.record import recorded_parameters
from ..results.store import Store
from .changes import CircuitPair, Comparer, flagged
from .curves import Curve, best_head_curves, circuit_curves, head_curves, metric_curves
from .handovers import handovers
from .inputs import ModelTask, Trajectory, fixed_sizes, model_tasks, read_trajectory
from .keys import ComparisonConfig
from .matched import Match, MatchedComparer, other_rows, same_circuit, transfer_rows
from .matching import common_signatures, require_signatures
from .scale import scale_table
from .seeds import seed_emergence, seed_groups, seeds_table
from .tables import curves_table, edges_tables, emergence_table, order_table

log = logging.getLogger(__name__)

PACKAGES = ("torch", "numpy", "scipy", "pandas", "diptest")
METHOD = 2
"""Count up when rows of similarities are worked out otherwise: those kept from before are not used then."""


def compare(config: ComparisonConfig, *, dry_run: bool = False) -> dict[str, pd.DataFrame]:
    """Compare all circuits of a results folder, and write the tables, which it returns by name.

    What is compared there already stays: its models and tasks are compared too. With `dry_run`, it says on stdout what
    there is to do and how long it takes, and writes nothing. A UserError if there is nothing to compare, a name or step
    of the config does not exist, or the folder holds comparisons with other settings.
    """
    store = Store(config.results_dir)
    folder = ComparisonFolder(store.root)
    plan = _Plan(config, store, _compared_before(folder, config))
    if config.match_heads and len(plan.models) > 1:
        require_signatures(store, config, plan.models)
    pairs = plan.pairs()
    kept = {key: folder.part(key) for key in pairs}
    left = [key for key, rows in kept.items() if rows is None]
    if dry_run:
        start = time.monotonic()
        for key in left[:1]:
            plan.rows(pairs[key])
        seconds = (time.monotonic() - start) * len(left)
        sys.stdout.write(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        for (model, task), trajectory in plan.trajectories.items():
            sys.stdout.write(f"{model} {task}: {len(trajectory.steps)} checkpoints\n")
        sys.stdout.write(f"pairs of circuits: {len(pairs) - len(left)} compared, {len(left)} missing\n")
        if left:
            sys.stdout.write(f"time: {about(seconds)} for them, as the first of them took just now\n")
        return {}
    require_writable(folder.path, "results_dir")
    progress = Progress("compare_circuits", len(left) + len(plan.trajectories), "done")
    frames = []
    for key, pair in pairs.items():
        rows = kept[key]
        if rows is None:
            progress.say(" ".join(dict.fromkeys((pair.first.model, pair.second.model, pair.second.task))))
            rows = pd.DataFrame(plan.rows(pair))
            folder.keep_part(key, rows)
            progress.advance()
        frames.append(rows)
    folder.drop_parts(besides=pairs)
    similarity = flagged(pd.concat(frames, ignore_index=True), config.false_discovery_rate)
    tables = {"similarity": similarity} | _other_tables(plan, progress)
    progress.close()
    log.info("%d pairs of circuits compared, %d of them now, in %s", len(pairs), len(left), duration(progress.seconds))
    tables = {name: tables[name] for name in COMPARISONS}
    run = {"config": config.model_dump(mode="json"), "compared": list(plan.trajectories), "sizes": plan.sizes}
    run["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES}
    # What was left out because it is damaged is a part of what made the tables.
    folder.write_all(tables, run | ({"left_out": store.left_out} if store.left_out else {}))
    _log_changes(similarity)
    log.info("wrote %s: %s", folder.path, ", ".join(f"{name}.csv" for name in COMPARISONS))
    return tables


def _compared_before(folder: ComparisonFolder, config: ComparisonConfig) -> list[list[str]]:
    """The models and tasks of the tables that are there; a UserError if they were made with other settings."""
    if config.overwrite or not (folder.path / "run.json").exists():
        return []
    run, usual = folder.read_run(), ComparisonConfig().model_dump(mode="json")
    for name, field in ComparisonConfig.model_fields.items():
        asked = config.model_dump(mode="json")[name]
        held = run.get("config", {}).get(name, usual[name])  # An older version did not have all keys.
        if not is_execution(field) and held != asked:
            raise UserError(
                f"{name}: {folder.path} holds comparisons with {json.dumps(held)}, this run asks for "
                f"{json.dumps(asked)}; pass overwrite=true, or another results_dir with a copy of the results"
            )
    return list(run.get("compared", []))


class _Plan:
    """What a run compares, checked before any work begins."""

    def __init__(self, config: ComparisonConfig, store: Store, earlier: list[list[str]]) -> None:
        self.config, self.store = config, store
        trajectories = {key: read_trajectory(store, *key) for key in model_tasks(store, config, earlier)}
        longest = max(len(trajectory.steps) for trajectory in trajectories.values())
        if (sustained := config.emergence.sustained) > longest:
            few = f"{sustained} checkpoints in a row, but there are only {longest}"
            raise UserError(f"emergence.sustained: {few}; pass emergence.sustained={longest}")
        self.trajectories, self.models = trajectories, list(dict.fromkeys(model for model, _ in trajectories))
        self.references = {key: _reference(trajectory, config) for key, trajectory in trajectories.items()}
        self.sizes, self.groups = fixed_sizes(trajectories, config), _groups(config, trajectories)
        self.comparers = {task: Comparer(config, size) for task, size in self.sizes.items()}

    def rows(self, pair: CircuitPair) -> list[dict[str, object]]:
        """What comparing a pair gives."""
        return self.comparers[pair.second.task].rows(pair)

    def pairs(self) -> dict[str, CircuitPair]:
        """Every pair of circuits, under a hash of all that its rows follow from."""
        pairs: list[CircuitPair] = []
        for key, trajectory in self.trajectories.items():
            checkpoints = list(trajectory.checkpoints.values())
            reference = trajectory.checkpoints[self.references[key]]
            pairs += [CircuitPair("previous", before, after) for before, after in pairwise(checkpoints)]
            pairs += [CircuitPair("reference", reference, checkpoint) for checkpoint in checkpoints]
        for first, second in _comparable(self.config, self.trajectories):
            against = "model" if first.task == second.task else "method"
            steps = [step for step in first.steps if step in second.checkpoints]
            pairs += [CircuitPair(against, first.checkpoints[step], second.checkpoints[step]) for step in steps]
        settings = self.config.model_dump(mode="json", include={"pairs", "permutations", "seed"}) | {"method": METHOD}
        if self.config.weighted_jaccard == "raw":
            settings["weighted_jaccard"] = "raw"

        def of(pair: CircuitPair) -> str:
            circuits = [pair.first.fingerprint, pair.second.fingerprint]
            return fingerprint([settings, self.sizes[pair.second.task], pair.against, circuits])

        return {of(pair): pair for pair in pairs}


def _other_tables(plan: _Plan, progress: Progress) -> dict[str, pd.DataFrame]:
    """All tables but `similarity`: first model by model, then those about several models."""
    config, store, models = plan.config, plan.store, plan.models
    frames: dict[str, list[pd.DataFrame]] = defaultdict(list)  # table -> its rows, model by model
    curves: dict[str, list[Curve]] = {}
    common: dict[str, list[Curve]] = {}  # of names that seeds have in common
    best: list[Curve] = []
    for model in models:
        progress.say(f"{model}: emergence")
        circuits: list[Curve] = []
        for (name, task), trajectory in plan.trajectories.items():
            if name == model:
                circuits += circuit_curves(trajectory, plan.references[model, task], plan.sizes[task], config)
                turned, lived = edges_tables(trajectory, plan.sizes[task], config)
                frames["turnover"].append(turned)
                frames["lifetimes"].append(lived)
                progress.advance()
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
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}
    tables.setdefault("handovers", pd.DataFrame(columns=list(COMPARISONS["handovers"])))
    every_curve = [curve for model in models for curve in curves[model]]
    tables["curves"] = curves_table([*every_curve, *best])
    tables["seeds"] = seeds_table(common, plan.groups)
    common_emergence = tables.pop("common emergence")
    rate = config.false_discovery_rate
    tables["seed_emergence"] = seed_emergence(common_emergence, tables["seeds"], plan.groups, rate)
    faithfulness = pd.concat([store.read_tables("faithfulness", *key) for key in plan.trajectories], ignore_index=True)
    parameters = {model: count for model in models if (count := recorded_parameters(store, model)) is not None}
    tables["scale"] = scale_table(faithfulness, parameters, config.seed)
    return tables | _matched_tables(plan, tables, progress)


def _matched_tables(plan: _Plan, tables: Mapping[str, pd.DataFrame], progress: Progress) -> dict[str, pd.DataFrame]:
    """`matches`, `matched` and `same_circuit`: without rows unless `match_heads` asks for them."""
    matches, rows = [pd.DataFrame(columns=list(COMPARISONS["matches"]))], list[dict[str, object]]()
    comparer, store = MatchedComparer(plan.config), plan.store
    models, kind = plan.models if plan.config.match_heads else [], "ioi_consistency_heads"
    graphs = {model: trajectory.model_graph for (model, _), trajectory in plan.trajectories.items()}
    roles = {model: store.read_tables(kind, model) for model in models if model in store.models(kind)}
    for pair in combinations(models, 2):
        progress.say(f"{pair[0]} {pair[1]}: heads")
        if (signatures := common_signatures(store, plan.config, *pair)) is None:
            log.warning("%s and %s have no signatures of the same step and task; not matched", *pair)
            continue
        match = Match((graphs[pair[0]], graphs[pair[1]]), signatures, plan.config)
        matches.append(match.table())
        found = [*match.stability(), *other_rows(match, pair, tables, roles)]
        for (model, task), first in plan.trajectories.items():
            second = plan.trajectories.get((pair[1], task)) if model == pair[0] else None
            if second is not None and first.graph == first.model_graph:  # Of edges, told apart by no role.
                found += comparer.circuits(match, first, second, plan.sizes[task])
                found += transfer_rows(store, pair, task)
        stamp = {"model": pair[0], "other_model": pair[1], "step": match.step}
        rows += [stamp | row for row in found]
    matched = pd.DataFrame(rows, columns=list(COMPARISONS["matched"]))
    same = same_circuit(matched, plan.groups)
    return {"matches": pd.concat(matches, ignore_index=True), "matched": matched, "same_circuit": same}


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
    """Pairs of models of one shape with their task, and of methods with their model and task."""
    if config.between == "none":
        return []
    pairs = []
    for first, second in combinations(trajectories.values(), 2):
        of_one_task = task_and_method(first.task)[0] == task_and_method(second.task)[0]
        methods_of_one = first.model == second.model and of_one_task
        if first.graph != second.graph or not (first.task == second.task or methods_of_one):
            continue
        pairs.append((first, second))
        if first.rule.grows() != second.rule.grows():
            key, of = ("model", first.task) if first.task == second.task else ("task", first.model)
            raise UserError(
                f"between: the {of} circuits of {getattr(first, key)} ({first.rule}) and {getattr(second, key)} "
                f"({second.rule}) were grown by different rules; measure one of them again, name {key}s of one rule "
                f"({key}=...), or pass between=none"
            )
    return pairs


def _groups(config: ComparisonConfig, trajectories: Mapping[ModelTask, Trajectory]) -> Mapping[str, list[str]]:
    shapes = {model: trajectory.model_graph for (model, _), trajectory in trajectories.items()}
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
