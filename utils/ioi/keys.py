"""Keys of get_ioi_consistency.py, and the configs of the scripts that measure its inputs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from utils.circuits import CircuitKeys, CircuitsConfig
from utils.config.keys import BaseConfig, PromptOptions, Section, execution
from utils.heads.attention_and_copy import ComponentsConfig, ComponentsKeys
from utils.heads.cspa import CspaConfig, CspaKeys


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


class CircuitInput(CircuitKeys):
    """The circuit whose heads are measured; the keys are those of get_circuits_over_time.py."""

    heads: Literal["circuit", "all"] = "circuit"
    """Measure the heads of the IOI circuit, or all heads of the model."""


class IoiConsistencyConfig(PromptOptions, BaseConfig):
    """Keys of get_ioi_consistency.py.

    The circuit, the head scores and the CSPA scores are taken from the results where they lie there for the same
    weights and the same settings as here, and computed where not.
    """

    n_prompts: int = Field(70, gt=0)
    """IOI prompts that effects are measured on."""
    through_mlps: bool = False
    """Count paths from a sender to its level's receivers that lead through MLPs too; from the receivers on, paths are
    direct either way."""
    require_stored: bool = execution(False)
    """Refuse to compute the circuit and the scores; what is missing is named with the command that makes it."""
    thresholds: Thresholds = Thresholds()
    circuit: CircuitInput = CircuitInput()
    components: ComponentsKeys = ComponentsKeys()
    cspa: CspaKeys | None = None
    """Text and settings of the CSPA scores, as of get_model_cspa.py; needed where none are stored."""
    memory_budget_gb: float = execution(1.0, gt=0)
    """Memory that one step of the computation may take beside the weights; work is split to stay below it."""

    def circuits_config(self) -> CircuitsConfig:
        """The config with which get_circuits_over_time.py finds the same circuit."""
        options = {name: getattr(self, name) for name in PromptOptions.model_fields}
        keys = {name: getattr(self.circuit, name) for name in CircuitKeys.model_fields}
        return CircuitsConfig(**self._shared(), **options, **keys, task="ioi", memory_budget_gb=self.memory_budget_gb)

    def components_config(self) -> ComponentsConfig:
        """The config with which get_full_model_components_over_time.py measures the same scores."""
        return ComponentsConfig(**self._shared(), **dict(self.components))

    def cspa_config(self) -> CspaConfig | None:
        """The config with which get_model_cspa.py measures the same scores; None where no text is named."""
        return None if self.cspa is None else CspaConfig(**self._shared(), **dict(self.cspa))

    def _shared(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in BaseConfig.model_fields}
