"""Heads on the page: scores at every checkpoint, roles with their first and last step, and what they attend to."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.tasks.registry import task_label

from ..parts.head_attention import HeadsSeen, heads_seen, matches_of
from ..parts.head_scores import SCORES, SINGLE, head_scores, score_label
from ..parts.roles import ROLES, role_look, roles_by_step
from ..parts.style import in_order, model_order
from ..parts.tables import Results, plain

# Bytes of JSON that what heads attend to may take of each model.
BUDGET = 1_000_000
# A role, what it means, the rows `step, layer, head` of heads that have it, and at how many steps that was measured.
RoleHolders = tuple[str, str, pd.DataFrame, int]


def head_records(results: Results) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One record for each model that has something to say about heads, smallest first; and what the roles mean.

    A role comes from the scores, from the IOI consistency results (the role that a head was found to play), or from a
    circuit that the head is in. Each has its first and last checkpoint, and the number of checkpoints with it.
    """
    scores = pd.DataFrame(columns=["model", "step", "tokens", "score", "layer", "head", "value"])
    if any(results.table_if_any(kind) is not None for kind in ("components", *SINGLE)):
        scores = head_scores(results)
    others = [*_by_effect(results), *_in_circuits(results)]
    meanings: dict[str, str] = {}
    records = []
    for model in model_order([*scores["model"], *(model for model, _ in others)]):
        own = scores[scores["model"] == model]
        roles = []
        for role, meaning, held, n_steps in [*_by_score(own), *(holders for name, holders in others if name == model)]:
            meanings[role] = meaning
            spans = held[["step", "layer", "head"]].drop_duplicates().groupby(["layer", "head"])["step"]
            for (layer, head), first, last, n in spans.agg(["min", "max", "size"]).astype(int).itertuples():
                at = {"first": first, "last": last, "n": n, "of": n_steps}
                roles.append({"head": (int(layer), int(head)), "role": role, **at})
        records.append(_record(model, own, roles, _held(results, model)) | {"matches": sound_matches(results, model)})
    return records, meanings


def _record(
    model: str, scores: pd.DataFrame, roles: list[dict[str, Any]], held: dict[int, dict[str, list[int]]]
) -> dict[str, Any]:
    named = {(int(layer), int(head)) for layer, head in scores[["layer", "head"]].drop_duplicates().to_numpy()}
    heads = sorted(named | {role["head"] for role in roles})
    place = {head: i for i, head in enumerate(heads)}
    columns = []
    for name in in_order(scores["score"], SCORES):
        part = scores[scores["score"] == name]
        steps = sorted(int(step) for step in part["step"].unique())
        values: list[list[Any]] = [[None] * len(heads) for _ in steps]
        row = {step: i for i, step in enumerate(steps)}
        for step, layer, head, value in part[["step", "layer", "head", "value"]].itertuples(index=False):
            values[row[int(step)]][place[int(layer), int(head)]] = plain(value)
        title, unit = score_label(name)
        columns.append({"key": name, "title": title, "unit": unit, "steps": steps, "values": values})
    rows = [role | {"head": place[role["head"]]} for role in roles]
    return {"model": model, "heads": heads, "scores": columns, "roles": rows, "held": held}


def _held(results: Results, model: str) -> dict[int, dict[str, list[int]]]:
    """Step -> head (`a3.h1`) -> the numbers in ROLES of the roles it holds in IOI. Steps not measured are absent."""
    table = results.table_if_any("ioi_consistency_heads")
    if table is None:
        return {}
    order = list(ROLES)
    by_step = roles_by_step(table[table["model"] == model])
    return {
        step: {head: [order.index(role) for role in roles if role in order] for head, roles in by_head.items()}
        for step, by_head in by_step.items()
    }


def sound_matches(results: Results, model: str) -> dict[str, str]:
    """Head -> its matches in other models; none if the table is damaged, which the figures of comparisons say."""
    try:
        return matches_of(results, model)
    except UserError:
        return {}


