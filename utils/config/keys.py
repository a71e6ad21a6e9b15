"""Configs: strict YAML, overrides on the command line, and errors that say where to look and what to do.

A script declares its keys as a subclass of `BaseConfig` or `TaskConfig`; the string below a key is its entry in
configs/README.md. `load_config` merges defaults < YAML < command line and checks every key and value once. After that
a config is frozen.

YAML values have the types of YAML 1.2's core schema, because those of 1.1 are full of traps: `1e-3` is a number; `on`,
`off`, `yes` and `no` are text (write `true` or `false`); `012` is 12; dates stay text. Digits may be grouped with
underscores.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from circuits_over_time.edge_attribution_patching.choices import USUAL_METHOD, VARIANTS

from ..base.errors import UserError, suggest
from ..base.memory import auto_budget_gb
from .explain import blocks_in, checked, extra, key_of
from .schedules import SCHEDULES
from .strict_yaml import Block, merge, parse_override, read_yaml

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Schema = TypeVar("Schema", bound=pydantic.BaseModel)

LARGEST = 2**63 - 1
"""The largest whole number that generators of random numbers take."""
MOST = 10_000_000
"""Of anything that is counted one by one."""
MOST_PROMPTS = 100_000
USUAL_PROMPTS, CSV_METRIC = 100, "logit_diff"
"""How many prompts a built-in task has, and what a prompts CSV is scored by, if nobody says."""
TOO_MANY = "more would take more memory or time than there is"


def key(
    default: Any,
    *,
    execution: bool = False,
    reason: str | None = None,
    only_with: tuple[str, ...] = (),
    file: bool = False,
    **bounds: Any,
) -> Any:
    """A key of a config, whose bounds are `ge=`, `le=` and whatever else pydantic's `Field` takes.

    Args:
        execution: it says how or where to run, and changes a result by rounding at most: two runs into one folder may
            differ in it.
        reason: why its bounds are where they are.
        only_with: another key of its block, and the values of that key with which this one is read.
        file: it names a file or folder that results depend on (or perhaps something else).
    """
    noted: dict[str, Any] = {"execution": execution, "reason": reason, "only_with": list(only_with), "file": file}
    return Field(default, json_schema_extra={name: value for name, value in noted.items() if value}, **bounds)


def execution(default: Any, **options: Any) -> Any:
    """A `key` that says how or where to run."""
    return key(default, execution=True, **options)


def amount(default: Any, least: int = 1, most: int = MOST, reason: str = TOO_MANY, **options: Any) -> Any:
    """A `key` that counts something."""
    lower: dict[str, Any] = {"gt": 0} if least == 1 else {"ge": least}
    return key(default, le=most, reason=reason, **lower, **options)


def different(values: list[Any], of: str = "the list") -> list[Any]:
    """A list that is neither empty nor names anything twice; else it is a ValueError."""
    if not values:
        raise ValueError(f"{of} is empty")
    if twice := [value for number, value in enumerate(values) if value in values[:number]]:
        raise ValueError(f"{twice[0]!r} is listed twice")
    return values


def as_list(value: Any) -> list[Any]:
    """One thing or a list of things as a list; None has none."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _check_names(value: str | list[str]) -> str | list[str]:
    names = different(as_list(value), "the name")
    if not all(name.strip() for name in names):
        raise ValueError("the name is empty")
    return at_home(value) if isinstance(value, str) else [at_home(name) for name in value]


def at_home(path: str) -> str:
    """A path, with `~` written out; a ValueError if there is no such home."""
    if not path.startswith("~"):
        return path
    if (written_out := os.path.expanduser(path)).startswith("~"):
        raise ValueError(f"'{path}': there is no such home folder; write the path out")
    return written_out


def _check_folder(path: Any) -> Any:
    if not isinstance(path, str):
        return path
    if not path.strip():
        raise ValueError("the name is empty; write . for the folder at hand")
    if os.path.abspath(path := at_home(path)) == os.path.abspath(os.sep):
        raise ValueError(f"'{path}' is the root of the file system; name a folder in it")
    try:
        nearest = next(part for part in (Path(path), *Path(path).parents) if part.exists())
    except OSError as error:  # For example a name that is too long.
        raise ValueError(f"'{path}': {str(error.strerror).lower()}; name another folder") from None
    if not nearest.is_dir():
        raise ValueError(f"'{path}': {nearest} is a file, not a folder; name another folder")
    return path


