"""The command that makes results, built from what was run: config, model and task as they were given, and the folder.

A command names a config file where there is one for the model, and then the keys in which the run differs from it. So
it can be pasted: it goes on with what is there, and does not measure another model.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits_over_time.edge_attribution_patching.choices import USUAL_METHOD, VARIANTS

from ..base.errors import UserError
from ..config.explain import checked
from ..config.keys import BaseConfig, PromptOptions, TaskConfig, task_and_method, variant_keys
from ..config.strict_yaml import parse_override, read_yaml
from .checked import read_run
from .kinds import KINDS, ResultSchema, find_kind

if TYPE_CHECKING:
    import pydantic

COMPARE = "compare_circuits.py"
# Kinds that a script makes only when it is asked to, and how to ask.
ASKED_FOR: Mapping[str, Mapping[str, Any]] = {
    "transfer": {"transfer": "neighbours"},
    "matched_transfer": {"matched_transfer": True},
    "ioi_backup": {"backup": True, "overwrite": True},
}
# Of a run that was ended, they would delete what it has measured.
_NOT_REPEATED = ("overwrite", "repair")
# How a method scores: another one may not read it.
_OF_A_METHOD = ("ig_steps", "tolerance", "quadrature")


@dataclass(frozen=True)
class StoredRun:
    """The run.json of one results folder."""

    kind: str
    model: str
    task: str | None
    record: Mapping[str, Any]

    @property
    def script(self) -> str:
        return f"{self.record.get('analysis')}.py"

    @property
    def given(self) -> dict[str, Any]:
        """The config, with `model` and `task` as they were given for this folder."""
        config = {name: value for name, value in self.record["config"].items() if name not in _NOT_REPEATED}
        config["model"] = _entry(config.get("model"), self.model)
        return config

    @property
    def outdated(self) -> bool:
        """Whether its results follow older definitions: its script adds to them only with overwrite=true."""
        version = self.record.get("settings", {}).get("definitions_version")
        return isinstance(version, int) and version < KINDS[self.kind].version

    def given_task(self, task: str | None) -> str | None:
        """How this run was given a task; its name if it was not."""
        return None if task is None else _entry(self.record["config"].get("task"), task)


def stored_runs(root: Path, model: str | None = None) -> Iterator[StoredRun]:
    """Every sound run.json of a results folder that says its config, of one model or all, in the order of kinds."""
    for kind in KINDS:
        for path in sorted([*root.glob(f"{kind}/*/run.json"), *root.glob(f"{kind}/*/*/run.json")]):
            _, name, *task = path.parent.relative_to(root).parts
            with contextlib.suppress(UserError):
                record = read_run(path) if model in (None, name) else {}
                if {"model", "checkpoints"} <= set(record.get("config", {})):
                    yield StoredRun(kind, name, task[0] if task else None, record)


def how_to_make(
    root: Path, kind: str | ResultSchema, model: str | None = None, task: str | None = None, **keys: Any
) -> str:
    """The command that makes a kind's results in a folder.

    Where nothing is known of the model, it is one with a config that exists, or the name that one would have. `keys`
    are set whatever the run before had.
    """
    found = find_kind(kind)
    if found.name not in KINDS:
        return f"cot.over_time({', '.join(['...', *(f'{name}={value}' for name, value in keys.items())])})"
    runs, finds = list(stored_runs(root, model)), found.script == KINDS["graphs"].script
    variant = variant_keys(task_and_method(task)[1]) if task is not None and finds else {}
    keys, usual = variant | keys, dict[str, Any]()
    own = sorted((run for run in runs if run.script == found.script), key=lambda run: run.task != task)
    for run in [*own, *runs][:1]:
        wanted = dict(run.given)
        if task is not None and (given := run.given_task(task)) is not None:
            wanted["task"] = task_and_method(given)[0] if finds else given  # The method is a key of the first.
        if task is not None and finds and own:  # It may have found circuits of another name.
            eap, method = wanted.get("eap") or {}, variant.get("eap.method", USUAL_METHOD)
            if eap.get("method", USUAL_METHOD) != method:
                wanted["eap"] = {name: value for name, value in eap.items() if name not in _OF_A_METHOD}
            usual = {name: values[0] for name, values in VARIANTS.items()}
        outdated = any(one.outdated and task in (None, one.task) for one in own) and "repair" not in keys
        keys = ({"overwrite": True} if outdated else {}) | keys
        if made := command(found, wanted, root, same_script=bool(own), **(usual | keys)):
            return made
    return _first_command(found, root, model, task, keys)


def how_to_compare(root: Path, **keys: Any) -> str:
    """The command that compares the circuits of a folder, with the settings of the comparison that is there; with
    `keys`, settings that it must have, that comparison is replaced.
    """
    given: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        config = read_run(root / "comparison" / "run.json").get("config", {})
        given = {name: value for name, value in config.items() if name not in _NOT_REPEATED}
    module = importlib.import_module(f"circuits_over_time.{COMPARE.removesuffix('.py')}")
    wanted = given | keys | {"results_dir": str(root)} | ({"overwrite": True} if given and keys else {})
    return _written(COMPARE, None, _further(module.ComparisonConfig, {}, None, wanted))


def command(
    kind: ResultSchema, wanted: Mapping[str, Any], root: Path, *, same_script: bool = True, **further: Any
) -> str | None:
    """The shortest command line that runs a kind's script with a config; None if a key is missing that it needs.

    `wanted` are the config's keys: those of a run of the same script, or of another one for the same model, of which
    only those count that all share, where the config file does not set them. `further` are set besides.
    """
    schema = importlib.import_module(f"circuits_over_time.{kind.script.removesuffix('.py')}").ANALYSIS.schema
    names = set(schema.model_fields)
    if not same_script:
        shared = TaskConfig.model_fields if issubclass(schema, TaskConfig) else BaseConfig.model_fields
        names &= {*shared, *PromptOptions.model_fields}
    keys = {name: value for name, value in wanted.items() if name in names} | {"results_dir": str(root)}
    if "tasks" in keys and isinstance(asked_task := keys.get("task"), str):  # Those of other tasks make no difference.
        base = task_and_method(asked_task)[0]
        keys["tasks"] = {name: block for name, block in keys["tasks"].items() if name == base}
    asked = ASKED_FOR.get(kind.name, {})
    if same_script and not all(wanted.get(name) for name in asked if name not in _NOT_REPEATED):
        keys |= asked
    keys |= further
    options = []
    for path in [*_configs(kind, wanted), None]:
        with contextlib.suppress(UserError):
            data = {} if path is None else read_yaml(path)
            if path is not None and data.get("model") != wanted.get("model"):
                continue
            kept = {name: value for name, value in keys.items() if same_script or name in _ALWAYS or name not in data}
            options.append((path, _further(schema, data, path, kept)))
    if not options:
        return None
    return _written(kind.script, *min(options, key=lambda option: len(option[1])))


_ALWAYS = ("model", "task", "results_dir")


def _configs(kind: ResultSchema, wanted: Mapping[str, Any]) -> list[Path]:
    """The config files that may be for the script and the model."""
    tasks = wanted.get("task") or []
    starts = [*([tasks] if isinstance(tasks, str) else tasks), Path(str(wanted.get("model"))).name]
    starts = [f"{kind.config}_"] if kind.config else starts
    starts += ["tasks_"] * bool(wanted.get("tasks"))
    return sorted({path for start in starts for path in Path("configs").glob("*.yml") if path.name.startswith(start)})


def _further(
    schema: type[pydantic.BaseModel], data: Mapping[str, Any], path: Path | None, keys: Mapping[str, Any]
) -> dict[str, Any]:
    """The keys, by their flat names, that a config file or the defaults do not give; a UserError if the file is no
    config of the script, or a key is missing.
    """
    needed = {name for name, field in schema.model_fields.items() if field.is_required() and name not in data}
    block = {**data, **{name: keys[name] for name in needed if name in keys}}
    base = flat_keys(checked(schema, block, path).model_dump(mode="json"))
    return {
        name: value for name, value in flat_keys(keys).items() if name in needed or base.get(name, flat_keys) != value
    }


def flat_keys(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The keys of a config with those of its blocks as `eap.ig_steps`; of `tasks` each is one value."""
    flat: dict[str, Any] = {}
    for name, value in block.items():
        key = f"{prefix}{name}"
        flat |= flat_keys(value, f"{key}.") if isinstance(value, Mapping) and prefix != "tasks." else {key: value}
    return flat


