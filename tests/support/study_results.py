"""Made-up results of the published study's models that agree with its numbers, or that disagree with every one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from circuits_over_time.plotting.parts.published.reproduction import Number, published
from circuits_over_time.utils.config.schedules import tokens_at
from circuits_over_time.utils.results.store import Store
from tests.support.synthetic_results import write

MODELS = ("pythia-70m", "pythia-160m", "pythia-410m", "pythia-1.4b", "pythia-2.8b")
# Twenty from step 1000 on, so that means of whole numbers of nodes can have the printed digits.
STEPS = (512, *range(1000, 15001, 1000), 30000, 53000, 99000, 140000, 143000)
# First step at which a head is above its threshold: within what is published, and too late.
EMERGENCE = {"induction": (1000, 14000), "succession": (2000, 14000), "copy": (3000, 14000), "cspa": (3000, 14000)}
THRESHOLD = {"induction": 0.5, "succession": 0.5, "copy": 10.0, "cspa": 0.1}


def write_study(
    folder: Path, *, agree: bool, models: Iterable[str] = MODELS, steps: tuple[int, ...] = STEPS, seed: int = 0
) -> Store:
    """All that the published numbers are about, for the models and checkpoints asked for."""
    store, rng = Store(folder), np.random.default_rng(seed)
    numbers = published()
    edges = {number.step: number.low for number in numbers if number.quantity == "circuit_edges"}
    for model in models:
        for number in numbers:
            # Other sizes in the opposite order turn the correlations round.
            source = model if agree else MODELS[::-1][MODELS.index(model)]
            if number.quantity == "circuit_nodes" and number.model == source:
                nodes = _with_mean(number.low if agree else 3 * number.low, len(STEPS) - 1, rng)
                _write_circuits(
                    store, model, number.task, dict(zip(STEPS, [900, *nodes], strict=True)), edges, steps, agree
                )
        _write_levels(store, model, [n for n in numbers if n.quantity == "level_percent"], steps, agree, rng)
        _write_heads(store, model, steps, agree, rng)
    return store


def write_settings(store: Store, kind: str, model: str, task: str | None, config: dict[str, object]) -> None:
    """A run.json that says what a folder was measured with."""
    run = {"analysis": "a script", "config": config, "checkpoints": {}}
    (store.folder(kind, model, task).path / "run.json").write_text(json.dumps(run))


def _with_mean(mean: float, n: int, rng: np.random.Generator) -> list[int]:
    """`n` whole numbers about a mean, which they have to within half an n-th."""
    values = np.full(n, int(mean)) + rng.permutation(np.resize([-2, -1, 1, 2], n))
    values[: round(n * mean) - int(values.sum())] += 1
    return [int(value) for value in rng.permutation(values)]


def _write_circuits(
    store: Store,
    model: str,
    task: str,
    nodes: dict[int, int],
    edges: dict[int | None, float],
    steps: tuple[int, ...],
    agree: bool,
) -> None:
    for step in steps:
        chosen = int(edges.get(step, 60) * (1 if agree else 3))
        sizes = [chosen - 10, chosen, chosen + 10]
        table = pd.DataFrame(
            {"size": sizes, "n_edges": sizes, "n_nodes": nodes[step], "selected": [False, True, False]}
        )
        write(store, "faithfulness", model, task, step, table, tokens_at(step))
        size = {"status": "found", "size": sizes[1], "size_low": sizes[0], "size_high": sizes[2]}
        write(store, "baselines", model, task, step, pd.DataFrame([size]), tokens_at(step))


def _write_levels(
    store: Store, model: str, numbers: list[Number], steps: tuple[int, ...], agree: bool, rng: np.random.Generator
) -> None:
    bounds = {number.item: number.low for number in numbers}
    for step in steps:
        percent = [
            bound + (15 if agree else -30) + 5 * rng.random() if step >= 4000 else 1.0 for bound in bounds.values()
        ]
        table = pd.DataFrame({"level": list(bounds), "percent": percent, "n_heads": 3})
        write(store, "ioi_consistency", model, None, step, table, tokens_at(step))


def _write_heads(store: Store, model: str, steps: tuple[int, ...], agree: bool, rng: np.random.Generator) -> None:
    for step in steps:
        tables = {}
        for score, (early, late) in EMERGENCE.items():
            best = THRESHOLD[score] * (1.5 if step >= (early if agree else late) else 0.5)
            heads = {"layer": [0, 0, 1], "head": [0, 1, 0], "value": [best, *(0.4 * THRESHOLD[score] * rng.random(2))]}
            tables[score] = pd.DataFrame(heads)
        components = pd.concat([tables[score].assign(score=score) for score in ("induction", "copy")])
        write(store, "components", model, None, step, components, tokens_at(step))
        write(store, "successor", model, None, step, tables["succession"], tokens_at(step))
        cspa = tables["cspa"].rename(columns={"value": "score"})
        write(store, "cspa", model, None, step, cspa, tokens_at(step))
