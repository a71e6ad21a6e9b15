"""Configs: strict YAML, overrides on the command line, and errors that say where to look and what to do.

A script declares its keys as a subclass of `BaseConfig` or `TaskConfig`; the string below a key is its entry in
configs/README.md. `load_config` merges defaults < YAML < command line and checks every key and value once. After that
a config is frozen.

YAML values have the types of YAML 1.2's core schema, because those of 1.1 are full of traps: `1e-3` is a number; `on`,
`off`, `yes` and `no` are text (write `true` or `false`); `012` is 12; dates stay text. Digits may be grouped with
underscores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import AfterValidator, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

from ..base.errors import UserError, suggest
from .explain import explain
from .schedules import SCHEDULES
from .strict_yaml import Block, merge, parse_override, read_yaml


def execution(default: Any, **kwargs: Any) -> Any:
    """A key that says how or where to run. It never changes a result, so two runs into one folder may differ in it."""
    return Field(default, json_schema_extra={"execution": True}, **kwargs)


_NULL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # as JSON writes the character that no file name may hold
Schema = TypeVar("Schema", bound=pydantic.BaseModel)


def _check_names(value: str | list[str]) -> str | list[str]:
    names = [value] if isinstance(value, str) else value
    if not names or not all(name.strip() for name in names):
        raise ValueError("the name is empty")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"'{repeated[0]}' is listed twice")
    return value


Names = Annotated[str | list[str], AfterValidator(_check_names)]
"""One name, or a list of different ones."""

StartToken = bool | Literal["auto"]
"""Whether to start with the tokenizer's start token; `auto` until `with_start_token` says so for a model."""


class Section(pydantic.BaseModel):
    """A block of keys in a config (`eap: {ig_steps: 30}`). It refuses unknown keys, and its values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class MemoryKeys(Section):
    """How much memory to compute in."""

    memory_budget_gb: float = execution(1.0, gt=0)
    """Memory that one step of the computation may use on top of the weights."""


class SlurmKeys(Section):
    """What a Slurm task asks for, with `executor: slurm`."""

    cluster: Literal["slurm", "local"] = "slurm"
    """`slurm`, or `local` to start the tasks as processes on this machine."""
    partition: str | None = None
    """The partition; `null` takes the cluster's default."""
    account: str | None = None
    """The account to charge; `null` takes your default."""
    minutes: int = Field(240, gt=0)
    """The time limit of a task. What it has not measured by then, the same command measures later."""
    memory_gb: float | None = Field(None, gt=0)
    """Memory for a task; `null` takes the cluster's default."""
    setup: list[str] = []
    """Shell commands to run before a task starts (`module load cuda`)."""


class BaseConfig(Section):
    """The keys that every script shares."""

    model: Names = execution(...)
    """What to measure: a [known name](../docs/models.md) (`pythia-160m`), the id of a hub repository, a local folder of
    checkpoints (`model_cache/toy`), or a list of these."""
    checkpoints: str | list[int] = execution("all")
    """Which checkpoints: the name of a [schedule](../docs/models.md#schedules), or a list of training steps."""
    device: str = execution("auto")
    """Where to compute: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`: a CUDA GPU, else Apple's GPU, else the CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of weights and activations: `float32`, `bfloat16` or `float16`."""
    batch_size: int = execution(32, gt=0)
    """How many prompts go through the model at once."""
    seed: int = Field(0, ge=0)
    """Seed of everything drawn at random."""
    tokens_per_step: int | None = Field(None, gt=0)
    """Tokens per training step, for hub models that do not say."""
    revisions: str | None = None
    r"""A regular expression that reads the [names of checkpoints](../docs/models.md#names) where no rule does, with the
    group `step` (`run7-(?P<step>\d+)`)."""
    stages: list[int] = execution([1], min_length=1)
    """Which stages of training to take checkpoints from, for families that have several."""
    results_dir: Path = execution(Path("results"))
    """Where to write results."""
    cache_dir: Path = execution(Path("model_cache"))
    """Where to keep downloads from the hub, as `<org>--<name>/step{n}/`."""
    overwrite: bool = execution(False)
    """Delete what this run would write, or a whole folder of another config's, and measure again."""
    prefetch: bool = execution(True)
    """Download the next checkpoint, and read it into CPU memory, while one is measured."""
    keep_checkpoints: Literal["all", "none"] | Annotated[int, Field(gt=0)] = execution("all")
    """Which of the run's own [downloads](../docs/models.md#downloads) to keep: `all`, `none`, or how many, the
    newest."""
    on_duplicate_weights: Literal["error", "warn", "skip"] = execution("error")
    """Where a step holds [another's weights](../docs/models.md#damaged-checkpoints): `error` stops and names it, `warn`
    measures it, `skip` leaves it out."""
    trust_remote_code: bool = execution(False)
    """Whether a tokenizer may run Python code that comes with it."""
    repair: bool = execution(False)
    """Measure again the files that are damaged, by their hashes in run.json, instead of refusing the first of them."""
    executor: Literal["local", "ray", "slurm"] = execution("local")
    """Who [measures](../docs/clusters.md): this process (`local`), workers of a Ray cluster (`ray`), or a Slurm job
    array (`slurm`)."""
    workers: int | None = execution(None, gt=0)
    """Most checkpoints at once with `ray` (`null`: all that fit), or tasks of the array with `slurm` (`null`: 4)."""
    cpus_per_checkpoint: int | None = execution(None, gt=0)
    """Cores and threads for each checkpoint; `null` leaves them to torch."""
    gpus_per_checkpoint: float | None = execution(None, gt=0)
    """GPUs for each checkpoint with `ray` and `slurm`; Ray also takes shares, such as 0.5."""
    ray_address: str | None = execution(None)
    """The Ray cluster, as `ray.init` takes it (`auto`, `ray://head:10001`); `null`: RAY_ADDRESS, or a new one."""
    retries: int = execution(2, ge=0)
    """How often a checkpoint whose worker was lost is tried again."""
    slurm: SlurmKeys = execution(SlurmKeys())

    @field_validator("checkpoints")
    @classmethod
    def _known_schedule(cls, value: str | list[int]) -> str | list[int]:
        if isinstance(value, list):
            if not value:
                raise ValueError("the list is empty; name a schedule or at least one step")
            if min(value) < 0:
                raise ValueError(f"{min(value)} is not a training step; steps are 0 or more")
        elif value not in SCHEDULES:
            raise ValueError(f"'{value}' is not a schedule{suggest(value, SCHEDULES)}")
        return value

    @property
    def models(self) -> list[str]:
        """`model` as a list."""
        return [self.model] if isinstance(self.model, str) else list(self.model)


