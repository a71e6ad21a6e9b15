"""The files that a checkpoint's weights are in, and what is in them."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import threading
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import CheckpointUnusable, UserError, is_out_of_memory, one_line, shortened
from ..base.files import what_it_is
from ..hub.download import FORMATS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ADAPTER = "adapter_config.json"
JOINED = 1 << 18
"""Tensors of fewer numbers go to a device in one copy."""
COPY = "copy or fetch that file again"
"""The way out of a damaged file. The others of its folder may be intact."""

# Names in one file, as torch.save users and Lightning write them.
_ONE_FILE = ("pytorch_model.pt", "model.pt", "model.pth", "*.ckpt")
# Where such a file keeps the tensors, if not at the top.
_NESTED = ("state_dict", "model_state_dict", "model", "module")
# What torch.compile, DDP, FSDP and activation checkpointing add to the names of what they wrap.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(\.\w+)")

TRAINING_FOLDERS: dict[str, list[dict[str, Any]]] = tomllib.loads(
    Path(__file__).with_name("training_folders.toml").read_text(encoding="utf-8")
)
"""What training libraries leave on disk: the folders that are read, and those that are refused by name."""


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint's files on disk."""

    folder: Path  # in `save_pretrained` format
    origin: dict[str, Any]  # `repository, revision, commit`; a local family has no commit, but a `fingerprint`
    hashes: Callable[[], dict[str, str]]  # hashes each weight file (SHA-256), or returns the known hashes


def weight_files(folder: Path) -> list[Path]:
    """The weights in a folder: an adapter's if it is one, else safetensors if there are any, else torch's own.

    It is a CheckpointUnusable if the folder holds no weights that can be read, or not all shards.
    """
    formats = (("adapter_model", "safetensors"), ("adapter_model", "bin")) if (folder / ADAPTER).is_file() else FORMATS
    for stem, ending in formats:
        if (whole := folder / f"{stem}.{ending}").is_file():
            return [whole]
        if (index := folder / f"{stem}.{ending}.index.json").is_file():
            return _present(folder, _listed(index))
        if shards := [shard for path in folder.glob(f"{stem}-*") if (shard := _SHARD.fullmatch(path.name))]:
            start, _, count, end = shards[0].groups()
            return _present(folder, [f"{start}-{n:0{len(count)}d}-of-{count}{end}" for n in range(1, int(count) + 1)])
    if not folder.is_dir():
        raise CheckpointUnusable(f"{folder}: is gone; run again once the checkpoint is there")
    if formats is not FORMATS:
        raise CheckpointUnusable(
            f"{folder}: {ADAPTER} is there, but no adapter_model.safetensors (it holds {contents(folder)}); {COPY}"
        )
    refusal = of_library(folder)
    if refusal is None or (folder / "config.json").is_file():
        for pattern in _ONE_FILE:
            if len(found := sorted(folder.glob(pattern))) == 1:
                return found
    if refusal is not None:
        raise CheckpointUnusable(refusal)
    raise CheckpointUnusable(
        f"{folder}: holds no weights (model.safetensors), only {contents(folder)}; copy them there, or "
        "leave the step out"
    )


def of_library(folder: Path) -> str | None:
    """Whose folder this is, if it is a training library's that is not read as it is: one line with the way out."""
    for one in TRAINING_FOLDERS["refused"]:
        if all(any(folder.glob(mark)) for mark in one["marks"]):
            first = min(folder.glob(one["marks"][0])).relative_to(folder)
            names = {"folder": folder, "parent": folder.parent, "name": folder.name, "file": first.parts[0]}
            return f"{folder}: is {one['library']}'s (it holds {first}); {one['way_out'].format(**names)}"
    return None


