"""The toy family: small models that are trained on this machine. Start with `text.py`, what they learn.

Then read `family.py` (the files and how a training resumes), `training.py` and `batches.py`.
"""
