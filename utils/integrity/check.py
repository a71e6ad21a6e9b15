"""check_checkpoints.py: compares the weights of a family's checkpoints, says what is wrong, and writes it down."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import pandas as pd

from ..base.files import some
from ..base.progress import bar
from ..config.keys import BaseConfig
from ..config.schedules import select_steps
from ..models.family import Family, family_of
from ..results.kinds import CHECKS
from ..results.store import Store
from .descent import Move, moves
from .duplicates import Report, check, damages_at

log = logging.getLogger(__name__)


def check_models(config: BaseConfig, *, deep: bool = False) -> int:
    """Check every model of a config; print what is wrong and write the tables.

    Args:
        config: says which models and steps. All published steps are compared by their hashes, whichever are listed.
        deep: also load a few tensors of the steps in `checkpoints` and compare consecutive ones.

    Returns:
        The exit code: 1 if something is wrong and `on_duplicate_weights` is `error`, else 0.

    Raises:
        UserError: if a model or step does not exist, or the results cannot be written.
    """
    wrong = False
    for model in config.models:
        family = family_of(config, model)
        steps = select_steps(config.checkpoints, family.steps, family.name)
        with bar(len(family.steps), f"{family.name}: comparing weights") as shown_bar:
            report = check(family, advance=shown_bar.update)
        folder = Store(config.results_dir).folder(CHECKS, family.name)
        path = folder.write_summary("checkpoints", report.table())
        sys.stdout.write(shown(report))
        wrong = wrong or bool(report.suspicious or report.missing)
        if deep:
            found = _deep(family, steps, config)
            sys.stdout.write(shown_moves(family, *found))
            folder.write_summary("distances", moves_table(found[0]))
            wrong = wrong or bool(found[1]) or any(move.stands_out for move in found[0])
        log.info("%s: hashes and findings are in %s", family.name, path)
    return int(wrong and config.on_duplicate_weights == "error")


def shown(report: Report) -> str:
    """What the hashes tell, as text: one line for each step with a finding, known damage, and a summary."""
    family, suspicious, missing = report.family, report.suspicious, report.missing
    lines = [f"{family.name} from {family.source}: {len(report.held)} checkpoints\n"]
    table = report.table()
    found = table[table["problem"].notna()]
    if len(found):
        columns = ["step", "file", "problem", "same_as"]
        lines.append(found[columns].fillna("").to_string(index=False) + "\n")
    for damage in family.damage:
        where = some(damage.steps) if damage.steps else "all"
        lines.append(f"known, {where}: {damage.problem} ({damage.source})\n")
    lines.append(
        f"{len(suspicious)} steps hold weights that are not theirs alone, {len(missing)} are missing, "
        f"{len(report.unasked)} are not known because the hub did not answer\n"
    )
    return "".join(lines)


def shown_moves(family: Family, found: Sequence[Move], unusable: dict[int, str]) -> str:
    """What the loaded tensors tell, as text."""
    lines = [f"{family.name} step {step}: {problem}\n" for step, problem in unusable.items()]
    for move in found:
        if move.stands_out:
            known = "; ".join(damage.problem for damage in damages_at(family, move.before) if damage.steps)
            lines.append(
                f"{family.name}: step {move.step} does not seem to descend from step {move.before}: relative distance "
                f"{move.distance:.3g}, around it {move.usual:.3g}{f' (known: {known})' if known else ''}\n"
            )
    if not any(move.usual is not None for move in found):
        lines.append(f"{family.name}: too few checkpoints to say whether one descends from another; four are needed\n")
    elif not lines:
        lines.append(f"{family.name}: each of {len(found) + 1} checkpoints is near the one before\n")
    return "".join(lines)


def moves_table(found: Sequence[Move]) -> pd.DataFrame:
    """One row for each pair of consecutive checkpoints."""
    columns = ["step", "before", "distance", "usual", "stands_out"]
    rows = [[move.step, move.before, move.distance, move.usual, move.stands_out] for move in found]
    return pd.DataFrame(rows, columns=columns)


def _deep(family: Family, steps: Sequence[int], config: BaseConfig) -> tuple[list[Move], dict[int, str]]:
    with bar(len(steps), f"{family.name}: comparing tensors") as shown_bar:

        def done(step: int) -> None:
            family.release(step, config.keep_checkpoints)
            shown_bar.update()

        return moves(family, steps, done)
