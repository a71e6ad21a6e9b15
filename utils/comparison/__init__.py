"""Is a change real? Comparisons of stored results. Start with `run.py`, which writes every table.

Then read `similarity.py` (measures), `floors.py` (what noise explains) and `changes.py` (every pair of circuits);
`curves.py`, `emergence.py` and `seeds.py` (when something emerges); `tables.py` puts them together.
"""
