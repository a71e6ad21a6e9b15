"""The files that a checkpoint's weights are in, and what is in them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import CheckpointUnusable, UserError, one_line
from ..base.files import combine
from ..hub.listing import FORMATS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WAY_OUT = "delete the folder and fetch or train it again"


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint's files on disk.

    Attributes:
        folder: where they are, in `save_pretrained` format.
        origin: `repository, revision, commit`; a local family has no commit, but a `fingerprint`.
        hashes: SHA-256 of each weight file; hashes them, or returns the known ones.
        trust_remote_code: whether the tokenizer may run code of its own.
    """

    folder: Path
    origin: dict[str, Any]
    hashes: Callable[[], dict[str, str]]
    trust_remote_code: bool = False

    def sha256(self) -> str:
        """One hash of all weights."""
        return combine(self.hashes())


def weight_files(folder: Path) -> list[Path]:
    """The weights in a `save_pretrained` folder that transformers loads, by name: safetensors if there are any.

    Raises:
        CheckpointUnusable: if the folder holds no weights, or not all that its index lists.
    """
    for stem, ending in FORMATS:
        if (whole := folder / f"{stem}.{ending}").is_file():
            return [whole]
        if (index := folder / f"{stem}.{ending}.index.json").is_file():
            return _shards(folder, index)
        if files := sorted(folder.glob(f"{stem}*.{ending}")):
            return files
    raise CheckpointUnusable(
        f"{folder}: holds no weights (model.safetensors); save the checkpoint again with save_pretrained"
    )


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointUnusable(f"{index}: does not list shards; delete the folder and fetch it again") from None
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointUnusable(
            f"{folder}: {missing[0]}, which {index.name} lists, is missing; fetch the checkpoint again"
        )
    return [folder / name for name in names]


def read_state(
    folder: Path,
    stop: threading.Event | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """All tensors of a checkpoint, copied into memory.

    Args:
        stop: ends the reading early once it is set; then some tensors are missing.
        device: where to put them; None leaves them on the CPU.
        dtype: their number format; None leaves that of the files.

    Raises:
        CheckpointUnusable: if the weights cannot be read.
    """
    import torch
    from safetensors import safe_open

    files = weight_files(folder)
    state: dict[str, Tensor] = {}
    with unreadable_as_unusable(folder):
        for path in files:
            if path.suffix != ".safetensors":
                state |= torch.load(path, map_location="cpu", weights_only=True)
                continue
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no dict)
                    if stop is not None and stop.is_set():
                        return state
                    tensor = file.get_tensor(name)
                    # safe_open maps the file, so only the copy is sure to be in memory.
                    state[name] = tensor.to(device, dtype if tensor.is_floating_point() else None, copy=True)
    return state


def read_some(folder: Path, choose: Callable[[list[str]], list[str]]) -> dict[str, Tensor]:
    """A few tensors of a checkpoint: those that `choose` picks from the names of all matrices.

    Of safetensors, only these are read.

    Raises:
        CheckpointUnusable: if the weights cannot be read.
    """
    from safetensors import safe_open

    files = weight_files(folder)
    if files[0].suffix != ".safetensors":
        state = read_state(folder)
        return {name: state[name] for name in choose([name for name, tensor in state.items() if tensor.ndim == 2])}
    file_of: dict[str, Path] = {}
    found = {}
    with unreadable_as_unusable(folder):
        for path in files:
            with safe_open(path, "pt") as file:
                file_of |= {name: path for name in file.keys() if len(file.get_slice(name).get_shape()) == 2}  # noqa: SIM118
        for name in choose(list(file_of)):
            with safe_open(file_of[name], "pt") as file:
                found[name] = file.get_tensor(name).clone()
    return found


@contextlib.contextmanager
def unreadable_as_unusable(folder: Path) -> Iterator[None]:
    """Turns what goes wrong while weights are read into one line.

    Raises:
        CheckpointUnusable: if the files are damaged or gone.
    """
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise  # The files are sound, or it is one line already.
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError) as error:
        raise CheckpointUnusable(f"{folder}: the checkpoint cannot be loaded ({one_line(error)}); {WAY_OUT}") from error
