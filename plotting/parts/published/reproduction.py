"""The numbers of the published study, read from `circuits_over_time.csv`, beside what the results give.

The file has a row per number of "LLM Circuit Analyses Are Consistent Across Training and Scale" (Tigges et al. 2024,
arXiv 2407.10827), as a range: "about 2e9" is what rounds to it. Quantities:

    parameters         a model's parameter count: `printed`, behind the published correlations, and `true`
    circuit_nodes      nodes of a task's circuit, mean over checkpoints from `from_step` on
    size_correlation   Pearson's r over the five models between these means and the parameter count
    circuit_edges      edges of the circuit at one checkpoint
    level_percent      percentage of a level of the IOI algorithm, median over checkpoints from `from_step` on
    emergence_tokens   tokens at the first checkpoint at which some head's score passes the score's threshold, there and
                       at the next checkpoint measured

Intervals hold 95%. Those of means and medians resample checkpoints in blocks of neighbours, which are alike; those of
edges are the circuit's own, from resampled prompts; a head emerges between two checkpoints measured.
"""

from __future__ import annotations

import argparse
import csv
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuits_over_time.utils.config.strict_yaml import Block, read_yaml
from circuits_over_time.utils.results.commands import flat_keys
from circuits_over_time.utils.results.kinds import find_kind
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.suite import SuiteConfig, jobs_of
from circuits_over_time.utils.sweep.times import gpu_hours

from ..head_scores import SCORES, SINGLE

FILE = Path(__file__).parent / "circuits_over_time.csv"
# The repository, and where in it the configs with the study's settings lie.
ROOT = Path(__file__).resolve().parents[3]
CONFIGS = Path("configs", "study")
RESAMPLES = 2000
# Fewer checkpoints give no interval.
LEAST = 5
# Keys of a config that settings do not depend on.
_FREE = ("model", "task", "checkpoints")
VERDICTS = ("agrees", "disagrees", "open", "not measured")
COLUMNS = (
    *("quantity", "model", "task", "item", "step", "published_low", "published_high", "measured", "low", "high"),
    *("n_checkpoints", "verdict", "note", "settings", "command", "checkpoints", "source"),
)


@dataclass(frozen=True)
class Number:
    """A published number, or a range of them (`low`, `high`); what does not apply is "" or None.

    Attributes:
        item: the level, the kind of head, or whose parameter count.
        step: the checkpoint, of a number about one; `from_step` the first, of a mean or median.
        checkpoints: how many are behind a mean, as far as its decimals show, and which these may be.
    """

    quantity: str
    model: str
    task: str
    item: str
    step: int | None
    from_step: int | None
    low: float
    high: float
    checkpoints: str
    source: str

    @property
    def kind(self) -> str:
        """The kind of result that it is about."""
        if self.quantity == "emergence_tokens":
            return next((kind for kind, score in SINGLE.items() if score == self.item), "components")
        return "ioi_consistency" if self.quantity == "level_percent" else "faithfulness"

    @property
    def config(self) -> Path:
        """The config with the study's settings for that kind."""
        return CONFIGS / f"{find_kind(self.kind).config or self.task}.yml"


def published() -> list[Number]:
    """The published numbers, in the order of the file."""
    with FILE.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row |= {name: int(row[name]) if row[name] else None for name in ("step", "from_step")}
        row |= {name: float(row[name]) for name in ("low", "high")}
    return [Number(**row) for row in rows]


@dataclass(frozen=True)
class Estimate:
    """What the results give for a published number: its value and 95% interval, NaN where they give none."""

    value: float
    low: float
    high: float
    n: int
    note: str = ""


def reproduction(store: Store, arguments: argparse.Namespace) -> pd.DataFrame:
    """One row per published number of the models and tasks asked for, in the order of the file, with `COLUMNS`.

    `verdict` is `agrees` or `disagrees` where an interval says so, `open` where there is none (`note` says why), else
    `not measured`; `settings` names the keys in which the runs differ from the study's configs; `command` measures what
    is missing.
    """
    study = StudyResults(store)
    rows = []
    for number in published():
        asked = ((number.model, arguments.model), (number.task, arguments.task))
        if number.quantity not in MEASURES or any(name and names and name not in names for name, names in asked):
            continue
        estimate = MEASURES[number.quantity](study, number)
        measured = estimate or Estimate(np.nan, np.nan, np.nan, 0)
        verdict = _verdict(number, estimate)
        rows.append(
            vars(number)
            | {"published_low": number.low, "published_high": number.high, "measured": measured.value}
            | {"low": measured.low, "high": measured.high, "n_checkpoints": measured.n, "note": measured.note}
            | {"verdict": verdict, "settings": study.settings(number)}
            | {"command": study.command(number) if verdict in ("open", "not measured") else ""}
        )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"step": "Int64"})


def _verdict(number: Number, measured: Estimate | None) -> str:
    if measured is None:
        return "not measured"
    if np.isnan(measured.low) or np.isnan(measured.high):
        return "open"
    if measured.low > number.high or number.low > measured.high:
        return "disagrees"
    # A head that has not emerged yet may still do so in time.
    return "open" if np.isinf(measured.high) else "agrees"


