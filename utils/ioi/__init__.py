"""Is the IOI algorithm the same at every checkpoint? Start with `levels.py`, which measures it.

Then read `definitions.py` and `effects.py` (what a head does), `roles.py` (who holds a role), `inputs.py` (what is
known beforehand) and `tables.py`. `backup.py` and `handover.py` answer questions of their own.
"""
