"""Is the IOI algorithm the same at every checkpoint? Heads by role and effect, at three levels.

    python get_ioi_consistency.py -c configs/ioi_consistency_160m.yml

Writes, for every checkpoint, with the levels name_movers, s_inhibition and induction of `utils/algorithms/levels.py`
(Tigges et al. 2024, arXiv 2407.10827):

results/ioi_consistency/<model>/step{n}.csv          the share of each level's effect that heads in its role have
results/ioi_consistency_heads/<model>/step{n}.csv    effect, scores, attention and role of every head
results/ioi_consistency_signals/<model>/step{n}.csv  the candidates for S-inhibition under four variants of the prompt
results/ioi_backup/<model>/step{n}.csv               what brings the logit difference back without the name movers
results/ioi_consistency/<model>/role_handover.csv    from when to when each head holds a role

The circuit and the copy, induction, duplicate-token and CSPA scores are read from the results where they are there, and
computed where not. Keys: configs/README.md. Figures: plotting/plot_ioi_consistency.py, plot_ioi_backup.py.
"""

import sys

from circuits_over_time.utils.algorithms.keys import IoiConsistencyConfig
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.sweep.runner import Analysis, Lazy, main

MEASURED = ("ioi_consistency", "ioi_consistency_heads", "ioi_consistency_signals", "ioi_backup")
ANALYSIS = Analysis(
    "get_ioi_consistency",
    IoiConsistencyConfig,
    tuple(KINDS[kind] for kind in MEASURED),
    Lazy("utils.algorithms.inputs.prepare"),
    Lazy("utils.algorithms.levels.measure"),
    finish=Lazy("utils.algorithms.handover.write_handover"),
    reads=tuple(KINDS[kind] for kind in ("graphs", "baselines", "components", "cspa")),
    inputs=Lazy("utils.algorithms.keys.inputs_of_ioi"),
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
