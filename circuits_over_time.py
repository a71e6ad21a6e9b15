"""The library: circuits of language models, from a notebook.

    import circuits_over_time as cot
    model = cot.load("pythia-160m", step=1000)          # a name, a folder, or a Hugging Face model in memory
    circuit = cot.find_circuit(model, cot.task("ioi"))
    circuit                                             # a drawing and a table in a notebook, three lines in a terminal

Every function does what the scripts do, with the same keys, defaults and numbers. docs/library.md shows each of them.
Importing this module imports no torch: that comes with the first call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

_HERE = Path(__file__).resolve().parent
_INSTALLED = _HERE / "_circuits_over_time"
# This module is also the package that holds `utils`, `plotting` and `edge_attribution_patching`: as
# `circuits_over_time.utils` they cannot be taken for a user's own `utils`, whichever comes first on the path.
# In a checkout they are beside this file; a wheel has them in a folder of their own.
__path__ = [str(_INSTALLED if _INSTALLED.is_dir() else _HERE)]

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from circuits_over_time.utils.circuits.handle import Evaluation, Model
    from circuits_over_time.utils.circuits.measured import MeasuredCircuit
    from circuits_over_time.utils.tasks import Task
    from circuits_over_time.utils.tasks.prompts import MetricFunction

__all__ = ["ablate", "evaluate", "find_circuit", "load", "read_circuit", "scores", "task"]


def load(
    model: str | Path | PreTrainedModel,
    step: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
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
        cache_dir: where downloads go.
        family: `tokens_per_step=, revisions=, stages=, trust_remote_code=` as in the scripts' configs.

    Raises:
        ValueError: if there is no such model or step, it is damaged, or its architecture is not supported.
        TypeError: if a model in memory comes without a tokenizer.

    Example:
        model = cot.load("model_cache/toy", step=1350)
    """
    from circuits_over_time.utils.circuits import handle

    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype={dtype!r}: not 'float32', 'bfloat16' or 'float16'")
    with handle.in_callers_words():
        if not isinstance(model, str | Path):
            return handle.model_in_memory(model, step, tokenizer, dtype, device)
        resolve = {"cache_dir": Path(cache_dir), **family}
        return handle.load_named(str(model), step, tokenizer, dtype or "float32", device or "auto", resolve)


def task(
    prompts: str | Path | pd.DataFrame | None = None,
    *,
    clean: Sequence[str] | None = None,
    corrupted: Sequence[str] | None = None,
    answers: Sequence[str | Sequence[str]] | None = None,
    wrong_answers: Sequence[str | Sequence[str]] | None = None,
    metric: str | MetricFunction | None = None,
    name: str = "prompts",
) -> Task:
    """A task: prompt pairs whose right answer is lost in the corruption, and a metric that shows it.

    Args:
        prompts: `ioi`, `greater_than`, `gendered_pronoun` or `sva`; the path of a prompts CSV; or a data frame with its
            columns `clean, corrupted, answers, wrong_answers`, and any others.
        clean, corrupted, answers, wrong_answers: instead of `prompts`, the columns as lists. An answer continues the
            clean prompt as one token, so a word needs its leading space (`" he"`). Where several count, give a list.
        metric: `logit_diff` or `prob_diff`, or a function `metric(logits, prompts)`: `logits` [n, vocabulary] at the
            end of n clean prompts, `prompts` these prompts (`.answers.right`, `.answers.wrong`: token ids, padded, with
            `.right_mask`, `.wrong_mask`; `.texts`, `.meta`). It returns one value per prompt, [n], computed with torch
            so that gradients pass. By default that of the built-in task, or `logit_diff`.
        name: of a task in memory.

    Raises:
        ValueError: if there is no such task, a column is missing or a row cannot be used.

    Example:
        cot.task(clean=["So Paul is such a good cook, isn't"], corrupted=["So Mary is such a good cook, isn't"],
                 answers=[" he"], wrong_answers=[" she"])
    """
    from dataclasses import replace

    from circuits_over_time.utils.circuits.handle import in_callers_words
    from circuits_over_time.utils.tasks import get_task
    from circuits_over_time.utils.tasks.csv_task import PRIMARY_METRICS, table_task

    lists = {"clean": clean, "corrupted": corrupted, "answers": answers, "wrong_answers": wrong_answers}
    columns = {column: list(values) for column, values in lists.items() if values is not None}
    if (prompts is None) == (not columns):
        raise TypeError("prompts: give a name, a CSV or a data frame, or else the lists clean=, corrupted=, ...")
    if isinstance(metric, str) and metric not in PRIMARY_METRICS:
        raise ValueError(f"metric={metric!r}: not {' or '.join(map(repr, PRIMARY_METRICS))}, nor a function")
    with in_callers_words():
        if isinstance(prompts, str | Path):
            found = get_task(str(prompts), "logit_diff")
            return found if metric is None else replace(found, primary=metric)
        if prompts is not None:
            columns = {str(column): prompts[column].tolist() for column in prompts.columns}
        return table_task(columns, name, metric or "logit_diff")


