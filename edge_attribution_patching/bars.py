"""A bar for what takes long within one measurement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

DELAY = 3.0
"""Seconds after which a bar appears: what is over sooner needs none."""


def bar(items: Iterable[T], what: str) -> Iterable[T]:
    """The items, with a bar below the sweep's own while they are worked on; none where stderr is no terminal."""
    watched: Iterable[T] = tqdm(items, desc=f"  {what}", leave=False, delay=DELAY, disable=None, dynamic_ncols=True)
    return watched
