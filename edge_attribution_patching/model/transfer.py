"""Many small tensors go to a device in one copy, and the processor waits for it once a stage.

A launch costs a GPU more than the arithmetic of a small kernel, and a wait costs more than either. So index tensors are
worked out on the CPU, where their sizes are known, and sent together (`to_device`); whether numbers are finite is asked
when a stage is over (`checked_at_the_end`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

T = TypeVar("T")

AHEAD = 2**26
"""Bytes that wait for a copy until others join them."""


class Movable:
    """What `to_device` looks into: its attributes that hold tensors go along."""


def to_device(what: T, device: torch.device) -> T:
    """The same with all of its tensors on a device: of tensors, lists, tuples, mappings and `Movable` objects.

    Those of one device go to another in one copy. Nobody waits for it, unless it goes to the CPU.
    """
    moving = [one for one in _tensors(what) if one.device != device]
    if not moving:
        return what
    if len({one.device for one in moving}) > 1 or (len(moving) == 1 and device.type == "cpu"):
        return _replaced(what, {id(one): one.to(device) for one in moving})
    parts, places, size = [], [], 0
    for one in moving:
        content = one.contiguous().reshape(-1).view(torch.uint8)
        if gap := -size % one.element_size():  # A number begins at a multiple of its size.
            parts.append(content.new_zeros(gap))
        parts.append(content)
        places.append(slice(size + gap, size + gap + len(content)))
        size += gap + len(content)
    joined = torch.cat(parts)
    if device.type == "cuda" and joined.device.type == "cpu":  # Else the copy would be waited for.
        joined = joined.pin_memory()
    there = joined.to(device, non_blocking=device.type != "cpu")
    return _replaced(
        what,
        {id(one): there[place].view(one.dtype).view(one.shape) for one, place in zip(moving, places, strict=True)},
    )


def sent_ahead(items: Iterable[T], device: torch.device) -> Iterator[T]:
    """The items with their tensors on a device, of which the next ones go along in one copy (`AHEAD`)."""
    waiting: list[T] = []
    size = 0
    for item in items:
        waiting.append(item)
        size += sum(one.nbytes for one in _tensors(item))
        if size >= AHEAD:
            yield from to_device(waiting, device)
            waiting, size = [], 0
    yield from to_device(waiting, device)


def _tensors(what: Any) -> Iterator[Tensor]:
    if isinstance(what, Tensor):
        yield what
    elif isinstance(what, (list, tuple)):
        for one in what:
            yield from _tensors(one)
    elif isinstance(what, Mapping):
        yield from _tensors(list(what.values()))
    elif isinstance(what, Movable):
        yield from _tensors(vars(what))


def _replaced(what: Any, moved: Mapping[int, Tensor]) -> Any:
    if isinstance(what, Tensor):
        return moved.get(id(what), what)
    if isinstance(what, (list, tuple)):
        return type(what)(_replaced(one, moved) for one in what)
    if isinstance(what, Mapping):
        return {name: _replaced(one, moved) for name, one in what.items()}
    if isinstance(what, Movable):
        new = copy.copy(what)
        vars(new).update(_replaced(vars(what), moved))
        return new
    return what


_UNASKED: ContextVar[list[tuple[str, str, Tensor]] | None] = ContextVar("_UNASKED", default=None)


def require_finite(largest: Mapping[str, Float[Tensor, ""]], dtype: torch.dtype) -> None:
    """Refuse what no number can come from: float16 overflows in some models.

    Args:
        largest: of places in the model, in order, the largest absolute value of what they give (`largest_of`).
        dtype: the model's number format.

    Raises:
        FloatingPointError: naming the first place that gives NaN or infinity, and the number format; where
            `checked_at_the_end` holds, when that ends.
    """
    asked = [(where, str(dtype).removeprefix("torch."), value) for where, value in largest.items()]
    if (waiting := _UNASKED.get()) is None:
        _moved_if_finite(asked)
    else:
        waiting += asked


def largest_of(x: Tensor) -> Float[Tensor, ""]:
    """The largest absolute value, float32 or better: NaN if any is NaN, infinite if any is."""
    precise = torch.promote_types(x.dtype, torch.float32)
    if x.is_cpu:  # There a norm takes twenty times as long; elsewhere it is one kernel.
        low, high = x.detach().aminmax()
        return torch.maximum(-low, high).to(precise)
    return torch.linalg.vector_norm(x.detach(), torch.inf, dtype=precise)


@contextmanager
def checked_at_the_end() -> Iterator[None]:
    """Inside, `require_finite` asks nothing; all of it is asked at the end, with one wait."""
    if _UNASKED.get() is not None:  # Whoever is around this asks.
        yield
        return
    asked: list[tuple[str, str, Tensor]] = []
    token = _UNASKED.set(asked)
    try:
        yield
    finally:
        _UNASKED.reset(token)
    _moved_if_finite(asked)


def to_cpu(what: T) -> T:
    """Numbers on the CPU, as `to_device`. Whatever `checked_at_the_end` has still to ask comes in the same copy."""
    waiting = _UNASKED.get() or []
    asked = list(waiting)
    waiting.clear()
    return _moved_if_finite(asked, what)


def _moved_if_finite(asked: list[tuple[str, str, Tensor]], what: Any = None) -> Any:
    """`what` on the CPU, in one copy with what is asked about."""
    what, values = to_device((what, [value for *_, value in asked]), torch.device("cpu"))
    finite = [math.isfinite(value) for value in values]
    if not all(finite):
        where, of_model, _ = asked[finite.index(False)]
        raise FloatingPointError(f"{where} gives NaN or infinity in {of_model}")
    return what
