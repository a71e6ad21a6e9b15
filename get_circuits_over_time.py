"""Find the circuit behind each task at every checkpoint, and say how faithful it is.

For every checkpoint and task it finds the scores of all edges by EAP-IG (Hanna et al. 2024, arXiv 2403.17806), the
smallest circuit whose faithfulness reaches the threshold, and the faithfulness at every size that it tried.

    python get_circuits_over_time.py -c configs/ioi_160m.yml
    python get_circuits_over_time.py -c configs/toy.yml task=sva checkpoints=[0,1350]

Writes results/graphs (scores and edges), results/faithfulness (the curve), results/baselines (the whole model and the
size of the circuit), results/controls (random circuits), results/prompt_groups (the spread over prompts) and
results/hypothesis_tests, and results/attention (what the circuit's heads attend to, and which tokens they raise and
lower). With `transfer`, a second walk puts circuits into the models of other checkpoints (results/transfer); with
`matched_transfer`, into those of other seeds and sizes, under the names of matched heads (results/matched_transfer).
Keys: configs/README.md. Figures: plotting/plot_circuits.py, plot_faithfulness_curve.py, plot_circuit.py,
plot_attention.py, plot_transfer.py.
"""

import sys

from circuits_over_time.utils.circuits.keys import CircuitsConfig
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.sweep.runner import Analysis, Lazy, main

MEASURED = ("graphs", "faithfulness", "baselines", "controls", "prompt_groups", "hypothesis_tests", "attention")
SECOND_WALK = Analysis(
    "get_circuits_over_time",
    CircuitsConfig,
    (KINDS["transfer"],),
    Lazy("utils.circuits.transfer.prepare"),
    Lazy("utils.circuits.transfer.measure"),
    tasks=Lazy("utils.circuits.keys.tasks_of_transfer"),
    outdated=Lazy("utils.circuits.transfer.outdated"),
)
BETWEEN_MODELS = Analysis(
    "get_circuits_over_time",
    CircuitsConfig,
    (KINDS["matched_transfer"],),
    Lazy("utils.circuits.transfer.prepare"),
    Lazy("utils.circuits.matched_transfer.measure"),
    tasks=Lazy("utils.circuits.keys.tasks_of_matched_transfer"),
    outdated=Lazy("utils.circuits.matched_transfer.outdated"),
)
ANALYSIS = Analysis(
    "get_circuits_over_time",
    CircuitsConfig,
    tuple(KINDS[kind] for kind in MEASURED),
    Lazy("utils.circuits.measured.prepare"),
    Lazy("utils.circuits.measured.measure"),
    tasks=Lazy("utils.tasks.tasks_of"),
    finish=Lazy("utils.circuits.exported.finish"),
    then=(SECOND_WALK, BETWEEN_MODELS),
    check=Lazy("utils.circuits.keys.check_transfer"),
    inputs=Lazy("utils.circuits.keys.inputs_of_circuits"),
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
