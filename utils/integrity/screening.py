"""The check at the start of a sweep: what is wrong with the checkpoints to measure, and what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from ..base.errors import UserError, some
from ..base.progress import bar
from ..models.family import Family, HubFamily
from .duplicates import DuplicateReport, SharedFile, find_duplicates

log = logging.getLogger(__name__)


def steps_to_leave_out(family: Family, steps: Sequence[int], on_duplicate: str) -> list[int]:
    """Say what is wrong with the steps to measure, and return those that must not be measured.

    All steps of the family are compared. With `on_duplicate_weights: error`, steps to measure that hold another step's
    weights are a UserError; so is a download of other weights than the hub has now.
    """
    with bar(len(family.steps), f"{family.name}: comparing weights") as shown:
        report = find_duplicates(family, exact=False, advance=shown.update)
    if isinstance(family, HubFamily):
        _refuse_outdated(family, steps, report)
    for damage in family.damage:
        if not damage.expected and (not damage.steps or set(damage.steps) & set(steps)):
            where = f" step {', '.join(map(str, damage.steps))}" if damage.steps else ""
            log.warning("%s%s is known for trouble: it %s (%s)", family.name, where, damage.problem, damage.source)
    if unasked := [step for step in steps if step in report.unasked]:
        why = report.held[unasked[0]].error
        log.warning("%s: the weights of %s are not checked for duplicates: %s", family.name, some(unasked), why)
    for step, problem in report.missing.items():
        if step in steps:
            log.warning("%s step %d: %s", family.name, step, problem)
    wrong = {step: shared for step, shared in report.suspicious.items() if step in steps}
    if not wrong:
        return []
    found = f"{family.name}: {_sentences(wrong)}"
    if on_duplicate == "error":
        raise UserError(
            f"{found}; leave these steps out of checkpoints, or pass on_duplicate_weights=skip or warn "
            "(python check_checkpoints.py lists all)"
        )
    log.warning("%s; %s", found, "they are left out" if on_duplicate == "skip" else "they are measured all the same")
    return list(wrong) if on_duplicate == "skip" else []


def _refuse_outdated(family: HubFamily, steps: Sequence[int], report: DuplicateReport) -> None:
    """Old downloads next to new ones would mix two trainings; and deleting them is up to the user."""
    for step in steps:
        files = (family.manifest(step) or {}).get("files") or {}
        today = report.held[step].hashes
        if any(today.get(name, sha256) != sha256 for name, sha256 in files.items()):
            raise UserError(
                f"cache_dir: {family.folder(step)} holds other weights of step {step} than {family.source} has now; "
                "delete that folder to measure those of now, or name another cache_dir"
            )


def _sentences(wrong: Mapping[int, Sequence[SharedFile]], most: int = 10) -> str:
    sentences = []
    for step, shared in list(wrong.items())[:most]:
        whole = sorted({one.named for one in shared if one.whole}, key=_by_number)
        parts = sorted({f"{one.file} of {one.named}" for one in shared if not one.whole}, key=_by_number)
        what = [f"the weights of {' and '.join(whole[:3])}"] if whole else []
        what += [" and ".join(parts[:3])] if parts else []
        sentences.append(f"step {step} holds {' and '.join(what)}")
    more = f" and {len(wrong) - most} more steps are like this" if len(wrong) > most else ""
    return ", ".join(sentences) + more


def _by_number(text: str) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, text))
    return int(digits or -1), text
