"""Estimate the local learning coefficient of the model, and of single heads, at every checkpoint.

    python get_learning_coefficients_over_time.py -c configs/learning_coefficients_toy.yml

Needs devinterp: pip install -r requirements-devinterp.txt. Writes results/learning_coefficients/<model>/step{n}.csv
with a row for the whole model and one for each of the `heads`; the .json next to it has the settings of the sampler.
`utils/heads/learning_coefficients.py` defines the estimate.
"""

import sys

from circuits_over_time.utils.heads.learning_keys import LearningConfig
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.sweep.runner import Analysis, Lazy, main

ANALYSIS = Analysis(
    "get_learning_coefficients_over_time",
    LearningConfig,
    (KINDS["learning_coefficients"],),
    Lazy("utils.heads.learning_coefficients.prepare"),
    Lazy("utils.heads.learning_coefficients.measure"),
    inputs=Lazy("utils.heads.learning_keys.inputs_of_learning"),
)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
