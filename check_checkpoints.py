"""Are the published weights what they claim to be? Equal weights at different steps, missing steps, wrong runs.

    python check_checkpoints.py -c configs/check_160m.yml
    python check_checkpoints.py -c configs/ioi_160m.yml model=pythia-2.8b
    python check_checkpoints.py -c configs/check_toy.yml --deep

It takes the config of any script. From the hub's metadata alone (for a local family, from the files) it compares the
hashes of every file of weights, shard by shard, at all published steps and on `main`. `--deep` also loads a few tensors
of the steps in `checkpoints`, and finds a checkpoint that does not descend from the one before.

Writes results/checks/<model>/checkpoints.csv, and with `--deep` distances.csv. Exit codes: 0 all well, 1 something is
wrong (0 with `on_duplicate_weights=warn` or `skip`), 2 bad input.
"""

import argparse
import sys
from collections.abc import Sequence

from circuits_over_time.utils.config.command_line import run_script
from circuits_over_time.utils.integrity.check import CheckConfig, check_models


def main(argv: Sequence[str] | None = None) -> int:
    """Read the config, check, and return the exit code."""

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--deep", action="store_true", help="also load a few tensors and compare consecutive steps")

    def execute(config: CheckConfig, arguments: argparse.Namespace) -> int:
        return check_models(config, deep=arguments.deep)

    return run_script("check_checkpoints.py", CheckConfig, execute, argv, options)


if __name__ == "__main__":
    sys.exit(main())
