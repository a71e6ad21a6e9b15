"""Keys of get_ioi_consistency.py, and the configs of the scripts that measure its inputs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, model_validator

from circuits_over_time.edge_attribution_patching.graph import Graph

from ..circuits.keys import CircuitKeys, CircuitsConfig, circuit_pairs, passes
from ..config.components import require_known
from ..config.keys import (
    MOST_PROMPTS,
    BaseConfig,
    MemoryKeys,
    NumberFormat,
    PromptOptions,
    RedrawKeys,
    Section,
    amount,
    as_list,
    different,
    errors_named,
    execution,
    key,
)
from ..heads.keys import ComponentsConfig, ComponentsKeys, CspaConfig, CspaKeys
from ..heads.needs import inputs_of_components, inputs_of_cspa
from ..results.kinds import ROLES
from ..tasks import TASKS
from ..tasks.prompts import Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..models.tokenizers import PlainShape

_EFFECT: dict[str, Any] = {"ge": -1000, "le": 1000, "reason": "effects are shares of a logit difference"}
_ATTENTION: dict[str, Any] = {"ge": -1, "le": 1, "reason": "attention is a probability"}


NAME_MOVERS, EVERY_HEAD = "name_mover", "every_head"


class Thresholds(Section):
    """When a head holds a role. The defaults are those of Tigges et al. 2024 (arXiv 2407.10827), except for
    `name_movers_effect` and `score_over_chance`, which `definitions: study` does not read."""

    copy_score: float = key(10.0, ge=0, le=100, reason="it is a percentage")
    """Name movers have a copy score above this, in percent, and an effect below 0."""
    negative_copy_score: float = key(10.0, ge=0, le=100, reason="it is a percentage")
    """Negative name movers have a negative copy score above this, in percent; not with `definitions: frozen`."""
    cspa: float = key(0.10, ge=-1, le=1, reason="a head that only suppresses copying has 1")
    """Copy-suppression heads have a CSPA score above this."""
    name_movers_effect: float = key(-0.001, ge=-1000, le=0, reason="name movers raise the logit difference")
    """Name movers have an effect below this, copy-suppression heads and negative name movers one of this size or more
    with either sign; with `definitions: study`, name movers have one below 0. Smaller effects mostly rest on few
    prompts."""
    s_inhibition_effect: float = key(-0.001, **_EFFECT)
    """S-inhibition heads have an effect below this through the name movers' queries, in the unit of the definitions."""
    logit_diff_change: float = key(0.0, ge=-1000, le=1000, reason="no logit differs by more")
    """In the [exchange](../docs/heads.md#the-ioi-algorithm) of a candidate for S-inhibition, the logit difference must
    change by less than this."""
    attention_io_change: float = key(0.0, **_ATTENTION)
    """With the same exchange, the name movers' attention to IO must change by less than this."""
    attention_s1_change: float = key(0.0, **_ATTENTION)
    """With the same exchange, the name movers' attention to S1 must change by more than this."""
    induction_effect: float = key(-0.001, **_EFFECT)
    """Induction and duplicate-token heads have an effect below this through the S-inhibition heads' values, in the unit
    of the definitions."""
    score_over_mean: float = key(1.0, gt=0, le=10_000, reason="no model has more heads")
    """Induction and duplicate-token heads have an induction or duplicate-token score above this multiple of its mean
    over all heads of the model."""
    score_over_chance: float = key(2.0, gt=0, le=10_000, reason="no context is longer")
    """They also have a score above this multiple of what a head scores that attends to all tokens alike; not with
    `definitions: study`."""


class OwnFormat(Section):
    """The number format of what a script reads from results, or measures if that is not there."""

    dtype: NumberFormat | None = None
    """The number format in which this was measured (`float32`, `bfloat16`, `float16`); `null`: that of the script."""
    dtype_of: dict[str, NumberFormat] = execution({})
    """Models in which it was another one (`float32`, `bfloat16`, `float16`), by name: `{pythia-410m: float32}`."""


class CircuitInput(OwnFormat, RedrawKeys, CircuitKeys):
    """The task's circuit that the percentages are taken over, searched with these keys if none is stored."""

    heads: Literal["circuit", "all"] = "circuit"
    """Whether to take percentages over the heads (and MLPs) of the task's `circuit`, or over `all` of the model,
    without a circuit."""
    n_prompts: int | None = amount(100, most=MOST_PROMPTS)
    """How many prompt pairs to score edges on; with `evaluate_on: heldout`, faithfulness gets as many again."""


class CspaInput(OwnFormat, CspaKeys):
    """Text and settings of the CSPA scores."""


