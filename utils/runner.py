"""The one loop over checkpoints: what is finished, load, prefetch, measure, save, free, report.

A script hands `main` its `Analysis`; the runner walks models x checkpoints x tasks. A checkpoint is loaded once for all
of its missing tasks, while the next one is downloaded. Everything measured is saved at once, so a run that ends early,
by Ctrl-C, SIGTERM, an error or a crash, loses at most the task at hand; the same command goes on from there.

Exit codes: 0 all finished, 2 bad input (one line on stderr), 130 Ctrl-C, 143 SIGTERM.
Global settings that `main` changes: the root logger, the log levels of the libraries and the progress bars of
transformers (once); the handler of SIGTERM and what the garbage collector walks through (while it runs). Seeds,
threads and gradients are left to the analysis.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
import yaml

from utils.analysis import Analysis, Result
from utils.config.keys import BaseConfig, load_config, resolved
from utils.errors import UserError
from utils.models.family import Family, LoadedCheckpoint, import_libraries, resolve_family
from utils.models.schedules import select_steps
from utils.progress import Progress, configure_logging, duration
from utils.results.record import RunRecord
from utils.results.store import Store

__all__ = ["Analysis", "Result", "main", "run"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """One model's part of a run: the steps asked for, and the tasks that are missing at each unfinished one."""

    family: Family
    steps: list[int]
    missing: dict[int, list[str | None]]

    @property
    def size(self) -> int:
        """Measurements to make."""
        return sum(len(tasks) for tasks in self.missing.values())


class _Terminated(BaseException):
    """SIGTERM, raised where the main thread is, so that it ends as cleanly as Ctrl-C."""


def main(analysis: Analysis, argv: Sequence[str] | None = None) -> int:
    """Run a script from its command line.

    Args:
        analysis: the script.
        argv: arguments, by default the process's own.

    Returns:
        The exit code.
    """
    configure_logging()
    try:
        path, dry_run, overrides = _parse(analysis, argv)
        config = load_config(analysis.schema, path, overrides)
        with _sigterm_raises():
            return run(analysis, config, dry_run=dry_run)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except _Terminated:
        return 143


def run(analysis: Analysis, config: BaseConfig, *, dry_run: bool = False) -> int:
    """Measure what is missing.

    Args:
        analysis: the script.
        config: an instance of its schema.
        dry_run: say on stdout what would be measured and load nothing.

    Returns:
        The exit code 0.

    Raises:
        UserError: on bad input; what was measured before it is saved.
    """
    store = Store(config.results_dir)
    tasks = analysis.tasks(config)
    if repeated := sorted({str(task) for task in tasks if tasks.count(task) > 1}):
        raise UserError(f"task: two tasks would both write to the folder '{repeated[0]}'; rename one")
    sweeps = plan(analysis, config, store, tasks)
    if dry_run:
        sys.stdout.write(_describe(analysis, config, store, sweeps))
        return 0
    total = sum(sweep.size for sweep in sweeps)
    if total == 0:
        names = ", ".join(f"{sweep.family.name} ({len(sweep.steps)} checkpoints)" for sweep in sweeps)
        log.info("nothing to do: %s finished in %s; pass overwrite=true to measure again", names, store.root)
    progress = Progress(analysis.name, total)
    try:
        with _libraries_out_of_collection(total > 0):
            for sweep in sweeps:
                _run_sweep(analysis, config, store, tasks, sweep, progress)
    except (Exception, KeyboardInterrupt, _Terminated) as error:
        progress.close()
        again = "run the same command without overwrite=true" if config.overwrite else "run the same command again"
        stopped = "stopped" if isinstance(error, Exception) else "interrupted"
        if progress.done or not isinstance(error, UserError):  # Bad input that stops a run at once is one line.
            log.warning("%s: %d of %d measured and saved; to go on, %s", stopped, progress.done, total, again)
        raise
    progress.close()
    if total:
        log.info("finished: %d measured into %s in %s", total, store.root, duration(progress.seconds))
    return 0


def plan(analysis: Analysis, config: BaseConfig, store: Store, tasks: list[str | None]) -> list[Sweep]:
    """What each model still needs, without loading any.

    Raises:
        UserError: if a model or step is not to be had, two models share a results folder, or a folder holds results
            of another config.
    """
    sweeps: list[Sweep] = []
    for model in config.models:
        family = resolve_family(model, config.cache_dir, config.tokens_per_step)
        for other in sweeps:
            if other.family.name == family.name:
                raise UserError(
                    f"model: {other.family.source} and {family.source} would both write to the folder '{family.name}'; "
                    "run them with two results_dir"
                )
        steps = select_steps(config.checkpoints, family.steps, family.name)
        if not config.overwrite:
            for record in _records(analysis, store, family, tasks):
                record.check(analysis.name, config, family)
        missing = {step: _missing(analysis, config, store, family.name, step, tasks) for step in steps}
        sweeps.append(Sweep(family, steps, {step: left for step, left in missing.items() if left}))
    return sweeps


