"""`run.json`: what made the results of a folder, and the guard that it was one config and one set of inputs only.

    {"analysis": script, "config": every key, "settings": the keys that results depend on, "seed": n,
     "repository": where the weights are from, "versions": {package: version},
     "inputs": {key: SHA-256 of the file that it names: a prompts CSV, a corpus},
     "checkpoints": {step: {repository, revision, commit, sha256, tokens, inputs: {config.json: SHA-256, ...}, ...}},
     "equal_weights": [[1000, 2000]], "files": {name: SHA-256}}

Another run may write into the folder if its settings are the same, and so are its weights and all files that numbers
depend on. The settings include `definitions_version`, the version of the definitions that the numbers follow
(`ResultSchema.version`). A file whose hash is not the one in `files` was damaged, and is measured again with `repair`.
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
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from ..base.errors import CheckpointUnusable, HubUnreachable, UserError, some
from ..base.files import atomic_write, combine, content_sha256, remove_stale_temporaries, require_writable
from ..config.keys import BaseConfig, TaskConfig, files_read, result_keys, result_settings, task_and_method
from ..models.family import Family, HubFamily, LocalFamily
from .checked import Damaged, DamagedRecord
from .kinds import KINDS
from .shared_lock import discard_notes, folder_lock, hand_in
from .store import ResultsFolder, Store

_PACKAGES = ("torch", "transformers", "transformer_lens", "numpy", "pandas")
_UNSET = object()

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedResults:
    """The files of one measurement of a checkpoint, ready to be written."""

    step: int
    provenance: dict[str, Any]
    inputs: dict[str, str]  # of the prompts and texts that were measured on, as in run.json
    files: tuple[dict[str, bytes], ...]  # for each results folder of the analysis, suffix -> bytes


def write_results(folders: Sequence[ResultsFolder], found: Sequence[EncodedResults]) -> None:
    """Write one measurement of several checkpoints.

    Provenance comes first, then what goes with the tables, and the tables last: a table says that all is complete.
    """
    equal: dict[int, set[int]] = {}
    for place, folder in enumerate(folders):
        record = RunRecord(folder)
        held = folder.read_run().get("inputs", {})
        for one in found:
            if changed := [key for key in one.inputs if held.get(key) != one.inputs[key]]:
                raise UserError(f"{changed[0]}: its file was edited while this run was measuring; {WAY_OUT}")
        added = record.add({one.step: (one.provenance, one.files[place]) for one in found})
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
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


WAY_OUT = "pass overwrite=true or another results_dir"


def input_files(config: BaseConfig, task: str | None) -> dict[str, Path]:
    """The files that numbers of a task depend on besides checkpoints, by the key that names them."""
    if not isinstance(config, TaskConfig):
        return files_read(config)
    stem = None if task is None else task_and_method(task)[0]
    csvs = [path for path in map(Path, config.task_names) if path.suffix.lower() == ".csv" and path.stem == stem]
    return files_read(config) | ({"task": csvs[0]} if csvs else {})


def input_hashes(config: BaseConfig, task: str | None) -> dict[str, str]:
    """SHA-256 of these files as they are now; those that cannot be read are left to whoever reads them."""
    hashes = {key: content_sha256(path) for key, path in input_files(config, task).items()}
    return {key: sha256 for key, sha256 in hashes.items() if sha256 is not None}


class RunRecord:
    """The run.json of one results folder."""

    def __init__(self, folder: ResultsFolder) -> None:
        self.folder = folder
        self.path = folder.path / "run.json"

    def check(self, analysis: str, config: BaseConfig, family: Family) -> None:
        """Refuse to mix results of two configs, two models' weights, or two versions of a file in one folder."""
        if not self.folder.steps():
            return
        held = self._read()
        if held is None:
            raise UserError(f"{self.folder.path} holds results but no run.json, so their config is unknown; {WAY_OUT}")
        if reason := self._differs(held, analysis, config, family):
            raise UserError(f"{self.folder.path} holds {reason}; {WAY_OUT}")

    def _other_settings(self, held: dict[str, Any], analysis: str, config: BaseConfig) -> str:
        """What a run's settings, prompts and texts have that run.json's have not; empty if they are the same."""
        if differing := differences(held, self.folder, analysis, config):
            holds = " and ".join(f"{name}={shown(old)}" for name, old, _ in differing)
            return f"{holds}, this run asks for {' and '.join(shown(new) for _, _, new in differing)}"
        return changed_inputs(held, config, self.folder.task)

    def _other_checkpoints(self, held: dict[str, Any], family: Family) -> str:
        """How a family's weights, configs and tokenizers differ from those behind the results; empty if they do not."""
        written = {step: self.folder.file(step).stat().st_mtime for step in self.folder.steps()}
        if reason := other_weights(held, family, written):
            return reason
        for step in self.folder.steps():
            recorded = held["checkpoints"].get(str(step), {})
            if step not in family.steps or "inputs" not in recorded:
                continue  # Results of an older version do not say.
            if recorded.get("tokens") != (tokens := family.tokens[step]):
                return (
                    f"tokens={recorded.get('tokens')} at step {step}, {family.source} says {tokens} (tokens_per_step)"
                )
            today = family.input_hashes(step)
            for name in recorded["inputs"] | today if today else ():
                if recorded["inputs"].get(name) != today.get(name):
                    path = family.folder(step) / name
                    return f"results of step {step} with another {path} than there is now (its SHA-256 has changed)"
        return ""

    def begin(
        self,
        analysis: str,
        config: BaseConfig,
        family: Family,
        steps: list[int],
        enter: Callable[[], object] = lambda: None,
        others: Callable[[], Sequence[object]] = list,
    ) -> None:
        """Record what this run was asked for. With `overwrite` or `repair`, delete the results that it replaces.

        `overwrite` deletes the results of `steps`, which this run will measure, or all in the folder if they come from
        another config, other weights or other files; a later run without it goes on where this one stops. `repair`
        deletes those that are damaged, or all in the folder if run.json is.

        `enter` lets other processes know that this one writes into the folder from now on; `others` are those that do.
        It is a UserError if there are some, and this run has other settings or overwrites.
        """
        require_writable(self.folder.path, "results_dir")
        remove_stale_temporaries(self.folder.path)
        asked = {
            "analysis": analysis,
            "config": config.model_dump(mode="json"),
            "settings": _settings(self.folder, config),
            "seed": config.seed,
            "repository": family.source,
            "versions": versions(),
            "inputs": input_hashes(config, self.folder.task),
        }
        if not (config.overwrite or config.repair):
            # Many processes begin the same run: the first writes it down, and the others need no lock to read it. Who
            # reads it has entered before; who replaces it takes it away before looking whether anybody has.
            enter()
            held = self._read()
            if held is not None and all(held.get(key) == value for key, value in asked.items()):
                return
        with folder_lock(self.folder.path):
            held, there = None, self.path.is_file()
            try:
                held = self._read()
            except DamagedRecord:
                if not (config.overwrite or config.repair):
                    raise
            # Only the same run may write here at the same time. Results of an older version say nothing of inputs.
            usual = {"analysis": {}, "settings": {}, "repository": {}, "inputs": asked["inputs"]}
            same_run = held is not None and all(held.get(key, old) == asked[key] for key, old in usual.items())
            done = self.folder.steps()
            if config.overwrite:
                same = held is not None and not self._differs(held, analysis, config, family)
                gone = [step for step in done if step in steps or not same]
            elif held is None and there:
                same, gone = False, done
            else:
                if not same_run:  # Another process may have begun, and even finished steps, since this run was planned.
                    self.check(analysis, config, family)
                same = same_run or bool(done)
                gone = [step for step in done if step in steps and self.folder.damage(step)] if config.repair else []
            if config.overwrite or (there and not same_run):
                self._take_away(held, asked, config, others)
            enter()
            if config.overwrite:
                discard_notes(self.folder.path)  # Of processes that were killed elsewhere: no other one is at work.
            for step in gone:
                self.folder.delete(step)
            kept = held if same and held is not None else {"checkpoints": {}}
            if kept["checkpoints"] and kept["versions"] != asked["versions"]:
                log.warning("%s was started with other package versions: %s", self.folder.path, kept["versions"])
            forgotten = {*gone, *(steps if config.overwrite else ())}
            files = {name: sha for name, sha in kept.get("files", {}).items() if _order(name)[0] not in forgotten}
            self._write(asked | {"checkpoints": kept["checkpoints"], "files": files})

    def _differs(self, held: dict[str, Any], analysis: str, config: BaseConfig, family: Family) -> str:
        """What the folder's results come from that a run would not use; empty if it may add to them."""
        return self._other_settings(held, analysis, config) or self._other_checkpoints(held, family)

    def _take_away(
        self,
        held: dict[str, Any] | None,
        asked: dict[str, Any],
        config: BaseConfig,
        others: Callable[[], Sequence[object]],
    ) -> None:
        """Delete run.json, unless another process is at work on what it says; under the lock."""
        kept = self.path.read_bytes() if self.path.is_file() else None
        for _ in range(2):  # Whoever enters after the first look does not find the old run any more.
            if busy := others():
                if kept is not None:
                    atomic_write(self.path, kept)
                if config.overwrite:
                    raise UserError(
                        f"overwrite: {busy[0]} is measuring {asked['analysis']} of {self.folder.model} into "
                        f"{self.folder.root}; wait for it, or leave overwrite out to share the work"
                    )
                of = "another run" if held is None else held["repository"]
                reason = "" if held is None else self._other_settings(held, asked["analysis"], config)
                reason = reason or f"{of}, this run asks for {asked['repository']}"
                raise UserError(
                    f"{self.folder.path}: {busy[0]} measures with {reason}; wait for it, or pass another results_dir"
                )
            self.path.unlink(missing_ok=True)

    def add(self, found: Mapping[int, tuple[dict[str, Any], Mapping[str, bytes]]]) -> dict[int, list[int]]:
        """Record where checkpoints' weights come from, before their results are written.

        `found` is step -> the provenance of its weights, and what is going to be written, suffix -> bytes, whose hashes
        are recorded. The folder is left to be synchronised with the results. Returns step -> the other recorded steps
        with the same weights.
        """
        hashes = {name: sha for step, (_, files) in found.items() for name, sha in self._hashes(step, files).items()}
        own = {"checkpoints": {str(step): provenance for step, (provenance, _) in found.items()}, "files": hashes}
        checkpoints = hand_in(self.folder.path, own, self._take_in)
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

    def add_files(self, step: int, files: Mapping[str, bytes]) -> None:
        """Record and write further files of a finished checkpoint: suffix -> bytes."""
        hand_in(self.folder.path, {"checkpoints": {}, "files": self._hashes(step, files)}, self._take_in)
        for suffix, data in files.items():
            self.folder.write(step, suffix, data)

    def _hashes(self, step: int, files: Mapping[str, bytes]) -> dict[str, str]:
        """The name of each file of a checkpoint, and the SHA-256 of its bytes."""
        return {
            self.folder.name(self.folder.file(step, suffix)): hashlib.sha256(data).hexdigest()
            for suffix, data in files.items()
        }

    def damaged(self, steps: Collection[int]) -> list[tuple[int, Damaged]]:
        """The files of finished checkpoints, among these steps, that are not as they were written, or are gone."""
        self._read()
        return [(step, error) for step in self.folder.steps() if step in steps for error in self.folder.damage(step)]

    def _read(self) -> dict[str, Any] | None:
        """What run.json holds; None if it is not there, a DamagedRecord if it lacks a part."""
        if not self.path.is_file():
            return None
        held = self.folder.read_run()
        if not {"settings", "checkpoints", "repository", "versions"} <= set(held):
            raise DamagedRecord(self.path)
        if not all("sha256" in weights for weights in held["checkpoints"].values()):
            raise DamagedRecord(self.path)
        if not all(re.fullmatch(r"step\d+\.\w[^/]*(/[^/]+)*", name) for name in held.get("files", {})):
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
    held: dict[str, Any], folder: ResultsFolder, analysis: str, config: BaseConfig
) -> list[tuple[str, Any, Any]]:
    """(key, held, asked for) wherever a run.json and a run differ; keys go by their last part.

    A key that there was not yet when the results were made had what is its default today.
    """
    new = {"analysis": analysis, **_settings(folder, config)}
    known = {name: field for name, field, _ in result_keys(config) if name in new and not field.is_required()}
    later = {name: to_jsonable_python(field.get_default()) for name, field in known.items()}
    old = {"analysis": held.get("analysis", _UNSET), **later, **held.get("settings", {})}
    names = list(dict.fromkeys([*old, *new]))
    pairs = [(name.rpartition(".")[2], old.get(name, _UNSET), new.get(name, _UNSET)) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def changed_inputs(held: dict[str, Any], config: BaseConfig, task: str | None) -> str:
    """Which of a config's files are not those that results were measured on; empty if all are."""
    today = input_hashes(config, task)
    recorded = held.get("inputs", today)  # Results of an older version do not say.
    for key in {**recorded, **today}:
        if recorded.get(key) != today.get(key):
            path = input_files(config, task).get(key)
            now = f"{path} as it is now" if path is not None else "without it"
            return f"results of another {key} (SHA-256 {recorded.get(key, 'none')[:12]}), this run measures {now}"
    return ""


def _settings(folder: ResultsFolder, config: BaseConfig) -> dict[str, Any]:
    of_task = config.of_task(folder.task) if isinstance(config, TaskConfig) else config
    return {"definitions_version": folder.kind.version, **result_settings(of_task)}


def _order(name: str) -> tuple[int, str]:
    stem, _, suffix = name.removeprefix("step").partition(".")
    return int(stem), suffix


def shown(value: Any) -> str:
    """A setting's value as errors write it."""
    if value is _UNSET:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value)


