"""Induction, previous-token, duplicate-token, copy and negative copy score of every head at every checkpoint.

    python get_full_model_components_over_time.py -c configs/components_160m.yml

Writes results/components/<model>/step{n}.csv with `score, layer, head, value`. `induction`, `previous_token` and
`duplicate_token` are attention probabilities in [0, 1] on random blocks of tokens that are repeated once. `copy` and
`negative_copy` are percentages of the names in IOI prompts. `utils/heads/attention_and_copy.py` and `copy_scores.py`
define them; `head_scores: study` measures them as Tigges et al. 2024 do (arXiv 2407.10827).
"""

import sys

from circuits_over_time.utils.heads.keys import ComponentsConfig
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.sweep.runner import Analysis, Lazy, main

ANALYSIS = Analysis(
    "get_full_model_components_over_time",
    ComponentsConfig,
    (KINDS["components"],),
    Lazy("utils.heads.attention_and_copy.prepare"),
    Lazy("utils.heads.attention_and_copy.measure"),
    inputs=Lazy("utils.heads.needs.inputs_of_components"),
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
