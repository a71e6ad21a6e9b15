"""The run of compare_circuits.py: reads stored results, works everything out, writes `results/comparison`.

Similarities cost most. Their rows are kept as soon as a model and task is done, under a hash of everything that they
follow from, so that a run that was stopped, or one with a new model, works out only what is missing.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from itertools import chain, combinations

import pandas as pd

from ..base.errors import UserError, suggest
from ..base.files import require_writable
from ..base.progress import Progress, duration
from ..results.comparison import COMPARISONS, HANDOVERS, ORDER, ComparisonFolder, fingerprint
from ..results.record import recorded_parameters
from ..results.store import Store
from .changes import Comparer, Pair, flagged, pairs_between, pairs_over_training, similarity_rows
from .curves import Curve, best_head_curves, circuit_curves, head_curves, metric_curves
from .handovers import handovers
from .inputs import Sequence, Unit, fixed_sizes, read_sequence, units
from .keys import ComparisonConfig
from .scale import scale_table
from .seeds import seed_emergence, seed_groups, seeds_table
from .tables import change_points_table, curves_table, edges_tables, emergence_table, order_table

log = logging.getLogger(__name__)

PACKAGES = ("torch", "numpy", "scipy", "pandas", "ruptures", "diptest")
METHOD = 2
"""Count up when rows of similarities are worked out otherwise: those kept from before are not used then."""
Tables = dict[str, pd.DataFrame]


def compare(config: ComparisonConfig) -> Tables:
    """Compare all circuits of a results folder, and write the tables.

    Returns:
        The tables, by name.

    Raises:
        UserError: if there is nothing to compare, or a name or step of the config does not exist.
    """
    store = Store(config.results_dir)
    names = units(store, config)
    sequences = {unit: read_sequence(store, *unit) for unit in names}
    sizes = fixed_sizes(sequences, config)
    references = {unit: _reference(sequence, config) for unit, sequence in sequences.items()}
    folder = ComparisonFolder(store.root)
    require_writable(folder.path, "results_dir")
    similarity = _similarity(config, sequences, sizes, references, folder)
    tables = _rest(config, store, sequences, sizes, references, similarity)
    for name, table in tables.items():
        folder.write(name, table)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    folder.write_run({"config": config.model_dump(mode="json"), "sizes": sizes, "versions": versions})
    _say(similarity, folder)
    return tables


def _similarity(
    config: ComparisonConfig,
    sequences: Mapping[Unit, Sequence],
    sizes: Mapping[str, int],
    references: Mapping[Unit, int],
    folder: ComparisonFolder,
) -> pd.DataFrame:
    """All rows of `similarity`: what is kept from an earlier run, and the rest worked out with a progress bar."""
    jobs: dict[str, tuple[str, list[Pair], str]] = {}  # key -> name, pairs, task
    keys = config.model_dump(mode="json", include={"pairs", "permutations", "seed"}) | {"method": METHOD}
    for unit, sequence in sequences.items():
        settings = keys | {"size": sizes[unit[1]], "reference": references[unit], "what": "training"}
        pairs = list(pairs_over_training(sequence, references[unit]))
        jobs[fingerprint((), [sequence.fingerprint, settings])] = (" ".join(unit), pairs, unit[1])
    for one, other in _comparable(config, sequences):
        settings = keys | {"size": sizes[one.task], "what": "between"}
        pairs = list(pairs_between(one, other))
        key = fingerprint((), [one.fingerprint, other.fingerprint, settings])
        jobs[key] = (f"{one.model} and {other.model} {one.task}", pairs, one.task)
    parts = {key: folder.part(key) for key in jobs}
    progress = Progress("compare_circuits", sum(len(jobs[key][1]) for key, part in parts.items() if part is None))
    frames = []
    for key, (name, pairs, task) in jobs.items():
        rows = parts[key]
        if rows is None:
            progress.say(name)
            rows = similarity_rows(Comparer(config, sizes[task]), iter(pairs), progress.advance)
            folder.keep_part(key, rows)
        frames.append(rows)
    progress.close()
    log.info("%d pairs of circuits compared in %s", progress.done, duration(progress.seconds))
    folder.drop_parts(besides=jobs)
    return flagged(pd.concat(frames, ignore_index=True), config.false_discovery_rate)


def _rest(
    config: ComparisonConfig,
    store: Store,
    sequences: Mapping[Unit, Sequence],
    sizes: Mapping[str, int],
    references: Mapping[Unit, int],
    similarity: pd.DataFrame,
) -> Tables:
    models = list(dict.fromkeys(model for model, _ in sequences))
    groups = _groups(config, sequences)
    curves: dict[str, list[Curve]] = {}
    best: dict[str, list[Curve]] = {}
    shared: dict[str, list[Curve]] = {}  # of names that seeds have in common
    emerged, orders, roles, turned, lived, common = [], [], [], [], [], []
    progress = Progress("compare_circuits", len(models))
    for model in models:
        progress.say(f"{model}: emergence")
        own = [unit for unit in sequences if unit[0] == model]
        circuits = [
            curve for unit in own for curve in circuit_curves(sequences[unit], references[unit], sizes[unit[1]], config)
        ]
        metrics = list(metric_curves(store, model, config))
        heads = list(head_curves(store, model, config))
        best[model] = list(best_head_curves(heads))
        curves[model] = [*heads, *metrics, *circuits]
        shared[model] = [*best[model], *metrics, *circuits]
        table, leading = emergence_table(curves[model], config)
        emerged.append(table)
        common.append(emergence_table(shared[model], config)[0])
        orders.append(order_table(model, leading, config.resamples))
        if model in store.models("ioi_consistency_heads"):
            roles_of_heads = store.read_tables("ioi_consistency_heads", model)
            roles.append(handovers(roles_of_heads, config.seed, config.resamples))
        for unit in own:
            of_edges = edges_tables(sequences[unit], sizes[unit[1]])
            turned.append(of_edges[0])
            lived.append(of_edges[1])
        progress.advance()
    progress.close()
    every_curve = [curve for model in models for curve in curves[model]]
    over_seeds = seeds_table(shared, groups)
    faithfulness = pd.concat([store.read_tables("faithfulness", *unit) for unit in sequences], ignore_index=True)
    parameters = {model: count for model in models if (count := recorded_parameters(store, model)) is not None}
    return {
        "similarity": similarity,
        "turnover": pd.concat(turned, ignore_index=True),
        "lifetimes": pd.concat(lived, ignore_index=True),
        "curves": curves_table([*every_curve, *chain.from_iterable(best.values())]),
        "emergence": pd.concat(emerged, ignore_index=True),
        "order": pd.concat(orders, ignore_index=True) if orders else pd.DataFrame(columns=list(ORDER.columns)),
        "change_points": change_points_table(similarity, every_curve),
        "handovers": pd.concat(roles, ignore_index=True) if roles else pd.DataFrame(columns=list(HANDOVERS.columns)),
        "seeds": over_seeds,
        "seed_emergence": seed_emergence(
            pd.concat(common, ignore_index=True), over_seeds, groups, config.false_discovery_rate
        ),
        "scale": scale_table(faithfulness, parameters, config.seed, config.resamples),
    }


def _reference(sequence: Sequence, config: ComparisonConfig) -> int:
    if config.reference is None:
        return sequence.last
    if config.reference not in sequence.checkpoints:
        steps = ", ".join(map(str, sequence.steps[-5:]))
        raise UserError(
            f"reference: {sequence.model} {sequence.task} has no results of step {config.reference}; name another step "
            f"(..., {steps}) or leave it out for the last one"
        )
    return config.reference


def _comparable(config: ComparisonConfig, sequences: Mapping[Unit, Sequence]) -> list[tuple[Sequence, Sequence]]:
    if config.between == "none":
        return []
    pairs = [
        (one, other)
        for one, other in combinations(sequences.values(), 2)
        if one.task == other.task and one.graph == other.graph
    ]
    for one, other in pairs:
        if one.rule.grows() != other.rule.grows():
            raise UserError(
                f"between: the {one.task} circuits of {one.model} ({one.rule}) and {other.model} ({other.rule}) were "
                "grown by different rules; measure one of them again, name models of one rule (model=...), or pass "
                "between=none"
            )
    return pairs


def _groups(config: ComparisonConfig, sequences: Mapping[Unit, Sequence]) -> Mapping[str, list[str]]:
    shapes = {model: sequence.graph for (model, _), sequence in sequences.items()}
    if config.seeds is None:
        return seed_groups(shapes, lambda one, other: shapes[one] == shapes[other])
    for group, members in config.seeds.items():
        for model in members:
            if model not in shapes:
                raise UserError(f"seeds.{group}: '{model}' is not compared{suggest(model, shapes)}")
    return config.seeds


def _say(similarity: pd.DataFrame, folder: ComparisonFolder) -> None:
    """How many changes between checkpoints are more than noise, for every model and task."""
    wanted = (similarity["against"] == "previous") & (similarity["measure"] == "edge_jaccard")
    for (model, task), rows in similarity[wanted].groupby(["model", "task"], sort=False):
        counts = [
            f"{int(part['changed'].sum())} of {len(part)} at fixed {at}" for at, part in rows.groupby("at", sort=True)
        ]
        log.info("%s %s: edges change by more than the prompts explain in %s", model, task, ", ".join(counts))
    log.info("wrote %s: %s", folder.path, ", ".join(f"{name}.csv" for name in COMPARISONS))