class ConsistencyKeys(PromptOptions, MemoryKeys, BaseConfig):
    """What the scripts that follow an algorithm over training share."""

    task: ClassVar[str]
    """The task that the algorithm does."""
    n_prompts: int = amount(70, most=MOST_PROMPTS)
    """How many prompts to measure effects on."""
    require_stored: bool = execution(False)
    """Refuse to compute the circuit and the scores; name the command that makes what is missing."""
    circuit: CircuitInput = CircuitInput()

    @model_validator(mode="before")
    @classmethod
    def _one_task(cls, given: Any) -> Any:
        if isinstance(given, dict) and "task" in given:
            raise ValueError(
                f"task: roles are those of {cls.task}, in prompts of its own; leave it out; "
                "get_circuits_over_time.py takes any task and file"
            )
        return given

    def circuits_config(self) -> CircuitsConfig:
        """The config with which get_circuits_over_time.py finds the same circuit."""
        options = {name: getattr(self, name) for name in PromptOptions.model_fields}
        keys: dict[str, Any] = {name: getattr(self.circuit, name) for name in CircuitKeys.model_fields}
        budget = self.memory_budget_gb
        keys |= {"redraw_prompts": self.circuit.redraw_prompts, "task": self.task, "memory_budget_gb": budget}
        return CircuitsConfig(**self._shared(self.circuit), **options, **keys)

    def _shared(self, of: OwnFormat | None = None) -> dict[str, Any]:
        shared = {name: getattr(self, name) for name in BaseConfig.model_fields}
        if of is not None:
            dtype_of = of.dtype_of if of.dtype else self.dtype_of | of.dtype_of
            shared |= {"dtype": of.dtype or self.dtype, "dtype_of": dtype_of}
        return shared


def inputs_of_levels(
    config: ConsistencyKeys, tokenizer: PreTrainedTokenizerBase, shape: PlainShape, levels: float
) -> Iterator[Work]:
    """The prompts that effects are measured on, with the passes that takes, and those of a circuit to be found."""
    task = TASKS[config.task]
    yield Work(task.name, task.pairs(tokenizer, config.n_prompts, config.seed, config), levels)
    if not config.require_stored and config.circuit.heads == "circuit":
        of_circuit = config.circuits_config()
        with errors_named("circuit.", CircuitInput):
            yield Work(task.name, circuit_pairs(of_circuit, task, tokenizer), passes(of_circuit, shape.n_layers))


def inputs_of_ioi(
    config: IoiConsistencyConfig, tokenizer: PreTrainedTokenizerBase, shape: PlainShape
) -> Iterator[Work]:
    """The IOI prompts that effects are measured on, and what the circuit and scores need that may have to be found."""
    levels = 19 if config.definitions == "frozen" else 44
    if config.backup and max(shape.n_layers, shape.n_heads) < sys.maxsize:  # Or else there is no config yet that says.
        ablated_sets(config.backup_of, Graph(shape.n_layers, shape.n_heads, parallel=False), {})
    # Of each head up to three passes at the last token, through the layers above it.
    every_head = config.backup and EVERY_HEAD in config.backup_of
    heads = 0.1 * shape.n_layers * shape.n_heads if every_head else 0.0
    yield from inputs_of_levels(config, tokenizer, shape, levels + heads)
    if config.require_stored:
        return
    with errors_named("components.", ComponentsKeys):
        yield from inputs_of_components(config.components_config(), tokenizer, shape)
    if (of_cspa := config.cspa_config()) is not None:
        with errors_named("cspa.", CspaKeys):
            yield from inputs_of_cspa(of_cspa, tokenizer, shape)