def other_weights(held: Mapping[str, Any], family: Family, written: Mapping[int, float]) -> str:
    """How the weights of a family differ from those behind results; empty if it may add to them.

    `written` is finished step -> when its result was written, in seconds since 1970. A hub revision whose commit is the
    recorded one is known to be equal; otherwise the hub's hashes are compared, and where it lists none, the
    repository's name counts. Of a local family, weights are hashed whose samples have changed or whose files are newer
    than the result, and those of the last measured step in any case.
    """
    recorded = {step: held["checkpoints"][str(step)] for step in sorted(written) if str(step) in held["checkpoints"]}
    here = {step: weights for step, weights in recorded.items() if step in family.steps}
    changed, same_family = list[int](), True
    if isinstance(family, HubFamily):
        changed, same_family = _changed_on_hub(held, family, here, complete=len(here) == len(written))
    elif isinstance(family, LocalFamily):
        changed = _changed_on_disk(family, here, written)
    if same_family and not changed:
        return ""
    asks = f"other weights in {family.source} ({some(changed)})" if changed else family.source
    return f"results of {held['repository']}, this run measures {asks}"


def _changed_on_hub(
    held: Mapping[str, Any], family: HubFamily, recorded: Mapping[int, Mapping[str, Any]], *, complete: bool
) -> tuple[list[int], bool]:
    """The steps whose weights are others today, and whether the results are this family's, as far as can be told."""
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
    return changed, named or (bool(recorded) and not unknown)


def _changed_on_disk(
    family: LocalFamily, recorded: Mapping[int, Mapping[str, Any]], written: Mapping[int, float]
) -> list[int]:
    suspects = [max(recorded)] if recorded else []
    for step, weights in recorded.items():
        # What cannot be read is told when it is measured.
        with contextlib.suppress(OSError, CheckpointUnusable):
            newer = any(path.stat().st_mtime > written[step] for path in family.folders[step].iterdir())
            if newer or ("fingerprint" in weights and weights["fingerprint"] != family.fingerprint(step)):
                suspects.append(step)
    return [step for step in sorted(set(suspects)) if recorded[step]["sha256"] != family.sha256(step)]


def recorded_parameters(store: Store, model: str) -> int | None:
    """A model's parameters, as its runs recorded them; None where none did, a UserError if they differ."""
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
