"""Keys of get_ioi_consistency.py; configs/README.md lists them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from utils.circuits import EapConfig, SearchConfig
from utils.config.keys import BaseConfig, Section, execution


class Thresholds(Section):
    """When a head counts; the defaults are those of Tigges et al. 2024 (arXiv 2407.10827)."""

    copy_score: float = 10.0
    """Name movers have a higher copy score, in percent."""
    cspa: float = 0.10
    """Copy-suppression heads have a higher CSPA score."""
    s_inhibition_effect: float = -0.001
    """S-inhibition heads have a lower effect through the name movers' queries, as a share of the logit difference."""
    induction_effect: float = -0.001
    """Induction and duplicate-token heads have a lower effect through the S-inhibition heads' values."""
    score_over_mean: float = Field(1.0, gt=0)
    """Induction and duplicate-token heads have a higher score than this multiple of the mean over all heads."""
    logit_diff_change: float = 0.0
    """With an S-inhibition head's output for the opposite name order, the logit difference changes by less."""
    attention_io_change: float = 0.0
    """With it, the name movers' attention to IO changes by less."""
    attention_s1_change: float = 0.0
    """With it, the name movers' attention to S1 changes by more."""


class CircuitInput(Section):
    """The circuit whose heads are measured; the keys below `heads` count where none is stored."""

    heads: Literal["circuit", "all"] = "circuit"
    """Measure the heads of the IOI circuit, or all heads of the model."""
    n_prompts: int = Field(100, gt=0)
    """Prompt pairs that edges are scored on, and again as many for faithfulness where those are held out."""
    eap: EapConfig = EapConfig()
    search: SearchConfig = SearchConfig()
    evaluate_on: Literal["heldout", "same"] = "heldout"
    """Prompts of the faithfulness."""


class ComponentsInput(Section):
    """Copy, induction and duplicate-token scores, where none are stored."""

    n_sequences: int = Field(50, gt=0)
    """Random blocks."""
    seq_len: int = Field(50, gt=1)
    """Tokens of a block, which stands twice in a row."""
    n_prompts: int = Field(100, gt=0)
    """IOI prompts whose names are to be copied."""


class CspaInput(Section):
    """CSPA scores, where none are stored: the keys of get_model_cspa.py that choose the text."""

    corpus: str
    """A text file, a data set of the hub (NeelNanda/pile-10k), or `toy`."""
    corpus_split: str = "train"
    """Split of a data set."""
    corpus_field: str = "text"
    """Column of a data set's text."""
    n_sequences: int = Field(17, gt=0)
    """Sequences that are scored."""
    n_mean_sequences: int = Field(100, gt=0)
    """Other sequences, over which heads' outputs are averaged for the mean ablation."""
    seq_len: int = Field(61, gt=1)
    """Tokens of a sequence."""


class IoiConsistencyConfig(BaseConfig):
    """Keys of the script."""

    n_prompts: int = Field(70, gt=0)
    """IOI prompts that effects are measured on."""
    ioi_corruption: Literal["swap", "abc"] = "swap"
    """Prompts that senders take their output from: second subject replaced by the indirect object, or other names."""
    prepend_bos: bool = False
    """Put the tokenizer's start token before every prompt."""
    through_mlps: bool = False
    """Count paths from a sender to its level's receivers that lead through MLPs too."""
    require_stored: bool = execution(False)
    """Refuse to compute the circuit and the head scores: they have to be in the results."""
    thresholds: Thresholds = Thresholds()
    circuit: CircuitInput = CircuitInput()
    components: ComponentsInput = ComponentsInput()
    cspa: CspaInput | None = None
    memory_budget_gb: float = execution(1.0, gt=0)
    """Memory that one step of the computation may take beside the weights."""
