"""Configs: strict YAML, overrides on the command line, and errors that name the file, the key and the way out.

A script declares its keys as a `BaseConfig` (or `TaskConfig`) subclass. `load_config` merges
defaults < YAML < command line and checks every key and value once; afterwards a config is frozen.

YAML is read with the types of its 1.2 core schema, because those of 1.1 trap: `1e-3` is a number, `on`, `off`, `yes`
and `no` are text (write `true` or `false`), `012` is 12, and dates stay text. Underscores between digits are allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
from pydantic import ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

from utils.config.explain import explain
from utils.config.strict_yaml import Block, merge, parse_override, read_yaml
from utils.errors import UserError, suggest
from utils.models.schedules import SCHEDULES


def execution(default: Any, **kwargs: Any) -> Any:
    """A field that says how or where to run and never changes a result, so two runs may differ in it."""
    return Field(default, json_schema_extra={"execution": True}, **kwargs)


Schema = TypeVar("Schema", bound=pydantic.BaseModel)


class Section(pydantic.BaseModel):
    """A block of keys inside a config (`eap: {ig_steps: 30}`): unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BaseConfig(Section):
    """The keys every script shares."""

    model: str | list[str] = execution(...)
    """A Pythia name, a hub id, a local family folder, or a list of these."""
    checkpoints: str | list[int] = execution("all")
    """A schedule's name (`utils/models/schedules.py`) or a list of steps."""
    device: str = execution("auto")
    """`auto` (a GPU where there is one), or a torch device."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the weights and activations."""
    batch_size: int = execution(32, gt=0)
    """Prompts that go through the model at once."""
    seed: int = Field(0, ge=0)
    """Seed of everything that is drawn at random."""
    tokens_per_step: int | None = Field(None, gt=0)
    """Tokens of one training step, for hub models that do not say (Pythia, OLMo and local families do)."""
    results_dir: Path = execution(Path("results"))
    """Where results are written."""
    cache_dir: Path = execution(Path("model_cache"))
    """Where hub checkpoints are downloaded to."""
    overwrite: bool = execution(False)
    """Measure again what is already there."""
    keep_downloads: bool = execution(True)
    """False: delete a hub checkpoint's files once it is measured."""

    @field_validator("model")
    @classmethod
    def _named_models(cls, value: str | list[str]) -> str | list[str]:
        return _names(value)

    @field_validator("checkpoints")
    @classmethod
    def _known_schedule(cls, value: str | list[int]) -> str | list[int]:
        if isinstance(value, list):
            if not value:
                raise ValueError("the list is empty; name a schedule or at least one step")
            if min(value) < 0:
                raise ValueError(f"{min(value)} is no training step; steps are 0 or more")
        elif value not in SCHEDULES:
            raise ValueError(f"'{value}' is no schedule{suggest(value, SCHEDULES)}")
        return value

    @property
    def models(self) -> list[str]:
        """`model` as a list."""
        return [self.model] if isinstance(self.model, str) else list(self.model)


class PromptOptions(Section):
    """What a run may choose about its prompts beyond their number and seed."""

    prepend_bos: bool = False
    """Put the tokenizer's start token before every prompt."""
    ioi_corruption: Literal["swap", "abc"] = "swap"
    """IOI's corrupted prompts: the second subject replaced by the indirect object, or three other names."""


class TaskConfig(PromptOptions, BaseConfig):
    """The keys every script that runs tasks shares."""

    task: str | list[str] = execution(...)
    """A task of the registry (`utils/tasks`), a prompts CSV, or a list of these."""
    n_prompts: int = Field(100, gt=0)
    """Prompt pairs per task."""
    metric: Literal["logit_diff", "prob_diff"] | None = None
    """Primary metric of a prompts CSV; the registry's tasks have their own."""

    @field_validator("task")
    @classmethod
    def _named_tasks(cls, value: str | list[str]) -> str | list[str]:
        return _names(value)

    @property
    def tasks(self) -> list[str]:
        """`task` as a list."""
        return [self.task] if isinstance(self.task, str) else list(self.task)


def _names(value: str | list[str]) -> str | list[str]:
    names = [value] if isinstance(value, str) else value
    if not names or not all(name.strip() for name in names):
        raise ValueError("the name is empty")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"'{repeated[0]}' is listed twice")
    return value


def load_config(schema: type[Schema], path: Path | None, overrides: list[str]) -> Schema:
    """Read a YAML config, lay `key=value` overrides over it, and check the whole.

    Args:
        schema: the script's config class.
        path: the YAML file; None: defaults and overrides only.
        overrides: `key=value` each; a dot reaches into a block (`eap.ig_steps=30`), the value is YAML
            (`checkpoints=[1000,143000]`), a block is merged with the file's, and the last one of a key counts.

    Raises:
        UserError: one line per unknown key, missing key or refused value, each naming the file or `command line`.
    """
    data: Block = {} if path is None else read_yaml(path)
    changed: list[tuple[str, ...]] = []
    for text in overrides:
        keys, value = parse_override(text)
        merge(data, keys, value)
        changed.append(keys)
    try:
        # JSON's strict mode: no text taken for a number, no true for 1, yet paths may be text.
        return schema.model_validate_json(json.dumps(data), strict=True)
    except pydantic.ValidationError as error:
        raise UserError("\n".join(explain(error, schema, data, path, changed))) from None


def result_settings(config: pydantic.BaseModel) -> dict[str, Any]:
    """The settings that results depend on, flat (`eap.ig_steps`): all but the execution keys.

    Two runs may write into one results folder exactly if these are equal.
    """
    return dict(_flat_settings(config, ""))


def _flat_settings(config: pydantic.BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    plain = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        if _is_execution(field):
            continue
        value = getattr(config, name)
        if isinstance(value, pydantic.BaseModel):
            yield from _flat_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", plain[name]


def _is_execution(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("execution"))
