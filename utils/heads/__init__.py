"""Scores of attention heads: start with `keys.py`, then read one script's module.

`attention_and_copy.py` and `copy_scores.py`: induction, previous-token, duplicate-token and copy scores.
`succession.py`: successor heads. `cspa.py`: copy suppression, with `corpus.py`, `cspa_scores.py`, `streamed_kl.py`.
"""
