"""check_checkpoints.py: compares the weights of a family's checkpoints, says what is wrong, and writes it down."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

from ..base.errors import UserError, some
from ..base.progress import bar
from ..config.keys import BaseConfig
from ..config.schedules import select_steps
from ..models.family import Family, LocalFamily, family_of
from ..results.kinds import WITHOUT_STEPS
from ..results.store import Store
from .descent import WeightChange, weight_changes
from .duplicates import DuplicateReport, damages_at, find_duplicates

log = logging.getLogger(__name__)


def check_models(config: BaseConfig, *, deep: bool = False) -> int:
    """Check every model of a config; print what is wrong and write the tables.

    All published steps are compared by their hashes, whichever are listed, and all on disk are loaded; `deep` also
    loads a few tensors of the steps in `checkpoints` and compares consecutive ones. Returns the exit code: 1 if
    something is wrong and `on_duplicate_weights` is `error`, else 0.
    """
    import pandas as pd

    wrong = False
    for model in config.models:
        family = family_of(config, model)
        steps = select_steps(config.checkpoints, family.steps, family.name, family.within)
        with bar(len(family.steps), f"{family.name}: comparing weights") as progress:
            report = find_duplicates(family, advance=progress.update)
        if isinstance(family, LocalFamily):
            report = _loaded(report, family, config.dtype)
        folder = Store(config.results_dir).folder(WITHOUT_STEPS[0], family.name)
        path = folder.write_summary("checkpoints", report.table())
        sys.stdout.write(_report_text(report))
        wrong = wrong or bool(report.suspicious or report.missing)
        if deep:
            with bar(len(steps), f"{family.name}: comparing tensors") as progress:
                changes, unusable = weight_changes(family, steps, config.keep_checkpoints, progress.update)
            sys.stdout.write(_changes_text(family, changes, unusable))
            columns = ["step", "before", "distance", "usual", "stands_out"]
            rows = [[c.step, c.before, c.distance, c.usual, c.stands_out] for c in changes]
            folder.write_summary("distances", pd.DataFrame(rows, columns=columns))
            wrong = wrong or bool(unusable) or any(change.stands_out for change in changes)
        log.info("%s: hashes and findings are in %s", family.name, path)
    return int(wrong and config.on_duplicate_weights == "error")


def _loaded(report: DuplicateReport, family: LocalFamily, dtype: str) -> DuplicateReport:
    """The report, with what is wrong with steps on disk whose files are there but cannot be measured."""
    held = dict(report.held)
    with bar(len(family.steps), f"{family.name}: loading") as progress:
        for step in family.steps:
            try:
                if held[step].error is None:
                    family.load(step, dtype, "cpu")
            except UserError as error:
                held[step] = replace(held[step], error=str(error))
            progress.update()
    return replace(report, held=held)


def _report_text(report: DuplicateReport) -> str:
    """What the hashes tell: one line for each step with a finding, known damage, and a summary."""
    family, table = report.family, report.table()
    lines = [f"{family.name} from {family.source}: {len(report.held)} checkpoints\n"]
    found = table[table["problem"].notna()]
    if len(found):
        columns = ["step", "file", "problem", "same_as"]
        lines.append(found[columns].fillna("").to_string(index=False) + "\n")
    for damage in family.damage:
        where = some(damage.steps) if damage.steps else "all"
        lines.append(f"known, {where}: {damage.problem} ({damage.source})\n")
    lines.append(
        f"{len(report.suspicious)} steps hold weights that are not theirs alone, {len(report.missing)} are missing "
        "or cannot be measured, "
        f"{len(report.unasked)} are not known because the hub did not answer\n"
    )
    return "".join(lines)


def _changes_text(family: Family, changes: Sequence[WeightChange], unusable: dict[int, str]) -> str:
    """What the loaded tensors tell."""
    lines = [f"{family.name} step {step}: {problem}\n" for step, problem in unusable.items()]
    for change in changes:
        if change.stands_out:
            known = "; ".join(damage.problem for damage in damages_at(family, change.before) if damage.steps)
            lines.append(
                f"{family.name}: step {change.step} does not seem to descend from step {change.before}: relative "
                f"distance {change.distance:.3g}, around it {change.usual:.3g}{f' (known: {known})' if known else ''}\n"
            )
    if not any(change.usual is not None for change in changes):
        lines.append(f"{family.name}: too few checkpoints to say whether one descends from another; four are needed\n")
    elif not lines:
        lines.append(f"{family.name}: each of {len(changes) + 1} checkpoints is near the one before\n")
    return "".join(lines)
