"""What a caller may choose, by name. Schemas of configs read this module, so it imports nothing."""

from typing import Literal

Quadrature = Literal["left", "right", "midpoint", "gauss-legendre"]
"""Where integration steps lie (`scores/attribution.py`)."""
Order = Literal["greedy", "top_n"]
Selection = Literal["absolute", "signed"]
"""In which order edges join a circuit (`circuits/search.py`)."""
Criterion = Literal["normalised", "raw"]
Grid = Literal["adaptive", "study"]
"""Which faithfulness counts, and which sizes are tried (`circuits/circuit_size.py`)."""
POSITIVE_SHARE = 0.75
"""The share of positive edges that signed selection keeps up by default."""
