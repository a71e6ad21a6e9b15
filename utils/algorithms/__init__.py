"""Is a known algorithm the same at every checkpoint? `levels.py` measures that of IOI, `greater_than.py` that of years.

Start with `levels.py`. Then read `definitions.py` and `effects.py` (what a head does), `roles.py` (who holds a role),
`inputs.py` (what is known beforehand) and `tables.py`. `backup.py` and `handover.py` answer questions of their own.
"""
