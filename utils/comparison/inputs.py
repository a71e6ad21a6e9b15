"""What the comparisons start from: stored circuits with the scores of their folds. No model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import pandas as pd
import pydantic

from circuits_over_time.edge_attribution_patching.choices import Level
from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.scores.folds import KeptFolds
from circuits_over_time.edge_attribution_patching.units import Units

from ..base.errors import UserError, suggest
from ..config.keys import as_list, task_and_method
from ..results.checked import DamagedRecord
from ..results.commands import folder_named, how_to_make
from ..results.comparison import fingerprint
from ..results.store import ResultsFolder, Store
from .floors import SelectionRule
from .keys import ComparisonConfig

log = logging.getLogger(__name__)

_RULE = pydantic.TypeAdapter(SelectionRule)

ModelTask = tuple[str, str]
"""A model and a task."""


@dataclass(frozen=True)
class Checkpoint:
    """The stored circuit of one checkpoint."""

    model: str
    task: str
    rule: SelectionRule
    step: int
    tokens: int
    circuit: Circuit  # without edges if none was found
    folds: KeptFolds
    size: int | None  # edges asked for of the circuit that was found, before pruning
    fingerprint: str  # a hash of everything that was read

    @property
    def key(self) -> tuple[str, str, int]:
        """Model, task and step."""
        return self.model, self.task, self.step


@dataclass(frozen=True)
class Trajectory:
    """The circuits of one model and task over training."""

    model: str
    task: str
    checkpoints: Mapping[int, Checkpoint]
    rule: SelectionRule

    @property
    def steps(self) -> list[int]:
        """The steps of its checkpoints, ascending."""
        return list(self.checkpoints)

    @property
    def level(self) -> Level:
        """What its circuits consist of."""
        return self.graph.level if isinstance(self.graph, Units) else "edge"

    @property
    def graph(self) -> Graph:
        """The graph of all its circuits."""
        return next(iter(self.checkpoints.values())).circuit.graph

    @property
    def model_graph(self) -> Graph:
        """The graph of its model: of edges, without roles of tokens."""
        return self.graph.model if isinstance(self.graph, Units) else self.graph.plain


def model_tasks(store: Store, config: ComparisonConfig, earlier: Iterable[Sequence[str]] = ()) -> list[ModelTask]:
    """The models and tasks to compare, and what was `earlier`, as far as its results are still there.

    A UserError if there are no circuits, or none of a model or task that the config names.
    """
    models = store.models("graphs")
    if not models:
        raise UserError(f"{store.root / 'graphs'} holds no circuits; run: {how_to_make(store.root, 'graphs')}")

    def known(key: str, given: Names | None, there: list[str]) -> list[str]:
        names = [folder_named(name) for name in as_list(given)] or there
        for name in names:
            if name not in there:
                raise UserError(f"{key}: {store.root / 'graphs'} has no circuits of '{name}'{suggest(name, there)}")
        return names

    chosen = known("model", config.model, models)
    tasks = sorted({task for model in chosen for task in store.tasks("graphs", model)})
    wanted = known("task", config.task, tasks)
    asked = [(model, task) for model in chosen for task in store.tasks("graphs", model) if task in wanted]
    before = [(model, task) for model, task in earlier if model in models and task in store.tasks("graphs", model)]
    return list(dict.fromkeys([*before, *asked]))


def read_trajectory(store: Store, model: str, task: str) -> Trajectory:
    """All checkpoints of a model and task; a UserError if results are missing, or of a version that kept no folds."""
    graphs, baselines = store.folder("graphs", model, task), store.folder("baselines", model, task)
    settings = graphs.read_run().get("settings", {})
    # Settings of older versions lack those two.
    later = {key: settings[f"search.{key}"] for key in ("selection", "positive_share") if f"search.{key}" in settings}
    try:
        rule = _RULE.validate_python({"order": settings.get("search.order"), "seed": settings.get("seed"), **later})
    except pydantic.ValidationError:
        raise DamagedRecord(graphs.path / "run.json") from None

    def read(graphs: ResultsFolder, step: int) -> Checkpoint:
        circuit, stored = graphs.read_circuit(step)
        try:
            folds = KeptFolds.from_tensors(stored, circuit.graph)
        except ValueError as error:
            way_out = f"measure again: {graphs.how_to_make(overwrite=True)}"
            raise UserError(f"{graphs.file(step, '.pt')}: holds {error}; {way_out}") from None
        row = baselines.read_table(step).iloc[0]
        if pd.isna(row["full"]) or not bool(circuit.scores.isfinite().all()):
            way_out = f"delete it with its .csv, and run: {graphs.how_to_make()}"
            raise UserError(f"{graphs.file(step, '.pt')}: holds NaN or infinity; {way_out}")
        size = None if pd.isna(row["size"]) else int(row["size"])
        found = fingerprint(settings, (graphs, baselines), step)
        tokens = step if pd.isna(row["tokens"]) else int(row["tokens"])  # Where nobody knows them, steps count.
        return Checkpoint(model, task, rule, step, tokens, circuit, folds, size, found)

    checkpoints = store.sound(graphs, read)
    if not checkpoints:
        raise UserError(f"{graphs.path} holds no sound circuits; run: {graphs.how_to_make(repair=True)}")
    of_roles = {one.circuit.graph.roles: step for step, one in checkpoints.items()}
    if len(of_roles) > 1:  # Circuits are compared by the numbers of their edges.
        differing = ", ".join(f"{', '.join(roles)} at step {step}" for roles, step in list(of_roles.items())[:2])
        way_out = f"measure again: {graphs.how_to_make(overwrite=True)}"
        raise UserError(f"{graphs.path}: tokens have the roles {differing}; {way_out}")
    return Trajectory(model, task, checkpoints, rule)


def fixed_sizes(trajectories: Mapping[ModelTask, Trajectory], config: ComparisonConfig) -> dict[str, int]:
    """For every task the size that is compared at where sizes are fixed, in edges before pruning: one for all methods.

    A task without any circuit is logged, and gets 2% of its edges. A UserError if `size` exceeds a graph.
    """
    sizes = {}
    for task in sorted({task for _, task in trajectories}):
        level = next(each.level for each in trajectories.values() if each.task == task)
        kind = task_and_method(task)[0], level
        of_task = [each for each in trajectories.values() if (task_and_method(each.task)[0], each.level) == kind]
        fewest = min(trajectory.graph.n_edges for trajectory in of_task)
        if config.size is not None and config.size > fewest:
            raise UserError(f"size: {config.size} is more than the {fewest} edges of a model; choose a smaller one")
        checkpoints = [checkpoint for trajectory in of_task for checkpoint in trajectory.checkpoints.values()]
        circuit_sizes = [checkpoint.size for checkpoint in checkpoints if checkpoint.size is not None]
        if config.size is None and not circuit_sizes:
            log.info("%s: no checkpoint has a circuit; sizes are fixed at 2%% of the edges", task)
        sizes[task] = config.size or (round(median(circuit_sizes)) if circuit_sizes else max(1, fewest // 50))
    return sizes