class PromptOptions(Section):
    """What a run may choose about its prompts, apart from their number and seed."""

    prepend_bos: StartToken = "auto"
    """Start every prompt with the tokenizer's start token; `auto` does what the model was
    [trained with](../docs/models.md#start-tokens)."""
    ioi_corruption: Literal["swap", "abc"] = "swap"
    """How IOI prompts are corrupted: `swap` replaces the second subject with the indirect object, `abc` puts in
    three others."""


class TaskConfig(PromptOptions, BaseConfig):
    """The keys that every script with tasks shares."""

    task: Names = execution(...)
    """A [task](../docs/tasks.md), the path of a [prompts CSV](../docs/tasks.md#a-task-of-your-own), or a list."""
    n_prompts: int = Field(100, gt=0)
    """How many prompt pairs each task gets."""
    metric: Literal["logit_diff", "prob_diff"] | None = None
    """Primary metric of a prompts CSV: `logit_diff` or `prob_diff`."""

    @property
    def tasks(self) -> list[str]:
        """`task` as a list."""
        return [self.task] if isinstance(self.task, str) else list(self.task)


def with_start_token(config: Schema, trained_with: bool | None) -> Schema:
    """A config for one model: `prepend_bos: auto` is replaced by true or false, in its blocks too.

    `trained_with` says whether the model was trained with a start token; None, if nobody says, counts as no.
    """
    changed: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if name == "prepend_bos" and value == "auto":
            changed[name] = trained_with is True
        elif isinstance(value, pydantic.BaseModel):
            changed[name] = with_start_token(value, trained_with)
    return config.model_copy(update=changed)


def load_config(schema: type[Schema], path: Path | None, overrides: list[str]) -> Schema:
    """Read a YAML config, apply the `key=value` overrides, and check the result.

    Args:
        path: the YAML file; None for defaults and overrides alone.
        overrides: each a `key=value`. A dot reaches into a block (`eap.ig_steps=30`), the value is YAML
            (`checkpoints=[1000,143000]`), and a block is merged with the file's. If a key comes twice, the last wins.

    Raises:
        UserError: one line for each unknown key, missing key or bad value, naming the file or `command line`.
    """
    data: Block = {} if path is None else read_yaml(path)
    changed: list[tuple[str, ...]] = []
    for text in overrides:
        keys, value = parse_override(text)
        merge(data, keys, value)
        changed.append(keys)
    for key, value in data.items():
        if _NULL.search(json.dumps([key, value])):
            where = "command line" if path is None or any(keys[0] == key for keys in changed) else str(path)
            raise UserError(f"{where}: {key}: holds the character \\0, which no name has; remove it")
    try:
        # Strict mode of JSON: text is never taken for a number, nor 1 for true, but a path may be written as text.
        return schema.model_validate_json(json.dumps(data), strict=True)
    except pydantic.ValidationError as error:
        raise UserError("\n".join(explain(error, schema, data, path, changed))) from None


def result_settings(config: pydantic.BaseModel) -> dict[str, Any]:
    """The settings that results depend on (all but the execution keys), with flat names (`eap.ig_steps`).

    Two runs may write into one results folder if and only if these are equal.
    """
    return dict(_flat_settings(config, ""))


def files_read(config: pydantic.BaseModel) -> dict[str, Path]:
    """The files and folders that a config names and results depend on, by their flat keys (`cspa.corpus`)."""
    named = _flat_settings(config, "", only="file")
    found = {key: Path(value).expanduser() for key, value in named if isinstance(value, str)}
    return {key: path for key, path in found.items() if path.exists()}


def _flat_settings(config: pydantic.BaseModel, prefix: str, only: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of settings; `only` of those whose field has this mark."""
    plain = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        if is_execution(field):
            continue
        value = getattr(config, name)
        if isinstance(value, pydantic.BaseModel):
            yield from _flat_settings(value, f"{prefix}{name}.", only)
        elif not only or (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get(only)):
            yield f"{prefix}{name}", plain[name]


def is_execution(field: FieldInfo) -> bool:
    """Whether a field was made by `execution`."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("execution"))
