"""Fetch only: bring checkpoints to disk now, so that everything can run offline later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from tqdm import tqdm

from utils.models.family import Family, HubFamily
from utils.models.listing import Listing, in_parallel
from utils.models.unusable import CheckpointUnusable

log = logging.getLogger(__name__)


def fetch(family: Family, steps: Sequence[int]) -> dict[int, str]:
    """Download all files of checkpoints, one after the other, with a bar that counts bytes.

    Args:
        family: the family. One on disk has nothing to fetch.
        steps: the steps to fetch. What is complete is left as it is, what is half there goes on.

    Returns:
        The steps that could not be fetched, with what is wrong.

    Raises:
        UserError: if the repository is missing or closed, or the disk is full.
    """
    if not isinstance(family, HubFamily):
        log.info("%s is on this machine: nothing to fetch", family.source)
        return {}
    wanted = [step for step in steps if not family.is_complete(step)]
    found = listings(family, wanted)
    total = sum(one.bytes_of_weights for one in found.values() if isinstance(one, Listing))
    failed: dict[int, str] = {}
    with tqdm(total=total, unit="B", unit_scale=True, disable=None, dynamic_ncols=True, desc=family.name) as bar:
        for number, step in enumerate(wanted, 1):
            bar.set_description_str(f"{family.name} step {step}")
            try:
                family.fetch_small(step)
                family.fetch(step, bar.update)
            except CheckpointUnusable as error:
                failed[step] = str(error)
                log.warning("%s step %d is left out: %s", family.name, step, error)
                continue
            if bar.disable:
                log.info("%s step %d: fetched %d of %d", family.name, step, number, len(wanted))
    log.info("%s: %d of %d checkpoints are in %s", family.name, len(steps) - len(failed), len(steps), family.cache_dir)
    return failed


def listings(
    family: HubFamily, steps: Sequence[int], advance: Callable[[], object] = lambda: None
) -> dict[int | str, Listing | CheckpointUnusable]:
    """What the hub lists of some steps; see `in_parallel`."""

    def listing(step: int) -> Callable[[], Listing]:
        return lambda: family.listing(step)

    return in_parallel({step: listing(step) for step in steps}, advance)