def resampled(
    values: np.ndarray, statistic: Callable[..., np.ndarray] = np.mean, seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray:
    """A statistic of resampled series: circular blocks of about sqrt(n) neighbours (Politis and Romano 1992).

    Args:
        values: [n], in the order of training.

    Returns:
        [resamples], or an array of NaN for fewer than `LEAST` values.
    """
    n = len(values)
    if n < LEAST:
        return np.full(resamples, np.nan)
    block = int(np.ceil(np.sqrt(n)))
    starts = np.random.default_rng(seed).integers(n, size=(resamples, -(-n // block), 1))
    places = ((starts + np.arange(block)) % n).reshape(resamples, -1)[:, :n]
    return statistic(values[places], axis=1)


class StudyResults:
    """The results of the study's models, each read once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        # Whose parameter count -> model -> count.
        self.parameters: dict[str, dict[str, float]] = {}
        for number in published():
            if number.quantity == "parameters":
                self.parameters.setdefault(number.item, {})[number.model] = number.low
        self.models = list(self.parameters["true"])
        self.table, self.config = cache(self._table), cache(lambda path: read_yaml(ROOT / path))

    def _table(self, kind: str, model: str, task: str = "") -> pd.DataFrame | None:
        """All steps of a kind, ascending, or None where none is measured."""
        there = self.store.folder(kind, model, task or None).steps()
        return self.store.read_tables(kind, model, task or None) if there else None

    def nodes(self, number: Number, model: str) -> tuple[np.ndarray, int] | None:
        """Nodes of a model's circuits from a step on, and how many checkpoints were measured; None where none was."""
        # A checkpoint without a circuit has baselines, and perhaps no sizes.
        baselines, table = (self.table(kind, model, number.task) for kind in ("baselines", "faithfulness"))
        if baselines is None or table is None:
            return None
        n_measured = int((baselines["step"] >= number.from_step).sum())
        chosen = table[table["selected"].astype(bool) & (table["step"] >= number.from_step)]
        return (chosen["n_nodes"].to_numpy(dtype=float), n_measured) if n_measured else None

    def command(self, number: Number) -> str:
        """The command that measures what a number needs, with the study's settings."""
        lacking = [model for model in self.models if self.nodes(number, model) is None]
        models = [number.model] if number.model else lacking or self.models
        begin = f"python {find_kind(number.kind).script} -c {number.config.as_posix()}"
        return _command(begin, models, [] if number.step is None else [number.step]) + _into(self.store)

    def settings(self, number: Number) -> str:
        """The keys in which the runs behind a number differ from the study's config, with both values."""
        config = self.config(number.config)
        texts = []
        for model in [number.model] if number.model else self.models:
            folder = self.store.folder(number.kind, model, number.task or None)
            if not folder.steps():
                continue
            if not (folder.path / "run.json").is_file():
                texts.append("unknown: there is no run.json")
                continue
            held, wanted = flat_keys(folder.read_run().get("config", {})), flat_keys(_for_model(config, model))
            differing = [key for key in wanted if key not in _FREE and held.get(key) != wanted[key]]
            texts += [f"{key}={held.get(key)} (study: {wanted[key]})" for key in differing]
        return "; ".join(sorted(set(texts)))


def _for_model(keys: Block, model: str) -> Block:
    """The keys of a config as they are for one model: with its number format."""
    own = {name: _for_model(value, model) if isinstance(value, dict) else value for name, value in keys.items()}
    formats = own.pop("dtype_of", {})
    return own | ({"dtype": formats[model]} if model in formats else {})


def commands(store: Store, table: pd.DataFrame) -> dict[str, int]:
    """The fewest commands that measure what a table of `reproduction` lacks, and how many numbers each is for."""
    # What a correlation needs, the means that it rests on need too.
    lacking = table[(table["command"] != "") & (table["quantity"] != "size_correlation")]
    found = {}
    begins = lacking["command"].map(lambda command: command.partition(" model=")[0])
    for (begin, _), rows in lacking.groupby([begins, lacking["step"].notna()], sort=False):
        models, steps = rows["model"].unique().tolist(), rows["step"].dropna().unique().tolist()
        found[_command(str(begin), models, steps) + _into(store)] = len(rows)
    return found


def remaining(store: Store, table: pd.DataFrame) -> tuple[str, float] | None:
    """One command that measures all that a table of `reproduction` lacks, and its GPU hours as the dry run has them."""
    lacking = set(table.loc[table["command"] != "", "model"])
    models = [model for model in StudyResults(store).models if model in lacking]
    if not models:
        return None
    path = CONFIGS / "all.yml"
    data = read_yaml(ROOT / path)
    data["analyses"] = [entry | {"config": str(ROOT / entry["config"])} for entry in data["analyses"]]
    config = SuiteConfig.model_validate(data | {"model": models, "results_dir": store.root})
    command = _command(f"python run_suite.py -c {path.as_posix()}", models, [])  # The config has more models.
    return command + _into(store), gpu_hours(jobs_of(config), models)


def _into(store: Store) -> str:
    """What a command needs to write its results where these are."""
    return "" if store.root == Path("results") else f" results_dir={shlex.quote(str(store.root))}"


def _command(begin: str, models: list[str], steps: list[int]) -> str:
    named = models[0] if len(models) == 1 else f'"[{", ".join(models)}]"'
    return f"{begin} model={named}" + (f" checkpoints={steps}".replace(", ", ",") if steps else "")


def _summary(values: np.ndarray, statistic: Callable[..., Any], n_measured: int, lacks: str) -> Estimate:
    """A statistic over checkpoints; `lacks` says what checkpoints without a value have none of."""
    notes = [f"{n_measured - len(values)} of {n_measured} checkpoints have no {lacks}"] * (len(values) < n_measured)
    if len(values) < LEAST:
        notes.append(f"an interval needs {LEAST}")
    value = float(statistic(values)) if len(values) else np.nan
    return Estimate(value, *_interval(resampled(values, statistic)), len(values), "; ".join(notes))


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _circuit_nodes(study: StudyResults, number: Number) -> Estimate | None:
    found = study.nodes(number, number.model)
    return None if found is None else _summary(found[0], np.mean, found[1], "circuit")


def _size_correlation(study: StudyResults, number: Number) -> Estimate | None:
    found = {model: study.nodes(number, model) for model in study.models}
    sizes = {model: nodes[0] for model, nodes in found.items() if nodes is not None and len(nodes[0])}
    if not sizes:
        return None
    n = sum(map(len, sizes.values()))
    if len(sizes) < len(study.models):
        return Estimate(np.nan, np.nan, np.nan, n, f"{len(sizes)} of {len(study.models)} models")
    parameters = np.array([study.parameters[number.item][model] for model in sizes])
    means = np.array([values.mean() for values in sizes.values()])
    draws = np.stack([resampled(values, seed=seed) for seed, values in enumerate(sizes.values())])
    note = f"an interval needs {LEAST} checkpoints of every model" if np.isnan(draws).any() else ""
    r = float(_pearson(parameters, means[:, None])[0])
    return Estimate(r, *_interval(_pearson(parameters, draws)), n, note)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r of x [n] and every column of y [n, m]; NaN without variation."""
    x, y = x - x.mean(), y - y.mean(axis=0)
    norm = np.sqrt((x**2).sum() * (y**2).sum(axis=0))
    return np.divide(x @ y, norm, out=np.full(y.shape[1], np.nan), where=norm > 0)


def _circuit_edges(study: StudyResults, number: Number) -> Estimate | None:
    baselines = study.table("baselines", number.model, number.task)
    table = study.table("faithfulness", number.model, number.task)
    if baselines is None or table is None or number.step not in set(baselines["step"]):
        return None
    table = table[table["step"] == number.step]
    baseline = baselines[baselines["step"] == number.step].iloc[0]
    chosen = table[table["selected"].astype(bool)]
    if chosen.empty:
        return Estimate(np.nan, np.nan, np.nan, 1, f"no circuit: {baseline['status']}")
    edges = table.set_index("size")["n_edges"].astype(float)
    low, high = (float(edges.get(baseline[f"size_{end}"], np.nan)) for end in ("low", "high"))
    note = "the size has no interval" if np.isnan(low) or np.isnan(high) else ""
    return Estimate(float(chosen["n_edges"].iloc[0]), low, high, 1, note)


def _level_percent(study: StudyResults, number: Number) -> Estimate | None:
    table = study.table("ioi_consistency", number.model)
    if table is None:
        return None
    rows = table[(table["level"] == number.item) & (table["step"] >= number.from_step)]
    if rows.empty:
        return None
    return _summary(rows["percent"].dropna().to_numpy(dtype=float), np.median, len(rows), "percentage")


def _emergence(study: StudyResults, number: Number) -> Estimate | None:
    kind, score, threshold = number.kind, number.item, SCORES[number.item].threshold
    table = study.table(kind, number.model)
    if table is None:
        return None
    if kind == "components":
        table = table[table["score"] == score]
    value = "value" if "value" in table else "score"
    best = table.groupby("step").agg(tokens=("tokens", "first"), best=(value, "max"))
    if best.empty:
        return None
    above = (best["best"] > threshold).to_numpy()
    lasting = above & np.append(above[1:], True)
    tokens = best["tokens"].to_numpy(dtype=float)
    if not lasting.any():
        return Estimate(np.nan, tokens[-1], np.inf, len(tokens), f"no head passes {threshold:g}")
    first = int(lasting.argmax())
    if first == 0:
        return Estimate(tokens[0], np.nan, np.nan, len(tokens), "the first checkpoint measured has such a head already")
    return Estimate(tokens[first], tokens[first - 1], tokens[first], len(tokens))


MEASURES: dict[str, Callable[[StudyResults, Number], Estimate | None]] = {
    "circuit_nodes": _circuit_nodes,
    "size_correlation": _size_correlation,
    "circuit_edges": _circuit_edges,
    "level_percent": _level_percent,
    "emergence_tokens": _emergence,
}
