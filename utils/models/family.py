"""Names of model families, resolved to their checkpoints.

A family is named by
- the short name of a known model (`utils/models/known_families.py`): `pythia-160m`, `OLMo-2-0425-1B`;
- a hub id `organisation/name` whose branches or tags are checkpoints (`utils/hub/checkpoint_files.py`);
- a local folder with one folder per checkpoint (`utils/models/local.py`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..base.errors import CheckpointUnusable, UserError, suggest
from ..base.progress import bar
from ..config.keys import BaseConfig
from ..hub.listing import HubUnreachable, Listing, downloads_of, in_parallel, published_names
from . import local
from .known_families import EXAMPLES, SHORT_NAMES, FamilyRecord, KnownModel, known_model, unusable
from .revisions import GENERAL, GENERAL_NAMES, Named, TokensRule, naming_rule, read_names, refuse_several_runs, timeline
from .sources import Family, HubFamily, LocalFamily

__all__ = ["Family", "HubFamily", "LocalFamily", "family_of", "resolve_family"]

log = logging.getLogger(__name__)


def family_of(config: BaseConfig, model: str) -> Family:
    """The checkpoints of one of a config's models; see `resolve_family`."""
    return resolve_family(
        model, config.cache_dir, config.tokens_per_step, config.revisions, config.stages, config.trust_remote_code
    )


def resolve_family(
    model: str,
    cache_dir: Path,
    tokens_per_step: int | None = None,
    revisions: str | None = None,
    stages: Sequence[int] = (1,),
    trust_remote_code: bool = False,
) -> Family:
    """Find a model's checkpoints.

    Args:
        model: the short name of a known model, a hub id or a local folder. Write `./pythia-70m` for a folder that has
            the name of a known model.
        cache_dir: where to keep downloads from the hub.
        tokens_per_step: for families that do not say.
        revisions: a regular expression for the names of checkpoints (`revisions.naming_rule`). None takes the family's
            own rule, or the general ones.
        stages: which training stages to take.
        trust_remote_code: whether a tokenizer may run Python code that comes with it.

    Raises:
        UserError: if there is no such model, it has no checkpoints or cannot be measured, or its tokens are unknown.
    """
    pattern = None if revisions is None else naming_rule(revisions)
    if (known := known_model(model)) is not None:
        family: Family = _hub_family(known, cache_dir, pattern, tokens_per_step, stages)
        return replace(family, trust_remote_code=trust_remote_code)
    path = Path(model).expanduser()
    if path.is_dir():
        family = _local_family(model, path, pattern or GENERAL, tokens_per_step, stages)
        return replace(family, trust_remote_code=trust_remote_code)
    if (why := unusable(model)) is not None:
        raise UserError(f"model: {model} cannot be measured: {why}; name another family")
    if model.count("/") == 1 and not _looks_local(model, cache_dir):
        unknown = KnownModel(model.rpartition("/")[2], (model,), FamilyRecord({}, GENERAL, TokensRule()))
        family = _hub_family(unknown, cache_dir, pattern, tokens_per_step, stages)
        return replace(family, trust_remote_code=trust_remote_code)
    if "/" in model or os.sep in model:
        raise UserError(
            f"model: the folder {model} does not exist; train a small family with: python make_toy_checkpoints.py, "
            "or name a known model, a hub id or a folder of step{n} folders"
        )
    raise UserError(
        f"model: '{model}' is not a known model, a hub id (organisation/name) or a folder"
        f"{suggest(model, SHORT_NAMES, 'known models are, among others', EXAMPLES)}"
    )


def _hub_family(
    known: KnownModel,
    cache_dir: Path,
    pattern: re.Pattern[str] | None,
    tokens_per_step: int | None,
    stages: Sequence[int],
) -> HubFamily:
    source, family = known.repositories[0], known.family
    pattern = pattern or family.revisions
    named: list[Named] = []
    commits: dict[str, Mapping[str, str | None]] = {}
    for repository in known.repositories:
        commits[repository] = _names_on_hub(repository, cache_dir, family)
        names = list(commits[repository])
        # The plainest name first: it counts if two branches hold the same step.
        named += sorted(read_names(names, pattern, repository), key=lambda one: (len(one.name), one.name))
        if not named:
            raise UserError(_no_revisions(repository, pattern, names))
    refuse_several_runs(named, pattern, source, stages)
    placed = timeline(named, source, family.tokens, stages, tokens_per_step)
    return HubFamily(
        known.name,
        source,
        tuple(placed),
        {step: one.tokens for step, one in placed.items()},
        {step: one.named for step, one in placed.items()},
        cache_dir,
        commits,
        prepend_bos=family.prepend_bos,
        damage=known.damage,
    )


def _names_on_hub(repository: str, cache_dir: Path, family: FamilyRecord) -> dict[str, str | None]:
    try:
        return published_names(repository, downloads_of(cache_dir, repository))
    except HubUnreachable as error:
        if not family.names:
            raise
        log.warning("%s; taking the %d steps that %s publishes", error, len(family.names), repository)
        return dict.fromkeys(family.names)


def _no_revisions(repository: str, pattern: re.Pattern[str], names: Sequence[str]) -> str:
    if pattern is GENERAL:
        return (
            f"model: {repository} has no branches or tags that name a step ({GENERAL_NAMES}) on the hub; name a "
            r"repository of checkpoints, or pass revisions='...(?P<step>\d+)' for other names"
        )
    return (
        f"revisions: no branch or tag of {repository} is named like '{pattern.pattern}' (it has {', '.join(names[:5])})"
    )


def _local_family(
    model: str, path: Path, pattern: re.Pattern[str], tokens_per_step: int | None, stages: Sequence[int]
) -> LocalFamily:
    named = local.named_folders(path, pattern)
    per_step = local.tokens_per_step(path, tokens_per_step)
    placed = timeline(named, model, TokensRule((per_step,)), stages)
    return LocalFamily(
        path.resolve().name,
        model,
        tuple(placed),
        {step: one.tokens for step, one in placed.items()},
        {step: path / one.named.name for step, one in placed.items()},
        prepend_bos=local.prepend_bos(path),
    )


def _looks_local(model: str, cache_dir: Path) -> bool:
    """Whether this can only be a path: its folder exists, is the folder of downloads, or is written as a path."""
    parent = Path(model).expanduser().parent
    return model.startswith((".", "~", "/")) or parent.is_dir() or parent == cache_dir


# Fetch only: bring checkpoints to disk now, so that everything can run offline later.


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
    with bar(total, family.name, unit="B", unit_scale=True, leave=True) as shown:
        for number, step in enumerate(wanted, 1):
            shown.set_description_str(f"{family.name} step {step}")
            try:
                family.fetch_small(step)
                family.fetch(step, shown.update)
            except CheckpointUnusable as error:
                failed[step] = str(error)
                log.warning("%s step %d is left out: %s", family.name, step, error)
                continue
            if shown.disable:
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
