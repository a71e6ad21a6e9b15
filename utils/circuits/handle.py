"""What the library's functions work on: a model, the settings that keywords give, and sets of edges."""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import FaithfulnessCurve, too_few_prompts
from circuits_over_time.edge_attribution_patching.circuits.formats import of_same_graph
from circuits_over_time.edge_attribution_patching.circuits.search import count_nodes, edges_in
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights, read_weights, require_finite
from circuits_over_time.edge_attribution_patching.statistics import standard_error
from circuits_over_time.edge_attribution_patching.units import Units

from ..base.errors import UserError, suggest
from ..config.explain import blocks_in
from ..config.keys import TaskConfig, for_model
from ..config.keywords import Schema, validated
from ..models import local
from ..models.checkpoint import LoadedCheckpoint, describe, load_weights, resolve_device, resolve_devices
from ..models.family import resolve_family
from ..models.revisions import GENERAL, Named, read_names
from ..results.edges import named_sources, named_targets
from ..tasks import Prompts, Task
from .find import CircuitPrompts, circuit_prompts, evaluator_of, require_units
from .keys import CircuitSettings, TaskSettings
from .measured import MeasuredCircuit, read_circuit, with_interval

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, repr=False)
class Model:
    """One model in memory.

    Attributes:
        name: the last part of its name or folder.
        weights: what the engine computes with; it has all sizes (`n_layers`, `d_model`, ...).
        tokenizer: its tokenizer. Checkpoints share it, so do not change it.
        step, tokens: how long it was trained; None if nobody says.
        start_token: whether it was trained with a start token before every document; None if nobody says. Prompts get
            one if it was (`prepend_bos=` overrides it).
    """

    name: str
    weights: ModelWeights
    tokenizer: PreTrainedTokenizerBase
    step: int | None = None
    tokens: int | None = None
    start_token: bool | None = None

    @classmethod
    def of_checkpoint(cls, checkpoint: LoadedCheckpoint, start_token: bool | None) -> Model:
        """A checkpoint of a family."""
        loaded = checkpoint.weights, checkpoint.tokenizer, checkpoint.step, checkpoint.tokens
        return cls(checkpoint.name, *loaded, start_token)

    @property
    def n_layers(self) -> int:
        """Layers."""
        return self.weights.n_layers

    @property
    def graph(self) -> Graph:
        """Its nodes and edges: `graph.forward_nodes`, `graph.backward_nodes`, `graph.n_edges`."""
        return Graph.of(self.weights)

    @property
    def about(self) -> dict[str, Any]:
        """What is noted with results."""
        return {"model": self.name, "step": self.step, "tokens": self.tokens, "d_model": self.weights.d_model}

    def __repr__(self) -> str:
        """One line."""
        step = "" if self.step is None else f" at step {self.step:,}"
        kind = str(self.weights.dtype).removeprefix("torch.")
        sizes = f"{self.n_layers} layers of {self.weights.n_heads} heads, {self.graph.n_edges:,} edges"
        return f"{self.name}{step}: {sizes}, {kind} on {self.weights.device}"


FAMILY_KEYS = {"tokens_per_step": int, "revisions": str, "stages": list | tuple, "trust_remote_code": bool}
"""How to resolve a family, and the type of each."""


def checked(step: Any, tokenizer: Any, family: Mapping[str, Any]) -> int | None:
    """The step as a number, if these can be what `cot.load` takes.

    Raises:
        TypeError: if one has another type, or there is no such keyword.
    """
    from transformers import PreTrainedTokenizerBase

    for name, value in family.items():
        if name not in FAMILY_KEYS:
            raise TypeError(f"{name}: there is no such keyword{suggest(name, FAMILY_KEYS)}")
        if value is not None and not isinstance(value, FAMILY_KEYS[name]):
            raise TypeError(f"{name}={value!r}: not {getattr(FAMILY_KEYS[name], '__name__', 'a list')}")
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer: {type(tokenizer).__name__} is not a tokenizer of transformers")
    if step is not None and (isinstance(step, bool) or not hasattr(step, "__index__")):
        raise TypeError(f"step={step!r}: not a whole number")
    return None if step is None else index(step)


