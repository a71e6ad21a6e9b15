"""Find the circuit behind each task at every checkpoint, and say how faithful it is.

For every checkpoint and task: scores of all edges by EAP-IG (Hanna et al. 2024, arXiv 2403.17806), the smallest circuit
whose faithfulness reaches the threshold, and its faithfulness at every size that was tried.

    python get_circuits_over_time.py -c configs/ioi_160m.yml
    python get_circuits_over_time.py -c configs/toy.yml task=sva checkpoints=[0,1400]

Writes results/graphs (scores and edges), results/faithfulness (curve), results/baselines (whole model, circuit size).
Keys: configs/README.md. Figures: plotting/plot_circuits.py, plot_faithfulness_curve.py, plot_circuit.py.
"""

from __future__ import annotations

import sys
from typing import Any

from utils.circuits import CircuitsConfig, circuit_prompts, find_circuit
from utils.models.family import LoadedCheckpoint
from utils.runner import Analysis, Result, main
from utils.tasks import task_folder_name


def task_folders(config: CircuitsConfig) -> list[str | None]:
    """The results folder of each task."""
    return [task_folder_name(task) for task in config.tasks]


def check_prompts(config: CircuitsConfig, tokenizer: Any) -> None:
    """Refuse tasks that cannot be built before anything is measured."""
    for task in config.tasks:
        circuit_prompts(config, task, tokenizer)


def measure(checkpoint: LoadedCheckpoint, config: CircuitsConfig, folder: str | None) -> dict[str, Result]:
    """The circuit of one task in one checkpoint."""
    task = next(task for task in config.tasks if task_folder_name(task) == folder)
    report = find_circuit(checkpoint.weights, checkpoint.tokenizer, config, task)
    circuit = report.circuit
    json = circuit.to_json(checkpoint.weights.d_model) if config.export_json else None
    return {
        "graphs": Result(circuit.to_table(), tensors=circuit.to_tensors(), json=json),
        "faithfulness": Result(report.faithfulness),
        "baselines": Result(report.baselines),
    }


ANALYSIS = Analysis(
    name="get_circuits_over_time",
    schema=CircuitsConfig,
    kinds=("graphs", "faithfulness", "baselines"),
    measure=measure,
    tasks=task_folders,
    check=check_prompts,
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
