"""`run.json`: what made the results of a folder, and the guard that it was one config only.

    {"analysis": script, "config": every key, "settings": the keys that results depend on, "seed": n,
     "repository": where the weights are from, "versions": {package: version},
     "checkpoints": {step: {repository, revision, commit, sha256, ...}}, "equal_weights": [[1000, 2000]]}

Another run may write into the folder if its settings are the same and its weights come from the same place.
`equal_weights` lists checkpoints whose weights have the same hash (some revisions on the hub hold another step's).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
import platform
from collections.abc import Iterator
from typing import Any

from filelock import FileLock

from utils.config.keys import BaseConfig, result_settings
from utils.errors import UserError
from utils.files import atomic_write, remove_stale_temporaries, require_writable
from utils.models.family import Family, LocalFamily
from utils.results.store import ResultsFolder

_PACKAGES = ("torch", "transformers", "transformer_lens", "numpy", "pandas")
_UNSET = object()

log = logging.getLogger(__name__)


@functools.cache
def versions() -> dict[str, str]:
    """Python and the packages that results can depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


class RunRecord:
    """The run.json of one results folder."""

    def __init__(self, folder: ResultsFolder) -> None:
        self.folder = folder
        self.path = folder.path / "run.json"

    def check(self, analysis: str, config: BaseConfig, family: Family) -> None:
        """Refuse to mix results of two configs, or of two models' weights, in one folder.

        Args:
            analysis: the script's name.
            config: this run's config.
            family: this run's weights. Hub repositories are compared by name. Local families are compared by the hash
                of the last measured step, because a folder goes by many names and may have been trained again.

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
        differing = differences(held, analysis, config)
        if differing:
            holds = " and ".join(f"{name}={shown(old)}" for name, old, _ in differing)
            asks = " and ".join(shown(new) for _, _, new in differing)
            raise UserError(f"{self.folder.path} holds {holds}, this run asks for {asks}; {way_out}")
        if not _same_weights(held, family, done):
            holds = f"results of {held['repository']}, this run measures"
            asks = f"other weights in {family.source}" if family.is_local else family.source
            raise UserError(f"{self.folder.path} holds {holds} {asks}; {way_out}")

    def begin(self, analysis: str, config: BaseConfig, family: Family, steps: list[int]) -> None:
        """Record what this run was asked for. With `overwrite`, delete the results that it replaces.

        Args:
            analysis: the script's name.
            config: this run's config.
            family: this run's weights.
            steps: the steps that this run will measure. `overwrite` deletes their results, or all results in the folder
                if they come from another config or other weights. A later run without `overwrite` goes on where this
                one stops.
        """
        require_writable(self.folder.path, "results_dir")
        remove_stale_temporaries(self.folder.path)
        with self._lock():
            held = self._read() or {"settings": {}, "checkpoints": {}}
            known = held["checkpoints"]
            if config.overwrite:
                done = self.folder.steps()
                same = not differences(held, analysis, config) and _same_weights(held, family, done)
                for step in done:
                    if step in steps or not same:
                        self.folder.delete(step)
                known = known if same else {}
            if known and held["versions"] != versions():
                log.warning("%s was started with other package versions: %s", self.folder.path, held["versions"])
            self._write(
                {
                    "analysis": analysis,
                    "config": config.model_dump(mode="json"),
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
        with self._lock():
            run = self.folder.read_run()
            run["checkpoints"][str(step)] = provenance
            self._write(run)
        return [
            int(other)
            for other, weights in run["checkpoints"].items()
            if int(other) != step and weights["sha256"] == provenance["sha256"]
        ]

    def _read(self) -> dict[str, Any] | None:
        return self.folder.read_run() if self.path.is_file() else None

    def _write(self, run: dict[str, Any]) -> None:
        checkpoints = dict(sorted(run["checkpoints"].items(), key=lambda item: int(item[0])))
        run = run | {"checkpoints": checkpoints, "equal_weights": equal_weights(checkpoints)}
        atomic_write(self.path, (json.dumps(run, indent=1, ensure_ascii=False) + "\n").encode())

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Let one process at a time through: several runs may measure different checkpoints into one folder."""
        lock = FileLock(self.folder.path / ".lock")
        try:
            lock.acquire()
        except OSError as error:
            raise UserError(
                f"results_dir: {lock.lock_file} cannot be written ({error.strerror}); name another"
            ) from error
        try:
            yield
        finally:
            lock.release()


def equal_weights(checkpoints: dict[str, dict[str, Any]]) -> list[list[int]]:
    """Groups of two or more steps whose weights have the same hash, each sorted, in order of their first step."""
    groups: dict[str, list[int]] = {}
    for step, weights in checkpoints.items():
        groups.setdefault(weights["sha256"], []).append(int(step))
    return sorted(sorted(steps) for steps in groups.values() if len(steps) > 1)


def _same_weights(held: dict[str, Any], family: Family, done: list[int]) -> bool:
    if not isinstance(family, LocalFamily):
        return bool(held["repository"] == family.source)
    recorded = [step for step in done if step in family.steps and str(step) in held["checkpoints"]]
    return not recorded or held["checkpoints"][str(recorded[-1])]["sha256"] == family.sha256(recorded[-1])


def differences(held: dict[str, Any], analysis: str, config: BaseConfig) -> list[tuple[str, Any, Any]]:
    """(key, held, asked for) wherever a run.json and a run differ; keys go by their last part."""
    old = {"analysis": held.get("analysis", _UNSET), **held["settings"]}
    new = {"analysis": analysis, **result_settings(config)}
    names = list(dict.fromkeys([*old, *new]))
    pairs = [(name.rpartition(".")[2], old.get(name, _UNSET), new.get(name, _UNSET)) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def shown(value: Any) -> str:
    """A setting's value as errors write it."""
    if value is _UNSET:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value)
