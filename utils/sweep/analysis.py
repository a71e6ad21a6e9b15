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
    """A script: two functions, and what the runner must know about them. A script names them as `Lazy`.

    Attributes:
        name: the script's name without `.py`.
        kinds: every kind of result that `measure` returns.
        prepare: (config, tokenizer, shape) -> inputs: all that does not depend on the weights; a UserError on bad
            input. It is called before a model's first checkpoint, and again where a later one has another tokenizer or
            shape.
        measure: (checkpoint, config, inputs, task) -> {name of a kind: result}.
        tasks: config -> the tasks to measure one by one; None if scores have no task.
        finish: (config, store, model's name) -> None. Runs at the end, even if nothing was left to measure.
        reads: kinds that `measure` takes from the store if they are there. In a suite, what writes them comes first.
        then: other analyses with the same config, which need the results of all checkpoints: a later walk for each, if
            it has tasks.
        check: (config, store, model's name, steps) -> None, before any checkpoint is loaded; a UserError on what these
            steps cannot give.
        outdated: (config, store, model's name) -> the (task, step) to measure again, as they lack something by now.
        inputs: (config, tokenizer, shape) -> the prompts that `prepare` will tokenise, and how much is done with them,
            without torch. Raises what `prepare` raises. A dry run checks them, and estimates the time.
    """

    name: str
    schema: type[BaseConfig]
    kinds: tuple[ResultSchema, ...]
    prepare: Callable[[Any, PreTrainedTokenizerBase, Shape], Any]
    measure: Callable[[LoadedCheckpoint, Any, Any, Any], dict[str, Result]]
    tasks: Callable[[Any], Sequence[Task]] | None = None
    finish: Callable[[Any, Store, str], None] | None = None
    reads: tuple[ResultSchema, ...] = ()
    then: Sequence[Analysis] = ()
    check: Callable[[Any, Store, str, Sequence[int]], None] | None = None
    outdated: Callable[[Any, Store, str], set[tuple[str, int]]] | None = None
    inputs: Callable[[Any, PreTrainedTokenizerBase, PlainShape], Iterable[Work]] | None = None
