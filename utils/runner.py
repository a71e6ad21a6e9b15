"""The one loop over checkpoints: find what is missing, prepare, load, prefetch, measure, save, free, report.

A script hands `main` its `Analysis`, and the runner walks models x checkpoints x tasks. It loads a checkpoint once for
all of its missing tasks, and meanwhile downloads the next one. Whatever is measured is saved at once. So a run that
ends early, by Ctrl-C, SIGTERM, an error or a crash, loses at most the task at hand, and the same command goes on from
there.

Seeds, threads and gradients are up to the analysis.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import yaml

from utils.command_line import Terminated, run_script
from utils.config.keys import BaseConfig
from utils.errors import UserError
from utils.models.checkpoint import Description, LoadedCheckpoint
from utils.models.family import Family, resolve_family
from utils.models.schedules import select_steps
from utils.progress import Progress, duration
from utils.results.kinds import Kind
from utils.results.record import RunRecord
from utils.results.store import Result, ResultsFolder, Store
from utils.tasks.prompts import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from edge_attribution_patching.architectures import Shape

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Analysis:
    """A script: two functions, and what the runner must know about them.

    Attributes:
        name: the script's name without `.py`.
        schema: its config.
        kinds: every kind of result that `measure` returns.
        prepare: (config, tokenizer, shape) -> inputs: everything that does not depend on the weights. Raises UserError
            on bad input. The runner calls it before it loads a model's first checkpoint, and again only if a later
            checkpoint has another tokenizer or shape.
        measure: (checkpoint, config, inputs, task) -> {name of a kind: result}.
        tasks: config -> the tasks to measure one by one; None if scores have no task.
        finish: (config, store, model's name) -> None. Runs after a model's sweep, even if nothing was left to measure.
    """

    name: str
    schema: type[BaseConfig]
    kinds: tuple[Kind, ...]
    prepare: Callable[[Any, PreTrainedTokenizerBase, Shape], Any]
    measure: Callable[[LoadedCheckpoint, Any, Any, Any], dict[str, Result]]
    tasks: Callable[[Any], Sequence[Task]] | None = None
    finish: Callable[[Any, Store, str], None] | None = None

    def tasks_in(self, config: BaseConfig) -> Sequence[Task | None]:
        """The tasks that a config asks for; [None] if scores have no task."""
        return [None] if self.tasks is None else self.tasks(config)


@dataclass(frozen=True)
class Sweep:
    """One model's part of a run: the steps asked for, and the tasks missing at each unfinished one."""

    family: Family
    steps: list[int]
    missing: dict[int, list[Task | None]]

    @property
    def size(self) -> int:
        """How many measurements there are to make."""
        return sum(len(tasks) for tasks in self.missing.values())


def main(analysis: Analysis, argv: Sequence[str] | None = None) -> int:
    """Run a script from its command line.

    Args:
        analysis: the script.
        argv: its arguments, by default those of the process.

    Returns:
        The exit code (see `utils/command_line.py`).
    """

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="say what would be measured, load nothing")

    def execute(config: BaseConfig, arguments: argparse.Namespace) -> int:
        return run(analysis, config, dry_run=arguments.dry_run)

    return run_script(f"{analysis.name}.py", analysis.schema, execute, argv, options)


def run(analysis: Analysis, config: BaseConfig, *, dry_run: bool = False) -> int:
    """Measure what is missing.

    Args:
        analysis: the script.
        config: an instance of its schema.
        dry_run: write to stdout what would be measured, and load nothing.

    Returns:
        The exit code 0.

    Raises:
        UserError: on bad input. What was measured before is saved.
    """
    return _Run(analysis, config).execute(dry_run)


