"""Put heads and MLPs of some checkpoints into the models of others: does the task, and the circuit, survive?

    python get_component_swaps.py -c configs/swaps_toy.yml

Writes results/swaps/<model>/<task>/step{n}.csv: for each source and set of components the metric, the faithfulness of
the model's circuit, and the same for random heads in their place; results/swap_heads has the attention scores of heads
after each swap. The circuit and the roles of heads are read from the results, so run get_circuits_over_time.py (and
get_ioi_consistency.py, for roles) first. Keys: configs/README.md. Figure: plotting/plot_component_swaps.py.
"""

import sys

from circuits_over_time.utils.circuits.swap_keys import SwapConfig
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.sweep.runner import Analysis, Lazy, main

ANALYSIS = Analysis(
    "get_component_swaps",
    SwapConfig,
    (KINDS["swaps"], KINDS["swap_heads"]),
    Lazy("utils.circuits.swaps.prepare"),
    Lazy("utils.circuits.swaps.measure"),
    tasks=Lazy("utils.circuits.swap_keys.tasks_of_swaps"),
    reads=(KINDS["graphs"], KINDS["ioi_consistency_heads"]),
    outdated=Lazy("utils.circuits.swaps.outdated"),
    check=Lazy("utils.circuits.swap_keys.check_sources"),
    inputs=Lazy("utils.circuits.swap_keys.inputs_of_swaps"),
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
