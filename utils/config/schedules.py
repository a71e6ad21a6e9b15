"""Which training steps are published, and which of them a schedule picks.

Pythia publishes 154 steps: 0, 1, 2, 4, ..., 512, 1000, 2000, ..., 143000 (Biderman et al. 2023, arXiv 2304.01373), each
2,097,152 tokens. The named schedules are those of the published runs (Tigges et al. 2024); docs/models.md lists them.
For other families the same rules hold, with the usual gap between later steps (1000 for Pythia) as the unit and
the nearest published step in place of a missing one. The last step is in all but the study's.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence

from ..base.errors import UserError, suggest

PYTHIA_STEPS: tuple[int, ...] = (0, *(2**i for i in range(10)), *range(1000, 143_001, 1000))
TOKENS_PER_STEP = 2_097_152


def tokens_at(step: int, tokens_per_step: int = TOKENS_PER_STEP) -> int:
    """Tokens seen in training up to a step (Pythia's batch unless told otherwise)."""
    return step * tokens_per_step


def _exp_plus_detail(unit: int, last: int) -> Iterable[int]:
    early = [step for step in _powers(last) if step < unit]
    detail = (*range(1, 16), *range(20, 70, 5), *range(70, last // unit + 1, 10))
    return [*early, *(unit * i for i in detail)]


def _sparse(unit: int, last: int) -> Iterable[int]:
    early = [step for step in _powers(last) if step < unit][-2:]
    late = (*range(1, 10), *range(10, 50, 5), *range(50, 100, 10), *range(100, last // unit + 1, 20))
    return [*early, *(unit * i for i in late)]


def _powers(last: int) -> list[int]:
    return [2**i for i in range(max(last, 1).bit_length())]


# (unit, last step) -> the steps that a schedule wants, whether they are published or not.
_WANTED: dict[str, Callable[[int, int], Iterable[int]]] = {
    "linear": lambda unit, last: range(unit, last + 1, unit),
    "exponential": lambda unit, last: _powers(last),
    "exp_plus_detail": _exp_plus_detail,
    "sparse": _sparse,
    "late_start_all": lambda unit, last: range(4 * unit, last + 1, unit),
}
# The study's own (Tigges et al. 2024) leave out the last checkpoint.
_STUDY = {f"{name}_study": _WANTED[name] for name in ("exponential", "exp_plus_detail")}
_WANTED |= _STUDY
SCHEDULES: tuple[str, ...] = ("all", *_WANTED)


def select_steps(
    schedule: str | list[int], there: Sequence[int], model: str, within: str = "published for", key: str = "checkpoints"
) -> list[int]:
    """The steps to measure, by a schedule or a list: sorted, unique, and among those that are `there`.

    It is a UserError, which names the model and the config's `key`, if the schedule is unknown or a listed step is not
    published.
    """
    steps = sorted(set(there))
    if not steps:
        raise UserError(f"model: {model} has no checkpoints")
    if isinstance(schedule, str):
        return _named(schedule, steps, key)
    for step in schedule:
        if step not in steps:
            nearest = ", ".join(str(near) for near in _neighbours(step, steps))
            raise UserError(f"{key}: step {step} is not {within} {model} (nearest: {nearest})")
    if not schedule:
        raise UserError(f"{key}: the list is empty; name a schedule or at least one step")
    return sorted(set(schedule))


def _named(schedule: str, steps: list[int], key: str) -> list[int]:
    if schedule == "all":
        return steps
    if schedule not in _WANTED:
        raise UserError(f"{key}: '{schedule}' is not a schedule{suggest(schedule, SCHEDULES)}")
    last = steps[-1]
    wanted = [step for step in _WANTED[schedule](_unit(steps), last) if step <= last]
    nearest = (min(_neighbours(step, steps), key=lambda near: abs(near - step)) for step in wanted)
    found = set(nearest)
    return sorted(found if found and schedule in _STUDY else {*found, last})


def _unit(steps: list[int]) -> int:
    """The usual gap between steps in the second half of training: a median, so a missing checkpoint does not matter."""
    gaps = [after - before for before, after in itertools.pairwise(steps) if 2 * after > steps[-1]]
    return statistics.median_low(gaps) if gaps else max(steps[-1], 1)


def _neighbours(step: int, steps: list[int]) -> list[int]:
    at = bisect.bisect_left(steps, step)
    return steps[max(at - 1, 0) : at + 1]
