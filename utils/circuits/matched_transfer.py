"""Transfer between models: what the circuits of other models do in this one, under the names of matched heads.

Overlap says that two circuits have the same edges. This says whether the edges of one do the work of the other, and is
the harder test of "the same algorithm". The circuit of another model, of the same task and step, gets new names: each
head that of its match in this model (`results/comparison/matches.csv`), each MLP that of its layer. Edges of heads
without a match are dropped. What is left is evaluated here, on this model's prompts, beside this model's own circuit
and the same edges by their given names.

Floors are means over `n_random` circuits: `shuffled`, by these matches after the heads of each layer of this model were
dealt anew, and `random`, random circuits of as many edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.controls import random_circuits
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import FaithfulnessCurve
from circuits_over_time.edge_attribution_patching.circuits.renaming import HeadPlace, Renaming, deals
from circuits_over_time.edge_attribution_patching.graph import Graph

from ..models.checkpoint import LoadedCheckpoint
from ..results.comparison import ComparisonFolder
from ..results.kinds import KINDS
from ..results.store import Result, Store
from ..tasks import Task, tasks_of
from . import transfer
from .find import evaluator_of, prompts_at
from .keys import CircuitsConfig
from .transfer import StoredCircuit, StoredCircuits, TransferInputs

COLUMNS = list(KINDS["matched_transfer"].columns)


@dataclass(frozen=True)
class Carried:
    """A circuit under this model's names: `own`, `given`, or those of the heads matched by a signature.

    Attributes:
        heads: the heads of its model -> those of this one.
    """

    from_model: str
    names: str
    original: StoredCircuit
    graph: Graph
    heads: Mapping[HeadPlace, HeadPlace]

    def renamed(self, heads: Mapping[HeadPlace, HeadPlace]) -> StoredCircuit:
        """The circuit by some names."""
        edges = Renaming(self.graph, self.original.graph, heads).edges(self.original.edges)
        return StoredCircuit(self.original.step, self.original.task, edges, self.graph)


def carried(of: Callable[[str], StoredCircuits], model: str, task: str, step: int) -> list[Carried]:
    """A model's own circuit, if there is one, and those of all models that its heads are matched with."""
    own = of(model).at(task, step)
    if own is None:
        return []
    graph, matches = own.graph, ComparisonFolder(of(model).store.root).matches_of(model)
    same = {(layer, head): (layer, head) for layer in range(graph.n_layers) for head in range(graph.n_heads)}
    names = {(model, "own"): same, **{(other, "given"): same for other, _ in matches}, **matches}
    return [
        Carried(other, label, circuit, graph, heads)
        for (other, label), heads in names.items()
        if (circuit := of(other).at(task, step)) is not None and (label != "given" or circuit.graph == graph)
    ]


def outdated(config: CircuitsConfig, store: Store, model: str) -> set[tuple[str, int]]:
    """The tasks and steps whose tables hold other circuits than there are now, or by other matches."""
    of, found = cache(partial(StoredCircuits, store)), set[tuple[str, int]]()
    for task in tasks_of(config):
        folder = store.folder("matched_transfer", model, task.name)
        for step in folder.steps():
            table = folder.read_table(step)
            held = set(zip(table["from_model"], table["names"], table["circuit"], strict=True))
            now = carried(of, model, task.name, step)
            if {(one.from_model, one.names, one.renamed(one.heads).fingerprint) for one in now} != held:
                found.add((task.name, step))
    return found


def measure(
    checkpoint: LoadedCheckpoint, config: CircuitsConfig, inputs: TransferInputs, task: Task
) -> dict[str, Result]:
    """The circuits of other models in this one, on the task that they were found for."""
    found = carried(partial(inputs.of, config), checkpoint.name, task.name, checkpoint.step)
    if not found:
        return {"matched_transfer": Result(pd.DataFrame(columns=COLUMNS))}
    graph, n = found[0].graph, config.n_random
    prompts = prompts_at(checkpoint, config, inputs.prompts[task.name])
    evaluator = evaluator_of(checkpoint.weights, prompts, config, graph)
    folder = Store(config.results_dir).folder("graphs", checkpoint.name, task.name)
    scores = folder.read_circuit(checkpoint.step)[0].scores
    circuits = [one.renamed(one.heads) for one in found]
    curve = FaithfulnessCurve(evaluator.full, evaluator.corrupted)

    def floor(name: str, drawn: Float[Tensor, "draw prompt"]) -> dict[str, float]:
        of_draws = [curve.normalised(float(of_draw.double().mean())) for of_draw in drawn]
        return {f"{name}_floor": float(np.mean(of_draws)), f"{name}_high": float(np.quantile(of_draws, 0.975))}

    floors, random = list[dict[str, float]](), dict[int, dict[str, float]]()
    for one, circuit in zip(found, circuits, strict=True) if n else ():
        n_edges = len(circuit.edges)
        if n_edges not in random:
            like = Circuit(graph, scores, circuit.mask)
            random[n_edges] = floor("random", evaluator(random_circuits(like, n, config.seed, config.search.order)))
        dealt = [
            one.renamed({other: deal[head] for other, head in one.heads.items()})
            for deal in deals(graph, config.seed, n)
        ]
        floors.append(floor("shuffled", transfer.evaluated(dealt, evaluator)) | random[n_edges])
    table = transfer.table_of(circuits, transfer.evaluated(circuits, evaluator), evaluator, prompts)
    table = table.assign(
        from_model=[one.from_model for one in found],
        names=[one.names for one in found],
        n_dropped=[len(one.original.edges) - len(circuit.edges) for one, circuit in zip(found, circuits, strict=True)],
    )
    return {"matched_transfer": Result(table.join(pd.DataFrame(floors)).reindex(columns=COLUMNS))}