def load_named(
    name: str,
    step: int | None,
    tokenizer: PreTrainedTokenizerBase | None,
    placed: tuple[str, str, Literal["auto"] | None],
    family: dict[str, Any],
) -> Model:
    """A checkpoint of a family, by the family's name, or one checkpoint by its folder; see `cot.load`.

    `placed` is its number format, its device and its device map.
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        described, (where, *more) = describe(folder), resolve_devices(*placed[1:])
        weights, _ = load_weights(folder, placed[0], where, more=more)
        named = read_names([folder.name], GENERAL)
        step = named[0].step if step is None and named else step
        about, tokens = local.About.of(folder.parent, None), None
        if step is not None:
            with contextlib.suppress(UserError):  # Nobody says, which matters to families alone.
                seen = about.with_tokens(folder, Named(folder.name, step))
                tokens = seen.tokens if not about.per_step else step * about.per_step[0]
        return Model(folder.resolve().name, weights, tokenizer or described.tokenizer, step, tokens, about.prepend_bos)
    checkpoints = resolve_family(name, **family)
    step = checkpoints.steps[-1] if step is None else step
    if step not in checkpoints.steps:
        near = ", ".join(map(str, sorted(sorted(checkpoints.steps, key=lambda other: abs(other - step))[:4])))
        raise UserError(f"step={step}: not {checkpoints.within} {checkpoints.name} (nearest: {near})")
    model = Model.of_checkpoint(checkpoints.load(step, *placed), checkpoints.prepend_bos)
    return model if tokenizer is None else Model(**{**vars(model), "tokenizer": tokenizer})


def model_in_memory(
    model: PreTrainedModel,
    step: int | None,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: str | None,
    device: str | None,
) -> Model:
    """A Hugging Face model as it is now, which is not changed; see `cot.load`."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: {type(model).__name__} is neither a name, a folder nor a Hugging Face model")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserError("model: its weights are not in memory (device 'meta')")
    if tokenizer is None:
        raise TypeError("tokenizer: missing; a model in memory needs it: load(model, tokenizer=tokenizer)")
    kind = model.dtype if dtype is None else getattr(torch, dtype)
    where = model.device if device is None else resolve_device(device)
    if (kind, where) != (model.dtype, model.device):
        model = torch.nn.Module.to(copy.deepcopy(model), device=where, dtype=kind)
    name = Path(str(model.config.name_or_path)).name or type(model).__name__
    try:
        weights = read_weights(model)
    except KeyError as error:
        raise UserError(f"model: {type(model).__name__} has no {error}; make it with AutoModelForCausalLM") from None
    require_finite(model.state_dict())
    return Model(name, weights, tokenizer, step)


# Settings.


OF_RUNS = set(TaskConfig.model_fields) - set(TaskSettings.model_fields)
"""Keys that only runs over checkpoints have."""


def settings_of(
    schema: type[Schema], keys: Mapping[str, Any], model: Model, fixed: Mapping[str, Any] | None = None
) -> Schema:
    """The settings that keywords give, with the defaults of the YAML files.

    Args:
        schema: the settings. Keys of runs (`model`, `results_dir`, `executor`, ...) are refused.
        keys: keys of the schema; those within a block also by their own name (`ig_steps` for `eap={"ig_steps": ...}`).
        model: says whether prompts get a start token.
        fixed: values of such keys that the schema asks for.

    Raises:
        TypeError: if there is no such key, or a value has another type.
        ValueError: if a value is not allowed.
    """
    require_model(model)
    fields = schema.model_fields
    blocks = {block: blocks_in(info.annotation) for block, info in fields.items() if block not in OF_RUNS}
    within = {name: block for block, inner in blocks.items() for one in inner for name in one.model_fields}
    given: dict[str, Any] = {}
    for name, value in keys.items():
        if name in fields and name not in OF_RUNS:
            if name in given and (not isinstance(value, Mapping) or set(given[name]) & set(value)):
                raise TypeError(f"{name}: gives {', '.join(given[name])} again")
            given[name] = {**given.get(name, {}), **value} if isinstance(value, Mapping) else value
        elif name in within:
            block = given.setdefault(within[name], {})
            if not isinstance(block, dict) or name in block:
                raise TypeError(f"{name}: given twice, by itself and in {within[name]}=")
            block[name] = value
        elif name == "metric":
            raise TypeError("metric: belongs to the task; pass it there: cot.task(..., metric=...)")
        else:
            known = [key for key in (*fields, *within) if key not in OF_RUNS]
            raise TypeError(f"{name}: there is no such keyword{suggest(name, known)}")
    return for_model(validated(schema, given | dict(fixed or {}), given), model.start_token)


