"""One checkpoint on disk: what its small files say, its weights, and a TransformerBridge for anyone who wants hooks.

Weights are read from their files as they are. Where the names or shapes of tensors are not those that the config asks
for, transformers builds the model instead: it knows older names, and says what is missing. Only this module and
`tokenizers.py` call `from_pretrained`, always on one folder, so nothing here asks the hub.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from circuits_over_time.edge_attribution_patching.model.architecture_table import ARCHITECTURES

from ..base.errors import CheckpointUnusable, UserError, one_line
from ..base.files import combine
from .tokenizers import load_tokenizer, read_tokenizer, tokenizer_folder
from .weight_files import WAY_OUT, CheckpointFiles, read_state, unreadable_as_unusable

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from circuits_over_time.edge_attribution_patching.model.architectures import Shape
    from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights


# Masks and rotary frequencies, which older versions of transformers saved with the weights.
_BUFFER = re.compile(r"\.(attention|attn|self_attn)\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$")


@dataclass(frozen=True)
class Description:
    """What a checkpoint's small files say. Two checkpoints with equal descriptions take the same inputs.

    Attributes:
        tokenizer: shared by all checkpoints with the same tokenizer files, so do not change it.
        shape: the model's sizes, as the engine reads them.
    """

    tokenizer: PreTrainedTokenizerBase
    shape: Shape


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint in memory.

    Attributes:
        name: last part of the model's name or folder (`pythia-160m`, `toy`).
        tokens: how many were seen in training.
        weights: what the engine computes with.
        parameters: how many numbers the model has, with tied tensors counted once.
        tokenizer: as in `Description`.
        hashes: SHA-256 of each weight file, computed in the background while the checkpoint is measured.
        inputs: SHA-256 of its config and of the tokenizer's files.
    """

    name: str
    step: int
    tokens: int
    weights: ModelWeights
    parameters: int
    tokenizer: PreTrainedTokenizerBase
    files: CheckpointFiles
    hashes: Future[dict[str, str]]
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.device

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """`repository, revision, commit, sha256, parameters` of the weights, and the `shape` of the model's graph.

        `tokens` were seen in training, and `inputs` has the SHA-256 of config and tokenizer. `shards` has the SHA-256
        of each file if there are several; then `sha256` combines them.

        Raises:
            CheckpointUnusable: if the files changed while they were read.
        """
        shape = {
            "n_layers": self.weights.n_layers,
            "n_heads": self.weights.n_heads,
            "parallel_attn_mlp": self.weights.parallel,
            "d_model": self.weights.d_model,
        }
        hashes = self.hashes.result()
        shards = {"shards": dict(sorted(hashes.items()))} if len(hashes) > 1 else {}
        found = {"sha256": combine(hashes), "parameters": self.parameters, "shape": shape}
        found |= {"tokens": self.tokens, "inputs": self.inputs}
        return self.files.origin | found | shards

    @cached_property
    def bridge(self) -> TransformerBridge:
        """The same checkpoint as a TransformerBridge, for hooks: raw weights, eager attention, eval mode.

        It is booted from the files on first use. It shares no memory with `weights` or `tokenizer`, because booting
        rewrites the model and the tokenizer that it gets.

        Raises:
            CheckpointUnusable: if the files are gone.
            UserError: if they do not fit on the device.
        """
        from transformer_lens.model_bridge import TransformerBridge

        folder, dtype = self.files.folder, self.weights.dtype
        bridge: TransformerBridge = TransformerBridge.boot_transformers(
            str(folder),  # With a folder as the name, nothing asks the hub.
            hf_model=_load_model(folder, dtype, self.device),
            tokenizer=read_tokenizer(tokenizer_folder(folder), self.files.trust_remote_code),
            dtype=dtype,
            device=self.device,
        )
        return bridge


