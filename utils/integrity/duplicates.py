"""Are the published weights what they claim to be? What the hashes of all checkpoints tell, without loading any.

Training changes every tensor, so two steps must not share a file of weights, not even one shard of many. `main` may
hold the weights of the last step and of no other. The hashes are the hub's own (SHA-256 of each file in large-file
storage, in both formats, if a checkpoint has both); no weights are fetched. Local files are hashed, or, where a hint is
enough, compared by samples first.

Some families are known to have equal steps for a good reason (`Damage.expected`): these are noted, and are no finding.
`steps_to_leave_out` is the check at the start of a sweep: what to do about a finding there.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..base.errors import CheckpointUnusable, HubUnreachable, UserError, some
from ..base.progress import bar
from ..models import local
from ..models.family import Family, HubFamily, LocalFamily
from ..models.known_families import Damage

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("step", "tokens", "revision", "file", "bytes", "sha256", "problem", "same_as", "known")
MAIN = "main"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointHashes:
    """What a checkpoint, or `main`, holds."""

    revision: str
    hashes: Mapping[str, str] = field(default_factory=dict)  # file with weights -> hash of its content
    sizes: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None  # why it is not known
    unasked: bool = False  # whether that is only because the hub did not answer


@dataclass(frozen=True)
class SharedFile:
    """A file that a step has in common with another, or with `main`."""

    step: int
    file: str
    other: int | str
    whole: bool  # whether the two hold the same weights throughout
    expected: bool  # whether that is known to be right

    @property
    def problem(self) -> str:
        if self.expected:
            return "equal as expected"
        return "equal weights" if self.whole else "equal shard"

    @property
    def named(self) -> str:
        return str(self.other) if self.other == MAIN else f"step {self.other}"


@dataclass(frozen=True)
class DuplicateReport:
    """What the hashes of a family tell."""

    family: Family
    held: Mapping[int, CheckpointHashes]  # by published step
    shared: tuple[SharedFile, ...]  # seen from each step

    @property
    def suspicious(self) -> dict[int, list[SharedFile]]:
        """Steps whose weights cannot all be right -> what they share."""
        found: dict[int, list[SharedFile]] = defaultdict(list)
        for one in self.shared:
            if not one.expected:
                found[one.step].append(one)
        return dict(sorted(found.items()))

    @property
    def missing(self) -> dict[int, str]:
        """Steps that are missing, hold no weights or cannot be measured -> what is wrong."""
        return {step: held.error for step, held in self.held.items() if held.error is not None and not held.unasked}

    @property
    def unasked(self) -> list[int]:
        """Steps of which nothing is known because the hub did not answer."""
        return [step for step, held in self.held.items() if held.unasked]

    def table(self) -> pd.DataFrame:
        """One row for each file of each step, with what is wrong with it; the columns are `COLUMNS`."""
        import pandas as pd

        by_file: dict[tuple[int, str], list[SharedFile]] = defaultdict(list)
        for one in self.shared:
            by_file[one.step, one.file].append(one)
        rows = []
        for step, held in self.held.items():
            known = "; ".join(f"{damage.problem} ({damage.source})" for damage in damages_at(self.family, step))
            start = {"step": step, "tokens": self.family.tokens[step], "revision": held.revision}
            if held.error is not None:
                problem = "not asked: " if held.unasked else "cannot be measured: " if held.hashes else "missing: "
                rows.append(start | {"problem": problem + held.error, "known": known})
            for file, sha256 in held.hashes.items():
                here = by_file[step, file]
                worst = next((one for one in here if not one.expected), here[0] if here else None)
                about = {"file": file, "bytes": held.sizes.get(file), "sha256": sha256, "known": known}
                about["problem"] = worst.problem if worst else None
                about["same_as"] = "; ".join(str(one.other) for one in here) or None
                rows.append(start | about)
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"bytes": "Int64"})


def damages_at(family: Family, step: int) -> list[Damage]:
    """What is known to be wrong with a step, or with all of them."""
    return [damage for damage in family.damage if step in damage.steps or not damage.steps]


def find_duplicates(
    family: Family, *, exact: bool = True, advance: Callable[[], object] = lambda: None
) -> DuplicateReport:
    """Compare the weights of all published steps, from the hub's metadata alone.

    Unless `exact`, only those local files are hashed whole whose samples are equal; the `hashes` of the others, which
    are known to differ, are those of the samples.
    """
    main: CheckpointHashes | None = None
    if isinstance(family, HubFamily):
        held, main = _on_hub(family, advance)
    elif isinstance(family, LocalFamily):
        held = _on_disk(family, exact, advance)
    else:
        raise TypeError(f"{type(family).__name__} has no files to compare")
    return DuplicateReport(family, held, tuple(_shared(family, held, main)))


def _on_hub(
    family: HubFamily, advance: Callable[[], object]
) -> tuple[dict[int, CheckpointHashes], CheckpointHashes | None]:
    held = {}
    for step, listed in family.listings(family.steps, advance).items():
        revision = family.revisions[step].name
        if not isinstance(listed, CheckpointUnusable):
            sizes = {name: file.size for name, file in listed.files.items()}
            error = None if listed.weights else "it holds no weights"
            held[step] = CheckpointHashes(revision, listed.weight_hashes, sizes, error)
        elif (manifest := family.manifest(step)) is not None and manifest.get("files"):
            held[step] = CheckpointHashes(revision, manifest["files"])
        else:
            held[step] = CheckpointHashes(revision, error=str(listed), unasked=isinstance(listed, HubUnreachable))
    try:
        main = family.main()
    except CheckpointUnusable:
        main = None
    return held, None if main is None else CheckpointHashes(MAIN, main.weight_hashes)


def _on_disk(family: LocalFamily, exact: bool, advance: Callable[[], object]) -> dict[int, CheckpointHashes]:
    held: dict[int, CheckpointHashes] = {}
    for step, folder in family.folders.items():
        try:
            before = local.stamps(folder)
            sizes = {path.name: stamp[1] for path, stamp in before.items()}
            held[step] = CheckpointHashes(
                folder.name, local.hashes(before) if exact else local.fingerprints(before), sizes
            )
        except CheckpointUnusable as error:
            held[step] = CheckpointHashes(folder.name, error=str(error))
        advance()
    if exact:
        return held
    owners = _owners(held)
    for step, one in held.items():
        if any(len(owners[sample]) > 1 for sample in one.hashes.values()):
            held[step] = CheckpointHashes(one.revision, local.hashes(local.stamps(family.folders[step])), one.sizes)
    return held


def _owners(held: Mapping[int, CheckpointHashes]) -> dict[str, list[int]]:
    owners: dict[str, list[int]] = defaultdict(list)
    for step, one in held.items():
        for sha256 in set(one.hashes.values()):
            owners[sha256].append(step)
    return owners


def _shared(family: Family, held: Mapping[int, CheckpointHashes], main: CheckpointHashes | None) -> list[SharedFile]:
    owners, last = _owners(held), max(held)
    in_main = set(main.hashes.values()) if main is not None else set()
    found = []
    for step, one in held.items():
        mine = set(one.hashes.values())
        if step == last and mine & in_main:
            continue  # The end of training is what `main` should hold, so the others are wrong.
        for file, sha256 in one.hashes.items():
            for other in owners[sha256]:
                if other != step:
                    whole = mine <= set(held[other].hashes.values()) or mine >= set(held[other].hashes.values())
                    both = {step, other}
                    expected = any(damage.expected and both <= set(damage.steps) for damage in family.damage)
                    found.append(SharedFile(step, file, other, whole, expected))
            if sha256 in in_main and step != last:
                found.append(SharedFile(step, file, MAIN, mine <= in_main or mine >= in_main, False))
    return found


def steps_to_leave_out(family: Family, steps: Sequence[int], on_duplicate: str) -> list[int]:
    """Say what is wrong with the steps to measure, compared with all of the family, and return those that must not be
    measured.

    With `on_duplicate_weights: error`, steps to measure that hold another step's weights are a UserError; so is a
    download of other weights than the hub has now.
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
