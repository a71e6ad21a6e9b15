"""Succession score of every head at every checkpoint, over all words and for each class of words.

    python get_new_successor_head_scores_over_time.py -c configs/successor_160m.yml

Writes results/successor/<model>/step{n}.csv with one row per head: `layer, head`; `value`, the share of all pairs of a
word and its successor that the head gets right; `pairs`, how many pairs the model's tokenizer leaves; `class_mean`, the
mean over classes, each with the same weight; and for each class `<class>` and `<class>_pairs`. A class without pairs
has an empty cell and 0 pairs. `utils/heads/succession.py` defines the score, lists the words and says where it differs
from Gould et al. 2023 (arXiv 2312.09230); `head_scores: study` measures it as Tigges et al. 2024 do (arXiv 2407.10827).
"""

import sys

from circuits_over_time.utils.heads.keys import SuccessorConfig
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.sweep.runner import Analysis, Lazy, main

ANALYSIS = Analysis(
    "get_new_successor_head_scores_over_time",
    SuccessorConfig,
    (KINDS["successor"],),
    Lazy("utils.heads.succession.prepare"),
    Lazy("utils.heads.succession.measure"),
    inputs=Lazy("utils.heads.needs.inputs_of_succession"),
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
