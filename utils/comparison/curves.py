"""Everything that can emerge, as curves over training: head scores, metrics of the tasks, circuits.

Where results keep what they were averaged over, curves are resampled: circuits from the folds of their prompts, the
same folds at every checkpoint. Where only standard errors are stored (metrics of tasks, scores and effects of heads),
errors are taken as normal and independent between checkpoints. Checkpoints that are measured on the same prompts err
alike, though: the test of emergence allows for it (`emergence.py`), and where 70% of the variance is shared, intervals
hold the truth in 97% to 100% of simulated curves. A succession score is a share of pairs of words, and gets binomial
errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from ..base.errors import UserError
from ..results.store import Store
from .chance import expected_jaccard
from .changes import grown, redrawn
from .inputs import Trajectory
from .keys import ComparisonConfig
from .similarity import Edges, jaccard
from .statistics import TAILS, binomial_resamples, normal_resamples

GUESSED = {"accuracy": 0.5}
"""What metrics of tasks are where a model guesses; 0 for all others."""


@dataclass(frozen=True)
class Curve:
    """One curve over training."""

    model: str
    name: str  # unlike that of any other of the model's curves
    kind: str  # `head`, `metric` or `circuit`
    score: str  # which score, metric or property of the circuit
    steps: np.ndarray
    tokens: np.ndarray
    values: Float[np.ndarray, " checkpoint"]  # nan where there is none
    resampled: Float[np.ndarray, "resample checkpoint"] | None = None  # the values under other draws
    signed_errors: Float[np.ndarray, " checkpoint"] | None = None  # of x, where the curve is a size |x|
    uncertainty: str = "none"  # or `folds`, `standard errors`, `binomial`
    among: int = 1  # of how many heads it is the largest
    chance: float = 0.0  # what the curve is where nothing has emerged
    task: str | None = None
    layer: int | None = None
    head: int | None = None
    leading: bool = False  # whether it stands for its kind: the strongest head, the primary metric, the circuit

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the 95% interval at every checkpoint; nan where there is none."""
        none = np.full((1, len(self.values)), np.nan)
        low, high = np.quantile(none if self.resampled is None else self.resampled, TAILS, axis=0)
        return low, high

    def stamp(self) -> dict[str, Any]:
        """The columns that say whose curve it is, and what is known of it beside its points."""
        columns = ("model", "kind", "score", "task", "layer", "head", "chance", "uncertainty")
        return {"curve": self.name} | {name: getattr(self, name) for name in columns}


def head_curves(store: Store, model: str, config: ComparisonConfig) -> Iterator[Curve]:
    """Every head's every score; the strongest head of a score is leading."""
    for score, table in _head_tables(store, model):
        curves = []
        for _, rows in table.sort_values("step").groupby(["layer", "head"], sort=True):
            layer, head = rows[["layer", "head"]].iloc[0].tolist()
            name, (steps, tokens, values) = f"{score} a{layer}.h{head}", _points(rows)
            if np.isnan(values).all():
                continue
            chance = float(rows["chance"].iloc[-1]) if "chance" in rows else 0.0
            curve = Curve(model, name, "head", score, steps, tokens, values, chance=chance, layer=layer, head=head)
            seed = config.seed + 1000 * layer + head  # Heads err independently of each other.
            if "pairs" in rows:
                resampled = binomial_resamples(values, rows["pairs"].to_numpy(), seed, config.resamples)
                curve = replace(curve, resampled=resampled, uncertainty="binomial")
            elif rows.loc[rows["value"].notna(), "se"].notna().all():
                # Errors are those of the signed effect, the curve is its size.
                signed = rows["signed"].to_numpy(dtype=float) if "signed" in rows else values
                errors = rows["se"].fillna(0).to_numpy()
                resampled = normal_resamples(signed, errors, seed, config.resamples)
                curve = replace(curve, resampled=resampled, uncertainty="standard errors")
                if "signed" in rows:
                    curve = replace(curve, resampled=np.abs(resampled), signed_errors=errors)
            curves.append(curve)
        strongest = max(curves, key=lambda curve: np.nanmax(curve.values), default=None)
        yield from (replace(curve, leading=curve is strongest) for curve in curves)


def best_head_curves(heads: Iterable[Curve]) -> Iterator[Curve]:
    """Of every head score the largest of all heads at each checkpoint: comparable between seeds, whose heads differ.

    A checkpoint's resamples are those of the head that is largest there. The largest head of each resample would be
    larger on average than the value: it is chosen with its error.
    """
    for score, of_score in groupby(heads, key=lambda curve: curve.score):
        curves = list(of_score)
        # step -> the curve of the largest head, and its index at that step
        largest: dict[int, tuple[Curve, int]] = {}
        for curve in curves:
            for index, (step, value) in enumerate(zip(curve.steps.tolist(), curve.values.tolist(), strict=True)):
                best, at = largest.get(step, (None, 0))
                if not np.isnan(value) and (best is None or value > best.values[at]):
                    largest[step] = curve, index
        chosen = [largest[step] for step in sorted(largest)]
        columns = [curve.resampled[:, at] for curve, at in chosen if curve.resampled is not None]
        all_resampled = len(columns) == len(chosen)
        signed = [curve.signed_errors[at] for curve, at in chosen if curve.signed_errors is not None]
        yield replace(
            curves[0],
            name=f"best {score} head",
            steps=np.array(sorted(largest)),
            tokens=np.array([int(curve.tokens[at]) for curve, at in chosen]),
            values=np.array([float(curve.values[at]) for curve, at in chosen]),
            resampled=np.stack(columns, axis=1) if all_resampled else None,
            signed_errors=np.array(signed) if signed else None,
            uncertainty=curves[0].uncertainty if all_resampled else "none",
            among=len(curves),
            layer=None,
            head=None,
            leading=False,
        )


