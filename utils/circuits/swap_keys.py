"""Keys of get_component_swaps.py. Nothing here imports torch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from circuits_over_time.edge_attribution_patching.choices import Part

from ..config.components import require_known
from ..config.keys import (
    BaseConfig,
    Names,
    Steps,
    TaskConfig,
    amount,
    as_list,
    different,
    execution,
    known_schedule,
    result_settings,
    task_and_method,
    variant_keys,
)
from ..config.schedules import select_steps
from ..heads.needs import require_context
from ..models.family import Family, family_of
from ..results.kinds import ROLES
from ..results.record import shown
from ..tasks import Task, tasks_of
from ..tasks.prompts import Work
from .keys import CircuitSettings, PairSettings, ReferenceConfig, circuit_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..models.tokenizers import PlainShape
    from ..results.store import Store

logger = logging.getLogger(__name__)

EVERYWHERE = ("circuit", "heads", "mlps", "all")
"""Names of sets that every model has; others are nodes, or roles of IOI."""


class SwapConfig(PairSettings, TaskConfig):
    """Keys of get_component_swaps.py. `checkpoints` are the models that components are put into."""

    task: Names = execution(...)
    """A task, or the [name in the results](../docs/circuits.md#swapped-components) of its circuit by another method,
    ablation or level (`ioi@eap`, `own.csv@node`), or a list."""
    reference: ReferenceConfig = ReferenceConfig()
    sources: str | Steps = "all"
    """The checkpoints that components are taken from: a [schedule](../docs/models.md#schedules), or a list of steps."""
    components: Annotated[list[str | list[str]], BeforeValidator(as_list), AfterValidator(different)] = Field(
        ["circuit", "heads", "mlps"]
    )
    """Which [sets of components](../docs/circuits.md#swapped-components) to swap, each by itself: `circuit`, `heads`,
    `mlps`, `all`, a role of IOI (`name_mover`), a node (`a5.h1`, `m3`, `input`, `logits`), or a list of these."""
    parts: Annotated[list[Part], AfterValidator(different)] = Field(["q", "k", "v", "o"])
    """What to swap of a head: queries `q`, keys `k`, values `v` and what it writes, `o`."""
    n_random: int = amount(10, 0, most=10_000)
    """How many sets of random heads, as many in each layer, to compare each set with."""
    n_sequences: int = amount(20, 0, most=100_000)
    """How many random blocks of tokens to average the attention scores of heads over; with 0 they are not measured."""
    seq_len: int = amount(50, 2, most=1_000_000)
    """Tokens in a block, which comes twice in a row."""

    @property
    def task_names(self) -> list[str]:
        """The tasks, whatever their circuits were found by."""
        return list(dict.fromkeys(task_and_method(name)[0] for name in super().task_names))

    def unread(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Adds what only means read."""
        yield from super().unread(prefix)
        if self.reference != ReferenceConfig() and not any(
            "mean" in name.rpartition("@")[2] for name in as_list(self.task)
        ):
            yield f"{prefix}reference", "without a circuit whose ablation is mean or mean_positional"

    _known_schedule_of_sources = field_validator("sources")(known_schedule)

    @field_validator("components")
    @classmethod
    def _named(cls, value: list[str | list[str]]) -> list[str | list[str]]:
        for names in map(as_list, value):
            if not all(name.strip() for name in different(names, "a set of components")):
                raise ValueError("the name of a component is empty")
        return value


def tasks_of_swaps(config: SwapConfig) -> list[Task]:
    """A task for each circuit, called as the circuit's results are; errors as of `tasks_of`."""
    of_name = dict(zip(config.task_names, tasks_of(config), strict=True))
    bases = [(name, task_and_method(name)[0]) for name in as_list(config.task)]
    return [replace(of_name[base], name=of_name[base].name + name.removeprefix(base)) for name, base in bases]


def settings_of(config: SwapConfig, task: str) -> CircuitSettings:
    """What prompts and ablated nodes depend on, for the circuit of this name in the results."""
    pairs = {name: getattr(config, name) for name in PairSettings.model_fields}
    variant = {key: value for key, value in variant_keys(task_and_method(task)[1]).items() if "." not in key}
    return CircuitSettings.model_validate({**pairs, "reference": config.reference, **variant})


def check_components(config: SwapConfig, n_layers: int, n_heads: int) -> None:
    """Refuse, with a UserError, a component that is neither a set, nor a role, nor a node of such a model."""
    layers = range(n_layers)
    nodes = ["input", *(f"a{layer}.h{head}" for layer in layers for head in range(n_heads))]
    nodes += [*(f"m{layer}" for layer in layers), "logits"]
    require_known(
        "components", config.components, nodes, [*EVERYWHERE, *ROLES], "a node of the model nor a set or role"
    )


def source_steps(config: SwapConfig, family: Family) -> list[int]:
    """The steps that components are taken from; a UserError if the family has not got one of them."""
    return select_steps(config.sources, family.steps, family.name, family.within, "sources")


def family_named(config: BaseConfig, name: str) -> Family:
    """The family of a run that goes by a name in the results."""
    likely = sorted(config.models, key=lambda given: not given.endswith(name))  # The hub is asked about each.
    return next(family for given in likely if (family := family_of(config, given)).name == name)


def check_sources(config: SwapConfig, store: Store, model: str, steps: Sequence[int]) -> None:
    """Refuse steps in `sources` that there are none of, with a UserError; say which keys are not those of a circuit."""
    source_steps(config, family_named(config, model))
    for task in (task.name for task in tasks_of_swaps(config)):
        folder = store.folder("graphs", model, task)
        if not (folder.path / "run.json").exists():
            continue
        settings, theirs = settings_of(config, task), folder.read_run().get("settings", {})
        ours = result_settings(settings)
        means = ["reference.corpus", "reference.n_prompts"] if "mean" in settings.ablation else []
        read = [
            name for name in (*PairSettings.model_fields, *means) if name in theirs and ours.get(name, "auto") != "auto"
        ]
        if unlike := [name for name in read if theirs[name] != ours[name]]:
            told = ", ".join(f"{name}={shown(ours[name])} (there {shown(theirs[name])})" for name in unlike)
            logger.warning("%s: faithfulness is not that of %s: %s", task, folder.path, told)


def inputs_of_swaps(config: SwapConfig, tokenizer: PreTrainedTokenizerBase, shape: PlainShape) -> Iterator[Work]:
    """The prompts of each task; errors are those of `circuit_pairs`."""
    if max(shape.n_layers, shape.n_heads) < sys.maxsize:  # Or else the model has no config yet that says.
        check_components(config, shape.n_layers, shape.n_heads)
    if config.n_sequences:
        require_context(config.seq_len, shape.n_positions)
    # Of each source and set: the clean and the corrupted run and the circuit, with random sets too.
    listed = isinstance(config.sources, list)  # Then the hub need not be asked.
    n_sources = len(config.sources if listed else source_steps(config, family_of(config, config.models[0])))
    models = n_sources * len(config.components) * (1 + config.n_random)
    for task in tasks_of_swaps(config):
        means = "mean" in settings_of(config, task.name).ablation
        passes = 2.5 / (2 if config.evaluate_on == "heldout" else 1) + means
        yield Work(task.name, circuit_pairs(config, task, tokenizer), models * passes)
