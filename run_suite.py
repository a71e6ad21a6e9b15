"""Run many analyses over a family's checkpoints, loading each checkpoint once.

    python run_suite.py -c configs/suite_toy.yml
    python run_suite.py -c configs/suite_160m.yml checkpoints=[1000,143000]
    python run_suite.py -c configs/suite_160m.yml --dry-run          what is finished and what is missing
    python run_suite.py -c configs/suite_160m.yml --fetch            only download; run it again without a network

Writes what the single scripts write. Any number of processes started on one results folder share the work;
`executor: ray` and `executor: slurm` spread it over a cluster. Keys: configs/README.md.
"""

import sys

from circuits_over_time.utils.sweep.runner import main_of_suite

if __name__ == "__main__":
    sys.exit(main_of_suite())
