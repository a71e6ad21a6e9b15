"""A pretended accelerator: tensors "on" it are held by the CPU, and everything that a real one would do is counted.

PyTorch lets Python register a back-end under a new device name. Each tensor on it wraps a tensor of the CPU. Operations
unwrap, call the CPU's kernel and wrap again, so results are the CPU's to the last bit. Operations that mix devices are
refused, as CUDA refuses them, and on request float64 is too, as on Apple's GPUs.

What is counted is what costs time on a real device when kernels are small: kernels, waits of the processor for the
device (`.item()`, a copy to the CPU, a shape that depends on values) and copies between the two.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from .live_bytes import Live

NAME = "pretend"
aten = torch.ops.aten
# The shape of the result depends on the values, so the processor must wait for them.
SHAPE_FROM_VALUES = {
    aten.nonzero.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.unique_dim.default,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Memory is taken, or a shape is written anew: no kernel starts.
NO_KERNEL = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
    aten.lift_fresh.default,
    aten.resize_.default,
    aten.set_.source_Storage_storage_offset,
}


class OnDevice(Tensor):
    """A tensor on one of the pretended devices.

    PyTorch's autograd has a queue for the first alone, so PyTorch is told that all tensors are there. Which one it
    really is, `device` says.
    """

    held: Tensor
    anywhere = False

    @staticmethod
    def __new__(cls, held: Tensor, where: torch.device) -> "OnDevice":
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device(),
        )

    def __init__(self, held: Tensor, where: torch.device) -> None:
        self.held, self._where = held, where

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._where

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"on {NAME}: {self.held!r}"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{function} reached the {NAME} device outside of `pretended_device()`")


class Module(backend_registration._DummyBackendModule):
    """What `torch.<NAME>` is. It draws nothing, but `torch.random.fork_rng` asks every device for its state."""

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


@cache
def _register() -> None:
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())


def device(index: int = 0) -> torch.device:
    """The first or the second device. They are registered with PyTorch when one is first asked for."""
    _register()
    return torch.device(NAME, index)


def is_view(function: Any) -> bool:
    """Whether it returns a view: memory of an argument that it does not write."""
    returned = function._schema.returns
    return bool(returned) and all(one.alias_info is not None and not one.alias_info.is_write for one in returned)


@dataclass
class Counts:
    """What was asked of the device.

    Attributes:
        moved: bytes copied between the first device and the second.
        by_name: kernels by operation, and waits by what is waited for, to see where they come from.
    """

    kernels: int = 0
    waits: int = 0
    transfers: int = 0
    moved: int = 0
    by_name: Counter[str] = field(default_factory=Counter)

    def kernel(self, name: str) -> None:
        self.kernels += 1
        self.by_name[name] += 1

    def wait(self, name: str) -> None:
        self.waits += 1
        self.by_name[f"wait: {name}"] += 1


class Counting(TorchDispatchMode):
    """Runs what is asked of the device on the CPU, and counts (`counts`).

    Attributes:
        live: the bytes on either device.
    """

    counts: Counts

    def __init__(self, float64: bool) -> None:
        super().__init__()
        self._float64 = float64
        self.live = Live(), Live()
        self.restart()

    def restart(self) -> "Counts":
        """The counts so far; they begin again at zero."""
        found = getattr(self, "counts", Counts())
        self.counts = Counts()
        return found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        here = [one for one in tensors if isinstance(one, OnDevice)]
        target = kwargs.get("device")
        target = None if target is None else torch.device(target)
        # Zeros that autograd fills up with are said to be on the first, and may be on either.
        zeros = not here and torch._C._current_graph_task_id() != -1
        placed = [one for one in here if not one.anywhere] or here
        if here and target is not None and target.type == NAME:
            target = placed[0].device  # What PyTorch says is the first; from one device to another it is a `Move`.
        if not here and (target is None or target.type != NAME):
            return function(*args, **kwargs)
        moved = self._moved(function, args, kwargs, here, target)
        if moved is None:
            self._refuse_mixed(function, placed, tensors)
        held_args, held_kwargs = pytree.tree_map_only(OnDevice, lambda one: one.held, (args, kwargs))
        if "device" in held_kwargs:
            held_kwargs["device"] = torch.device("cpu")
        result = function(*held_args, **held_kwargs)
        if moved is None:
            self._count(function, args)
        elif moved.type == "cpu":
            return pytree.tree_map_only(Tensor, lambda one: one.clone() if one is held_args[0] else one, result)
        if function is aten._local_scalar_dense.default:
            return result
        where = moved or target or placed[0].device
        made = self._wrapped(function, result, args, held_args, where if where.index is not None else device())
        if zeros or (here and all(one.anywhere for one in here)):
            for one in pytree.tree_leaves(made):
                one.anywhere = True
        return made

    def between(self, x: OnDevice, where: torch.device) -> OnDevice:
        """A copy on another of the devices."""
        self.counts.transfers += 1
        self.counts.moved += x.nbytes
        return self._made(x.held.clone(), where)

    def _made(self, held: Tensor, where: torch.device) -> OnDevice:
        self.live[where.index].keep(held)
        return OnDevice(held, where)

    def _moved(
        self, function: Any, args: Any, kwargs: Any, here: list[OnDevice], target: torch.device | None
    ) -> torch.device | None:
        """Where a copy between devices goes, and counts it; None for anything else."""
        if function is aten._to_copy.default and target is not None:
            source, goes = args[0].device, target
        elif function is aten.copy_.default:
            goes, source = (one.device for one in args[:2])
        else:
            return None
        if goes == source:
            return None
        self.counts.transfers += 1
        if source.type == goes.type:
            self.counts.moved += args[1].nbytes
        # The processor waits for what it will read; what it sends it leaves to the driver.
        if goes.type == "cpu" and not kwargs.get("non_blocking", False):
            self.counts.wait("copy to the CPU")
        return goes

    def _refuse_mixed(self, function: Any, here: list[OnDevice], tensors: list[Tensor]) -> None:
        elsewhere = [one for one in tensors if not isinstance(one, OnDevice) and one.dim()]
        if here and elsewhere and function not in INDEXING:
            raise RuntimeError(f"{function}: tensors of {NAME} and of the CPU")
        if len({one.device for one in here}) > 1:
            raise RuntimeError(f"{function}: tensors of {NAME}:0 and of {NAME}:1")

    def _count(self, function: Any, args: Any) -> None:
        counts, name = self.counts, str(function)
        if function is aten._local_scalar_dense.default:
            counts.wait("one number")
            return
        if function in SHAPE_FROM_VALUES:
            counts.wait(name)
        if function in INDEXING:
            for one in filter(lambda index: index is not None, args[1]):
                # A mask has to be counted before its entries can be taken; an index on the CPU has to be copied.
                if one.dtype in (torch.bool, torch.uint8):
                    counts.wait("index by a mask")
                counts.transfers += not isinstance(one, OnDevice)
        if function not in NO_KERNEL and not is_view(function):
            counts.kernel(name)

    def _wrapped(self, function: Any, result: Any, args: Any, held_args: Any, where: torch.device) -> Any:
        """The result on the device; what was written in place is the tensor that was given."""
        given = {id(new): old for new, old in zip(pytree.tree_leaves(held_args), pytree.tree_leaves(args), strict=True)}

        def wrap(one: Tensor) -> Tensor:
            if isinstance(given.get(id(one)), OnDevice):
                return given[id(one)]
            if not self._float64 and one.dtype is torch.float64:
                raise TypeError(f"{function}: {NAME} has no float64")
            return self._made(one, where)

        return pytree.tree_map_only(Tensor, wrap, result)


class Silu(torch.autograd.Function):
    """SiLU with one backward kernel, as real devices have; PyTorch has a formula, with other roundings, for others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counting: Counting) -> Tensor:
        ctx.counting = counting
        ctx.save_for_backward(x)
        return aten.silu(x)

    @staticmethod
    def backward(ctx: Any, gradient: OnDevice) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        ctx.counting.counts.kernel("aten.silu_backward.default")
        return OnDevice(aten.silu_backward(gradient.held, x.held), x.device), None