def metric_curves(store: Store, model: str, config: ComparisonConfig) -> Iterator[Curve]:
    """Every metric of every task on clean prompts; the primary one is leading.

    A UserError if a table holds NaN, as versions wrote that measured diverged checkpoints.
    """
    for number, task in enumerate(store.tasks("task_performance", model), start=1):
        table = store.read_tables("task_performance", model, task)
        if len(bad := table[table["value"].isna()]):
            folder, broken = store.folder("task_performance", model, task), bad["metric"].iloc[0]
            path = folder.file(int(bad["step"].iloc[0]))
            raise UserError(f"{path}: holds NaN for {broken}; delete it, and run: {folder.how_to_make()}")
        clean = table[table["run"] == "clean"]
        primary = clean["metric"].iloc[0]  # Tables begin with it.
        for metric, rows in clean.sort_values("step").groupby("metric", sort=True):
            steps, tokens, values = _points(rows)
            curve = Curve(model, f"{task} {metric}", "metric", str(metric), steps, tokens, values, task=task)
            errors = rows["se"].to_numpy(dtype=float)
            if not np.isnan(errors).any():  # One prompt has no error.
                resampled = normal_resamples(values, errors, config.seed + 100_000 * number, config.resamples)
                curve = replace(curve, resampled=resampled, uncertainty="standard errors")
            yield replace(curve, chance=GUESSED.get(str(metric), 0.0), leading=primary == metric)


def circuit_curves(trajectory: Trajectory, reference: int, size: int, config: ComparisonConfig) -> Iterator[Curve]:
    """Similarity of a task's circuit to the reference at a fixed size, whether there is a circuit, and its edges.

    Resampled circuits are compared with a reference from another draw of prompts, and the value at the reference is the
    mean of those: an emerging circuit is held against what a redraw of the final one would score, not against itself.
    """
    task, checkpoints = trajectory.task, list(trajectory.checkpoints.values())
    edges = Edges.all_of(trajectory.graph)
    observed = torch.stack([grown(at, size).flatten()[edges.flat] for at in checkpoints])
    resampled = []
    of_reference = redrawn(trajectory.checkpoints[reference], size, config, edges)
    for at in checkpoints:
        circuits = of_reference if at.step == reference else redrawn(at, size, config, edges)
        resampled.append(jaccard(circuits, of_reference.roll(1, 0)).numpy())
    n_edges, row = observed.sum(dim=1).tolist(), trajectory.steps.index(reference)
    chance = np.nanmean([expected_jaccard(n, n_edges[row], len(edges.flat)) for n in n_edges])
    values = jaccard(observed, observed[row].expand_as(observed)).numpy()
    values[row] = resampled[row].mean()
    points = np.array(trajectory.steps), np.array([at.tokens for at in checkpoints]), values
    plain = Curve(trajectory.model, f"{task} circuit similarity", "circuit", "similarity", *points, task=task)
    of_folds = np.stack(resampled, axis=1)
    yield replace(plain, resampled=of_folds, uncertainty="folds", chance=float(chance), leading=True)
    found = [float(at.size is not None) for at in checkpoints]
    sizes = [at.circuit.n_edges if at.size is not None else np.nan for at in checkpoints]
    for score, of_score in {"found": found, "n_edges": sizes}.items():
        yield replace(plain, name=f"{task} circuit {score}", score=score, values=np.array(of_score, dtype=float))


def _points(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, tokens (steps where nobody knows them) and values of a curve's rows."""
    tokens = rows["tokens"].fillna(rows["step"])
    return rows["step"].to_numpy(), tokens.to_numpy(), rows["value"].to_numpy(dtype=float)


def _head_tables(store: Store, model: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Tables with `step, tokens, layer, head, value` and what is known of its error and of chance, by score."""
    columns = ["step", "tokens", "layer", "head", "value"]
    if model in store.models("components"):
        for score, table in store.read_tables("components", model).groupby("score", sort=False):
            yield str(score), table[[*columns, "se", "chance"]]
    if model in store.models("successor"):
        yield "succession", store.read_tables("successor", model)[[*columns, "pairs", "chance"]]
    if model in store.models("cspa"):
        table = store.read_tables("cspa", model).rename(columns={"score": "value", "score_se": "se"})
        yield "copy_suppression", table[[*columns, "se"]]
    if model in store.models("ioi_consistency_heads"):
        # Of a checkpoint at which no head was measured, this table has no row, and that of the levels has.
        measured = store.read_tables("ioi_consistency", model)[["step", "tokens"]].drop_duplicates()
        heads = store.read_tables("ioi_consistency_heads", model)
        for level, table in heads.groupby("level", sort=False):
            effects = table.assign(signed=table["effect"], value=table["effect"].abs(), se=table["effect_se"])
            # A head that is not measured at a checkpoint has no effect there, exactly.
            grid = measured.merge(table[["layer", "head"]].drop_duplicates(), how="cross")
            filled = grid.merge(effects, on=columns[:-1], how="left")
            yield f"effect_{level}", filled[[*columns, "signed", "se"]].fillna({"value": 0.0, "signed": 0.0, "se": 0.0})
