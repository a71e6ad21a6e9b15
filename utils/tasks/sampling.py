"""Seeded draws of distinct prompts from all that a task can make, balanced over its kinds of prompts.

A task numbers its prompts. There are groups that alternate (ABBA and BABA, singular and plural); in each group there
are strata that come equally often (templates, structures); and in each stratum there are the prompts 0 .. size - 1. A
draw depends on the seed and these sizes alone, in every process. The first k of n draws are the k draws of that seed.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import chain, count, zip_longest

from ..base.errors import UserError


class TooFewPrompts(UserError):
    """A task can make only `total` prompts."""

    def __init__(self, message: str, task: str = "", total: int = 0) -> None:
        self.task, self.total = task, total
        super().__init__(message)


def seeded(*key: object) -> random.Random:
    """A random generator for a key such as a task and a seed: another key, another generator, in every process."""
    return random.Random(" ".join(map(str, key)))


def shuffled(size: int, generator: random.Random) -> Iterator[int]:
    """The numbers 0 .. size - 1 in random order (Fisher-Yates). Takes memory only for the numbers that are used."""
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        pick = generator.randrange(last + 1)
        yield moved.get(pick, pick)
        moved[pick] = moved.pop(last, last)


def draw(task: str, groups: Sequence[Sequence[int]], n: int, seed: int) -> list[tuple[int, int, int]]:
    """Draw n distinct prompts: (group, stratum, number) of each.

    Each round takes one prompt from every stratum that has any left: groups take turns, strata come in random order.
    `groups` says how many prompts each stratum of each group has. `task` names the task in errors, and keeps its draws
    apart from those of other tasks. It is a UserError if n is not positive, or there are fewer than n prompts.
    """
    total = sum(chain.from_iterable(groups))
    if n < 1:
        raise UserError(f"n_prompts: {n} prompts of {task} asked for; ask for at least 1")
    if n > total:
        asked = f"n_prompts: {n} prompts of {task} asked for, but it can make only {total}"
        raise TooFewPrompts(f"{asked}; pass n_prompts={total}", task, total)
    order = seeded(task, seed, "order")
    streams = {
        (g, s): shuffled(size, seeded(task, seed, g, s))
        for g, sizes in enumerate(groups)
        for s, size in enumerate(sizes)
    }
    drawn: list[tuple[int, int, int]] = []
    for taken in count():  # prompts from each stratum
        if len(drawn) >= n:
            break
        left = [[(g, s) for s, size in enumerate(sizes) if size > taken] for g, sizes in enumerate(groups)]
        for strata in left:
            order.shuffle(strata)
        turns = (stratum for turn in zip_longest(*left) for stratum in turn if stratum is not None)
        drawn += [(g, s, next(streams[g, s])) for g, s in turns]
    return drawn[:n]


def draw_any(task: str, groups: Sequence[Sequence[int]], n: int, seed: int) -> list[tuple[int, int, int]]:
    """The same, drawn one by one as the study does: any group, any stratum, any prompt of it, also one drawn before."""
    generator = seeded(task, seed, "study")
    drawn = []
    for _ in range(n):
        group = generator.randrange(len(groups))
        stratum = generator.randrange(len(groups[group]))
        drawn.append((group, stratum, generator.randrange(groups[group][stratum])))
    return drawn


def unravel(number: int, sizes: Sequence[int]) -> list[int]:
    """The digits of a number in mixed radix, the last varying fastest: which word of each list a prompt has."""
    digits = []
    for size in reversed(sizes):
        number, digit = divmod(number, size)
        digits.append(digit)
    return digits[::-1]