def with_prompts(
    model: Model, task: Task, keys: Mapping[str, Any], given: Circuit | None = None
) -> tuple[CircuitSettings, CircuitPrompts]:
    """The settings that keywords give, and a task's prompts for them, and for a `given` circuit if there is one.

    Errors as of `settings_of`, `circuit_prompts`.
    """
    settings = settings_of(CircuitSettings, keys, model)
    prompts = circuit_prompts(settings, require_task(task), model.tokenizer, model.weights)
    return settings, prompts.with_reference(model.weights, settings, None if given is None else given.graph)


def task_prompts(model: Model, task: Task, keys: Mapping[str, Any]) -> tuple[TaskSettings, Prompts]:
    """The settings that keywords give, and a task's prompts on the model's device; errors as of `with_prompts`."""
    settings = settings_of(TaskSettings, keys, model)
    prompts = require_task(task).build(model.tokenizer, settings.n_prompts, settings.seed, settings)
    prompts.require_fit(task.name, model.weights)
    return settings, prompts.to(model.weights.device)


def require_model(model: Model) -> Model:
    """The model, if it is one; else a TypeError."""
    if not isinstance(model, Model):
        raise TypeError(f"model: {type(model).__name__} is not a model; make one with cot.load(...)")
    return model


def require_task(task: Task) -> Task:
    """The task, if it is one; else a TypeError."""
    if not isinstance(task, Task):
        raise TypeError(f"task: {task!r} is not a task; make one with cot.task(...)")
    return task


def names_in(names: Any, refusal: str) -> list[str]:
    """One name or several as a list; a TypeError with the `refusal` if they are something else."""
    listed: list[Any] = [names] if isinstance(names, str) else list(names) if isinstance(names, Iterable) else [None]
    if isinstance(names, Mapping) or not all(isinstance(name, str) for name in listed):
        raise TypeError(refusal)
    return listed


# Sets of edges.