class Move(torch.autograd.Function):
    """A copy from one of the pretended devices to the other, and of the gradient back."""

    @staticmethod
    def forward(ctx: Any, x: OnDevice, where: torch.device, counting: Counting) -> Tensor:
        ctx.back, ctx.counting = x.device, counting
        return counting.between(x, where)

    @staticmethod
    def backward(ctx: Any, gradient: OnDevice) -> tuple[Tensor, None, None]:
        return ctx.counting.between(gradient, ctx.back), None, None


class AsOnDevice(TorchFunctionMode):
    """What PyTorch does for wrapped tensors otherwise than for a real device.

    Tensors of Python numbers are made on the CPU and copied; PyTorch does so too, but where no dispatch sees the copy.
    """

    def __init__(self, counting: Counting) -> None:
        super().__init__()
        self._counting = counting

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor):
            target = kwargs.pop("device", None)
            made = function(*args, **kwargs)
            return made if target is None else made.to(target)
        if function is Tensor.new_tensor:
            source, *rest = args
            return torch.tensor(*rest, dtype=kwargs.pop("dtype", source.dtype), **kwargs).to(source.device)
        if getattr(function, "__name__", "") == "silu" and isinstance(args[0], OnDevice):
            return Silu.apply(args[0], self._counting)
        if function is Tensor.to and isinstance(args[1] if len(args) > 1 else None, Tensor):
            args = (args[0], args[1].device, args[1].dtype)
        if function is Tensor.to and isinstance(args[0], OnDevice):
            targets = [one for one in (*args[1:], kwargs.get("device")) if isinstance(one, (torch.device, str))]
            where = torch.device(targets[0]) if targets else args[0].device
            if where.type == NAME and where != args[0].device:
                args = (Move.apply(args[0], where, self._counting), *args[1:])
            # For PyTorch it is on the first.
            first = [device() if isinstance(one, (torch.device, str)) and where.type == NAME else one for one in args]
            kwargs |= {"device": device()} if "device" in kwargs and where.type == NAME else {}
            return function(*first, **kwargs)
        if function is torch.where and args[0].device == device(1):
            # PyTorch would make tensors of the numbers on the first.
            like = next(one for one in args[1:] if isinstance(one, Tensor))
            args = tuple(torch.full_like(like, one) if isinstance(one, int | float) else one for one in args)
        if function is Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()
        return function(*args, **kwargs)


@contextmanager
def pretended_device(float64: bool = True) -> Iterator[Counting]:
    """Inside, tensors can be moved to `device()`; counts what is done there.

    Args:
        float64: False refuses tensors of double precision, as Apple's GPUs do.
    """
    device()
    # In inference mode PyTorch goes past the wrapped tensors' own dispatch: gradients alone are turned off.
    without_grad = mock.patch.object(torch._C, "_InferenceMode", lambda on: torch.no_grad() if on else nullcontext())
    with without_grad, Counting(float64) as counting, AsOnDevice(counting):
        yield counting
