"""Scores of edges: start with `attribution.py`. `folds.py` says how sure they are."""
