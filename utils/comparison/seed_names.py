"""Models that differ in their seed alone, by their names."""

from __future__ import annotations

import re

_SEED = re.compile(r"[-_](?:weight-|data-)?seed[-_]?\d+")


def without_seed(model: str) -> str:
    """The name that seeds share: `pythia-14m-seed3`, `pythia-14m-weight-seed3` and `pythia-14m` give `pythia-14m`."""
    return _SEED.sub("", model)