def _records(analysis: Analysis, store: Store, family: Family, tasks: list[str | None]) -> list[RunRecord]:
    return [RunRecord(store, kind, family.name, task) for kind in analysis.kinds for task in tasks]


def _missing(
    analysis: Analysis, config: BaseConfig, store: Store, name: str, step: int, tasks: list[str | None]
) -> list[str | None]:
    if config.overwrite:
        return tasks
    return [task for task in tasks if not all(store.has(kind, name, step, task) for kind in analysis.kinds)]


def _run_sweep(
    analysis: Analysis, config: BaseConfig, store: Store, tasks: list[str | None], sweep: Sweep, progress: Progress
) -> None:
    family, steps = sweep.family, list(sweep.missing)
    if steps:
        if analysis.check is not None:
            progress.say(f"{family.name}: checking")
            analysis.check(config, family.tokenizer(steps[0]))
        for record in _records(analysis, store, family, tasks):
            record.begin(analysis.name, config, family, sweep.steps)
    following = dict(itertools.pairwise(steps))
    for step in steps:
        progress.say(f"{family.name} step {step}: loading")
        checkpoint = family.load(step, config.dtype, config.device)
        if step in following:
            family.prefetch(following[step])
        for task in sweep.missing[step]:
            progress.say(" ".join([family.name, "step", str(step), *([task] if task else [])]))
            results = _measure(analysis, config, checkpoint, task)
            _save(analysis, store, checkpoint, task, results)
            progress.advance()
        del checkpoint
        _free_memory()
        if not config.keep_downloads:
            family.free(step)
    if analysis.finish is not None:
        analysis.finish(config, store, family.name)


def _measure(
    analysis: Analysis, config: BaseConfig, checkpoint: LoadedCheckpoint, task: str | None
) -> dict[str, Result]:
    try:
        results = analysis.measure(checkpoint, config, task)
    except torch.OutOfMemoryError:
        raise UserError(
            f"batch_size: {config.batch_size} does not fit on {checkpoint.device} ({checkpoint.name} step "
            f"{checkpoint.step}); pass a smaller one, for example batch_size={max(config.batch_size // 2, 1)}"
        ) from None
    if set(results) != set(analysis.kinds):
        raise ValueError(f"{analysis.name} measured {sorted(results)}, its kinds are {sorted(analysis.kinds)}")
    return results


def _save(
    analysis: Analysis, store: Store, checkpoint: LoadedCheckpoint, task: str | None, results: dict[str, Result]
) -> None:
    """Provenance first, then what lies beside the tables, the tables last: a table says that all else is there."""
    name, step = checkpoint.name, checkpoint.step
    equal: set[int] = set()
    for kind in analysis.kinds:
        equal.update(RunRecord(store, kind, name, task).add(step, checkpoint.provenance))
        if (tensors := results[kind].tensors) is not None:
            store.write_tensors(kind, name, task, step, tensors)
        if (json := results[kind].json) is not None:
            store.write_json(kind, name, task, step, json)
    for kind in analysis.kinds:
        store.write_table(kind, name, task, step, results[kind].table, checkpoint.tokens)
    if equal:
        steps = ", ".join(str(other) for other in sorted(equal))
        log.warning("%s: step %d holds the same weights as step %s; recorded in run.json", name, step, steps)


@contextlib.contextmanager
def _libraries_out_of_collection(needed: bool) -> Iterator[None]:
    """Garbage collection after every checkpoint then walks through that checkpoint, not through all of torch."""
    if needed:
        import_libraries()
        gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _free_memory() -> None:
    gc.collect()  # A bridge's parts refer to one another, so counting references does not free it.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _describe(analysis: Analysis, config: BaseConfig, store: Store, sweeps: list[Sweep]) -> str:
    lines = [yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True)]
    for sweep in sweeps:
        name, left = sweep.family.name, list(sweep.missing)
        lines.append(f"{name} from {sweep.family.source}: {len(left)} of {len(sweep.steps)} checkpoints to measure\n")
        if left:
            lines.append(f"  measure: {', '.join(str(step) for step in left)}\n")
        if done := [step for step in sweep.steps if step not in sweep.missing]:
            lines.append(f"  finished: {', '.join(str(step) for step in done)}\n")
        folders = [store.root / kind / name for kind in analysis.kinds]
        lines.append(f"  results: {', '.join(str(folder) for folder in folders)}\n")
    return "".join(lines)


def _parse(analysis: Analysis, argv: Sequence[str] | None) -> tuple[Path | None, bool, list[str]]:
    parser = argparse.ArgumentParser(prog=f"{analysis.name}.py", allow_abbrev=False)
    parser.add_argument("-c", "--config", type=Path, help="YAML config; configs/README.md lists every key")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured, load nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, for example batch_size=16")
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        hint = unknown[0].lstrip("-")
        way_out = f"write {hint}" if "=" in hint else f"--help lists them; an override is written {hint}=value"
        raise UserError(f"command line: {unknown[0]}: unknown option; {way_out}")
    return arguments.config, arguments.dry_run, arguments.overrides


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # Only the main thread may handle signals (a notebook may run elsewhere).
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
