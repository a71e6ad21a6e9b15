"""Families of checkpoints: where they come from, and how a model's name finds them.

A family is named by
- the short name of a known model (`utils/models/known_families.toml`): `pythia-160m`, `OLMo-2-0425-1B`;
- a hub id `organisation/name` whose branches or tags are checkpoints (`utils/hub/checkpoint_files.py`);
- a local folder with one folder per checkpoint (`utils/models/local.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..base.background import Prefetcher, in_background
from ..base.errors import CheckpointUnusable, HubUnreachable, UserError, suggest
from ..base.files import combine
from ..base.memory import trim_heap
from ..base.progress import bar
from ..config.keys import BaseConfig
from ..hub import checkpoint_files as hub
from ..hub.download import Arrived, Listing
from ..hub.listing import downloads_of, in_parallel, listing_of, published_names
from . import local
from .adapters import base_of
from .checkpoint import Description, LoadedCheckpoint, describe, load_weights, read_state, resolve_devices, small_hashes
from .known_families import EXAMPLES, SHORT_NAMES, Damage, FamilyRecord, KnownModel, known_model, unusable
from .revisions import GENERAL, GENERAL_NAMES, Named, TokensRule, naming_rule, read_names, refuse_several_runs, timeline
from .weight_files import CheckpointFiles

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


Prefetched = tuple[CheckpointFiles, "dict[str, Tensor]"]
"""A checkpoint's files and tensors, on the CPU and in the files' number format."""


@dataclass(frozen=True)
class Family:
    """A model's published checkpoints."""

    name: str  # its short name, or the last part of its hub id or folder: what its results go by
    source: str  # the hub repository, or the local folder as it was given
    steps: tuple[int, ...]  # published, sorted, counted over the whole training (`revisions.py`)
    tokens: dict[int, int | None]  # seen at each step; None where nobody says, in a local family
    # Whether it was trained with a start token before every document; None if nobody says.
    prepend_bos: bool | None = field(default=None, kw_only=True)
    damage: Sequence[Damage] = field(default=(), kw_only=True)  # what is known to be wrong with its checkpoints
    trust_remote_code: bool = field(default=False, kw_only=True)  # whether its tokenizer may run code of its own
    _ahead: Prefetcher[Prefetched] = field(default_factory=Prefetcher, kw_only=True, compare=False, repr=False)

    @property
    def within(self) -> str:
        """How a step belongs to it, in errors: only the hub's are published."""
        return "in"

    def fetch_small(self, step: int) -> Path:
        """The folder with a checkpoint's config and tokenizer, downloaded if needed."""
        self._ahead.wait(step)
        return self._small_files(step)

    def fetch(self, step: int, arrived: Arrived = lambda count: None) -> CheckpointFiles:
        """All of a checkpoint's files on disk, downloaded if needed; `arrived` is told of every few bytes."""
        self._ahead.wait(step)
        return self._all_files(step, arrived)

    def folder(self, step: int) -> Path:
        """Where a checkpoint's files are, or are downloaded to."""
        raise NotImplementedError

    def input_hashes(self, step: int) -> dict[str, str]:
        """SHA-256 of a checkpoint's config and tokenizer as they are on disk; empty if they are not there."""
        with contextlib.suppress(CheckpointUnusable):
            folder = self.folder(step)
            if (base := base_of(folder)) is None:
                return small_hashes(folder)
            weights = local.fingerprints(local.stamps(base))
            return small_hashes(folder, base) | {f"base/{name}": sample for name, sample in weights.items()}
        return {}

    def prefetch(self, step: int) -> None:
        """Start to fetch and read a checkpoint in the background, dropping another; `load` raises its errors."""
        self._ahead.start(step, self._read)

    def stop(self) -> None:
        """Give up what `prefetch` started, and the memory that it holds."""
        self._ahead.drop()

    def release(self, step: int, keep: Literal["all", "none"] | int) -> None:
        """Say that a checkpoint has been measured: of this process's downloads, the `keep` last released stay."""

    def describe(self, step: int) -> Description:
        """A checkpoint's tokenizer and shape; only its small files are fetched. Errors: `checkpoint.describe`."""
        return describe(self.fetch_small(step), self.trust_remote_code)

    def load(
        self, step: int, dtype: str = "float32", device: str = "auto", device_map: Literal["auto"] | None = None
    ) -> LoadedCheckpoint:
        """Load a checkpoint onto one device or several; errors of `describe` and of `load_weights`."""
        where, *more = resolve_devices(device, device_map)
        self.fetch_small(step)
        inputs = self.input_hashes(step)
        tokenizer = self.describe(step).tokenizer
        files, state = self._ahead.take(step) or (self.fetch(step), None)
        weights, parameters = load_weights(files.folder, dtype, where, state, more)
        trim_heap()  # Of tensors as the files had them, which became the weights.
        if self.input_hashes(step) != inputs:
            raise CheckpointUnusable(
                f"{files.folder}: changed while it was read; run again once the checkpoint is complete"
            )
        # Hashing takes longer than loading and is needed last, so it runs while the checkpoint is measured.
        hashes, tokens = in_background(files.hashes), self.tokens[step]
        return LoadedCheckpoint(self.name, step, tokens, weights, parameters, tokenizer, files, hashes, inputs)

    def _read(self, step: int, stop: threading.Event) -> Prefetched:
        describe(self._small_files(step), self.trust_remote_code)  # Never weights that the engine cannot read.
        files = self._all_files(step, lambda count: None)
        return files, read_state(files.folder, stop)

    def _small_files(self, step: int) -> Path:
        return self.folder(step)

    def _all_files(self, step: int, arrived: Arrived) -> CheckpointFiles:
        raise NotImplementedError