def _check_steps(steps: list[int]) -> list[int]:
    for step in different(steps, "the list of steps"):
        if not 0 <= step <= LARGEST:
            way_out = "steps are 0 or more" if step < 0 else "it has more than 63 bits"
            raise ValueError(f"{step} is not a training step; {way_out}")
    return steps


def known_schedule(value: str | list[int]) -> str | list[int]:
    """The name of a schedule, or a list of steps; a ValueError for another name."""
    if isinstance(value, str) and value not in SCHEDULES:
        raise ValueError(f"'{value}' is not a schedule{suggest(value, SCHEDULES)}")
    return value


@contextlib.contextmanager
def errors_named(prefix: str, schema: type[pydantic.BaseModel]) -> Iterator[None]:
    """Errors that begin with a key of a schema say where it stands: `cspa.seq_len` with `cspa.` as the prefix."""
    try:
        yield
    except UserError as error:
        if (key_of(str(error)) or ("",))[0] in schema.model_fields:
            raise type(error)(f"{prefix}{error}") from None
        raise


Names = Annotated[str | list[str], AfterValidator(_check_names)]
"""One name, or a list of different ones."""

Folder = Annotated[Path, BeforeValidator(_check_folder)]
"""A folder that files are written into."""

Steps = Annotated[list[int], AfterValidator(_check_steps)]
"""Training steps, each once."""

StartToken = bool | Literal["auto"]
"""Whether to start with the tokenizer's start token; `auto` until `for_model` says so for a model."""

NumberFormat = Literal["float32", "bfloat16", "float16"]
"""Of weights and activations."""


