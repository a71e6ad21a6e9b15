"""The library: circuits of language models, from a notebook.

    import circuits_over_time as cot
    model = cot.load("pythia-160m", step=1000)          # a name, a folder, or a Hugging Face model in memory
    circuit = cot.find_circuit(model, cot.task("ioi"))
    circuit                                             # a drawing and a table in a notebook, three lines in a terminal

Every function does what the scripts do, with the same keys, defaults and numbers. docs/library.md shows each of them.
A keyword that does not exist, or a value of another type, is a TypeError. A value that is not allowed, a file, model,
node or result that does not exist, or is another's, and prompts that do not suit the model are a ValueError.
Importing this module imports no torch: that comes with the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

_HERE = Path(__file__).resolve().parent
_INSTALLED = _HERE / "_circuits_over_time"
# This module is also the package that holds `utils`, `plotting` and `edge_attribution_patching`: as
# `circuits_over_time.utils` they cannot be taken for a user's own `utils`, whichever comes first on the path.
# In a checkout they are beside this file; a wheel has them in a folder of their own.
__path__ = [str(_INSTALLED if _INSTALLED.is_dir() else _HERE)]

from circuits_over_time.utils.base.errors import errors_of_python  # noqa: E402

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from circuits_over_time.utils.circuits.callback import CircuitCallback
    from circuits_over_time.utils.circuits.handle import Evaluation, Model
    from circuits_over_time.utils.circuits.measured import MeasuredCircuit
    from circuits_over_time.utils.tasks import Prompts, Task
    from circuits_over_time.utils.tasks.prompts import MetricFunction

__all__ = [
    "CircuitCallback",
    "ablate",
    "attention",
    "evaluate",
    "find_circuit",
    "head_scores",
    "load",
    "logit_lens",
    "logits",
    "over_time",
    "path_effects",
    "performance",
    "prompts",
    "read_circuit",
    "results",
    "scores",
    "task",
]


@errors_of_python()
def load(
    model: str | Path | PreTrainedModel,
    step: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
    device_map: Literal["auto"] | None = None,
    cache_dir: str | Path = "model_cache",
    **family: Any,
) -> Model:
    """A model to ask questions about.

    Args:
        model: a known name (`pythia-160m`), a hub id whose branches are checkpoints, a folder of `step{n}` folders, a
            folder with one checkpoint (`config.json` in it), or a Hugging Face model in memory. The last is taken as it
            is now and is not changed; while it trains on, load it again.
        step: the training step; the last one by default. For one checkpoint, only what to call it.
        tokenizer: of a model in memory; of the others by default their own.
        dtype: `float32` (the default), `bfloat16` or `float16`; a model in memory keeps its own.
        device: `auto` (the default: a GPU if there is one), `cpu`, `cuda:1`, ...; a model in memory stays where it is.
        device_map: `auto` puts the layers on all CUDA GPUs, for a model that one has no room for.
        cache_dir: where downloads go.
        family: `tokens_per_step=, revisions=, stages=, trust_remote_code=` as in the scripts' configs.

    Example:
        model = cot.load("model_cache/toy", step=1350)
    """
    from circuits_over_time.utils.circuits import handle

    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype={dtype!r}: not 'float32', 'bfloat16' or 'float16'")
    if device_map not in (None, "auto"):
        raise ValueError(f"device_map={device_map!r}: not 'auto' or None")
    if device_map and (device not in (None, "auto", "cuda") or not isinstance(model, str | Path)):
        why = f"device={device!r} is one" if isinstance(model, str | Path) else "a model in memory stays where it is"
        raise ValueError(f"device_map={device_map!r}: for checkpoints on all GPUs, and {why}; leave it out")
    step = handle.checked(step, tokenizer, family)
    if not isinstance(model, str | Path):
        return handle.model_in_memory(model, step, tokenizer, dtype, device)
    resolve = {"cache_dir": Path(cache_dir), **family}
    placed = dtype or "float32", device or "auto", device_map
    return handle.load_named(str(model), step, tokenizer, placed, resolve)


@errors_of_python()
def task(
    prompts: str | Path | pd.DataFrame | None = None,
    *,
    clean: Sequence[str] | None = None,
    corrupted: Sequence[str] | None = None,
    answers: Sequence[Any] | None = None,
    wrong_answers: Sequence[Any] | None = None,
    answers_as: Literal["text", "ids"] = "text",
    metric: str | MetricFunction | None = None,
    name: str = "prompts",
) -> Task:
    """A task: prompt pairs whose right answer is lost in the corruption, and a metric that shows it.

    Args:
        prompts: `ioi`, `greater_than`, `gendered_pronoun` or `sva`; the path of a prompts CSV; or a data frame with its
            columns `clean, corrupted, answers, wrong_answers`, and any others.
        clean, corrupted, answers, wrong_answers: instead of `prompts`, the columns as lists. An answer continues the
            clean prompt as one token, so a word needs its leading space (`" he"`). Where several count, give a list.
        answers_as: `text`, or `ids` where the answers of a CSV, a data frame or lists are token ids. Columns named as
            EAP-IG's users name them (`correct_idx, incorrect_idx`) hold ids anyway.
        metric: `logit_diff`, `prob_diff`, `kl`, or a function `metric(logits, prompts)`: `logits` [n, vocabulary] at
            the end of n clean prompts, `prompts` these (`.answers.right`, `.answers.wrong`: token ids, padded, with
            `.right_mask`, `.wrong_mask`; `.texts`, `.meta`). It returns one value per prompt, [n], computed with torch
            so that gradients pass. By default that of the built-in task, or `logit_diff`.
        name: of a task in memory.

    Example:
        cot.task(clean=["So Paul is such a good cook, isn't"], corrupted=["So Mary is such a good cook, isn't"],
                 answers=[" he"], wrong_answers=[" she"])
    """
    from dataclasses import replace

    from circuits_over_time.utils.tasks import get_task
    from circuits_over_time.utils.tasks.csv_task import table_task
    from circuits_over_time.utils.tasks.metrics import DIFFERENTIABLE

    lists = {"clean": clean, "corrupted": corrupted, "answers": answers, "wrong_answers": wrong_answers}
    given = {column: values for column, values in lists.items() if values is not None}
    if (prompts is None) == (not given):
        raise TypeError("prompts: give a name, a CSV or a data frame, or else the lists clean=, corrupted=, ...")
    if wrong := [
        column for column, values in given.items() if isinstance(values, str) or not hasattr(values, "__iter__")
    ]:
        raise TypeError(f"{wrong[0]}: {given[wrong[0]]!r} is not a list")
    if not isinstance(name, str):
        raise TypeError(f"name={name!r}: not text")
    columns = {column: list(values) for column, values in given.items()}
    if metric is not None and not isinstance(metric, str) and not callable(metric):
        raise TypeError(f"metric={metric!r}: not a name, nor a function")
    if answers_as not in ("text", "ids"):
        raise ValueError(f"answers_as={answers_as!r}: not 'text' or 'ids'")
    if isinstance(metric, str) and metric not in DIFFERENTIABLE:
        raise ValueError(f"metric={metric!r}: not {' or '.join(map(repr, DIFFERENTIABLE))}, nor a function")
    if isinstance(prompts, str | Path):
        found = get_task(str(prompts), answers_as=answers_as)
        return found if metric is None else replace(found, primary=metric)
    if prompts is not None:
        if not hasattr(prompts, "columns"):
            raise TypeError(f"prompts: {type(prompts).__name__} is not a name, a CSV or a data frame")
        if not prompts.columns.is_unique:
            raise ValueError(
                f"prompts: the data frame has the same column twice: {', '.join(map(str, prompts.columns))}"
            )
        columns = {str(column): prompts[column].tolist() for column in prompts.columns}
    return table_task(columns, name, metric or "logit_diff", answers_as)


@errors_of_python()
def find_circuit(model: Model, task: Task, **keys: Any) -> MeasuredCircuit:
    """The smallest circuit that does a task faithfully enough, as get_circuits_over_time.py finds it.

    Args:
        keys: the script's keys, with its defaults (configs/README.md): `n_prompts=100` (of a table: all rows),
            `ig_steps="auto"`, `quadrature="left"`, `threshold=0.8`, `criterion="normalised"`, `order="greedy"`,
            `sizes=None`, `evaluate_on="heldout"`, `n_random=20`, `batch_size=32`, `seed=0`,
            `prepend_bos="auto"`, ... Those within a block may also be given with it: `eap={"ig_steps": 5}`,
            `search={"threshold": 0.9}`.

    Returns:
        The circuit: `.edges`, `.nodes`, `.faithfulness`, `.size`, `.status`, `.curve`, `.controls`, `.draw()`,
        `.save(path)`, `.to_networkx()`. If there is none, `.status` says why and `.edges` is empty.

    Example:
        circuit = cot.find_circuit(model, cot.task("ioi"), n_prompts=50, threshold=0.9)
    """
    from circuits_over_time.utils.circuits.find import score_edges
    from circuits_over_time.utils.circuits.handle import with_prompts
    from circuits_over_time.utils.circuits.measured import measure_circuit

    settings, prompts = with_prompts(model, task, keys)
    folds = score_edges(model.weights, prompts, settings)
    return measure_circuit(model.weights, prompts, settings, folds, model.about)


@errors_of_python()
def scores(model: Model, task: Task, **keys: Any) -> pd.DataFrame:
    """The EAP-IG score of every edge, without a search.

    Args:
        model, task, keys: as for `find_circuit`.

    Returns:
        All edges, those of largest |score| first: `source, target, input, score`, and `score_se`, its standard error.
        The score is in the metric's units; a positive one means that the edge raises the metric.

    Example:
        cot.scores(model, cot.task("ioi"), ig_steps=5).head()
    """
    from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
    from circuits_over_time.utils.circuits.find import score_edges
    from circuits_over_time.utils.circuits.handle import with_prompts

    settings, prompts = with_prompts(model, task, keys)
    folds = score_edges(model.weights, prompts, settings)
    everything = Circuit(folds.graph, folds.scores, folds.graph.edge_mask)
    return everything.to_table(score_se=folds.standard_error)


@errors_of_python()
def evaluate(model: Model, task: Task, edges: Any, **keys: Any) -> Evaluation:
    """The model with these edges alone: they carry the clean prompt, all others the corrupted one.

    It uses the prompts that `find_circuit` evaluates on with the same keys, so a circuit gets back its faithfulness.

    Args:
        model, task, keys: as for `find_circuit`.
        edges: a list of names (`"a3.h1->logits"`, `"a0.h1->a3.h2<q>"`, `"input->m0"`), a circuit, a data frame with
            `source, target, input`, a mask [n_forward, n_backward], or a file that `read_circuit` reads.

    Returns:
        `.metric`, `.faithfulness` with `.faithfulness_interval`, `.full`, `.corrupted`, and `.values` of every prompt.

    Example:
        cot.evaluate(model, cot.task("ioi"), circuit.edges.head(50))
    """
    from circuits_over_time.utils.circuits.handle import evaluated

    return evaluated(model, task, edges, keys, without=False)


@errors_of_python()
def ablate(model: Model, task: Task, edges: Any, **keys: Any) -> Evaluation:
    """The model without these edges: they carry the corrupted prompt, all others the clean one.

    Arguments, result and errors are those of `evaluate`.

    Example:
        cot.ablate(model, cot.task("ioi"), ["a3.h1->logits"])
    """
    from circuits_over_time.utils.circuits.handle import evaluated

    return evaluated(model, task, edges, keys, without=True)


@errors_of_python()
def read_circuit(path: str | Path, model: Model | None = None) -> MeasuredCircuit:
    """A circuit from a file.

    Args:
        path: what `circuit.save` wrote, a `.pt` in the results of get_circuits_over_time.py (its tables are read too),
            a graph of EAP-IG or MIB (`.json`, `.pt`, or the folder of a submission), CircuitKIT's `*_scores.json`, or a
            CSV of edges (`source, target`, and `input`, `score` where there are some).
        model: whose circuit it is. The last two do not say it; of the others it is checked.

    Example:
        cot.read_circuit("results/graphs/toy/ioi/step001350.pt").faithfulness
    """
    from circuits_over_time.utils.circuits import measured

    return measured.read_circuit(path, None if model is None else model.graph)


@errors_of_python()
def path_effects(
    model: Model,
    task: Task,
    senders: Sequence[str] | None = None,
    receivers: str | Sequence[str] = "logits",
    *,
    through_mlps: bool | None = None,
    **keys: Any,
) -> pd.DataFrame:
    """How the metric of clean prompts changes if receivers read a head or MLP as in the corrupted prompt.

    This is path patching. To `logits`: the change reaches them and nothing else. To heads: they read it, and everything
    after them is recomputed, as in Wang et al. 2022 (arXiv 2211.00593).

    Args:
        senders: heads (`"a3.h1"`) and MLPs (`"m2"`), one at a time; by default all heads.
        receivers: `"logits"`, or heads with the input that they are entered by, the same for all: `["a5.h0<q>"]`.
        through_mlps: whether the change also takes the ways through the MLPs between sender and receivers, besides the
            direct one. By default it does to heads, and not to the logits.
        keys: `n_prompts=100`, `batch_size=32`, `seed=0`, `memory_budget_gb="auto"`, `prepend_bos="auto"`,
            `ioi_corruption="swap"`.

    Returns:
        One row for each sender: `sender`, `effect` in the metric's units (negative where the task needs the path),
        `effect_se`, its standard error, and `share`, of the drop from clean to corrupted prompts.

    Example:
        cot.path_effects(model, cot.task("ioi")).nsmallest(5, "effect")
    """
    from circuits_over_time.utils.circuits import paths

    return paths.path_effects(model, task, senders, receivers, through_mlps, keys)


@errors_of_python()
def logit_lens(model: Model, task: Task, nodes: str | Sequence[str], **keys: Any) -> dict[str, Tensor]:
    """What heads and MLPs write to the logits at the end of the clean prompts (logit lens, direct logit attribution).

    Args:
        nodes: heads (`"a3.h1"`), MLPs (`"m2"`) and `"input"`, the embedding.
        keys: `n_prompts=100`, `batch_size=32`, `seed=0`, `prepend_bos="auto"`, `ioi_corruption="swap"`.

    Returns:
        For each node [prompt, vocabulary], float32: its output at the last token, through the final norm with the scale
        of the whole run, onto the unembedding; centred over the vocabulary. All nodes together, with the model's
        biases, give the centred logits (before a soft cap, where a model has one).

    Example:
        cot.logit_lens(model, cot.task("ioi"), ["a3.h1"])["a3.h1"].argmax(dim=1)
    """
    from circuits_over_time.utils.circuits import lens

    return lens.logit_lens(model, task, nodes, keys)


@errors_of_python()
def head_scores(model: Model, kind: str, **keys: Any) -> pd.DataFrame:
    """A score of every attention head.

    Args:
        kind: `induction`, `previous_token`, `duplicate_token` (attention in repeated random tokens), `copy`,
            `negative_copy`, `succession`, or `copy_suppression` (CSPA, also called `cspa`), which needs `corpus=`.
        keys: of the script that measures it: `n_sequences=`, `seq_len=`, `n_prompts=`, `head_scores="study"`,
            `corpus="toy"`, ..., and `batch_size=`, `seed=`.

    Returns:
        One row for each head: `layer, head, value`, and what else the script writes about it.

    Example:
        cot.head_scores(model, "induction").nlargest(3, "value")
    """
    from circuits_over_time.utils.circuits.handle import head_table

    return head_table(model, kind, keys)


class Attention(NamedTuple):
    """The attention of one prompt: its tokens as text, and `pattern` [layer, head, query, key], post-softmax."""

    tokens: list[str]
    pattern: Tensor

    def __repr__(self) -> str:
        return f"Attention(tokens={self.tokens}, pattern={list(self.pattern.shape)})"


@errors_of_python()
def attention(model: Model, prompt: str, *, start_token: bool | None = None) -> Attention:
    """The attention of every head in one prompt: `.tokens` and `.pattern`.

    Args:
        prompt: the text, neither empty nor longer than the model's context.
        start_token: whether to put a start token in front; by default if the model was trained with one.

    Example:
        tokens, pattern = cot.attention(model, "When Mary and John went to the store, John gave a drink to")
    """
    from circuits_over_time.utils.circuits.lens import attention_of

    return Attention(*attention_of(model, prompt, start_token))


@errors_of_python()
def logits(model: Model, prompts: str | Sequence[str], *, start_token: bool | None = None) -> Tensor:
    """The logits of the next token after each prompt, [prompt, vocabulary], float32.

    Args:
        prompts: their texts, none empty or longer than the model's context.
        start_token: as of `attention`.

    Example:
        cot.logits(model, ["When Mary and John went to the store, John gave a drink to"]).argmax(dim=1)
    """
    from circuits_over_time.utils.circuits.lens import logits_of

    return logits_of(model, prompts, start_token)


@errors_of_python()
def prompts(model: Model, task: Task, **keys: Any) -> Prompts:
    """The prompts of a task, as `path_effects`, `logit_lens` and `performance` use them with the same keys.

    Args:
        keys: `n_prompts=100`, `seed=0`, `prepend_bos="auto"`, `ioi_corruption="swap"`.

    Returns:
        `.texts` (clean and corrupted), `.meta` (what each was made from), `.answers`, and on the model's device
        `.clean` and `.corrupted` [prompt, token], `.lengths`, and `.positions`: a name (`end`, ...) -> [prompt].

    Example:
        cot.prompts(model, cot.task("ioi"), n_prompts=3).texts
    """
    from circuits_over_time.utils.circuits.handle import task_prompts

    return task_prompts(model, task, keys)[1]


@errors_of_python()
def performance(model: Model, task: Task, **keys: Any) -> pd.DataFrame:
    """How well the whole model does a task: every metric on clean and on corrupted prompts.

    Its columns are `run, metric, value, se, n`.

    Args:
        keys: `n_prompts=100`, `batch_size=32`, `seed=0`, `prepend_bos="auto"`, `ioi_corruption="swap"`.

    Example:
        cot.performance(model, cot.task("ioi"))
    """
    from circuits_over_time.utils.circuits.handle import task_prompts
    from circuits_over_time.utils.tasks.performance import task_performance

    settings, prompts = task_prompts(model, task, keys)
    return task_performance(model.weights, prompts, task.metrics, settings.batch_size)


@errors_of_python()
def results(
    folder: str | Path = "results", kind: str | None = None, model: str | None = None, task: str | None = None
) -> pd.DataFrame:
    """What the scripts, and `over_time`, wrote.

    Args:
        folder: the scripts' `results_dir`.
        kind: which results: `baselines`, `faithfulness`, `graphs`, ...; None for a list of all that is there.
        model, task: only of these.

    Returns:
        The table of a kind, all checkpoints below each other: `model, task, step, tokens` and its own columns. Without
        a kind, one row for each folder of results: `kind, model, task, checkpoints, first, last`.

    Example:
        cot.results("results", "baselines")[["task", "step", "size"]]
    """
    from circuits_over_time.utils.circuits.over_time import stored_kind, stored_results
    from circuits_over_time.utils.results.store import Store

    for name, value in {"kind": kind, "model": model, "task": task}.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name}={value!r}: not text")
    if kind is None:
        return stored_results(Path(folder))
    return Store(folder).read_tables(stored_kind(Path(folder), kind), model, task)


@errors_of_python()
def over_time(
    model: str | Path,
    steps: str | Sequence[int],
    function: Callable[[Model], Any],
    *,
    name: str | None = None,
    **keys: Any,
) -> pd.DataFrame:
    """Your own function at every checkpoint. What is measured is saved at once, so a second call goes on or is done.

    Args:
        model: a name or a folder of checkpoints, as for `load`.
        steps: a schedule (`"all"`, `"exponential"`, ...) or a list of steps.
        function: takes a model as `load` returns it, and returns a data frame, a dict (one row) or a number; anything
            else is a TypeError.
        name: of the results, `results/<name>/<model>/step001000.csv`; by default the function's.
        keys: of every script: `results_dir="results"`, `device="auto"`, `dtype="float32"`, `seed=0`, `overwrite=False`,
            `cache_dir="model_cache"`, `keep_checkpoints="all"`, ...

    Returns:
        All tables below each other, with `model, step, tokens` first. Checkpoints that cannot be loaded are logged and
        left out.

    Example:
        cot.over_time("model_cache/toy", [0, 1350], lambda model: cot.performance(model, cot.task("ioi")), name="ioi")
    """
    from circuits_over_time.utils.circuits import over_time as sweep

    if not isinstance(model, str | Path):
        raise TypeError(f"model: {type(model).__name__} is neither a name nor a folder of checkpoints")
    return sweep.over_time(str(model), steps, function, name or str(getattr(function, "__name__", "")), keys)


def __getattr__(name: str) -> Any:
    """`CircuitCallback`: importing it imports transformers and torch. docs/training.md shows it."""
    if name == "CircuitCallback":
        from circuits_over_time.utils.circuits.callback import CircuitCallback

        return CircuitCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