@dataclass(frozen=True)
class LocalFamily(Family):
    """A folder of `step{n}` folders."""

    folders: dict[int, Path]

    def sha256(self, step: int) -> str:
        """Hash of a checkpoint's weights as they are on disk now."""
        return combine(local.hashes(local.stamps(self.folders[step])))

    def fingerprint(self, step: int) -> str:
        """Hash of samples of a checkpoint's weights as they are on disk now (`local.fingerprints`)."""
        return combine(local.fingerprints(local.stamps(self.folders[step])))

    def folder(self, step: int) -> Path:
        return self.folders[step]

    def _all_files(self, step: int, arrived: Arrived) -> CheckpointFiles:
        folder = self.folders[step]
        before = local.stamps(folder)
        origin = {"repository": self.source, "revision": folder.name, "commit": None}
        origin["fingerprint"] = combine(local.fingerprints(before))
        if (base := base_of(folder)) is not None:
            origin["base"] = str(base)
        return CheckpointFiles(folder, origin, lambda: local.hashes(before))


@dataclass(frozen=True)
class HubFamily(Family):
    """Checkpoints on the hub: branches or tags of one or several repositories."""

    revisions: dict[int, Named]  # by step
    cache_dir: Path
    # Repository -> branch or tag -> its commit, None if the hub was not asked.
    commits: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict, compare=False, repr=False)
    _own: hub.OwnFiles = field(default_factory=hub.OwnFiles, compare=False, repr=False)
    _listed: dict[int, Listing | CheckpointUnusable] = field(default_factory=dict, compare=False, repr=False)
    _released: list[int] = field(default_factory=list, compare=False, repr=False)

    @property
    def within(self) -> str:
        return "published for"

    def folder(self, step: int) -> Path:
        revision = self.revisions[step]
        return downloads_of(self.cache_dir, revision.repository) / revision.name.replace("/", "--")

    def is_complete(self, step: int) -> bool:
        """Whether all of a checkpoint's files are on disk."""
        return self.manifest(step) is not None

    def manifest(self, step: int) -> dict[str, Any] | None:
        """What a complete download says about itself (`hub.download`); None if it is not complete."""
        return hub.read_manifest(self.folder(step))

    def commit(self, step: int) -> str | None:
        """The commit that a step's revision is at today; None if the hub was not asked."""
        revision = self.revisions[step]
        return self.commits.get(revision.repository, {}).get(revision.name)

    def listing(self, step: int) -> Listing:
        """What the hub lists of a checkpoint; the answer of an earlier request, if its commit is the same."""
        revision = self.revisions[step]
        downloads = downloads_of(self.cache_dir, revision.repository)
        return listing_of(revision.repository, revision.name, downloads, self.commit(step))

    def listings(
        self, steps: Sequence[int], advance: Callable[[], object] = lambda: None
    ) -> dict[int, Listing | CheckpointUnusable]:
        """What the hub lists of steps, or what is wrong; it is asked once for each, also without an answer."""
        self._listed.update(in_parallel(self.listing, [step for step in steps if step not in self._listed], advance))
        return {step: self._listed[step] for step in steps}

    def main(self) -> Listing | None:
        """What the hub lists of the branch `main`; None if there is none."""
        names = self.commits.get(self.source, {})
        if "main" not in names:
            return None
        return listing_of(self.source, "main", downloads_of(self.cache_dir, self.source), names["main"])

    def release(self, step: int, keep: Literal["all", "none"] | int) -> None:
        if keep == "all":
            return
        self._released.append(step)
        while len(self._released) > (0 if keep == "none" else keep):
            self._own.delete(self.folder(self._released.pop(0)))

    def _small_files(self, step: int) -> Path:
        revision, folder = self.revisions[step], self.folder(step)
        self._own.note(folder)
        code = self.trust_remote_code
        hub.download_small(revision.repository, revision.name, folder, self.commit(step), code=code)
        return folder

    def _all_files(self, step: int, arrived: Arrived) -> CheckpointFiles:
        revision, folder = self.revisions[step], self.folder(step)
        self._own.note(folder)
        manifest = hub.download(revision.repository, revision.name, folder, self.commit(step), arrived)
        hashes = manifest.get("files") or {"": manifest["sha256"]}  # Earlier manifests have one hash alone.
        origin = {key: manifest[key] for key in ("repository", "revision", "commit")}
        return CheckpointFiles(folder, origin, lambda: hashes)


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
        tokens_per_step: for families that do not say.
        revisions: a regular expression for the names of checkpoints (`revisions.naming_rule`). None takes the family's
            own rule, or the general ones.
        stages: which training stages to take.
        trust_remote_code: whether a tokenizer may run Python code that comes with it.

    It is a UserError if there is no such model, it has no checkpoints or cannot be measured, or its tokens are unknown.
    """
    pattern = None if revisions is None else naming_rule(revisions)
    known, path = known_model(model), Path(model).expanduser()
    family: Family
    if known is None and path.is_dir():
        family = _local_family(model, path, pattern or GENERAL, tokens_per_step, stages)
    else:
        family = _hub_family(known or _unknown_on_hub(model, cache_dir), cache_dir, pattern, tokens_per_step, stages)
    return replace(family, trust_remote_code=trust_remote_code)


def _unknown_on_hub(model: str, cache_dir: Path) -> KnownModel:
    """A hub id that no record knows: its names are read by the general rules."""
    if (why := unusable(model)) is not None:
        raise UserError(f"model: {model} cannot be measured: {why}; name another family")
    parent = Path(model).expanduser().parent
    # It can only be a path if its folder exists, is the folder of downloads, or it is written as a path.
    is_path = model.startswith((".", "~", "/")) or parent.is_dir() or parent == cache_dir
    if model.count("/") == 1 and not is_path:
        return KnownModel(model.rpartition("/")[2], (model,), FamilyRecord({}, GENERAL, TokensRule()))
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
    source, record = known.repositories[0], known.family
    pattern = pattern or record.revisions
    named: list[Named] = []
    commits: dict[str, Mapping[str, str | None]] = {}
    for repository in known.repositories:
        commits[repository] = _names_on_hub(repository, cache_dir, record)
        names = list(commits[repository])
        # The plainest name first: it counts if two branches hold the same step.
        named += sorted(read_names(names, pattern, repository), key=lambda one: (len(one.name), one.name))
        if not named:
            raise UserError(_no_revisions(repository, pattern, names))
    refuse_several_runs(named, pattern, source, stages)
    placed = timeline(named, source, record.tokens, stages, tokens_per_step)
    return HubFamily(
        known.name,
        source,
        tuple(placed),
        {step: tokens for step, (_, tokens) in placed.items()},
        {step: one for step, (one, _) in placed.items()},
        cache_dir,
        commits,
        prepend_bos=record.prepend_bos,
        damage=[damage for damage in record.damage if known.name in damage.models],
    )


def _names_on_hub(repository: str, cache_dir: Path, record: FamilyRecord) -> dict[str, str | None]:
    try:
        return published_names(repository, downloads_of(cache_dir, repository))
    except HubUnreachable as error:
        if not record.names:
            raise
        log.warning("%s; taking the %d steps that %s publishes", error, len(record.names), repository)
        return dict.fromkeys(record.names)


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
    about = local.About.of(path, tokens_per_step)
    named = [about.with_tokens(path / one.name, one) for one in local.named_folders(path, pattern)]
    placed = timeline(named, model, TokensRule(about.per_step), stages, tokens_needed=False)
    if None in (seen := {step: tokens for step, (_, tokens) in placed.items()}).values():
        log.info("%s: nobody says how many tokens a step has, so figures count steps (%s)", model, local.WAY_OUT)
    return LocalFamily(
        path.resolve().name,
        model,
        tuple(placed),
        seen,
        {step: path / one.name for step, (one, _) in placed.items()},
        prepend_bos=about.prepend_bos,
    )


def fetch(family: Family, steps: Sequence[int]) -> dict[int, str]:
    """Download all files of checkpoints, one after the other, with a bar that counts bytes; returns the steps that
    could not be fetched, with what is wrong. What is complete is left as it is, what is half there goes on, and a
    family on disk has nothing to fetch.
    """
    if not isinstance(family, HubFamily):
        log.info("%s is on this machine: nothing to fetch", family.source)
        return {}
    wanted = [step for step in steps if not family.is_complete(step)]
    listed = family.listings(wanted).values()
    total = sum(one.bytes_of_weights for one in listed if not isinstance(one, CheckpointUnusable))
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
