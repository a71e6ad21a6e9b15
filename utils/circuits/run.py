"""What get_circuits_over_time.py hands to the runner: prompts of every task, and the circuit of one in a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.model.architectures import Shape

from ..models.checkpoint import LoadedCheckpoint
from ..results.store import Result
from ..tasks import Task, tasks_of
from .checks import controls_in_words
from .find import CircuitPrompts, circuit_prompts
from .keys import CircuitsConfig
from .measured import measure_circuit

log = logging.getLogger(__name__)


def prepare(config: CircuitsConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> dict[str, CircuitPrompts]:
    """The prompts of every task, by its name; see `circuit_prompts`."""
    return {task.name: circuit_prompts(config, task, tokenizer, shape) for task in tasks_of(config)}


def measure(
    checkpoint: LoadedCheckpoint, config: CircuitsConfig, inputs: Mapping[str, CircuitPrompts], task: Task
) -> dict[str, Result]:
    """The circuit of one task in one checkpoint."""
    measured = measure_circuit(checkpoint.weights, inputs[task.name], config)
    if len(measured.controls):
        words = controls_in_words(measured.controls)
        log.info("%s step %d %s: %s", checkpoint.name, checkpoint.step, task.name, words)
    json = measured.circuit.to_json(checkpoint.weights.d_model) if config.export_json else None
    results = {kind: Result(table) for kind, table in measured.tables.items()}
    return results | {"graphs": Result(measured.edges, tensors=measured.tensors, json=json)}
