"""Circuits: start with `find.py`, then `measured.py`; `handle.py` is what the library's functions work on.

`keys.py` says what can be chosen, `tables.py` makes the tables, `transfer.py` puts circuits into other
checkpoints, `over_time.py` walks checkpoints with any function, and `callback.py` measures while a model trains.
"""
