"""`run.json`: what made the results of a folder, and the guard that it was one config only.

    {"analysis": script, "config": every key, "settings": the keys that results depend on, "seed": n,
     "repository": where the weights are from, "versions": {package: version},
     "checkpoints": {step: {repository, revision, commit, sha256, ...}}, "equal_weights": [[1000, 2000]],
     "files": {name: SHA-256}}

Another run may write into the folder if its settings are the same and so are its weights. The settings include
`definitions_version`, the version of the definitions that the numbers follow (`ResultSchema.version`). A file whose
hash is not the one in `files` was damaged, and is measured again with `repair`.
`equal_weights` lists checkpoints whose weights have the same hash (some revisions on the hub hold another step's).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import CheckpointUnusable, HubUnreachable, UserError, some
from ..base.files import atomic_write, combine, file_sha256, remove_stale_temporaries, require_writable
from ..config.keys import BaseConfig, result_settings
from ..models.family import Family, HubFamily, LocalFamily
from .kinds import KINDS, ResultSchema
from .shared_lock import SharedLock
from .store import DamagedRecord, ResultsFolder, Store

_PACKAGES = ("torch", "transformers", "transformer_lens", "numpy", "pandas")
_UNSET = object()

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedResults:
    """The files of one measurement of a checkpoint, ready to be written.

    Attributes:
        files: for each results folder of the analysis, suffix -> bytes.
    """

    step: int
    provenance: dict[str, Any]
    files: tuple[dict[str, bytes], ...]


def write_results(folders: Sequence[ResultsFolder], found: Sequence[EncodedResults]) -> None:
    """Write one measurement of several checkpoints.

    Provenance comes first, then what goes with the tables, and the tables last: a table says that all is complete.
    """
    equal: dict[int, set[int]] = {}
    for place, folder in enumerate(folders):
        added = RunRecord(folder).add({one.step: (one.provenance, one.files[place]) for one in found})
        for step, others in added.items():
            equal.setdefault(step, set()).update(others)
        for one in found:
            for suffix, data in one.files[place].items():
                if suffix != ".csv":
                    folder.write(one.step, suffix, data)
    for place, folder in enumerate(folders):
        for one in found:
            # The folder is synchronised once, with the last table.
            folder.write(one.step, ".csv", one.files[place][".csv"], sync_folder=one is found[-1])
    for step, same in equal.items():
        if same:
            steps, model = ", ".join(str(other) for other in sorted(same)), folders[0].model
            log.warning("%s: step %d holds the same weights as step %s; recorded in run.json", model, step, steps)


@functools.cache
def versions() -> dict[str, str]:
    """Python and the packages that results can depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


