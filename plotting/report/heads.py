"""The head table: every head's scores at every checkpoint, and the roles it plays with their first and last step."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.tasks.registry import task_label

from ..parts.circuit_layout import level
from ..parts.head_scores import SCORES, SINGLE, head_scores, in_order, score_label
from ..parts.roles import ROLES, role_look, roles_by_step
from ..parts.style import model_order
from ..parts.tables import Results
from .cells import plain

Head = tuple[int, int]
# Model -> (role, meaning) -> step measured -> heads that have the role.
RoleHolders = dict[str, dict[tuple[str, str], dict[int, set[Head]]]]


def head_records(results: Results) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One record for each model that has something to say about heads, smallest first; and what the roles mean.

    A role comes from the scores, from the IOI consistency results (the role that a head was found to play), or from a
    circuit that the head is in. Each has its first and last checkpoint, and the number of checkpoints with it.
    """
    measured = [kind for kind in ("components", *SINGLE) if results.table_if_any(kind) is not None]
    scores = pd.DataFrame(columns=["model", "step", "tokens", "score", "layer", "head", "value"])
    if measured:
        scores = head_scores(results)
    in_circuits, by_effect = _in_circuits(results), _by_effect(results)
    models = model_order([*scores["model"], *in_circuits, *by_effect])
    meanings: dict[str, str] = {}
    records = []
    for model in models:
        own = scores[scores["model"] == model]
        roles = _score_roles(own, meanings)
        for (role, meaning), by_step in [*by_effect.get(model, {}).items(), *in_circuits.get(model, {}).items()]:
            roles += _spans(role, by_step)
            meanings[role] = meaning
        records.append(_record(model, own, roles, _held(results, model)))
    return records, meanings


def _record(
    model: str, scores: pd.DataFrame, roles: list[dict[str, Any]], held: dict[int, dict[str, list[int]]]
) -> dict[str, Any]:
    named = {(int(layer), int(head)) for layer, head in scores[["layer", "head"]].drop_duplicates().to_numpy()}
    heads = sorted(named | {tuple(role["head"]) for role in roles})
    place = {head: i for i, head in enumerate(heads)}
    columns = []
    for name in in_order(scores["score"]):
        part = scores[scores["score"] == name]
        steps = sorted(int(step) for step in part["step"].unique())
        values: list[list[Any]] = [[None] * len(heads) for _ in steps]
        row = {step: i for i, step in enumerate(steps)}
        for step, layer, head, value in part[["step", "layer", "head", "value"]].itertuples(index=False):
            values[row[int(step)]][place[int(layer), int(head)]] = plain(value)
        title, unit = score_label(name)
        columns.append({"key": name, "title": title, "unit": unit, "steps": steps, "values": values})
    rows = [role | {"head": place[tuple(role["head"])]} for role in roles]
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


def _spans(role: str, by_step: dict[int, set[Head]]) -> list[dict[str, Any]]:
    """A row per head that ever has the role, from the heads that have it at each measured step."""
    rows = []
    for head in sorted(set().union(*by_step.values())):
        steps = sorted(step for step, heads in by_step.items() if head in heads)
        rows.append(
            {"head": head, "role": role, "first": steps[0], "last": steps[-1], "n": len(steps), "of": len(by_step)}
        )
    return rows


def _score_roles(scores: pd.DataFrame, meanings: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    for name, score in SCORES.items():
        part = scores[scores["score"] == name]
        above = part[part["value"] > score.threshold]
        by_step = {int(step): _heads(above[above["step"] == step]) for step in part["step"].unique()}
        spans = _spans(score.role, by_step) if by_step else []
        if spans:
            meanings[score.role] = score.meaning
        rows += spans
    return rows


def _heads(rows: pd.DataFrame) -> set[Head]:
    return {(int(layer), int(head)) for layer, head in rows[["layer", "head"]].to_numpy()}


def _in_circuits(results: Results) -> RoleHolders:
    """Heads in circuits. A step without a circuit counts as measured."""
    if results.table_if_any("graphs") is None:
        return {}
    by_pair = results.circuits()
    members: RoleHolders = {}
    for (model, task), circuits in by_pair.items():
        role = (f"in {task_label(task)} circuit", f"a node of the circuit found for {task_label(task)}")
        steps = results.store.folder("graphs", model, task).steps()
        members.setdefault(model, {})[role] = {
            step: _heads_among([*circuits[step]["source"], *circuits[step]["target"]]) if step in circuits else set()
            for step in steps
        }
    return members


def _heads_among(ends: Iterable[str]) -> set[Head]:
    nodes = {end.partition("<")[0] for end in ends}
    return {(level(node)[0], int(node.partition(".h")[2])) for node in nodes if ".h" in node}


def _by_effect(results: Results) -> RoleHolders:
    """Heads by role, from every kind of result whose tables name the role of a head (`layer, head, role`)."""
    roles: RoleHolders = {}
    for kind in KINDS:
        table = results.table_if_any(kind)
        if table is None or not {"layer", "head", "role"} <= set(table.columns):
            continue
        for model in table["model"].unique():
            rows = table[table["model"] == model]
            steps = results.store.folder(kind, model).steps() or [int(step) for step in rows["step"].unique()]
            held = rows.dropna(subset=["role", "layer", "head"])
            if "passes" in held:
                # A head that was not tested has no verdict, and keeps its role.
                held = held[held["passes"].map(lambda verdict: str(verdict).lower() not in ("false", "0", "0.0"))]
            for name in held["role"].unique():
                of_role = held[held["role"] == name]
                by_step = {step: _heads(of_role[of_role["step"] == step]) for step in steps}
                role = f"{role_look(str(name))[0]} (by effect)"
                key = (role, f"found to play this role by its effect, and passed the role's tests (results/{kind})")
                roles.setdefault(str(model), {})[key] = by_step
    return roles
