"""Made-up tables of comparisons, with the columns that real ones have, for the tests of figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from circuits_over_time.utils.comparison.lifetimes import lifetimes, turnover
from circuits_over_time.utils.results.comparison import COMPARISONS, ComparisonFolder
from circuits_over_time.utils.results.store import Store

STEPS = (0, 1, 8, 64, 512, 4000)
TOKENS_PER_STEP = 2**21
TASKS = ("ioi", "sva")
CHANGED_AT = (64, 512)
EMERGED = {"induction a1.h5": 2, "sva prob_diff": 3, "ioi circuit similarity": 0, "ioi circuit found": 4}
"""Curve -> place of the first checkpoint of its crossing."""
NEVER = "crosses its level at fewer than 2 checkpoints in a row"


def write_comparison(store: Store, models: Sequence[str] = ("toy",), group: str | None = None) -> ComparisonFolder:
    """The tables that figures read. With a group the models are its seeds."""
    folder = ComparisonFolder(store.root)
    similarity = pd.concat([_similarity(model, shift) for shift, model in enumerate(models)], ignore_index=True)
    if group:
        pairs = [(one, other) for place, one in enumerate(models) for other in models[place + 1 :]]
        between = [_between(*pair, shift) for shift, pair in enumerate(pairs)]
        similarity = pd.concat([similarity, *between], ignore_index=True)
    curves = pd.concat([_curves(model, shift) for shift, model in enumerate(models)], ignore_index=True)
    emergence = pd.concat([_emergence(model, shift) for shift, model in enumerate(models)], ignore_index=True)
    seeds, over_seeds = pd.DataFrame(), pd.DataFrame()
    if group:
        common = curves[~curves["curve"].str.contains(".h", regex=False)]
        grouped = common.groupby(["curve", "step", "tokens"])["value"]
        seeds = grouped.agg(n_seeds="count", median="median", lowest="min", highest="max")
        seeds = seeds.assign(lower_quartile=grouped.quantile(0.25), upper_quartile=grouped.quantile(0.75)).reset_index()
        seeds = seeds.assign(group=group)
        shape = {"group": group, "curve": "sva prob_diff", "n_seeds": len(models), "shape": "not shown to be abrupt"}
        over_seeds = pd.DataFrame([shape])
    tables = {"similarity": similarity, "curves": curves, "emergence": emergence}
    turned, lived = zip(*(_edges(model, task) for model in models for task in TASKS), strict=True)
    tables |= {"turnover": pd.concat(turned, ignore_index=True), "lifetimes": pd.concat(lived, ignore_index=True)}
    tables |= {
        name: pd.concat([make(model) for model in models], ignore_index=True)
        for name, make in (("order", _order), ("handovers", _handovers))
    }
    tables |= {"seeds": seeds, "seed_emergence": over_seeds}
    for name, table in tables.items():
        tables[name] = table.reindex(columns=list(COMPARISONS[name]))
    folder.write_all(tables, {"config": {"seeds": {group: list(models)} if group else None}})
    return folder


def _row(step: int, task: str, at: str, shift: float) -> dict[str, object]:
    place = STEPS.index(step)
    value = 0.1 + 0.12 * place + 0.02 * shift
    row = {"task": task, "step": step, "tokens": step * TOKENS_PER_STEP, "at": at, "measure": "edge_jaccard"}
    floors = {"noise_floor": 0.8, "noise_low": 0.6, "noise_high": 0.9, "chance_floor": 0.05}
    changed = step in CHANGED_AT
    flags = {"p_value": 0.001 if changed else 0.5, "q_value": 0.004 if changed else 0.5, "changed": changed}
    return row | {"value": value} | floors | flags | {"n_edges": 40, "other_n_edges": 42}


def _similarity(model: str, shift: float) -> pd.DataFrame:
    rows = []
    for task in TASKS:
        for at, start in (("faithfulness", 3), ("size", 0)):
            for before, step in zip(STEPS[start:], STEPS[start + 1 :], strict=False):
                rows.append(_row(step, task, at, shift) | {"against": "previous", "other_step": before})
            last = {"against": "reference", "other_step": STEPS[-1]}
            rows += [_row(step, task, at, shift + 1) | last for step in STEPS[start:]]
    return pd.DataFrame(rows).assign(model=model, other_model=model)


def _between(one: str, other: str, shift: float) -> pd.DataFrame:
    rows = [_row(step, task, "size", shift) | {"other_step": step} for task in TASKS for step in STEPS]
    return pd.DataFrame(rows).assign(model=other, other_model=one, against="model")


def _stamp(curve: str) -> dict[str, object]:
    task, _, score = curve.partition(" ")
    if task in TASKS:
        kind = "circuit" if score.startswith("circuit ") else "metric"
        return {"curve": curve, "kind": kind, "score": score.removeprefix("circuit "), "task": task}
    if task == "best":
        return {"curve": curve, "kind": "head", "score": "induction"}
    layer, head = (int(number) for number in score.removeprefix("a").split(".h"))
    return {"curve": curve, "kind": "head", "score": task, "layer": layer, "head": head}


def _curves(model: str, shift: int) -> pd.DataFrame:
    steps = np.array(STEPS)
    frames = []
    for curve in (*EMERGED, "induction a0.h1", "sva accuracy", "best induction head"):
        middle = EMERGED.get(curve, 3) + 0.3 * shift
        frame = pd.DataFrame({"step": steps, "tokens": steps * TOKENS_PER_STEP})
        values = 1 / (1 + np.exp(-2 * (np.arange(len(steps)) - middle)))
        frames.append(frame.assign(value=values, model=model, uncertainty="none", **_stamp(curve)))
    return pd.concat(frames, ignore_index=True)


def _emergence(model: str, shift: int) -> pd.DataFrame:
    rows = []
    for curve, first in EMERGED.items():
        place = min(first + shift % 2, len(STEPS) - 1) if first else first
        row = {"model": model, "maximum": 0.9, "level": 0.45, "share_emerged": 0.9, "uncertainty": "folds"}
        row |= {"step": STEPS[place], "tokens": STEPS[place] * TOKENS_PER_STEP}
        if place > 0:
            row |= {"after_step": STEPS[place - 1], "low_step": STEPS[max(place - 2, 0)]}
        row |= {"high_step": STEPS[place + 1]} if place + 1 < len(STEPS) - 1 else {}
        rows.append(row | ({"uncertainty": "none"} if curve.endswith("found") else {}) | _stamp(curve))
    weak = {"model": model, "maximum": 0.5, "level": 0.25, "step": 1, "after_step": 0, "uncertainty": "none"}
    rows.append(weak | _stamp("induction a0.h1"))
    rows.append({"model": model, "maximum": 0.6, "reason": NEVER, "uncertainty": "none"} | _stamp("sva accuracy"))
    return pd.DataFrame(rows)


def edges_over_time(steps: Sequence[int], present: np.ndarray, model: str, task: str) -> tuple[pd.DataFrame, ...]:
    """`turnover` and `lifetimes` of both sizes, from which edges each circuit has, of shape [checkpoint, edge]."""
    stamp = {"model": model, "task": task}
    tokens = [step * TOKENS_PER_STEP for step in steps]
    turned, lived = turnover(present).assign(step=steps, tokens=tokens), lifetimes(present, steps)
    lived = lived.assign(source=[f"m{edge}" for edge in lived["edge"]], target="logits")
    tables = []
    for name, table in (("turnover", turned), ("lifetimes", lived)):
        both = [table.assign(**stamp, at=at) for at in ("faithfulness", "size")]
        tables.append(pd.concat(both, ignore_index=True).reindex(columns=list(COMPARISONS[name])))
    return tables[0], tables[1]


def _edges(model: str, task: str) -> tuple[pd.DataFrame, ...]:
    """Edges of which some come, return, go for a while and die; sva never has one as it is found."""
    present = np.random.default_rng(len(model)).random((len(STEPS), 30)) < np.linspace(0, 0.7, len(STEPS))[:, None]
    tables = edges_over_time(STEPS, present, model, task)
    return tables if task == TASKS[0] else tuple(table[table["at"] == "size"] for table in tables)


def _order(model: str) -> pd.DataFrame:
    rows = []
    for place, first in enumerate(EMERGED):
        for second in list(EMERGED)[place + 1 :]:
            before = 0.9 if EMERGED[first] < EMERGED[second] else 0.05
            row = {"model": model, "first": first, "second": second, "share_before": before}
            rows.append(row | {"share_same": 0.02, "share_after": 0.98 - before})
    return pd.DataFrame(rows)


def _handovers(model: str) -> pd.DataFrame:
    """As the heads of `synthetic_results.write_all` hand their roles over."""
    rows = [
        (model, "name_mover", 512, 4000, "a3.h1", "a3.h4", 0.0, -0.9, 0.97),
        (model, "induction", 512, 4000, "a1.h3", "a1.h5", 0.0, -0.9, 0.6),
    ]
    return pd.DataFrame(rows, columns=list(COMPARISONS["handovers"]))