def _by_score(scores: pd.DataFrame) -> Iterator[RoleHolders]:
    """The roles of one model's heads by their scores."""
    for name, score in SCORES.items():
        part = scores[scores["score"] == name]
        if (part["value"] > score.threshold).any():
            yield score.role, score.meaning, part[part["value"] > score.threshold], part["step"].nunique()


def _in_circuits(results: Results) -> Iterator[tuple[str, RoleHolders]]:
    """By model the heads in circuits. A step without a circuit counts as measured."""
    if results.table_if_any("graphs") is None:
        return
    for (model, task), circuits in results.circuits().items():
        label, n_steps = task_label(task), len(results.store.folder("graphs", model, task).steps())
        ends = pd.concat(circuits).set_index("step")[["source", "target"]].stack()
        heads = ends.str.extract(r"^a(?P<layer>\d+)\.h(?P<head>\d+)").dropna().astype(int).reset_index("step")
        yield model, (f"in {label} circuit", f"a node of the circuit found for {label}", heads, n_steps)


def _by_effect(results: Results) -> Iterator[tuple[str, RoleHolders]]:
    """By model the heads of the first kind of result whose tables name the role of a head (`layer, head, role`).

    Another kind about the same roles would give each of them a second row.
    """
    told = set[str]()
    for kind in KINDS:
        table = results.table_if_any(kind)
        if table is None or not {"layer", "head", "role"} <= set(table.columns):
            continue
        for model in sorted({*table["model"]} - told):
            told.add(model)
            rows = table[table["model"] == model]
            n_steps = len(results.store.folder(kind, model).steps()) or rows["step"].nunique()
            held = rows.dropna(subset=["role", "layer", "head"])
            if "passes" in held:
                # A head that was not tested has no verdict, and keeps its role.
                held = held[held["passes"].map(lambda verdict: str(verdict).lower() not in ("false", "0", "0.0"))]
            for name, of_role in held.groupby("role", sort=False):
                meaning = f"found to play this role by its effect, and passed the role's tests (results/{kind})"
                yield model, (f"{role_look(str(name))[0]} (by effect)", meaning, of_role, n_steps)


def attention_records(results: Results, model: str) -> dict[str, dict[str, Any]]:
    """By task, as much as fits into the budget: `seen`, some checkpoints in order, and `measured`, how many there are.

    Of few checkpoints all are there, else every second, fourth, ... from the last; of a last one that is too large by
    itself the heads that move a token the most, and `without`, how many are left out.
    """
    by_task = {task: heads_seen(results, model, task) for task in results.tasks("attention", model)}
    records = {task: [_seen_record(step, seen) for step, seen in by_step.items()] for task, by_step in by_task.items()}
    stride = 1
    while (kept := {task: of_task[::-stride][::-1] for task, of_task in records.items()}) and _size(kept) > BUDGET:
        if all(len(of_task) < 2 for of_task in kept.values()):
            room = BUDGET // len(kept)
            kept = {task: [_fitting(one, room) for one in of_task] for task, of_task in kept.items()}
            break
        stride *= 2
    return {task: {"seen": seen, "measured": len(records[task])} for task, seen in kept.items() if seen}


def _seen_record(step: int, seen: HeadsSeen) -> dict[str, Any]:
    """A checkpoint; attention in steps of 1/255, row by row, in base64."""
    heads = {}
    for head, rows in seen.patterns.items():
        shares = bytes(round(255 * min(max(share, 0), 1)) for row in rows for share in row)
        moved = [[text, plain(float(f"{effect:.3g}"))] for text, effect in seen.moved[head]]
        heads[head] = [base64.b64encode(shares).decode(), moved]
    return {"step": step, "tokens": seen.tokens, "prompt": seen.prompt, "heads": heads, "without": 0}


def _fitting(record: dict[str, Any], room: int) -> dict[str, Any]:
    """A checkpoint with as many of its heads as fit."""
    heads = dict(record["heads"])
    while heads and _size(record | {"heads": heads}) > room:
        for name in list(heads)[-max(1, len(heads) // 20) :]:
            del heads[name]
    return record | {"heads": heads, "without": len(record["heads"]) - len(heads)}


def _size(what: Any) -> int:
    return len(json.dumps(what, ensure_ascii=False).encode())
