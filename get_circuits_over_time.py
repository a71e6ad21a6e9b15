"""Find the circuit behind each task at every checkpoint, and say how faithful it is.

For every checkpoint and task it finds the scores of all edges by EAP-IG (Hanna et al. 2024, arXiv 2403.17806), the
smallest circuit whose faithfulness reaches the threshold, and the faithfulness at every size that it tried.

    python get_circuits_over_time.py -c configs/ioi_160m.yml
    python get_circuits_over_time.py -c configs/toy.yml task=sva checkpoints=[0,1350]

Writes results/graphs (scores and edges), results/faithfulness (the curve), results/baselines (the whole model and the
size of the circuit), results/controls (random circuits), results/prompt_groups (the spread over prompts) and
results/hypothesis_tests. With `transfer`, a second walk puts circuits into the models of other checkpoints
(results/transfer).
Keys: configs/README.md. Figures: plotting/plot_circuits.py, plot_faithfulness_curve.py, plot_circuit.py,
plot_transfer.py.
"""

import argparse
import sys
from collections.abc import Sequence

from utils import transfer
from utils.circuits import CircuitsConfig, measure, prepare
from utils.command_line import run_script
from utils.results.kinds import (
    BASELINES,
    CONTROLS,
    FAITHFULNESS,
    GRAPHS,
    HYPOTHESIS_TESTS,
    PROMPT_GROUPS,
    TRANSFER,
)
from utils.runner import Analysis, run
from utils.tasks import tasks_of

ANALYSIS = Analysis(
    "get_circuits_over_time",
    CircuitsConfig,
    (GRAPHS, FAITHFULNESS, BASELINES, CONTROLS, PROMPT_GROUPS, HYPOTHESIS_TESTS),
    prepare,
    measure,
    tasks=tasks_of,
)
SECOND = Analysis(
    "get_circuits_over_time", CircuitsConfig, (TRANSFER,), transfer.prepare, transfer.measure, tasks=tasks_of
)
"""Walks over the checkpoints again, with `transfer`: it needs the circuits of all of them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script from its command line; returns the exit code."""

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="say what would be measured, load nothing")

    def execute(config: CircuitsConfig, arguments: argparse.Namespace) -> int:
        code = run(ANALYSIS, config, dry_run=arguments.dry_run)
        if config.transfer is None:
            return code
        if not arguments.dry_run:
            transfer.discard_outdated(config)
        return max(code, run(SECOND, config, dry_run=arguments.dry_run))

    return run_script(f"{ANALYSIS.name}.py", CircuitsConfig, execute, argv, options)


if __name__ == "__main__":
    sys.exit(main())
