"""Circuits: start with `search.py` and `faithfulness.py`; `circuit_size.py` chooses, the others doubt."""