class RunRecord:
    """The run.json of one results folder."""

    def __init__(self, folder: ResultsFolder) -> None:
        self.folder = folder
        self.path = folder.path / "run.json"
        self._lock = SharedLock(folder.path)

    def check(self, analysis: str, config: BaseConfig, family: Family) -> None:
        """Refuse to mix results of two configs, or of two models' weights, in one folder.

        Raises:
            UserError: naming what the folder holds and what this run asks for.
        """
        done = self.folder.steps()
        if not done:
            return
        way_out = "pass overwrite=true or another results_dir"
        held = self._read()
        if held is None:
            raise UserError(f"{self.folder.path} holds results but no run.json, so their config is unknown; {way_out}")
        differing = differences(held, self.folder.kind, analysis, config)
        if differing:
            holds = " and ".join(f"{name}={shown(old)}" for name, old, _ in differing)
            asks = " and ".join(shown(new) for _, _, new in differing)
            raise UserError(f"{self.folder.path} holds {holds}, this run asks for {asks}; {way_out}")
        compared = compare_weights(held, family, self._written())
        if not compared.same:
            holds = f"results of {held['repository']}, this run measures"
            moved = f"other weights in {family.source} ({some(compared.changed)})"
            asks = moved if compared.changed else family.source
            raise UserError(f"{self.folder.path} holds {holds} {asks}; {way_out}")

    def begin(self, analysis: str, config: BaseConfig, family: Family, steps: list[int]) -> None:
        """Record what this run was asked for. With `overwrite` or `repair`, delete the results that it replaces.

        `overwrite` deletes the results of `steps`, which this run will measure, or all in the folder if they come from
        another config or other weights. A later run without `overwrite` goes on where this one stops. `repair` deletes
        those that are damaged, or all in the folder if run.json is.
        """
        require_writable(self.folder.path, "results_dir")
        remove_stale_temporaries(self.folder.path)
        asked = {
            "analysis": analysis,
            "config": config.model_dump(mode="json"),
            "settings": _settings(self.folder.kind, config),
            "seed": config.seed,
            "repository": family.source,
            "versions": versions(),
        }
        if config.overwrite or config.repair:
            with self._lock.held():
                self._begin(asked, self._clear(analysis, config, family, steps))
        else:  # Many processes begin the same run: the first writes it down, and the others need not queue to read it.
            self._lock.once(lambda: self._is_begun(asked), lambda: self._begin(asked, self._read()))

    def _is_begun(self, asked: dict[str, Any]) -> bool:
        held = self._read()
        return held is not None and all(held.get(key) == value for key, value in asked.items())

    def _begin(self, asked: dict[str, Any], held: dict[str, Any] | None) -> None:
        """Write what a run was asked for, and what is kept of what run.json held; under the lock."""
        held = held or {"checkpoints": {}}
        if held["checkpoints"] and held["versions"] != asked["versions"]:
            log.warning("%s was started with other package versions: %s", self.folder.path, held["versions"])
        self._write(asked | {"checkpoints": held["checkpoints"], "files": held.get("files", {})})

    def _clear(self, analysis: str, config: BaseConfig, family: Family, steps: list[int]) -> dict[str, Any] | None:
        """Delete the results that a run replaces, and return what is kept of run.json."""
        try:
            held = self._read()
        except DamagedRecord:
            held = None
        if config.overwrite or (held is None and self.path.is_file()):
            same = not differences(held or {"settings": {}}, self.folder.kind, analysis, config)
            same = same and held is not None and compare_weights(held, family, self._written()).same
            gone = [step for step in self.folder.steps() if step in steps or not same]
            self._lock.discard_notes()  # Of processes that were killed elsewhere: no other one is at work.
            held, forgotten = (held, steps) if same else (None, gone)
        else:
            gone = forgotten = sorted({_order(path.name)[0] for path in self.damaged(steps)})
        for step in gone:
            self.folder.delete(step)
        return None if held is None else held | {"files": _without(held.get("files", {}), forgotten)}

    def add(self, found: Mapping[int, tuple[dict[str, Any], Mapping[str, bytes]]]) -> dict[int, list[int]]:
        """Record where checkpoints' weights come from, before their results are written.

        The folder is left to be synchronised with the results, which are written there next.

        Args:
            found: step -> the provenance of its weights, and what is going to be written: suffix -> bytes. The hashes
                of these bytes are recorded.

        Returns:
            Step -> the other recorded steps with the same weights.
        """
        hashes = {
            self.folder.file(step, suffix).name: hashlib.sha256(data).hexdigest()
            for step, (_, files) in found.items()
            for suffix, data in files.items()
        }
        own = {"checkpoints": {str(step): provenance for step, (provenance, _) in found.items()}, "files": hashes}
        checkpoints = self._lock.hand_in(own, self._take_in)
        if checkpoints is None:
            checkpoints = self.folder.read_run()["checkpoints"]
        return {
            step: [
                int(other)
                for other, weights in checkpoints.items()
                if int(other) != step and weights["sha256"] == provenance["sha256"]
            ]
            for step, (provenance, _) in found.items()
        }

    def damaged(self, steps: Collection[int]) -> list[Path]:
        """Files of finished checkpoints whose bytes are not those that were written, or that are gone.

        Args:
            steps: the checkpoints to look at. Each of their files is read once and hashed.

        Raises:
            DamagedRecord: if run.json itself is.
        """
        files = (self._read() or {}).get("files", {})
        found = []
        for step in steps:
            if not self.folder.has(step):
                continue  # It was not finished, and will be measured anyway.
            for suffix in (".csv", *self.folder.kind.companions):
                path = self.folder.file(step, suffix)
                if path.name in files and not (path.is_file() and file_sha256(path) == files[path.name]):
                    found.append(path)
        return found

    def _written(self) -> dict[int, float]:
        """Finished step -> when its table was written."""
        return {step: self.folder.file(step).stat().st_mtime for step in self.folder.steps()}

    def _read(self) -> dict[str, Any] | None:
        """What run.json holds; None if it is not there.

        Raises:
            DamagedRecord: if it lacks a part.
        """
        if not self.path.is_file():
            return None
        held = self.folder.read_run()
        weights = held.get("checkpoints")
        blocks = [held.get("settings"), weights, held.get("files", {}), held.get("versions")]
        if not all(isinstance(block, dict) for block in blocks) or "repository" not in held:
            raise DamagedRecord(self.path)
        if not all(isinstance(one, dict) and "sha256" in one for one in (weights or {}).values()):
            raise DamagedRecord(self.path)
        return held

    def _write(self, run: dict[str, Any], *, sync_folder: bool = True) -> None:
        checkpoints = dict(sorted(run["checkpoints"].items(), key=lambda item: int(item[0])))
        files = run.pop("files")
        run = run | {"checkpoints": checkpoints, "equal_weights": equal_weights(checkpoints)}
        run["files"] = dict(sorted(files.items(), key=lambda item: _order(item[0])))
        data = _text(run).encode()
        if not (self.path.is_file() and self.path.read_bytes() == data):  # Many processes begin the same run.
            atomic_write(self.path, data, sync_folder=sync_folder)

    def _take_in(self, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Write entries of several processes into run.json, under the lock; returns its checkpoints."""
        run = self.folder.read_run()
        run["files"] = run.get("files", {})
        for entry in entries:
            for block in ("checkpoints", "files"):
                run[block] |= entry[block]
        checkpoints = dict(run["checkpoints"])
        self._write(run, sync_folder=False)
        return checkpoints


def _text(run: dict[str, Any]) -> str:
    """A run.json: blocks over several lines, but one line for each of their entries, which is fast to write."""
    parts = []
    for name, value in run.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, dict) and value:
            lines = [f"  {json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}" for key, item in value.items()]
            text = "{\n" + ",\n".join(lines) + "\n }"
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def equal_weights(checkpoints: dict[str, dict[str, Any]]) -> list[list[int]]:
    """Groups of two or more steps whose weights have the same hash, each sorted, in order of their first step."""
    groups: dict[str, list[int]] = {}
    for step, weights in checkpoints.items():
        groups.setdefault(weights["sha256"], []).append(int(step))
    return sorted(sorted(steps) for steps in groups.values() if len(steps) > 1)


def differences(
    held: dict[str, Any], kind: ResultSchema, analysis: str, config: BaseConfig
) -> list[tuple[str, Any, Any]]:
    """(key, held, asked for) wherever a run.json and a run differ; keys go by their last part."""
    old = {"analysis": held.get("analysis", _UNSET), **held["settings"]}
    new = {"analysis": analysis, **_settings(kind, config)}
    names = list(dict.fromkeys([*old, *new]))
    pairs = [(name.rpartition(".")[2], old.get(name, _UNSET), new.get(name, _UNSET)) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _settings(kind: ResultSchema, config: BaseConfig) -> dict[str, Any]:
    return {"definitions_version": kind.version, **result_settings(config)}


def _without(files: Mapping[str, str], steps: Collection[int]) -> dict[str, str]:
    """Hashes of files, without those of some steps."""
    return {name: sha256 for name, sha256 in files.items() if _order(name)[0] not in steps}


def _order(name: str) -> tuple[int, str]:
    stem, _, suffix = name.removeprefix("step").partition(".")
    return int(stem), suffix


def shown(value: Any) -> str:
    """A setting's value as errors write it."""
    if value is _UNSET:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value)


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
    found = family.listings(moved)
    changed, unknown = [], None in today.values() or not complete
    for step in moved:
        listing = found[step]
        hashes = set() if isinstance(listing, CheckpointUnusable) else {combine(one) for one in listing.formats}
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


def recorded_parameters(store: Store, model: str) -> int | None:
    """Number of parameters that the runs of a model recorded with its checkpoints; None where none did.

    Raises:
        UserError: if they differ.
    """
    counts = set()
    for kind in KINDS:
        for task in [*store.tasks(kind, model), None]:
            folder = store.folder(kind, model, task)
            if folder.steps() and (folder.path / "run.json").is_file():
                counts |= {weights.get("parameters") for weights in folder.read_run().get("checkpoints", {}).values()}
    known = sorted(counts - {None})
    if len(known) > 1:
        raise UserError(f"{store.root}: {model} has {' and '.join(f'{n:,}' for n in known)} parameters; keep one model")
    return known[0] if known else None
