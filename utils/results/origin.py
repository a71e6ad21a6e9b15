"""Whether the results of a folder come from the weights that a run would measure now.

run.json holds the hash of the weights behind every result. On the hub, a branch can be moved to other weights; on disk,
a checkpoint can be trained again. Both are found without reading all weights: the hub lists commits
and hashes, and of files on disk run.json also holds the hash of a few samples.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files import combine
from utils.models.family import Family, HubFamily, LocalFamily
from utils.models.listing import HubUnreachable, Listing
from utils.models.unusable import CheckpointUnusable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compared:
    """What a comparison of weights found.

    Attributes:
        changed: steps whose results come from other weights than the family holds now.
        same_family: whether the results are this family's, as far as can be told.
    """

    changed: list[int]
    same_family: bool

    @property
    def same(self) -> bool:
        """Whether the family may add to these results."""
        return self.same_family and not self.changed


def compare_weights(held: Mapping[str, Any], family: Family, written: Mapping[int, float]) -> Compared:
    """Compare the weights behind results with those of a family.

    Args:
        held: a run.json.
        family: the weights of today. A hub revision whose commit is the recorded one is known to be equal; otherwise
            the hashes that the hub lists are compared, and where it lists none, the repository's name counts. Of a
            local family, weights are hashed whose samples have changed or whose files are newer than the result, and
            those of the last measured step in any case.
        written: finished step -> when its result was written, in seconds since 1970.
    """
    recorded = {step: held["checkpoints"][str(step)] for step in sorted(written) if str(step) in held["checkpoints"]}
    here = {step: weights for step, weights in recorded.items() if step in family.steps}
    if isinstance(family, HubFamily):
        return _on_hub(held, family, here, complete=len(here) == len(written))
    return Compared(_changed_on_disk(family, here, written) if isinstance(family, LocalFamily) else [], True)


def _on_hub(
    held: Mapping[str, Any], family: HubFamily, recorded: Mapping[int, Mapping[str, Any]], *, complete: bool
) -> Compared:
    named = held["repository"] == family.source
    today = {step: family.commit(step) for step in recorded}
    moved = [step for step, commit in today.items() if commit not in (None, recorded[step].get("commit"))]
    # Listings are kept on disk, so the check of all weights before a sweep does not ask for these again.
    found = family.listed(moved)
    changed, unknown = [], None in today.values() or not complete
    for step in moved:
        listing = found[step]
        hashes = {combine(one) for one in listing.formats} if isinstance(listing, Listing) else set()
        if not hashes:
            unknown = True
        elif recorded[step]["sha256"] not in hashes:
            changed.append(step)
    silent = next((one for one in found.values() if isinstance(one, HubUnreachable)), None)
    if silent is not None and named and not changed:
        log.warning("%s: results are not compared with the weights of today: %s", family.name, silent)
    return Compared(changed, named or (bool(recorded) and not unknown))


def _changed_on_disk(
    family: LocalFamily, recorded: Mapping[int, Mapping[str, Any]], written: Mapping[int, float]
) -> list[int]:
    suspects = [
        step
        for step, weights in recorded.items()
        if step == max(recorded)
        or _newest(family.folders[step]) > written[step]
        or _samples_differ(weights, family, step)
    ]
    return [step for step in suspects if recorded[step]["sha256"] != family.sha256(step)]


def _samples_differ(recorded: Mapping[str, Any], family: LocalFamily, step: int) -> bool:
    """Whether samples of the weights are not the recorded ones. Missing weights are told when they are measured."""
    with contextlib.suppress(CheckpointUnusable):
        return "fingerprint" in recorded and recorded["fingerprint"] != family.fingerprint(step)
    return False


def _newest(folder: Path) -> float:
    try:
        return max((path.stat().st_mtime for path in folder.iterdir()), default=0.0)
    except OSError:
        return 0.0
