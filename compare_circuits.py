"""Is a change real? Circuits compared between checkpoints, seeds and models, from stored results alone.

    python compare_circuits.py -c configs/compare_toy.yml
    python compare_circuits.py -c configs/compare_toy.yml task=sva
    python compare_circuits.py -c configs/compare_toy.yml --dry-run      what is missing, and how long it takes

Compares every circuit with that of the checkpoint before, with a reference, and with other models of one shape: how
similar they are, how similar they would be if only the prompts differed, or by chance, and whether the change is more
than that. Finds out when head scores, metrics and circuits emerge, and in what order. No model is loaded.

Writes the tables of `utils/results/comparison.py` into results/comparison. Models and tasks that were compared there
before stay in them; other settings are refused. If you stop it, the same command goes on at the next pair of circuits.
Keys: configs/README.md. Figures: plotting/plot_comparison.py, plot_emergence.py.
"""

import sys
from collections.abc import Sequence

from circuits_over_time.utils.comparison.keys import ComparisonConfig
from circuits_over_time.utils.config.command_line import read_command_line, script


@script
def main(argv: Sequence[str] | None = None) -> int:
    dry_run = "say what would be compared and how long it takes, write nothing"
    config, arguments = read_command_line("compare_circuits.py", ComparisonConfig, argv, dry_run=dry_run)
    from circuits_over_time.utils.comparison.run import compare  # Imports pandas and scipy.

    compare(config, dry_run=arguments.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