def _written(script: str, config: Path | None, keys: Mapping[str, Any]) -> str:
    parts = ["python", script, *([] if config is None else ["-c", config.as_posix()])]
    return shlex.join([*parts, *(f"{name}={_yaml(value)}" for name, value in keys.items())])


def _yaml(value: Any) -> str:
    """A value as overrides write it: text without quotes where it is read as the same text."""
    text = f"[{','.join(map(_yaml, value))}]" if isinstance(value, list) else value
    with contextlib.suppress(UserError):
        if isinstance(text, str) and parse_override(f"key={text}")[1] == value:
            return text
    return json.dumps(value, ensure_ascii=False)


def _entry(given: Any, name: str) -> str:
    """Which of the models or tasks that a config names has a results folder of this name, or is the task of it."""
    entries = [entry for entry in (given if isinstance(given, list) else [given]) if isinstance(entry, str)]
    named = {folder_named(entry): entry for entry in entries[::-1]}
    return named.get(name) or named.get(task_and_method(name)[0]) or name


def folder_named(entry: str) -> str:
    """The name of the results folder of a model or task: of `.` that of the folder, of `own/drinks.csv` `drinks`.

    Of `own/drinks.csv@eap`, by which some scripts take circuits, `drinks@eap`.
    """
    return re.sub(r"\.csv(?=@|$)", "", os.path.basename(os.path.abspath(entry)))


def _first_command(
    kind: ResultSchema, root: Path, model: str | None, task: str | None, further: Mapping[str, Any]
) -> str:
    """The command to begin with, of a model that no run.json in the folder knows."""
    start = kind.config or (task and task_and_method(task)[0]) or "ioi"
    own = Path("configs", f"{start}_{(model or '160m').removeprefix('pythia-')}.yml")
    of_all_tasks = Path("configs", f"{model}.yml")
    config, keys = own, dict[str, Any](ASKED_FOR.get(kind.name, {}))
    if not own.exists() and not kind.config and of_all_tasks.exists():
        config = of_all_tasks
    elif not own.exists() and model is not None and (others := sorted(Path("configs").glob(f"{start}_*.yml"))):
        config, keys = others[0], {"model": model, **keys}
    keys |= further if root == Path("results") else {"results_dir": str(root), **further}
    return _written(kind.script, config, keys)