class Section(pydantic.BaseModel):
    """A block of keys in a config (`eap: {ig_steps: 30}`). It refuses unknown keys, and its values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def resolved(self) -> Self:
        """With what results depend on in place of keys that leave it to others."""
        return self

    def unread(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """The keys that were set, and have no effect under another key of their block, and why."""
        for name, field in type(self).model_fields.items():
            if why := self._unread(name, field):
                yield f"{prefix}{name}", why
            if isinstance(value := getattr(self, name), Section):
                yield from value.unread(f"{prefix}{name}.")

    def _unread(self, name: str, field: FieldInfo) -> str:
        other, *values = extra(field).get("only_with") or [""]
        if not other or getattr(self, name) == field.default:
            return ""
        held = [str(one).replace("True", "true").replace("False", "false") for one in as_list(getattr(self, other))]
        return "" if set(held) & set(values) else f"with {other}={', '.join(held)}; it needs {' or '.join(values)}"


class MemoryKeys(Section):
    """How much memory to compute in."""

    memory_budget_gb: Literal["auto"] | Annotated[float, Field(ge=1e-6, le=1e6)] = execution(
        "auto", reason="no machine has more"
    )
    """[Memory](../docs/circuits.md#memory) in GB that one step of the computation may use on top of the weights;
    `auto`: by what the device has free."""

    def budget_gb(self, *devices: torch.device) -> float:
        """`memory_budget_gb` as a number, on devices that hold the weights; `auto` goes by the fullest."""
        return min(map(auto_budget_gb, devices)) if self.memory_budget_gb == "auto" else self.memory_budget_gb


class SlurmKeys(Section):
    """What a Slurm task asks for, with `executor: slurm`."""

    cluster: Literal["slurm", "local"] = "slurm"
    """`slurm`, or `local` to start the tasks as processes on this machine."""
    partition: str | None = Field(None, min_length=1)
    """The partition; `null` takes the cluster's default."""
    account: str | None = Field(None, min_length=1)
    """The account to charge; `null` takes your default."""
    minutes: int = amount(240, most=5_256_000, reason="that is ten years")
    """The time limit of a task. What it has not measured by then, the same command measures later."""
    memory_gb: float | None = key(None, gt=0, le=1e6, reason="no machine has more")
    """Memory for a task; `null` takes the cluster's default."""
    setup: list[str] = []
    """Shell commands to run before a task starts (`module load cuda`)."""


class BaseConfig(Section):
    """The keys that every script shares."""

    model: Names = execution(...)
    """What to measure: a [known name](../docs/models.md) (`pythia-160m`), the id of a hub repository, a local folder of
    checkpoints (`model_cache/toy`), or a list of these."""
    checkpoints: str | Steps = execution("all")
    """Which checkpoints: the name of a [schedule](../docs/models.md#schedules), or a list of training steps."""
    device: str = execution("auto")
    """Where to compute: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`: a CUDA GPU, else Apple's GPU, else the CPU."""
    device_map: Literal["auto"] | None = execution(None)
    """`auto` puts the layers of a model on [all CUDA GPUs](../docs/models.md#devices), for models that one has no room
    for; `null`: all on `device`."""
    dtype: NumberFormat = "float32"
    """Number format of weights and activations: `float32`, `bfloat16` or `float16`."""
    dtype_of: dict[str, NumberFormat] = execution({})
    """Models with another number format (`float32`, `bfloat16`, `float16`) than `dtype`, by name:
    `{pythia-410m: float32}`. The name is that in the results, or the hub repository or local folder."""
    self_check: bool = execution(False)
    """With `dtype: bfloat16` or `float16`, measure the first checkpoint in float32, too, and log where the two
    [disagree](../docs/models.md#devices)."""
    batch_size: int = amount(32, execution=True, reason="no task has so many prompts")
    """How many prompts go through the model at once. On a GPU, circuits and IOI consistency take more where
    `memory_budget_gb` allows it."""
    seed: int = key(0, ge=0, le=LARGEST, reason="generators of random numbers take 63 bits")
    """Seed of everything drawn at random."""
    tokens_per_step: int | None = amount(None, most=10**12, reason="no batch has more tokens")
    """Tokens per training step, for hub models that do not say."""
    revisions: str | None = None
    r"""A regular expression that reads the [names of checkpoints](../docs/models.md#names) where no rule does, with the
    group `step` (`run7-(?P<step>\d+)`)."""
    stages: Annotated[list[Annotated[int, Field(ge=1, le=1000)]], AfterValidator(different)] = execution([1])
    """Which stages of training to take checkpoints from, for families that have several."""
    results_dir: Folder = execution(Path("results"))
    """Where to write results."""
    cache_dir: Folder = execution(Path("model_cache"))
    """Where to keep downloads from the hub, as `<org>--<name>/step{n}/`."""
    overwrite: bool = execution(False)
    """Delete what this run would write, or a whole folder of another config's, and measure again."""
    prefetch: bool = execution(True)
    """Download the next checkpoint, and read it into CPU memory, while one is measured."""
    keep_checkpoints: Literal["all", "none"] | Annotated[int, Field(gt=0, le=MOST)] = execution("all")
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
    workers: int | None = amount(None, most=100_000, execution=True, only_with=("executor", "ray", "slurm"))
    """Most checkpoints at once with `ray` (`null`: all that fit), or tasks of the array with `slurm` (`null`: 4)."""
    cpus_per_checkpoint: int | None = amount(None, most=1024, reason="no machine has more cores", execution=True)
    """Cores and threads for each checkpoint; `null` leaves them to torch."""
    gpus_per_checkpoint: float | None = execution(
        None, gt=0, le=1024, reason="no machine has more GPUs", only_with=("executor", "ray", "slurm")
    )
    """GPUs for each checkpoint with `ray` and `slurm`; Ray also takes shares, such as 0.5."""
    ray_address: str | None = execution(None, min_length=1, only_with=("executor", "ray"))
    """The Ray cluster, as `ray.init` takes it (`auto`, `ray://head:10001`); `null`: RAY_ADDRESS, or a new one."""
    retries: int = amount(2, 0, most=1000, execution=True, only_with=("executor", "ray", "slurm"))
    """How often a checkpoint whose worker was lost is tried again."""
    slurm: SlurmKeys = execution(SlurmKeys(), only_with=("executor", "slurm"))

    _known_schedule = field_validator("checkpoints")(known_schedule)

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value):
            raise ValueError(f"'{value}' is not a device; write auto, cpu, cuda, cuda:1 or mps")
        return value

    @model_validator(mode="after")
    def _fits_device_and_executor(self) -> BaseConfig:
        if self.device_map is not None and self.device not in ("auto", "cuda"):
            raise ValueError(
                f"device_map: has no effect with device={self.device}; pass device=cuda, or leave device_map out"
            )
        for name, field in type(self).model_fields.items():
            if extra(field).get("only_with", [""])[0] == "executor" and (why := self._unread(name, field)):
                raise ValueError(f"{name}: has no effect {why}")
        if self.executor == "local" and (self.cpus_per_checkpoint or 0) > (cores := os.cpu_count() or 1):
            raise ValueError(f"cpus_per_checkpoint: {self.cpus_per_checkpoint} is more than the {cores} cores here")
        return self

    @property
    def models(self) -> list[str]:
        return as_list(self.model)


