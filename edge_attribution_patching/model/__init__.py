"""The model: read `architecture_table.py` and `weights.py`, then `packed_tokens.py` and `forward.py`."""
