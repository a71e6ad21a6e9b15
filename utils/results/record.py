"""`run.json`: what a results folder was made with, and the guard that it was one config only.

    {"analysis": script, "config": every key, "settings": the keys that results depend on, "seed": n,
     "repository": where the weights are from, "versions": {package: version},
     "checkpoints": {step: {repository, revision, commit, sha256}}, "equal_weights": [[1000, 2000]]}

A second run may write into the folder if its settings are equal and its weights come from the same place. Checkpoints
whose weights have equal hashes are listed under `equal_weights` (some hub revisions hold another step's weights).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Iterator
from typing import Any

from utils.config.keys import BaseConfig, resolved, result_settings
from utils.errors import UserError
from utils.models.family import Family, LocalFamily
from utils.results.store import Store, atomic_write, remove_stale_temporaries

_PACKAGES = ("torch", "transformers", "transformer_lens", "numpy", "pandas")
_UNSET = object()

log = logging.getLogger(__name__)


@functools.cache
def versions() -> dict[str, str]:
    """Python and the packages that results can depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


class RunRecord:
    """The run.json of one results folder (kind, model, task).

    Args:
        store: the results.
        kind: kind of result.
        model: the model's folder name.
        task: the task's folder name, None where the kind has no task level.
    """

    def __init__(self, store: Store, kind: str, model: str, task: str | None) -> None:
        self.store, self.kind, self.model, self.task = store, kind, model, task
        self.folder = store.folder(kind, model, task)
        self.path = self.folder / "run.json"

    def check(self, analysis: str, config: BaseConfig, family: Family) -> None:
        """Refuse to add results of another config or of other weights to the folder's.

        Args:
            analysis: the script's name.
            config: this run's config.
            family: this run's weights. A hub repository is compared by name. A local family is compared by the hash of
                its last measured step, as a folder may be named in many ways and trained anew.

        Raises:
            UserError: naming what the folder holds and what this run asks.
        """
        done = self.store.steps(self.kind, self.model, self.task)
        if not done:
            return
        way_out = "pass overwrite=true or another results_dir"
        held = self._read()
        if held is None:
            raise UserError(f"{self.folder} holds results and no run.json, so their config is unknown; {way_out}")
        differing = _differences(held, analysis, config)
        if differing:
            holds = " and ".join(f"{name}={_shown(old)}" for name, old, _ in differing)
            asks = " and ".join(_shown(new) for _, _, new in differing)
            raise UserError(f"{self.folder} holds {holds}, this run asks {asks}; {way_out}")
        if not _same_weights(held, family, done):
            holds = f"results of {held['repository']}, this run measures"
            asks = f"other weights in {family.source}" if family.is_local else family.source
            raise UserError(f"{self.folder} holds {holds} {asks}; {way_out}")

    def begin(self, analysis: str, config: BaseConfig, family: Family, steps: list[int]) -> None:
        """Write what this run was asked; with `overwrite`, delete the results that it replaces.

        Args:
            analysis: the script's name.
            config: this run's config.
            family: this run's weights.
            steps: the steps that this run is asked for. With `overwrite` their results are deleted, or all results of
                the folder if they come from another config or other weights; a later run without `overwrite` then
                goes on where this one stopped.
        """
        remove_stale_temporaries(self.folder)
        with self._locked():
            held = self._read() or {"settings": {}, "checkpoints": {}}
            known = held["checkpoints"]
            if config.overwrite:
                done = self.store.steps(self.kind, self.model, self.task)
                same = not _differences(held, analysis, config) and _same_weights(held, family, done)
                self._delete([step for step in done if step in steps or not same])
                known = known if same else {}
            if known and held["versions"] != versions():
                log.warning("%s was begun with other package versions: %s", self.folder, held["versions"])
            self._write(
                {
                    "analysis": analysis,
                    "config": resolved(config),
                    "settings": result_settings(config),
                    "seed": config.seed,
                    "repository": family.source,
                    "versions": versions(),
                    "checkpoints": known,
                }
            )

    def add(self, step: int, provenance: dict[str, Any]) -> list[int]:
        """Record where a checkpoint's weights come from, before its results are written.

        Returns:
            The other recorded steps with the same weights.
        """
        with self._locked():
            run = self.store.read_run(self.kind, self.model, self.task)
            run["checkpoints"][str(step)] = provenance
            self._write(run)
        return [
            int(other)
            for other, weights in run["checkpoints"].items()
            if int(other) != step and weights["sha256"] == provenance["sha256"]
        ]

    def _read(self) -> dict[str, Any] | None:
        return self.store.read_run(self.kind, self.model, self.task) if self.path.is_file() else None

    def _write(self, run: dict[str, Any]) -> None:
        checkpoints = dict(sorted(run["checkpoints"].items(), key=lambda item: int(item[0])))
        run = run | {"checkpoints": checkpoints, "equal_weights": equal_weights(checkpoints)}
        atomic_write(self.path, (json.dumps(run, indent=1, ensure_ascii=False) + "\n").encode())

    def _delete(self, steps: list[int]) -> None:
        for step in steps:
            for suffix in (".csv", ".json", ".pt"):  # The table first: without it, the rest does not count.
                self.store.path(self.kind, self.model, step, self.task, suffix).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time, for runs that measure different checkpoints into one folder."""
        if os.name != "posix":
            yield
            return
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def equal_weights(checkpoints: dict[str, dict[str, Any]]) -> list[list[int]]:
    """Groups of two or more steps whose weights have one hash, each sorted, in order of their first step."""
    groups: dict[str, list[int]] = {}
    for step, weights in checkpoints.items():
        groups.setdefault(weights["sha256"], []).append(int(step))
    return sorted(sorted(steps) for steps in groups.values() if len(steps) > 1)


def _same_weights(held: dict[str, Any], family: Family, done: list[int]) -> bool:
    if not isinstance(family, LocalFamily):
        return bool(held["repository"] == family.source)
    recorded = [step for step in done if step in family.steps and str(step) in held["checkpoints"]]
    return not recorded or held["checkpoints"][str(recorded[-1])]["sha256"] == family.sha256(recorded[-1])


def _differences(held: dict[str, Any], analysis: str, config: BaseConfig) -> list[tuple[str, Any, Any]]:
    """(key, held, asked) where a run.json and a run differ; a key is named by its last part."""
    old = {"analysis": held.get("analysis", _UNSET), **held["settings"]}
    new = {"analysis": analysis, **result_settings(config)}
    names = list(dict.fromkeys([*old, *new]))
    pairs = [(name.rpartition(".")[2], old.get(name, _UNSET), new.get(name, _UNSET)) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _shown(value: Any) -> str:
    if value is _UNSET:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value)
