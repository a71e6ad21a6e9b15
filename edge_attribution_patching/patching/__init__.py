"""Interventions: start with `forward.py`. `paths.py` writes path patching as masks of edges."""
