"""The two definitions of the head scores, for the key `head_scores`.

`standard` is what this suite measures by default. `study` is what the published study measured (Tigges, Hanna, Yu,
Biderman 2024, arXiv 2407.10827), so that you can compare numbers with its own. Under `study`

- copy scores leave out the scale of the norms before V and before the unembedding (`copy_scores.py`);
- random blocks are drawn with replacement from the ids 100 to 19,999, and the induction score counts one query more
  (`attention_and_copy.py`);
- succession leaves out all norms, counts a tie as right and weighs spellings as there (`succession.py`);
- CSPA reads the beginnings of long documents (`corpus.py`).

All other differences are numbers that have their own keys; `configs/README.md` lists them.
"""

from typing import Literal

Definition = Literal["standard", "study"]