class IoiConsistencyConfig(ConsistencyKeys):
    """Keys of get_ioi_consistency.py.

    The circuit, the head scores and the CSPA scores are taken from the results if those are of the same weights and the
    same settings. Otherwise they are computed.
    """

    task: ClassVar[str] = "ioi"
    definitions: Literal["standard", "study", "frozen"] = "standard"
    """How [effects](../docs/heads.md#the-ioi-algorithm) are measured, and who holds a role: as in the `study`; by its
    criteria, but each met beyond its error (`standard`); or so with everything off the path `frozen`."""
    false_discovery_rate: float = key(
        0.05, gt=0, le=1, reason="it is a share", only_with=("definitions", "standard", "frozen")
    )
    """Of the heads that hold a role at a level, how many may owe it to the choice of prompts (Benjamini and Hochberg
    1995, over the level's roles and all heads that can hold them)."""
    through_mlps: bool = False
    """With `definitions: frozen`, also count paths through MLPs from a sender to its level's receivers."""
    backup: bool = True
    """Ablate heads and measure how much of the logit difference [later parts](../docs/heads.md#backup) bring back."""
    backup_of: Annotated[list[str | list[str]], AfterValidator(different)] = key(
        [NAME_MOVERS], min_length=1, only_with=("backup", "true")
    )
    """What to ablate, each by itself: heads with a role of level 1 (`name_mover`), a head (`a5.h1`), a list of these,
    or `every_head`."""
    backup_ablation: Literal["mean", "corrupted"] = key("mean", only_with=("backup", "true"))
    """What ablated heads write at the last token: their `mean` over the clean prompts, or what they write in the
    `corrupted` prompt."""
    thresholds: Thresholds = Thresholds()
    components: ComponentsKeys = ComponentsKeys()
    cspa: CspaInput | None = None
    """Text and settings for the CSPA scores. Needed if none are stored."""

    def unread(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Adds the threshold that a definition has no use for."""
        yield from super().unread(prefix)
        unread = ("frozen", "negative_copy_score"), ("study", "name_movers_effect"), ("study", "score_over_chance")
        for definitions, name in unread:
            if self.definitions == definitions and getattr(self.thresholds, name) != getattr(Thresholds(), name):
                others = "standard or study" if definitions == "frozen" else "standard or frozen"
                yield f"{prefix}thresholds.{name}", f"with definitions={definitions}; it needs {others}"

    @model_validator(mode="after")
    def _through_mlps_is_a_choice(self) -> IoiConsistencyConfig:
        if self.through_mlps and self.definitions != "frozen":
            given = f"definitions={self.definitions} counts paths through MLPs anyway"
            raise ValueError(f"through_mlps: {given}; leave it out, or pass definitions=frozen")
        return self

    def components_config(self) -> ComponentsConfig:
        """The config with which get_full_model_components_over_time.py measures the same scores."""
        return ComponentsConfig(**self._shared(), **dict(self.components))

    def cspa_config(self) -> CspaConfig | None:
        """The config with which get_model_cspa.py measures the same scores; None if no text is named."""
        return None if self.cspa is None else CspaConfig(**dict(self.cspa) | self._shared(self.cspa))


def ablated_sets(
    backup_of: Sequence[str | list[str]], graph: Graph, of_role: Mapping[str, Sequence[tuple[int, int]]]
) -> dict[str, list[tuple[int, int]]]:
    """Label -> the heads to ablate together: those of a role of the first level, heads by name, or each by itself.

    A UserError if the model has no such head.
    """
    heads = [(layer, head) for layer in range(graph.n_layers) for head in range(graph.n_heads)]
    each = {f"a{layer}.h{head}": [(layer, head)] for layer, head in heads}
    neither, sets = "a head of the model nor a role of level 1", dict[str, list[tuple[int, int]]]()
    require_known("backup_of", backup_of, list(each), [EVERY_HEAD, *ROLES[:3]], neither)
    of_name = {**of_role, EVERY_HEAD: heads, **each}
    for given in backup_of:
        if given == EVERY_HEAD:
            sets |= each
        else:
            found = [head for name in as_list(given) for head in of_name.get(name, ())]
            sets["+".join(as_list(given))] = list(dict.fromkeys(found))
    return sets


class GreaterThanThresholds(Section):
    """When a node holds a role, beyond its error."""

    effect: float = key(-0.001, **_EFFECT)
    """Its effect is below this, as a share of the drop of the probability difference from clean to corrupted."""
    attention_over_chance: float = key(2.0, gt=0, le=10_000, reason="no context is longer")
    """A head attends from the last token to YY more than this multiple of what attention to all tokens alike gives."""


class GreaterThanConsistencyConfig(ConsistencyKeys):
    """Keys of get_greater_than_consistency.py.

    The circuit is taken from the results if it is of the same weights and settings. Otherwise it is computed.
    """

    task: ClassVar[str] = "greater_than"
    false_discovery_rate: float = key(0.05, gt=0, le=1, reason="it is a share")
    """Of the nodes that hold a role at a level, how many may owe it to the choice of prompts (Benjamini and Hochberg
    1995, over all nodes that can hold it)."""
    n_random: int = amount(1000, most=100_000)
    """How many times to draw random nodes in place of those that hold a level's role, as many of each layer."""
    study_faults: bool = False
    """Take the seventh token from the end for YY in heads' attention, as the study's
    [check](../docs/study.md#every-difference) does: there stands " year"."""
    thresholds: GreaterThanThresholds = GreaterThanThresholds()


def inputs_of_greater_than(
    config: GreaterThanConsistencyConfig, tokenizer: PreTrainedTokenizerBase, shape: PlainShape
) -> Iterator[Work]:
    """The prompts that effects are measured on, and those of a circuit that may have to be found."""
    return inputs_of_levels(config, tokenizer, shape, 15)