class PromptOptions(Section):
    """What a run may choose about its prompts, apart from their number and seed."""

    prepend_bos: StartToken = "auto"
    """Start every prompt with the tokenizer's start token; `auto` does what the model was
    [trained with](../docs/models.md#start-tokens)."""
    ioi_corruption: Literal["swap", "abc"] = "swap"
    """How IOI prompts are corrupted: `swap` replaces the second subject with the indirect object, `abc` puts in
    three others."""
    prompt_set: Literal["standard", "study"] = "standard"
    """Which sentences and words the built-in tasks have, and how they are drawn: `standard`, or as in the
    [`study`](../docs/study.md#every-difference)."""


class RedrawKeys(Section):
    """Whether prompts change from checkpoint to checkpoint."""

    redraw_prompts: bool = False
    """Draw other prompts of `greater_than` and `sva` at every checkpoint, from `seed` and its step, as the
    [study](../docs/study.md#every-difference) does; they stand beside the results."""

    def redraws(self, task: str) -> bool:
        """Whether a task gets other prompts at every checkpoint."""
        return self.redraw_prompts and task.partition("@")[0] in ("greater_than", "sva")  # `sva@eap`, by its results

    def unread(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Adds the key, where none of the run's tasks gets other prompts."""
        yield from super().unread(prefix)
        tasks = getattr(self, "task_names", ["all"])  # The circuit of a consistency script has its task elsewhere.
        if self.redraw_prompts and "all" not in tasks and not any(map(self.redraws, tasks)):
            yield f"{prefix}redraw_prompts", "without greater_than or sva among the tasks"

    def at_step(self, step: int) -> Self:
        """The same with the seed of a checkpoint's prompts."""
        seed = random.Random(f"{getattr(self, 'seed', 0)} step {step}").randrange(LARGEST)
        return self.model_copy(update={"seed": seed})


SLOT = re.compile(r"\{([A-Za-z_]\w*)\}")
"""A slot in a template."""


def _check_words(value: str | list[str]) -> str | list[str]:
    for word in different(as_list(value)):
        if not word or word != " ".join(word.split()):
            raise ValueError(f"{word!r}: write words without spaces around them; every word gets one in front")
    return value


Words = Annotated[str | list[str], AfterValidator(_check_words)]
"""One word or phrase, or a list of different ones."""


class TemplateKeys(Section):
    """One [task from templates](../docs/tasks.md#from-templates); its key is its name."""

    templates: list[str]
    """Prompts up to the answer, with slots in braces: `The capital of {country} is`."""
    swap: str
    """The slot whose word the corrupted prompt exchanges for one with another answer."""
    answers: dict[str, Words]
    """The right answer, or several, to each kind of swapped word: `{positive: [happy, glad], negative: sad}`."""
    words: dict[str, Words | dict[str, Words]] = {}
    """The words or phrases for each slot. Those of the swapped one are listed by kind; without any, the kinds are the
    words: `answers: {France: Paris, Italy: Rome}`."""
    metric: str = CSV_METRIC
    """The primary metric, a [differentiable](../docs/tasks.md#metrics) one."""

    @model_validator(mode="after")
    def _fits_together(self) -> TemplateKeys:
        used = set[str]()
        for template in different(self.templates, "templates: the list"):
            slots = set(SLOT.findall(template))
            if set("{}") & set(SLOT.sub("", template)) or template != template.strip():
                raise ValueError(f"templates: {template!r}: write slots as {{name}}, and no space at the ends")
            if self.swap not in slots:
                raise ValueError(f"templates: {template!r} lacks the slot to swap, {{{self.swap}}}")
            used |= slots
        for slot in sorted({*used, *self.words}):
            words = self.words.get(slot)
            if slot not in used or (words is None and slot != self.swap):
                raise ValueError(f"words: {slot}: {'there are none' if words is None else 'no template has this slot'}")
            if words is not None and isinstance(words, dict) != (slot == self.swap):
                raise ValueError(f"words: {slot}: the slot to swap has a list for each kind, the others have one list")
        if odd := sorted(self.kinds.keys() ^ self.answers.keys()):
            raise ValueError(f"answers: the kind {odd[0]!r} has no {'answer' if odd[0] in self.kinds else 'words'}")
        if phrases := [word for words in self.answers.values() for word in as_list(words) if " " in word]:
            raise ValueError(f"answers: {phrases[0]!r} is more than one word; an answer is one token")
        if len({frozenset(as_list(answer)) for answer in self.answers.values()}) < 2:
            raise ValueError("answers: give two kinds with different answers")
        return self

    @property
    def kinds(self) -> dict[str, list[str]]:
        """The words to swap, by kind."""
        listed = self.words.get(self.swap)
        by_kind: dict[str, Any] = listed if isinstance(listed, dict) else {kind: kind for kind in self.answers}
        return {kind: as_list(words) for kind, words in by_kind.items()}


def _check_tasks(tasks: Any) -> Any:
    if not isinstance(tasks, dict):
        raise ValueError("defines tasks by name, in a block of keys; which to run stands in task")
    for name in tasks:
        if not re.fullmatch(r"\w[\w-]*", name):
            raise ValueError(f"{name!r}: a task's name has letters, digits, _ and -")
    return tasks


AnswersAs = Literal["text", "ids"]
"""What the answers in a table of prompts are."""


def variant_keys(variant: str) -> dict[str, str | bool]:
    """The keys of `VARIANTS` that the end of a name in the results says, and their values; none of the usual one."""
    parts = variant.split("+")
    return {
        key: part if part in others else True
        for key, (_, *others) in VARIANTS.items()
        for part in parts
        if part in others or (part == key and True in others)
    }


def variant_name(keys: Mapping[str, str | bool]) -> str:
    """The end of a name in the results: what these values of `VARIANTS` are called, but for the usual ones."""
    named = [(key, keys[key]) for key, (usual, *_) in VARIANTS.items() if keys.get(key, usual) != usual]
    return "+".join(key if value is True else str(value) for key, value in named)


def task_and_method(name: str) -> tuple[str, str]:
    """The parts of a name in the results: `ioi@eap` has circuits of `ioi` by `eap`, `ioi` those by the usual method."""
    task, _, variant = name.rpartition("@")
    known = task and variant and variant_name(variant_keys(variant)) == variant
    return (task, variant) if known else (name, USUAL_METHOD)


class TaskConfig(PromptOptions, BaseConfig):
    """The keys that every script with tasks shares."""

    task: Names = execution(...)
    """A [task](../docs/tasks.md), one of `tasks`, the path of a [prompts CSV](../docs/tasks.md#a-task-of-your-own), or
    a list."""
    tasks: Annotated[dict[str, TemplateKeys], BeforeValidator(_check_tasks)] = {}
    """Tasks of your own [from templates](../docs/tasks.md#from-templates), by name."""
    n_prompts: int | None = amount(None, most=MOST_PROMPTS)
    """How many prompt pairs each task gets; `null`: 100, of a prompts CSV all rows, of a task in `tasks` all that it
    can make, at most 200."""
    metric: str | None = None
    """Primary metric of a prompts CSV, a [differentiable](../docs/tasks.md#metrics) one; `null`: `logit_diff`."""
    answers_as: AnswersAs = "text"
    """What the answers of a [prompts CSV](../docs/tasks.md#answers-as-ids) are: `text`, or token `ids`."""

    def unread(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Adds the keys that are for other tasks than the run's."""
        yield from super().unread(prefix)
        of_csv = {"metric": self.metric is not None, "answers_as": self.answers_as != "text"}
        for name, given in of_csv.items():
            if given and not any(task.lower().endswith(".csv") for task in self.task_names):
                yield f"{prefix}{name}", "without a prompts CSV among the tasks: the others have their own"
        if self.ioi_corruption != "swap" and "ioi" not in self.task_names:
            yield f"{prefix}ioi_corruption", "without ioi among the tasks"

    @property
    def task_names(self) -> list[str]:
        return as_list(self.task)

    def name_in_results(self, task: str) -> str:
        """What the results folder of a task is called."""
        return task

    def of_task(self, name: str | None) -> Self:
        """The config as it is for one task, by the name of its results folder: with what depends on the task."""
        changed: dict[str, Any] = {"tasks": {}, "n_prompts": self.n_prompts or USUAL_PROMPTS, "answers_as": "text"}
        stems = [Path(task).stem for task in self.task_names if task.lower().endswith(".csv")]
        base = None if name is None else task_and_method(name)[0]
        if own := {task: keys for task, keys in self.tasks.items() if task == base}:
            changed = {"tasks": own, "metric": next(iter(own.values())).metric, "answers_as": "text"}
        elif base in stems:
            changed = {"tasks": {}, "metric": self.metric or CSV_METRIC}
        return self.model_copy(update=changed)


def for_model(config: Schema, trained_with: bool | None, *names: str) -> Schema:
    """A config for one model: `prepend_bos: auto` becomes true or false, and `dtype` its own, in blocks too.

    `trained_with` says whether the model was trained with a start token; None, if nobody says, counts as no. `names`
    are all that it goes by.
    """
    changed: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if name == "prepend_bos" and value == "auto":
            changed[name] = trained_with is True
        elif name == "dtype_of":
            own = [value[given] for given in names if given in value]
            changed |= {name: {}, "dtype": own[0] if own else config.dtype}  # type: ignore[attr-defined]
        elif isinstance(value, pydantic.BaseModel):
            changed[name] = for_model(value, trained_with, *names)
    return config.model_copy(update=changed)


def load_config(schema: type[Schema], path: Path | None, overrides: list[str]) -> Schema:
    """Read a YAML config, or none, apply the `key=value` overrides, and check the result.

    In overrides a dot reaches into a block (`eap.ig_steps=30`), the value is YAML (`checkpoints=[1000,143000]`), and a
    block is merged with the file's; if a key comes twice, the last wins. A UserError has one line for each unknown key,
    missing key or bad value, and names the file or `command line`.
    """
    data: Block = {} if path is None else read_yaml(path)
    changed: list[tuple[str, ...]] = []
    for text in overrides:
        keys, value = parse_override(text)
        merge(data, keys, value)
        changed.append(keys)
    config = checked(schema, data, path, changed)
    for name, why in config.unread() if isinstance(config, Section) else ():
        log.warning("%s: is not read %s", name, why)
    return config


def result_keys(config: pydantic.BaseModel, prefix: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    """The keys that results depend on, all but the execution keys: flat name (`eap.ig_steps`), field and value."""
    config = config.resolved() if isinstance(config, Section) else config
    for name, field in type(config).model_fields.items():
        if not is_execution(field) or (name == "batch_size" and counts_batches(config)):
            if isinstance(value := getattr(config, name), pydantic.BaseModel):
                yield from result_keys(value, f"{prefix}{name}.")
            elif isinstance(value, dict) and blocks_in(field.annotation):
                for one, block in value.items():
                    yield from result_keys(block, f"{prefix}{name}.{one}.")
            else:
                yield f"{prefix}{name}", field, value


def counts_batches(config: pydantic.BaseModel) -> bool:
    """Whether results depend on which prompts go together."""
    return any(
        (name, value) in (("batch_weighting", "by_batch"), ("accumulate", "model"))
        or (isinstance(value, pydantic.BaseModel) and counts_batches(value))
        for name, value in config
    )


def result_settings(config: pydantic.BaseModel) -> dict[str, Any]:
    """The values of `result_keys`. Two runs may write into one results folder if and only if these are equal."""
    return {name: to_jsonable_python(value) for name, _, value in result_keys(config)}


def files_read(config: pydantic.BaseModel) -> dict[str, Path]:
    """The files and folders that a config names and results depend on, by their flat keys (`cspa.corpus`)."""
    named = {name: Path(value) for name, key, value in result_keys(config) if extra(key).get("file") and value}
    return {name: path.expanduser() for name, path in named.items() if path.expanduser().exists()}


def is_execution(field: FieldInfo) -> bool:
    """Whether a key changes no result but by rounding."""
    return bool(extra(field).get("execution"))
