"""Copy-suppression-preserving ablation (CSPA) score of every head at every checkpoint.

    python get_model_cspa.py -c configs/cspa_160m.yml

Writes results/cspa/<model>/step{n}.csv with `layer, head, score`, `kl_cspa, kl_ablated` (nats), `loss, loss_cspa,
loss_ablated` (nats), `n_positions`, and a `reason` if the score is empty. The .json next to it says which text was
read. `utils/heads/cspa_scores.py` defines the score (McDougall et al. 2023); `head_scores: study` draws the text as
Tigges et al. 2024 do (arXiv 2407.10827).
"""

import sys

from circuits_over_time.utils.heads.keys import CspaConfig
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.sweep.runner import Analysis, Lazy, main

ANALYSIS = Analysis(
    "get_model_cspa",
    CspaConfig,
    (KINDS["cspa"],),
    Lazy("utils.heads.cspa.prepare"),
    Lazy("utils.heads.cspa.measure"),
    inputs=Lazy("utils.heads.needs.inputs_of_cspa"),
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
