"""Is the greater-than algorithm the same at every checkpoint? MLPs, heads and inputs by role and effect.

    python get_greater_than_consistency.py -c configs/greater_than_consistency_160m.yml

Writes, for every checkpoint, with the levels mlps, heads and inputs of `utils/algorithms/greater_than.py`
(Hanna et al. 2023, arXiv 2305.00586):

results/greater_than_consistency/<model>/step{n}.csv         the share of each level's effect from nodes in its role
results/greater_than_consistency_nodes/<model>/step{n}.csv   effect, scores and role of every head and MLP

The circuit is read from the results where it is there, and computed where not. Keys: configs/README.md. Figure:
plotting/plot_ioi_consistency.py.
"""

import sys

from circuits_over_time.utils.algorithms.keys import GreaterThanConsistencyConfig
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.sweep.runner import Analysis, Lazy, main

ANALYSIS = Analysis(
    "get_greater_than_consistency",
    GreaterThanConsistencyConfig,
    (KINDS["greater_than_consistency"], KINDS["greater_than_consistency_nodes"]),
    Lazy("utils.algorithms.greater_than.prepare"),
    Lazy("utils.algorithms.greater_than.measure"),
    reads=(KINDS["graphs"], KINDS["baselines"]),
    inputs=Lazy("utils.algorithms.keys.inputs_of_greater_than"),
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