class _Run:
    """One run of a script: its plan, and the loop over it."""

    def __init__(self, analysis: Analysis, config: BaseConfig) -> None:
        self.analysis, self.config = analysis, config
        self.store = Store(config.results_dir)
        self.tasks = analysis.tasks_in(config)
        names = [task.name for task in self.tasks if task is not None]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"task: two tasks would both write to the folder '{repeated[0]}'; rename one")
        self.sweeps = self._plan()
        self.progress = Progress(analysis.name, 0)

    def execute(self, dry_run: bool) -> int:
        """Measure what is missing, or say what that is."""
        if dry_run:
            sys.stdout.write(self._describe())
            return 0
        total = sum(sweep.size for sweep in self.sweeps)
        if total == 0:
            names = ", ".join(f"{sweep.family.name} ({len(sweep.steps)} checkpoints)" for sweep in self.sweeps)
            log.info("nothing to do: %s finished in %s; pass overwrite=true to measure again", names, self.store.root)
        self.progress = progress = Progress(self.analysis.name, total)
        try:
            for sweep in self.sweeps:
                self._sweep(sweep)
        except (Exception, KeyboardInterrupt, Terminated) as error:
            progress.close()
            again = "run the same command " + ("without overwrite=true" if self.config.overwrite else "again")
            stopped = "stopped" if isinstance(error, Exception) else "interrupted"
            if progress.done or not isinstance(error, UserError):  # Bad input that stops a run at once is one line.
                log.warning("%s: %d of %d measured and saved; to go on, %s", stopped, progress.done, total, again)
            raise
        progress.close()
        if total:
            log.info("finished: %d measured into %s in %s", total, self.store.root, duration(progress.seconds))
        return 0

    def _plan(self) -> list[Sweep]:
        """Find out what each model still needs, without loading any.

        Raises:
            UserError: if a model or step does not exist, two models share a results folder, or a folder holds results
                of another config.
        """
        config = self.config
        sweeps: list[Sweep] = []
        for model in config.models:
            family = resolve_family(model, config.cache_dir, config.tokens_per_step, config.revisions, config.stages)
            for other in sweeps:
                if other.family.name == family.name:
                    raise UserError(
                        f"model: {other.family.source} and {family.source} would both write to the folder "
                        f"'{family.name}'; run them with two results_dir"
                    )
            steps = select_steps(config.checkpoints, family.steps, family.name)
            if not config.overwrite:
                for record in self._records(family):
                    record.check(self.analysis.name, config, family)
            missing = {step: self._missing(family.name, step) for step in steps}
            sweeps.append(Sweep(family, steps, {step: left for step, left in missing.items() if left}))
        return sweeps

    def _folder(self, kind: Kind, model: str, task: Task | None) -> ResultsFolder:
        return self.store.folder(kind, model, None if task is None else task.name)

    def _records(self, family: Family) -> list[RunRecord]:
        return [RunRecord(self._folder(kind, family.name, task)) for kind in self.analysis.kinds for task in self.tasks]

    def _missing(self, model: str, step: int) -> list[Task | None]:
        if self.config.overwrite:
            return list(self.tasks)
        kinds = self.analysis.kinds
        return [task for task in self.tasks if not all(self._folder(kind, model, task).has(step) for kind in kinds)]

    def _sweep(self, sweep: Sweep) -> None:
        """Measure one model's missing checkpoints."""
        family, config, steps = sweep.family, self.config, list(sweep.missing)
        prepared: tuple[Description, Any] | None = None
        following = dict(itertools.pairwise(steps))
        for step in steps:
            described = family.describe(step)
            if prepared is None or prepared[0] != described:
                self.progress.say(f"{family.name}: preparing")
                inputs = self.analysis.prepare(config, described.tokenizer, described.shape)
                if prepared is None:
                    for record in self._records(family):
                        record.begin(self.analysis.name, config, family, sweep.steps)
                prepared = described, inputs
            self.progress.say(f"{family.name} step {step}: loading")
            checkpoint = family.load(step, config.dtype, config.device)
            if step in following:
                family.prefetch(following[step])
            for task in sweep.missing[step]:
                self.progress.say(" ".join([family.name, "step", str(step), *([task.name] if task else [])]))
                self._save(checkpoint, task, self._measure(checkpoint, prepared[1], task))
                self.progress.advance()
            del checkpoint
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            family.release(step, config.keep_checkpoints)
        if self.analysis.finish is not None:
            self.analysis.finish(config, self.store, family.name)

    def _measure(self, checkpoint: LoadedCheckpoint, inputs: Any, task: Task | None) -> dict[str, Result]:
        try:
            results = self.analysis.measure(checkpoint, self.config, inputs, task)
        except torch.OutOfMemoryError:
            size = self.config.batch_size
            raise UserError(
                f"batch_size: {size} does not fit on {checkpoint.device} ({checkpoint.name} step {checkpoint.step}); "
                f"pass a smaller one, for example batch_size={max(size // 2, 1)}"
            ) from None
        kinds = {kind.name for kind in self.analysis.kinds}
        if set(results) != kinds:
            raise ValueError(f"{self.analysis.name} measured {sorted(results)}, its kinds are {sorted(kinds)}")
        return results

    def _save(self, checkpoint: LoadedCheckpoint, task: Task | None, results: dict[str, Result]) -> None:
        """Write provenance first, then what goes with the tables, and the tables last: a table says all is complete."""
        name, step = checkpoint.name, checkpoint.step
        folders = [self._folder(kind, name, task) for kind in self.analysis.kinds]
        equal: set[int] = set()
        for folder in folders:
            equal.update(RunRecord(folder).add(step, checkpoint.provenance))
            result = results[folder.kind.name]
            if result.tensors is not None:
                folder.write_tensors(step, result.tensors)
            if result.json is not None:
                folder.write_json(step, result.json)
        for folder in folders:
            folder.write_table(step, results[folder.kind.name].table, checkpoint.tokens)
        if equal:
            steps = ", ".join(str(other) for other in sorted(equal))
            log.warning("%s: step %d holds the same weights as step %s; recorded in run.json", name, step, steps)

    def _describe(self) -> str:
        lines = [yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)]
        for sweep in self.sweeps:
            name, left = sweep.family.name, list(sweep.missing)
            lines.append(
                f"{name} from {sweep.family.source}: {len(left)} of {len(sweep.steps)} checkpoints to measure\n"
            )
            if left:
                lines.append(f"  measure: {', '.join(str(step) for step in left)}\n")
            if done := [step for step in sweep.steps if step not in sweep.missing]:
                lines.append(f"  finished: {', '.join(str(step) for step in done)}\n")
            folders = [self._folder(kind, name, None).path for kind in self.analysis.kinds]
            lines.append(f"  results: {', '.join(str(folder) for folder in folders)}\n")
        return "".join(lines)
