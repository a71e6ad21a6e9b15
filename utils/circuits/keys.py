"""The keys of circuits: what finding one depends on, and what a run over checkpoints adds. It imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from circuits_over_time.edge_attribution_patching.choices import (
    POSITIVE_SHARE,
    Criterion,
    Grid,
    Order,
    Quadrature,
    Selection,
)
from circuits_over_time.edge_attribution_patching.circuits.circuit_size import SizeRule

from ..config.keys import BaseConfig, MemoryKeys, PromptOptions, Section, TaskConfig, execution
from ..tasks import Task, tasks_of

_SHARED: dict[str, Any] = dict(BaseConfig.model_fields)


class EapConfig(Section):
    """How edges are scored."""

    ig_steps: int = Field(20, gt=0)
    """Integration steps of EAP-IG. 20 keep every score within 1% of the integral on a real model; 12 do on the toy
    family. The published runs use 30."""
    quadrature: Quadrature = "left"
    """Where the m steps lie between the corrupted (alpha = 0) and the clean prompt (alpha = 1): `left` (alpha = k/m for
    k = 0 to m - 1, the published EAP-IG), `right` (k = 1 to m; a single step is plain EAP), `midpoint` or
    `gauss-legendre`."""
    n_folds: int = Field(10, ge=2)
    """Into how many folds the prompts are dealt. Scores are kept apart for each, which says how sure they are. With
    fewer prompts than folds, each prompt is one. It costs no pass of the model, but on its device 4 bytes per fold and
    pair of nodes: with 10 folds 3 MB for pythia-160m, 257 MB for 12b."""


class SearchConfig(Section):
    """How the circuit is searched."""

    threshold: float = Field(0.8, gt=0)
    """The faithfulness a circuit must reach."""
    criterion: Criterion = "normalised"
    """Which faithfulness must reach the threshold: `normalised`, (M(C) - M(corrupted)) / (M(clean) - M(corrupted)), or
    `raw`, M(C) / M(clean), as in the study. The corrupted metric is mostly negative, so `raw` asks for more."""
    grid: Grid = "adaptive"
    """Which sizes to try. `adaptive` tries 8, 16, 32, ... edges until two sizes in a row reach the threshold, then
    narrows down to the smallest size that reaches it and that the next larger one confirms. `study` tries 25, 50, 75,
    ... up to 1,600, bisects, and looks at 5 sizes on either side, without confirmation."""
    order: Order = "greedy"
    """In which order edges join: `greedy` goes backwards from the logits and always takes the strongest edge into the
    circuit so far; `top_n` takes the strongest edges wherever they are."""
    selection: Selection = "absolute"
    """What makes an edge strong: `absolute`, its |score| alone, or `signed` (Nikankin et al. 2025). Signed selection
    takes edges whose score has one sign in 95% of the bootstrap resamples of folds before all others, and keeps up a
    share of edges that raise the metric."""
    positive_share: float = Field(POSITIVE_SHARE, ge=0, le=1)
    """With `selection: signed`: at least this share of the edges have a positive score, as long as there are some."""
    sizes: list[int] | None = None
    """Evaluate exactly these numbers of edges (`[25, 50, 100]`) instead of searching."""
    mib: bool = False
    """Also report CPR and CMD of the Mechanistic Interpretability Benchmark (MIB), from circuits of 0.1% to 100% of all
    edges. This costs 20 more circuits, most of them large."""
    min_gap: float = Field(0.01, ge=0)
    """A task counts as learned if the metric on clean prompts beats that on corrupted prompts by more than this, in the
    metric's units, and by more than 3 standard errors."""

    def rule(self) -> SizeRule:
        """How the size is chosen."""
        return SizeRule(self.threshold, self.criterion, self.grid)

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, sizes: list[int] | None) -> list[int] | None:
        if sizes is not None and (not sizes or min(sizes) < 1 or sorted(set(sizes)) != sizes):
            raise ValueError("sizes are numbers of edges, 1 or more, ascending, each once")
        return sizes


class CircuitKeys(Section):
    """What a circuit depends on, apart from the model and the task."""

    n_prompts: int = Field(100, gt=0)
    """How many prompt pairs to score edges on. With `evaluate_on: heldout`, faithfulness gets as many again."""
    eap: EapConfig = EapConfig()
    search: SearchConfig = SearchConfig()
    evaluate_on: Literal["heldout", "same"] = "heldout"
    """Which prompts to measure faithfulness on: `heldout` ones, or the `same` that edges were scored on."""


class CircuitSettings(CircuitKeys, MemoryKeys, PromptOptions):
    """Everything that finding a circuit in one model depends on, and checking it."""

    # As every script has them.
    batch_size: int = _SHARED["batch_size"]
    seed: int = _SHARED["seed"]
    n_random: int = Field(20, ge=0)
    """Random circuits of the circuit's size, grown by the same rule from shuffled scores, to compare it with. Each is
    evaluated alone and removed from the whole model. `0` leaves them out."""
    hypothesis_tests: bool = False
    """Also test the circuit as Shi et al. 2024: equivalence, independence, minimality, sufficiency and necessity. This
    evaluates one circuit for each edge of the circuit and 200 more."""


class CircuitsConfig(CircuitSettings, TaskConfig):
    """Keys of get_circuits_over_time.py."""

    transfer: Literal["all", "neighbours"] | list[int] | None = execution(None)
    """Then also put circuits into the models of other checkpoints, which are loaded once more for it: the circuits
    found at these steps, at the steps before and after (`neighbours`) or at `all` steps. In every model that has
    learned the task, its own circuit and those of the other tasks are evaluated too. Costs one circuit a pair of
    steps."""
    export_json: bool = execution(False)
    """Also write every graph in the JSON format of EAP-IG, next to its `.pt`."""


def tasks_of_transfer(config: CircuitsConfig) -> Sequence[Task]:
    """The tasks of the second walk; none unless `transfer` asks for it."""
    return [] if config.transfer is None else tasks_of(config)
