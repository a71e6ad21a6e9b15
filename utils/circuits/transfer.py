"""Transfer: what the circuit of one checkpoint, or of one task, does in the model of another.

Two circuits with the same edges can compute different things, and two with different edges the same. So the circuit
found at step i is put into the model of step j: same edges, prompts and metric. Its faithfulness there says whether the
structure still does the work. The circuits of other tasks at step j are evaluated on this task alike.

This is a second walk over the checkpoints, after all circuits are there, which loads each checkpoint once more. A
checkpoint's table is measured again if it lacks a circuit that is asked for, or holds one that has changed since.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator, FaithfulnessCurve
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.units import graph_of

from ..base.errors import UserError
from ..models.checkpoint import LoadedCheckpoint
from ..results.kinds import NOT_LEARNED, TRANSFER
from ..results.store import Result, Store
from ..tasks import Task, tasks_of
from .find import CircuitPrompts, evaluator_of, prompts_at
from .keys import CircuitsConfig
from .measured import prepare as prepare_circuits
from .tables import measured_columns

STACK = 16
"""Circuits that are evaluated together."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredCircuit:
    """A circuit as it is stored, with the flat indices of its edges."""

    step: int
    task: str
    edges: Int[Tensor, " edge"]
    graph: Graph

    @property
    def mask(self) -> Bool[Tensor, "n_forward n_backward"]:
        """The same as a mask."""
        mask = torch.zeros_like(self.graph.edge_mask)
        mask.view(-1)[self.edges] = True
        return mask

    @property
    def fingerprint(self) -> str:
        """Eight letters that change with the edges. Digits would be read back as a number."""
        digits = hashlib.sha256(self.edges.numpy().tobytes()).hexdigest()[:8]
        return "".join(chr(ord("a") + int(digit, 16)) for digit in digits)

    @property
    def key(self) -> tuple[int, str, str]:
        """What a row of a table says of it."""
        return self.step, self.task, self.fingerprint


@dataclass
class StoredCircuits:
    """One model's circuits, read when they are asked for."""

    store: Store
    model: str
    _read: dict[tuple[str, int], StoredCircuit | None] = field(default_factory=dict)

    def at(self, task: str, step: int) -> StoredCircuit | None:
        """The circuit of a task at a step; None if it was not found there, or not measured."""
        if (task, step) not in self._read:
            folder = self.store.folder("graphs", self.model, task)
            circuit = None
            if folder.has(step):
                stored, _ = folder.read_circuit(step)
                if bool(stored.in_circuit.any()):
                    circuit = StoredCircuit(step, task, stored.in_circuit.flatten().nonzero()[:, 0], stored.graph)
            self._read[task, step] = circuit
        return self._read[task, step]

    def learned(self, task: str, step: int) -> bool:
        """Whether the model of a step can do a task."""
        folder = self.store.folder("baselines", self.model, task)
        return folder.has(step) and str(folder.read_table(step)["status"][0]) != NOT_LEARNED

    def wanted(self, config: CircuitsConfig, task: str, step: int) -> list[StoredCircuit]:
        """The circuits to evaluate on a task in the model of a step: its own, those of other steps and other tasks.

        It is a UserError if `transfer` names a step without results.
        """
        if not self.learned(task, step):
            return []
        steps = self.store.folder("graphs", self.model, task).steps()
        found = [other for other in steps if self.at(task, other) is not None]
        if isinstance(config.transfer, list):
            if absent := sorted(set(config.transfer) - set(steps)):
                raise UserError(
                    f"transfer: no results of {self.model} {task} at step {absent[0]}; measure that checkpoint too, or "
                    f"name others (there: {', '.join(map(str, steps))})"
                )
            sources = [other for other in found if other in config.transfer or other == step]
        elif config.transfer == "neighbours":
            before, after = [s for s in found if s < step], [s for s in found if s > step]
            sources = [*before[-1:], *(s for s in found if s == step), *after[:1]]
        else:
            sources = found
        pairs = [(task, other) for other in sources]
        if not config.positions:  # Other tasks have other roles.
            pairs += [(other, step) for other in (one.name for one in tasks_of(config)) if other != task]
        return [circuit for pair in pairs if (circuit := self.at(*pair)) is not None]


@dataclass(frozen=True)
class TransferInputs:
    """Prompts by task, and the stored circuits by model."""

    prompts: dict[str, CircuitPrompts]
    circuits: dict[str, StoredCircuits]

    def of(self, config: CircuitsConfig, model: str) -> StoredCircuits:
        """A model's circuits."""
        return self.circuits.setdefault(model, StoredCircuits(Store(config.results_dir), model))


def outdated(config: CircuitsConfig, store: Store, model: str) -> set[tuple[str, int]]:
    """The tasks and steps whose tables lack a circuit that this run asks for."""
    circuits, found = StoredCircuits(store, model), set[tuple[str, int]]()
    for task in tasks_of(config):
        folder = store.folder(TRANSFER, model, task.name)
        for step in folder.steps():
            table = folder.read_table(step)
            held = set(zip(table["from_step"], table["from_task"], table["circuit"], strict=True))
            if not {circuit.key for circuit in circuits.wanted(config, task.name, step)} <= held:
                log.info("%s lacks circuits that are there now; measured again", folder.file(step))
                found.add((task.name, step))
    return found


def prepare(config: CircuitsConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> TransferInputs:
    """The prompts that circuits are evaluated on."""
    return TransferInputs(prepare_circuits(config, tokenizer, shape), {})


def measure(
    checkpoint: LoadedCheckpoint, config: CircuitsConfig, inputs: TransferInputs, task: Task
) -> dict[str, Result]:
    """The circuits of other checkpoints and tasks in this checkpoint, on this task."""
    circuits = inputs.of(config, checkpoint.name).wanted(config, task.name, checkpoint.step)
    if not circuits:
        return {"transfer": Result(pd.DataFrame(columns=list(TRANSFER.columns)))}
    prompts = prompts_at(checkpoint, config, inputs.prompts[task.name])
    given, roles = prompts.given, prompts.evaluation.roles
    graph = graph_of(checkpoint.weights, config.level, roles) if given is None else given.graph
    evaluator = evaluator_of(checkpoint.weights, prompts, config, graph)
    return {"transfer": Result(table_of(circuits, evaluated(circuits, evaluator), evaluator, prompts))}


def evaluated(circuits: list[StoredCircuit], evaluator: CircuitEvaluator) -> Float[Tensor, "circuit prompt"]:
    """The metric of every prompt under each circuit.

    Raises:
        UserError: if one is of another architecture.
    """
    for circuit in circuits:
        if circuit.graph != evaluator.graph:
            raise UserError(f"transfer: the circuit of step {circuit.step} is one of another architecture")
    stacks = [circuits[i : i + STACK] for i in range(0, len(circuits), STACK)]
    return torch.cat([evaluator(torch.stack([circuit.mask for circuit in stack])) for stack in stacks])


def table_of(
    circuits: list[StoredCircuit],
    values: Float[Tensor, "circuit prompt"],
    evaluator: CircuitEvaluator,
    prompts: CircuitPrompts,
) -> pd.DataFrame:
    """A row of `transfer` for each circuit."""
    # Circuits of one size must not be confused: they go by their number.
    curve = FaithfulnessCurve(evaluator.full, evaluator.corrupted, dict(enumerate(values)))
    measured = measured_columns(curve, prompts).values()
    rows = [
        (*circuit.key, len(circuit.edges), *columns.values())
        for circuit, columns in zip(circuits, measured, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(TRANSFER.columns))
