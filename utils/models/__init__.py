"""Models and their checkpoints.

Start with `family.py`: what a family of checkpoints is, and how a name finds one. Then `checkpoint.py`, a checkpoint in
memory, and `known_families.toml`, the records of public families. The others read the names of checkpoints
(`revisions.py`), their folders (`local.py`), weights (`weight_files.py`), adapters and tokenizers.
"""
