"""What heads attend to and which tokens they move, as the page shows it when a head is clicked."""

import base64
import json
from typing import Any

from ..parts.head_attention import HeadsSeen, heads_seen
from ..parts.tables import Results
from .cells import plain

# Bytes of JSON that this may take of each model.
BUDGET = 1_000_000


def attention_records(results: Results, model: str) -> dict[str, dict[str, Any]]:
    """By task, as much as fits into the budget: `seen`, some checkpoints in order, and `measured`, how many there are.

    Of few checkpoints all are there, else every second, fourth, ... from the last; of a last one that is too large by
    itself the heads that move a token the most, and `without`, how many are left out.
    """
    by_task = {task: heads_seen(results, model, task) for task in results.tasks("attention", model)}
    records = {task: [_record(step, seen) for step, seen in by_step.items()] for task, by_step in by_task.items()}
    stride = 1
    while (kept := {task: of_task[::-stride][::-1] for task, of_task in records.items()}) and _size(kept) > BUDGET:
        if all(len(of_task) < 2 for of_task in kept.values()):
            room = BUDGET // len(kept)
            kept = {task: [_fitting(one, room) for one in of_task] for task, of_task in kept.items()}
            break
        stride *= 2
    return {task: {"seen": seen, "measured": len(records[task])} for task, seen in kept.items() if seen}


def _record(step: int, seen: HeadsSeen) -> dict[str, Any]:
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
