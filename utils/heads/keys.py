"""Keys of the three scripts that score attention heads. Nothing here imports torch.

The key `head_scores` chooses between two definitions: `standard` is the suite's own, and `study` is what the published
study measured (Tigges et al. 2024, arXiv 2407.10827), so that you can compare numbers with its own. Under `study`

- copy scores leave out the scale of the norms before V and before the unembedding (`copy_scores.py`);
- random blocks are drawn with replacement from the ids 100 to 19,999, and the induction score counts one query more
  (`attention_and_copy.py`);
- succession leaves out all norms, counts a tie as right and weighs spellings as there (`succession.py`);
- CSPA reads the beginnings of long documents (`corpus.py`).

All other differences are numbers that have their own keys; `configs/README.md` lists them.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

from pydantic import Field

from ..config.keys import BaseConfig, Section, StartToken

Definition = Literal["standard", "study"]


class ComponentsKeys(Section):
    """What the scores depend on, apart from the model."""

    head_scores: Definition = "standard"
    """Which definition of the scores: `standard`, or `study` for that of Tigges et al. 2024. The study draws random
    blocks with replacement from the ids 100 to 19,999, counts the last token of the first block in the induction score,
    and leaves the scale of the norms out of the copy scores."""
    n_sequences: int = Field(50, gt=0)
    """How many random blocks of tokens to average the attention scores over."""
    seq_len: int = Field(50, gt=1)
    """Tokens in a block. Each block comes twice in a row, so `2 * seq_len` tokens must fit the model's context."""
    n_prompts: int = Field(100, gt=0)
    """How many IOI prompts to average the copy scores over; each has three names."""


class ComponentsConfig(ComponentsKeys, BaseConfig):
    """Keys of get_full_model_components_over_time.py."""


class Ablation(Section):
    """What the ablation keeps of a head."""

    interventions: list[Literal["ov", "qk"]] = Field(["ov", "qk"], min_length=1, max_length=2)
    """What to restrict, one or both: `ov` keeps only the part of a head's output along the source token's unembedding;
    `qk` keeps only sources that the model predicts here and that are not function words."""
    k_unembeddings: float = Field(0.05, gt=0, le=1)
    """For `qk`: how many different source tokens to keep, as a fraction of the destination's place in the sequence
    (counted from 1), rounded up. 1.0 keeps all."""
    keep_self_attention: bool = True
    """Whether the destination's own token is among its sources."""
    negative_only: bool = True
    """For `ov`: keep the part along the unembedding only where it lowers the source token's logit."""
    start_layer: int = Field(0, ge=0)
    """The first layer to score."""

    def n_kept(self, seq_len: int) -> list[int]:
        """K at each position. The fraction is exact as written, so 0.07 of 100 is 7."""
        fraction = Fraction(str(self.k_unembeddings))
        return [math.ceil(fraction * place) for place in range(1, seq_len + 1)]


class CspaKeys(Ablation):
    """What the scores depend on, apart from the model: the text, and what to keep of a head."""

    corpus: str
    """The text to read: a UTF-8 text file with blank lines between its documents, a data set from the hub
    (`NeelNanda/pile-10k`), a folder that `datasets` can read, `python_docs` for the documentation that comes with
    Python (the text differs between its versions, and the hashes of what was read say so), or `toy` for the toy
    family's own sentences. Write `./toy` for a file called `toy`."""
    corpus_split: str = "train"
    """Which split of a data set, in the notation of `datasets` (`train[:1000]`)."""
    corpus_field: str = "text"
    """Which column of a data set holds the text."""
    head_scores: Definition = "standard"
    """How to draw the text: `standard`, or `study` for the way of Tigges et al. 2024, where sequences are the
    beginnings of documents longer than `corpus_window`, and the scored sequences are the first of the
    `n_mean_sequences`."""
    corpus_window: int | None = Field(None, gt=1)
    """With `head_scores: study`, a document must have more tokens than this. `null` means `seq_len`."""
    n_sequences: int = Field(17, gt=0)
    """How many sequences to score heads on."""
    n_mean_sequences: int = Field(100, gt=0)
    """How many other sequences to average the heads' outputs over, for the mean ablation."""
    seq_len: int = Field(61, gt=1)
    """Tokens in a sequence. Documents are joined by the end-of-text token and cut into sequences."""
    prepend_bos: StartToken = "auto"
    """Start every sequence with the tokenizer's start token, which counts towards `seq_len`. `auto` is as for prompts
    ([Keys of every script with tasks](#keys-of-every-script-with-tasks))."""


class CspaConfig(CspaKeys, BaseConfig):
    """Keys of get_model_cspa.py. `batch_size` counts sequences, and `seed` draws the text."""


class SuccessorConfig(BaseConfig):
    """Keys of get_new_successor_head_scores_over_time.py. Nothing here is sampled, so `seed` and `batch_size` change
    nothing."""

    head_scores: Definition = "standard"
    """Which definition of the score: `standard`, or `study` for that of Tigges et al. 2024, which leaves out the norms,
    counts ties as right and has fewer spellings."""
