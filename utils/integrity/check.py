"""check_checkpoints.py: compares the weights of a family's checkpoints, says what is wrong, and writes it down.

Its config may be that of any script: it reads the keys that all scripts share, and leaves the others alone.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd
from pydantic import model_validator
from tqdm import tqdm

from ..base.files import some
from ..circuits.keys import CircuitsConfig
from ..config.keys import BaseConfig
from ..config.schedules import select_steps
from ..heads.keys import ComponentsConfig, CspaConfig, SuccessorConfig
from ..ioi.keys import IoiConsistencyConfig
from ..models.family import Family, family_of
from ..results.kinds import CHECKS
from ..results.store import Store
from ..tasks.keys import PerformanceConfig
from .descent import Move, moves
from .duplicates import Report, check, damages_at

OTHERS: tuple[type[BaseConfig], ...] = (
    CircuitsConfig,
    ComponentsConfig,
    CspaConfig,
    SuccessorConfig,
    IoiConsistencyConfig,
    PerformanceConfig,
)
"""Schemas of the other scripts, whose keys may stand in a config without being read."""
SUITE = "analyses"  # the key of run_suite.py's configs that lists analyses

log = logging.getLogger(__name__)


class CheckConfig(BaseConfig):
    """Keys of check_checkpoints.py."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out_other_scripts_keys(cls, data: Any) -> Any:
        others = {SUITE}.union(*(schema.model_fields for schema in OTHERS)) - set(cls.model_fields)
        return {key: value for key, value in data.items() if key not in others} if isinstance(data, dict) else data


def check_models(config: CheckConfig, *, deep: bool = False) -> int:
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
        with tqdm(total=len(family.steps), disable=None, dynamic_ncols=True, leave=False) as bar:
            bar.set_description_str(f"{family.name}: comparing weights")
            report = check(family, advance=bar.update)
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


def _deep(family: Family, steps: Sequence[int], config: CheckConfig) -> tuple[list[Move], dict[int, str]]:
    with tqdm(total=len(steps), disable=None, dynamic_ncols=True, leave=False) as bar:
        bar.set_description_str(f"{family.name}: comparing tensors")

        def done(step: int) -> None:
            family.release(step, config.keep_checkpoints)
            bar.update()

        return moves(family, steps, done)
