"""What every head does at every checkpoint, in numbers that do not depend on where it stands.

    python get_head_signatures.py -c configs/signatures_toy.yml

Writes results/signatures/<model>/<task>/step{n}.csv: attention by role of position, direct effect on the task, and
sensitivity to other heads, in folds of prompts, beside the scores of the other scripts. Takes one forward pass over the
prompts; the rest is read from the results, so run get_circuits_over_time.py and the scripts that score heads first.
compare_circuits.py matches the heads of two models by it. Keys: configs/README.md. `utils/heads/signatures.py` defines
the numbers.
"""

import sys

from circuits_over_time.utils.heads.keys import SignaturesConfig
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.sweep.runner import Analysis, Lazy, main

ANALYSIS = Analysis(
    "get_head_signatures",
    SignaturesConfig,
    (KINDS["signatures"],),
    Lazy("utils.heads.signatures.prepare"),
    Lazy("utils.heads.signatures.measure"),
    tasks=Lazy("utils.tasks.tasks_of"),
    reads=(KINDS["graphs"], KINDS["components"], KINDS["successor"], KINDS["cspa"]),
    outdated=Lazy("utils.heads.signatures.outdated"),
    inputs=Lazy("utils.heads.needs.inputs_of_signatures"),
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