def contents(folder: Path) -> str:
    """What is in a folder, for errors."""
    return shortened(sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")), 5) or "nothing"


def _listed(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointUnusable(f"{index}: {what_it_is(index) or 'does not list shards'}; {COPY}") from None


def _present(folder: Path, names: list[str]) -> list[Path]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointUnusable(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(names)} shards); {COPY}")
    return [folder / name for name in names]


def plain_name(name: str) -> str:
    """A tensor's name without what wrappers of a training add to it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def read_files(
    folder: Path,
    stop: threading.Event | None = None,
    where: Callable[[str], torch.device] | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """All tensors in a folder's weight files by their plain names, copied into memory; a CheckpointUnusable if that
    fails.

    `stop`, once it is set, ends the reading early; then some tensors are missing. `where` is the device of each, by its
    plain name (None: the CPU), and `dtype` the number format (None: the files').
    """
    import torch

    from circuits_over_time.edge_attribution_patching.model.transfer import to_device

    state: dict[str, Tensor] = {}
    small: defaultdict[torch.device, list[str]] = defaultdict(list)
    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            found: Mapping[str, Tensor] = _torch_file(path)
            _add(state, found, path)
            continue
        with _safetensors(path) as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                if stop is not None and stop.is_set():
                    return state
                tensor = file.get_tensor(name)
                # safe_open maps the file, so only the copy is sure to be in memory.
                device = where(plain_name(name)) if where is not None else torch.device("cpu")
                joins = tensor.numel() < JOINED
                of_type = dtype if tensor.is_floating_point() else None
                _add(state, {name: tensor.to(None if joins else device, of_type, copy=True)}, path)
                if joins:
                    small[device].append(plain_name(name))
    for device, names in small.items():
        state |= to_device({name: state[name] for name in names}, device)
    return state


def _add(state: dict[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in found.items():
        if (plain := plain_name(name)) in state:
            raise CheckpointUnusable(f"{path}: holds {plain} twice, once as {name}; save one of the two")
        state[plain] = tensor


def read_some(folder: Path, choose: Callable[[list[str]], list[str]]) -> dict[str, Tensor]:
    """A few tensors of a checkpoint: those that `choose` picks from the plain names of all matrices. Of safetensors,
    only these are read. Errors are those of `read_files`.
    """
    files = weight_files(folder)
    if files[0].suffix != ".safetensors":
        state = read_files(folder)
        return {name: state[name] for name in choose([name for name, tensor in state.items() if tensor.ndim == 2])}
    held: dict[str, tuple[Path, str]] = {}
    for path in files:
        with _safetensors(path) as file:
            matrices = [name for name in file.keys() if len(file.get_slice(name).get_shape()) == 2]  # noqa: SIM118
            held |= {plain_name(name): (path, name) for name in matrices}
    found = {}
    for plain in choose(list(held)):
        path, name = held[plain]
        with _safetensors(path) as file:
            found[plain] = file.get_tensor(name).clone()
    return found


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    from safetensors import safe_open

    with damaged_as_unusable(path), safe_open(path, "pt") as file:
        yield file


def _torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of torch.save, which is never allowed to run code."""
    import torch

    with damaged_as_unusable(path):
        content = torch.load(path, map_location="cpu", weights_only=True)
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(one, torch.Tensor) for one in content.values()):
        raise CheckpointUnusable(f"{path}: holds no tensors by name; save the model's state_dict() there")
    return dict(content)


@contextlib.contextmanager
def damaged_as_unusable(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into one line, a CheckpointUnusable."""
    try:
        yield
    except Exception as error:  # Readers of damaged files raise nearly anything, tokenizers a bare Exception.
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise  # It is one line already, or the file is sound.
        if (what := what_it_is(path)) is not None:
            raise CheckpointUnusable(f"{path}: {what}") from None
        if isinstance(error, pickle.UnpicklingError):
            raise CheckpointUnusable(
                f"{path}: holds other Python objects than tensors, or is damaged, and is not read; save the model's "
                "state_dict() there, best with save_pretrained"
            ) from None
        raise CheckpointUnusable(f"{path}: cannot be read ({one_line(error)}); {COPY}") from error
