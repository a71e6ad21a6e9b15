"""Circuits: start with `find.py`, then `measured.py`; `run.py` is the script's part, `handle.py` the library's.

`keys.py` says what can be chosen, `tables.py` and `checks.py` make the tables, `transfer.py` puts circuits into other
checkpoints, `over_time.py` walks checkpoints with any function, and `callback.py` measures while a model trains.
"""
