"""Find the circuit behind each task at every checkpoint, and say how faithful it is.

For every checkpoint and task it finds the scores of all edges by EAP-IG (Hanna et al. 2024, arXiv 2403.17806), the
smallest circuit whose faithfulness reaches the threshold, and the faithfulness at every size that it tried.

    python get_circuits_over_time.py -c configs/ioi_160m.yml
    python get_circuits_over_time.py -c configs/toy.yml task=sva checkpoints=[0,1350]

Writes results/graphs (scores and edges), results/faithfulness (the curve) and results/baselines (the whole model and
the size of the circuit).
Keys: configs/README.md. Figures: plotting/plot_circuits.py, plot_faithfulness_curve.py, plot_circuit.py.
"""

import sys

from utils.circuits import CircuitsConfig, measure, prepare
from utils.results.kinds import BASELINES, FAITHFULNESS, GRAPHS
from utils.runner import Analysis, main
from utils.tasks import tasks_of

ANALYSIS = Analysis(
    "get_circuits_over_time", CircuitsConfig, (GRAPHS, FAITHFULNESS, BASELINES), prepare, measure, tasks=tasks_of
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
