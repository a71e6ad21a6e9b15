"""Keys of the scripts that score and describe attention heads. Nothing here imports torch.

The key `head_scores` chooses between two definitions: `standard` is the suite's own, and `study` is what the published
study measured (Tigges et al. 2024, arXiv 2407.10827), so that you can compare numbers with its own. Each module says
how its `study` differs; the other differences are numbers with keys of their own (`docs/study.md`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AliasChoices, Field, field_validator, model_validator

from ..config.keys import MOST_PROMPTS, BaseConfig, Section, StartToken, TaskConfig, amount, at_home, different, key

Definition = Literal["standard", "study"]
TOY, PYTHON_DOCS = "toy", "python_docs"
"""Corpora that come with the project, and with Python."""


class ComponentsKeys(Section):
    """What the scores depend on, apart from the model."""

    head_scores: Definition = "standard"
    """Which [definition](../docs/heads.md#attention-scores) of the scores: `standard`, or `study` for that of Tigges et
    al. 2024."""
    n_sequences: int = amount(50, most=100_000)
    """How many random blocks of tokens to average the attention scores over."""
    seq_len: int = amount(50, 2, most=1_000_000)
    """Tokens in a block, which comes twice in a row."""
    n_prompts: int = amount(100, most=MOST_PROMPTS)
    """How many IOI prompts to average the copy scores over; each has three names."""


class ComponentsConfig(ComponentsKeys, BaseConfig):
    """Keys of get_full_model_components_over_time.py."""


STUDY_FIRST_LAYERS: Mapping[str, int] = {"pythia-160m": 6, "pythia-410m": 3, "pythia-1.4b": 4, "pythia-2.8b": 6}
"""The first layer whose heads the study scores; 2 in its other models."""


class Ablation(Section):
    """What the ablation keeps of a head."""

    interventions: Annotated[list[Literal["ov", "qk"]], AfterValidator(different)] = Field(["ov", "qk"])
    """What to [restrict](../docs/heads.md#copy-suppression): `ov`, what a head writes; `qk`, the sources it reads."""
    k_unembeddings: float = key(0.05, gt=0, le=1, reason="it is a fraction", only_with=("interventions", "qk"))
    """For `qk`: how many different source tokens to keep, as a fraction of the destination's place in the sequence."""
    keep_self_attention: bool = key(True, only_with=("interventions", "qk"))
    """Whether the destination's own token is among its sources."""
    negative_only: bool = key(True, only_with=("interventions", "ov"))
    """For `ov`: keep the part along the unembedding only where it lowers the source token's logit."""
    start_layer: Literal["study"] | Annotated[int, Field(ge=0, le=10_000)] = key(0, reason="no model has more layers")
    """The first layer to score; `study` is that of Tigges et al. 2024, by
    [model](../docs/study.md#every-difference)."""
    head_scores: Definition = "standard"
    """How to draw the text and keep sources: `standard`, or `study` for the beginnings of long documents, and for all
    sources, function words too, where fewer others are there than are to be kept (Tigges et al. 2024)."""

    def of_model(self, name: str) -> Self:
        """The same with the first layer of a model."""
        study = self.start_layer == "study" and name in STUDY_FIRST_LAYERS
        return self.model_copy(update={"start_layer": STUDY_FIRST_LAYERS[name] if study else self.first_layer})

    @property
    def first_layer(self) -> int:
        """`start_layer` as a number."""
        return 2 if self.start_layer == "study" else self.start_layer

    def n_kept(self, seq_len: int) -> list[int]:
        """K at each position. The fraction is exact as written, so 0.07 of 100 is 7."""
        fraction = Fraction(str(self.k_unembeddings))
        return [math.ceil(fraction * place) for place in range(1, seq_len + 1)]


ROWS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def kind_of_rows(path: Path) -> str | None:
    """What `datasets` calls a file with rows, by its ending before that of its compression; None for text."""
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in COMPRESSED]
    return ROWS.get(endings[-1]) if endings else None


class CspaKeys(Ablation):
    """What the scores depend on, apart from the model: the text, and what to keep of a head."""

    corpus: Annotated[str, AfterValidator(at_home)] = key(..., min_length=1, file=True)
    """The [text](../docs/heads.md#copy-suppression) to read: a file, a data set of the hub (`NeelNanda/pile-10k`), a
    folder, `python_docs` or `toy`."""
    corpus_split: str = key("train", min_length=1)
    """Which split of a data set, in the notation of `datasets` (`train[:1000]`)."""
    corpus_field: str = key("text", min_length=1, validation_alias=AliasChoices("corpus_field", "corpus_column"))
    """Which column of a data set, or field of a file with rows, holds the text; `corpus_column` is another name."""
    corpus_window: int | None = amount(None, 2)
    """With `head_scores: study`, a document must have more tokens than this; `null`: than `seq_len`."""
    function_words: Annotated[str, AfterValidator(at_home)] | None = key(None, min_length=1, file=True)
    """A file of [function words](../docs/heads.md#copy-suppression), one a line, in place of ours."""
    n_sequences: int = amount(17, most=1_000_000)
    """How many sequences to score heads on."""
    n_mean_sequences: int = amount(100, most=1_000_000)
    """How many other sequences to average the heads' outputs over, for the mean ablation."""
    seq_len: int = amount(61, 2, most=1_000_000)
    """Tokens in a sequence."""
    prepend_bos: StartToken = "auto"
    """Start every sequence with the tokenizer's start token; `auto` is as for [prompts](#every-script-with-tasks)."""

    @model_validator(mode="after")
    def _every_key_counts(self) -> CspaKeys:
        if self.corpus_window is not None and self.head_scores != "study":
            raise ValueError("corpus_window: only counts with head_scores=study; leave it out, or pass that too")
        path = Path(self.corpus)
        if self.corpus in (TOY, PYTHON_DOCS) or (path.is_file() and kind_of_rows(path) is None):
            for name in ("corpus_split", "corpus_field"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: {self.corpus} is text without rows; leave it out")
        return self


class CspaConfig(CspaKeys, BaseConfig):
    """Keys of get_model_cspa.py. `batch_size` counts sequences, and `seed` draws the text."""


class SuccessorConfig(BaseConfig):
    """Keys of get_new_successor_head_scores_over_time.py. Nothing here is sampled, so `seed` and `batch_size` change
    nothing."""

    head_scores: Definition = "standard"
    """Which [definition](../docs/heads.md#succession) of the score: `standard`, or `study` for that of Tigges et al.
    2024."""
    study_faults: bool = key(False, only_with=("head_scores", "study"))
    """Also its [faults](../docs/study.md#every-difference): of the Roman numerals XVII comes twice, and XVIII not at
    all."""


class SignaturesConfig(TaskConfig):
    """Keys of get_head_signatures.py."""

    n_folds: int = amount(10, 4, most=1000)
    """Into how many folds the prompts are dealt; every second one can be held out. As many as circuits have
    (`eap.n_folds`)."""
    n_patterns: int = amount(20, most=10_000)
    """Of how many prompts to keep whole attention patterns, for the match by
    [attention](../docs/comparisons.md#matched-heads)."""

    @field_validator("n_folds")
    @classmethod
    def _halves(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"{value} folds have no halves; pass an even number")
        return value
