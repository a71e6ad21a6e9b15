"""What a script is to the runner."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.keys import BaseConfig
from ..results.kinds import ResultSchema

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from circuits_over_time.edge_attribution_patching.model.architectures import Shape

    from ..models.checkpoint import LoadedCheckpoint
    from ..models.tokenizers import PlainShape
    from ..results.store import Result, Store
    from ..tasks.prompts import Task, Work


@dataclass(frozen=True)
class Lazy:
    """A function of this project that is imported when it is first called: `Lazy("utils.heads.cspa.measure")`. So a
    script answers `--help`, a wrong key or `--dry-run` before torch and transformers are imported.
    """

    path: str

    def __call__(self, *arguments: Any) -> Any:
        return loaded(self)(*arguments)


def loaded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, imported if need be."""
    return pkgutil.resolve_name(f"circuits_over_time.{function.path}") if isinstance(function, Lazy) else function


@dataclass(frozen=True)
class Analysis:
    """A script: two functions, and what the runner must know about them. A script names them as `Lazy`."""

    name: str  # of the script, without `.py`
    schema: type[BaseConfig]
    kinds: tuple[ResultSchema, ...]  # every kind of result that `measure` returns
    # (config, tokenizer, shape) -> inputs: all that does not depend on the weights; a UserError on bad input. It is
    # called before a model's first checkpoint, and again where a later one has another tokenizer or shape.
    prepare: Callable[[Any, PreTrainedTokenizerBase, Shape], Any]
    # (checkpoint, config, inputs, task) -> {name of a kind: result}
    measure: Callable[[LoadedCheckpoint, Any, Any, Any], dict[str, Result]]
    tasks: Callable[[Any], Sequence[Task]] | None = None  # to measure one by one; None if scores have no task
    # With the model's name. Runs at the end, even if nothing was left to measure.
    finish: Callable[[Any, Store, str], None] | None = None
    # Kinds that `measure` takes from the store if they are there. In a suite, what writes them comes first.
    reads: tuple[ResultSchema, ...] = ()
    # Others with the same config, which need the results of all checkpoints: a later walk for each, if it has tasks.
    then: Sequence[Analysis] = ()
    # Before any checkpoint is loaded; a UserError on what the model's steps asked for cannot give.
    check: Callable[[Any, Store, str, Sequence[int]], None] | None = None
    # The (task, step) of the model to measure again, as their results lack something by now.
    outdated: Callable[[Any, Store, str], set[tuple[str, int]]] | None = None
    # The prompts that `prepare` will tokenise, and how much is done with them, without torch. Raises what `prepare`
    # raises. A dry run checks them, and estimates the time.
    inputs: Callable[[Any, PreTrainedTokenizerBase, PlainShape], Iterable[Work]] | None = None
