"""."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import (
    CircuitEvaluator,
    FaithfulnessCurve,
)
from circuits_over_time.edge_attribution_patching.circuits.search import (
    Signed,
)
from circuits_over_time.edge_attribution_patching.scores.folds import FoldScores

from ..tasks import Prompts, Task

Status = Literal["found", "task not learned", "threshold not reached"]


@dataclass(frozen=True)
class CircuitPrompts:
    """A task's prompts for one circuit.

    Attributes:
        task: the task.
        scoring: the prompts that edges are scored on.
        evaluation: the prompts that circuits are evaluated on: others, or the same ones (`evaluate_on`).
    """

    task: Task
    scoring: Prompts
    evaluation: Prompts


@dataclass(frozen=True)
class CircuitReport:
    """The circuit of one task in one checkpoint, and the tables that say how good it is.

    Attributes:
        circuit: the scores of all edges, and the edges of the circuit (none if there is no circuit).
        folds: the scores of every fold of the prompts.
        order: the edges in the order in which circuits take them.
        signed: what signed selection knew of the scores; None if edges were selected by |score|.
        status: whether there is a circuit, or why not.
        size: edges asked for of the circuit, before pruning; None if there is none.
        curve: the metric of every size evaluated, per prompt.
        evaluator: evaluates more circuits on the same prompts.
        faithfulness: one row per size evaluated.
        baselines: one row about the whole model and the size of the circuit.
    """

    circuit: Circuit
    folds: FoldScores
    order: Int[Tensor, "edge 2"]
    signed: Signed | None
    status: Status
    size: int | None
    curve: FaithfulnessCurve
    evaluator: CircuitEvaluator
    faithfulness: pd.DataFrame
    baselines: pd.DataFrame
