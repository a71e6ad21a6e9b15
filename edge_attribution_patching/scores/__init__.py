"""Scores of edges: start with `methods.py`, then `attribution.py`. `folds.py` says how sure they are."""