def find_circuit(model: Model, task: Task, **keys: Any) -> MeasuredCircuit:
    """The smallest circuit that does a task faithfully enough, as get_circuits_over_time.py finds it.

    Args:
        model, task: from `load` and `task`.
        keys: the script's keys, with its defaults (configs/README.md): `n_prompts=100`, `ig_steps=20`,
            `quadrature="left"`, `threshold=0.8`, `criterion="normalised"`, `order="greedy"`, `sizes=None`,
            `evaluate_on="heldout"`, `n_random=20`, `batch_size=32`, `seed=0`, `prepend_bos="auto"`, ... Those within a
            block may also be given with it: `eap={"ig_steps": 5}`, `search={"threshold": 0.9}`.

    Returns:
        The circuit: `.edges`, `.nodes`, `.faithfulness`, `.size`, `.status`, `.curve`, `.controls`, `.draw()`,
        `.save(path)`, `.to_networkx()`. If there is none, `.status` says why and `.edges` is empty.

    Raises:
        TypeError: for a keyword that does not exist, or a value of another type.
        ValueError: for a value that is not allowed, or prompts that do not suit the model.

    Example:
        circuit = cot.find_circuit(model, cot.task("ioi"), n_prompts=50, threshold=0.9)
    """
    from circuits_over_time.utils.circuits.find import circuit_prompts
    from circuits_over_time.utils.circuits.handle import in_callers_words, settings_of
    from circuits_over_time.utils.circuits.keys import CircuitSettings
    from circuits_over_time.utils.circuits.measured import measure_circuit

    settings = settings_of(CircuitSettings, keys, model)
    with in_callers_words(settings.batch_size):
        prompts = circuit_prompts(settings, task, model.tokenizer, model.weights)
        return measure_circuit(model.weights, prompts, settings, model.about)


def scores(model: Model, task: Task, **keys: Any) -> pd.DataFrame:
    """The EAP-IG score of every edge, without a search.

    Args:
        model, task, keys: as for `find_circuit`.

    Returns:
        All edges, those of largest |score| first: `source, target, score`, and `score_se`, its standard error. The
        score is in the metric's units; a positive one means that the edge raises the metric.

    Raises:
        TypeError, ValueError: as `find_circuit`.

    Example:
        cot.scores(model, cot.task("ioi"), ig_steps=5).head()
    """
    from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
    from circuits_over_time.utils.circuits.find import circuit_prompts, score_edges
    from circuits_over_time.utils.circuits.handle import in_callers_words, settings_of
    from circuits_over_time.utils.circuits.keys import CircuitSettings

    settings = settings_of(CircuitSettings, keys, model)
    with in_callers_words(settings.batch_size):
        prompts = circuit_prompts(settings, task, model.tokenizer, model.weights)
        folds = score_edges(model.weights, prompts, settings)
    everything = Circuit(folds.graph, folds.scores, folds.graph.edge_mask)
    return everything.to_table(score_se=folds.standard_error)


def evaluate(model: Model, task: Task, edges: Any, **keys: Any) -> Evaluation:
    """The model with these edges alone: they carry the clean prompt, all others the corrupted one.

    It uses the prompts that `find_circuit` evaluates on with the same keys, so a circuit gets back its faithfulness.

    Args:
        model, task, keys: as for `find_circuit`.
        edges: a list of names (`"a3.h1->logits"`, `"a0.h1->a3.h2<q>"`, `"input->m0"`), a circuit, a data frame with
            `source, target`, a mask [n_forward, n_backward], or a file (`.pt` of this project, EAP-IG's `.json`).

    Returns:
        `.metric`, `.faithfulness` with `.faithfulness_interval`, `.full`, `.corrupted`, and `.values` of every prompt.

    Raises:
        TypeError, ValueError: as `find_circuit`, and if the model has no such edge.

    Example:
        cot.evaluate(model, cot.task("ioi"), circuit.edges.head(50))
    """
    return _evaluated(model, task, edges, keys, without=False)


def ablate(model: Model, task: Task, edges: Any, **keys: Any) -> Evaluation:
    """The model without these edges: they carry the corrupted prompt, all others the clean one.

    Arguments, result and errors are those of `evaluate`.

    Example:
        cot.ablate(model, cot.task("ioi"), ["a3.h1->logits"])
    """
    return _evaluated(model, task, edges, keys, without=True)


def _evaluated(model: Model, task: Task, edges: Any, keys: Mapping[str, Any], *, without: bool) -> Evaluation:
    from circuits_over_time.utils.circuits.find import circuit_prompts, evaluator_of
    from circuits_over_time.utils.circuits.handle import edge_mask, evaluation_of, in_callers_words, settings_of
    from circuits_over_time.utils.circuits.keys import CircuitSettings

    settings = settings_of(CircuitSettings, keys, model)
    with in_callers_words(settings.batch_size):
        mask = edge_mask(edges, model.graph)
        if without:
            mask = model.graph.edge_mask & ~mask
        prompts = circuit_prompts(settings, task, model.tokenizer, model.weights)
        return evaluation_of(evaluator_of(model.weights, prompts, settings), mask, settings.seed)


def read_circuit(path: str | Path) -> MeasuredCircuit:
    """A circuit from a file.

    Args:
        path: what `circuit.save` wrote, a `.pt` in the results of get_circuits_over_time.py (its tables are read too),
            or a graph in EAP-IG's `.json`.

    Raises:
        ValueError: if there is no such file, or it holds no circuit.

    Example:
        cot.read_circuit("results/graphs/toy/ioi/step001350.pt").faithfulness
    """
    from circuits_over_time.utils.circuits import measured
    from circuits_over_time.utils.circuits.handle import in_callers_words

    with in_callers_words():
        return measured.read_circuit(path)