def edge_mask(edges: Any, graph: Graph) -> Bool[Tensor, "n_forward n_backward"]:
    """Edges as the engine takes them.

    Args:
        edges: names (`"a3.h1->logits"`, `"a0.h1->a3.h2<q>"`; without `<q>` all three inputs of a head), a mask, a
            circuit, or a data frame with `source, target, input`.

    Raises:
        UserError: if the graph has no such edge.
        TypeError: if these are no edges.
    """
    if isinstance(edges, Circuit):
        try:
            return of_same_graph(edges, graph).as_edges.in_circuit
        except ValueError as error:
            raise UserError(f"edges: {error}") from None
    if getattr(edges, "ndim", 0) == 2 and not hasattr(edges, "columns"):
        edges = torch.as_tensor(edges)
    if isinstance(edges, Tensor):
        if edges.shape != graph.edge_mask.shape:
            raise UserError(f"edges: a mask of {tuple(edges.shape)}, the graph's is {tuple(graph.edge_mask.shape)}")
        return edges.bool().cpu() & graph.edge_mask
    if hasattr(edges, "columns"):
        if missing := {"source", "target"} - set(edges.columns):
            raise UserError(f"edges: the data frame has no column {min(missing)!r}")
        targets = named_targets(edges) if "input" in edges else edges["target"]
        edges = [f"{source}->{target}" for source, target in zip(named_sources(edges), targets, strict=True)]
    refusal = f"edges: {edges!r} is neither names of edges, nor a circuit, a data frame, a mask or a file"
    mask = torch.zeros_like(graph.edge_mask)
    for name in names_in(edges, refusal):
        try:
            for index in graph.edges_named(name):
                mask[index] = True
        except ValueError as error:
            raise UserError(f"edges: {error}") from None
    return mask


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The model with some edges on clean prompts and all others on corrupted ones, or ablated (`ablation=`).

    Attributes:
        metric, metric_se: its mean over prompts, and the standard error.
        faithfulness, faithfulness_raw: (metric - corrupted) / (full - corrupted), and metric / full.
        faithfulness_interval, faithfulness_raw_interval: their 95% intervals; nan if there are too few prompts.
        full, corrupted: the metric of the whole model on clean prompts and on corrupted ones, or of it ablated.
        values: the metric of every prompt.
        reason: why there are no intervals; empty if there are.
        ablation: what nodes write along edges outside; `patching` for what they do in the corrupted prompt.
    """

    n_edges: int
    n_nodes: int
    metric: float
    metric_se: float
    faithfulness: float
    faithfulness_interval: tuple[float, float]
    faithfulness_raw: float
    faithfulness_raw_interval: tuple[float, float]
    full: float
    corrupted: float
    values: Float[Tensor, " prompt"]
    reason: str
    ablation: str = "patching"

    def __repr__(self) -> str:
        """One line."""
        empty = "corrupted" if self.ablation == "patching" else "ablated"
        return (
            f"{self.n_edges} edge{'s'[: self.n_edges != 1]}, {self.n_nodes} nodes: metric {self.metric:.4g} "
            f"(whole model {self.full:.4g}, {empty} {self.corrupted:.4g}), "
            f"faithfulness {with_interval(self.faithfulness, self.faithfulness_interval, self.reason, 3)}"
        )


def evaluated(model: Model, task: Task, edges: Any, keys: Mapping[str, Any], *, without: bool) -> Evaluation:
    """The model with some edges alone, or `without` them; see `cot.evaluate`."""
    require_model(model)
    # Edges are checked before prompts are made, unless it takes prompts to know their roles.
    made = with_prompts(model, task, keys) if keys.get("positions") else None
    graph: Graph | Units = Graph.of(model.weights, None if made is None else made[1].evaluation.roles)
    path = edges if isinstance(edges, str | Path) and "->" not in str(edges) else None
    held = edges if path is None else read_circuit(path, graph)
    held = held.circuit if isinstance(held, MeasuredCircuit) else held
    mask = edge_mask(held, graph)
    if path is not None and not bool(mask.any()):
        raise UserError(f"edges: {path}: no edge is in its circuit; name another file, or [] for the empty circuit")
    settings, prompts = made or with_prompts(model, task, keys, held if isinstance(held, Circuit) else None)
    if isinstance(held, Circuit) and isinstance(held.graph, Units):
        graph, mask = held.graph, held.in_circuit
        require_units("edges", graph, model.weights)
    evaluator = evaluator_of(model.weights, prompts, settings, graph)
    mask = graph.edge_mask & ~mask if without else mask
    values = evaluator(mask[None])[0]
    curve = FaithfulnessCurve(evaluator.full, evaluator.corrupted, {0: values})
    (low, high), (raw_low, raw_high) = curve.intervals(), curve.intervals(raw=True)
    return Evaluation(
        n_edges=int(edges_in(mask[None], graph).sum()),
        n_nodes=int(count_nodes(mask[None], evaluator.graph)[0]),
        metric=curve.metric(0),
        metric_se=standard_error(values),
        faithfulness=curve.faithfulness(0),
        faithfulness_interval=(float(low[0]), float(high[0])),
        faithfulness_raw=curve.raw(0),
        faithfulness_raw_interval=(float(raw_low[0]), float(raw_high[0])),
        full=float(evaluator.full.double().mean()),
        corrupted=float(evaluator.corrupted.double().mean()),
        values=values,
        reason=too_few_prompts(evaluator.full, evaluator.corrupted),
        ablation=settings.ablation,
    )


# What heads do.

COMPONENTS = ("induction", "previous_token", "duplicate_token", "copy", "negative_copy")
_HEADS = "circuits_over_time.utils.heads"


def head_table(model: Model, kind: str, keys: Mapping[str, Any]) -> pd.DataFrame:
    """A score of every head, by the functions of the script that measures it; see `cot.head_scores`."""
    kinds: dict[str, tuple[str, str]] = dict.fromkeys(COMPONENTS, ("attention_and_copy", "ComponentsConfig"))
    kinds |= {"succession": ("succession", "SuccessorConfig")}
    kinds |= dict.fromkeys(("copy_suppression", "cspa"), ("cspa", "CspaConfig"))
    if not isinstance(kind, str):
        raise TypeError(f"kind={kind!r}: not text")
    if kind not in kinds:
        raise UserError(f"kind={kind!r}: there is no such score{suggest(kind, kinds)}")
    module, schema = kinds[kind]
    functions = importlib.import_module(f"{_HEADS}.{module}")
    settings = settings_of(
        getattr(importlib.import_module(f"{_HEADS}.keys"), schema), keys, model, {"model": model.name}
    )
    inputs = functions.prepare(settings, model.tokenizer, model.weights)
    # A model has what these functions read of a checkpoint.
    ((_, result),) = functions.measure(model, settings, inputs, None).items()
    table = result.table
    if kind not in COMPONENTS:
        return table
    return table[table["score"] == kind].drop(columns="score").reset_index(drop=True)
