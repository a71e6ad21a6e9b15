"""Seeded draws of distinct prompts from a task's whole space, balanced over its kinds of prompts.

A task numbers its prompts: groups that must alternate (ABBA and BABA, singular and plural), in each group strata that
must come equally often (templates, structures), in each stratum the prompts 0 .. size - 1. Draws depend on the seed and
the sizes alone, in every process, and the first k of n draws are the k draws.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice, zip_longest

from utils.errors import UserError


def seeded(*key: object) -> random.Random:
    """A generator of its own for a key such as a task and a seed, the same in every process."""
    return random.Random(" ".join(map(str, key)))


def shuffled(size: int, generator: random.Random) -> Iterator[int]:
    """The numbers 0 .. size - 1 in random order (Fisher & Yates), in memory proportional to the numbers taken."""
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        pick = generator.randrange(last + 1)
        yield moved.get(pick, pick)
        moved[pick] = moved.pop(last, last)


def draw(task: str, groups: Sequence[Sequence[int]], n: int, seed: int) -> list[tuple[int, int, int]]:
    """Draw n distinct prompts.

    A round takes one prompt of every stratum that has any left, strata in random order, groups in turn.

    Args:
        task: names the task in errors and keeps its draws apart from other tasks'.
        groups: the number of prompts of each stratum of each group.
        n: number of prompts.
        seed: of the draw.

    Returns:
        (group, stratum, number) of each prompt, all different.

    Raises:
        UserError: if n is not positive or exceeds the number of prompts there are.
    """
    total = sum(chain.from_iterable(groups))
    if n < 1:
        raise UserError(f"n_prompts: {n} prompts of {task} asked for, at least 1 is needed")
    if n > total:
        raise UserError(f"n_prompts: {n} prompts of {task} asked for, at most {total} distinct ones exist")
    return list(islice(chain.from_iterable(_rounds(task, groups, seed)), n))


def _rounds(task: str, groups: Sequence[Sequence[int]], seed: int) -> Iterator[list[tuple[int, int, int]]]:
    order = seeded(task, seed, "order")
    streams = {
        (g, s): shuffled(size, seeded(task, seed, g, s))
        for g, sizes in enumerate(groups)
        for s, size in enumerate(sizes)
    }
    for taken in count():
        left = [[(g, s) for s, size in enumerate(sizes) if size > taken] for g, sizes in enumerate(groups)]
        if not any(left):
            return
        for strata in left:
            order.shuffle(strata)
        turns = (stratum for turn in zip_longest(*left) for stratum in turn if stratum is not None)
        yield [(g, s, next(streams[g, s])) for g, s in turns]


def unravel(number: int, sizes: Sequence[int]) -> list[int]:
    """The digits of a number in mixed radix, the last varying fastest: which word of each list a prompt holds."""
    digits = []
    for size in reversed(sizes):
        number, digit = divmod(number, size)
        digits.append(digit)
    return digits[::-1]