def describe(folder: Path, trust_remote_code: bool = False) -> Description:
    """Read a checkpoint's small files. Its weights need not be there.

    Raises:
        CheckpointUnusable: if a file is missing or broken.
        UserError: if the engine cannot read such a model.
    """
    from circuits_over_time.edge_attribution_patching.model.architectures import read_shape

    path = folder / "config.json"
    config = _read_config(path)
    try:
        shape = read_shape(config)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return Description(load_tokenizer(folder, trust_remote_code), shape)


def load_weights(
    folder: Path, dtype: str, device: torch.device, state: dict[str, torch.Tensor] | None = None
) -> tuple[ModelWeights, int]:
    """The weights in a `save_pretrained` folder, and how many parameters they hold.

    Args:
        dtype: the number format to load them in: float32, bfloat16, float16.
        state: the tensors of the folder's files, if they have been read. It is emptied.

    Raises:
        CheckpointUnusable: if they cannot be loaded, or some are missing.
        UserError: if they do not fit on the device.
    """
    import torch

    from circuits_over_time.edge_attribution_patching.model.weights import read_tensors, read_weights

    config, number = _read_config(folder / "config.json"), getattr(torch, dtype)
    with _memory_of(folder, dtype, device):
        if state is None:
            state = read_state(folder, device=device, dtype=number)
        tensors = {name: _moved(state, name, device, number) for name in list(state) if not _BUFFER.search(name)}
        # transformers takes longer to import its model code than to read a checkpoint, and most need none of it.
        if (weights := read_tensors(config, tensors)) is not None:
            unique = {id(tensor): tensor.numel() for tensor in tensors.values()}
            return weights, sum(unique.values())
        del tensors, state
        model = _load_model(folder, number, device)
        return read_weights(model), sum(parameter.numel() for parameter in model.parameters())


def _moved(state: dict[str, torch.Tensor], name: str, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in the number format asked for. It leaves `state`, so that no more than one is there twice."""
    tensor = state.pop(name)
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def _read_config(path: Path) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        architecture = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except FileNotFoundError:
        raise CheckpointUnusable(f"{path} is missing; save the checkpoint again with save_pretrained") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointUnusable(f"{path}: does not name a model_type ({one_line(error)}); {WAY_OUT}") from None
    # transformers may not know it either, or want to run code that comes with it.
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{path}: model_type={architecture}: no reader for this architecture (supported: {known})")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointUnusable(f"{path}: cannot be read ({one_line(error)}); {WAY_OUT}") from error
    return config


def _load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    loaded: Any
    with unreadable_as_unusable(folder), _memory_of(folder, str(dtype).removeprefix("torch."), device):
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, report = loaded
        model.to(device)
    if report["missing_keys"]:
        # transformers would carry on with random numbers instead.
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise CheckpointUnusable(f"{folder}: weights are missing ({some}); {WAY_OUT}")
    if unread := sorted(name for name in report["unexpected_keys"] if not _BUFFER.search(name)):
        # And it would ignore these.
        some = ", ".join(unread[:3])
        raise CheckpointUnusable(f"{folder}: holds weights that its config.json has no place for ({some}); correct it")
    return cast("PreTrainedModel", model)


@contextlib.contextmanager
def _memory_of(folder: Path, dtype: str, device: torch.device) -> Iterator[None]:
    """Says it in one line where a device has too little memory."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"device: {folder} as {dtype} does not fit on {device}; pass dtype=bfloat16 or another device"
        ) from None


def resolve_device(device: str) -> torch.device:
    """The device that a name stands for: `auto` is CUDA if there is one, else Apple's GPU, else the CPU.

    Raises:
        UserError: if this machine has no such device.
    """
    import torch

    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.insert(0, "mps")
    if torch.cuda.is_available():
        found.insert(0, "cuda")
    if device == "auto":
        return torch.device(found[0])
    try:
        asked = torch.device(device)
    except RuntimeError:
        asked = torch.device("meta")
    index_exists = asked.type != "cuda" or (asked.index or 0) < torch.cuda.device_count()
    if asked.type not in found or not index_exists:
        raise UserError(f"device: there is no '{device}' here, only {', '.join(found)} (auto takes {found[0]})")
    return asked
