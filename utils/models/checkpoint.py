"""One checkpoint on disk: what its small files say, its weights, and a TransformerBridge for anyone who wants hooks.

Weights are read from their files as they are. Where the names of tensors are not those that the config asks for,
transformers builds the model from them instead: it knows older names, and says what is missing. Adapters are merged
into their base model. Only this module and `tokenizers.py` call `from_pretrained`, and nothing here asks the hub.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from circuits_over_time.edge_attribution_patching.model.architecture_table import ARCHITECTURES
from circuits_over_time.edge_attribution_patching.model.memory import layers_by_device

from ..base.errors import CheckpointUnusable, UserError, one_line, with_way_out
from ..base.files import Stamp, combine, sha256_at, stamp_of, what_it_is
from ..base.memory import total_bytes
from ..hub.checkpoint_files import TOKENIZER_FILES
from .adapters import base_of, merged_state
from .tokenizers import load_tokenizer, tokenizer_folder
from .weight_files import ADAPTER, COPY, CheckpointFiles, contents, of_library, read_files, weight_files

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from circuits_over_time.edge_attribution_patching.model.architectures import Shape
    from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights

log = logging.getLogger(__name__)

# Masks and rotary frequencies, which older versions of transformers saved with the weights.
_BUFFER = re.compile(r"\.(attention|attn|self_attn)\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$")


@dataclass(frozen=True)
class Description:
    """What a checkpoint's small files say. Two checkpoints with equal descriptions take the same inputs."""

    tokenizer: PreTrainedTokenizerBase  # shared by all checkpoints with the same files, so do not change it
    shape: Shape


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint in memory."""

    name: str  # last part of the model's name or folder (`pythia-160m`, `toy`)
    step: int
    tokens: int | None  # seen in training; None if nobody says
    weights: ModelWeights
    parameters: int  # how many numbers the model has, with tied tensors counted once
    tokenizer: PreTrainedTokenizerBase
    files: CheckpointFiles
    hashes: Future[dict[str, str]]  # SHA-256 of each weight file, computed while the checkpoint is measured
    inputs: dict[str, str] = field(default_factory=dict)  # SHA-256 of its config and of the tokenizer's files

    @property
    def device(self) -> torch.device:
        return self.weights.device

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """`repository, revision, commit, sha256, parameters, tokens` of the weights, the `shape` of the model's graph
        and `inputs`.

        `shards` has the SHA-256 of each file if there are several; then `sha256` combines them. It is a
        CheckpointUnusable if files changed while they were read.
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

    def in_format(self, dtype: str) -> LoadedCheckpoint:
        """The same with weights in a number format, read again if they are in another; errors of `load_weights`."""
        if str(self.weights.dtype) == f"torch.{dtype}":
            return self
        weights, _ = load_weights(self.files.folder, dtype, self.device, None, self.weights.devices[1:])
        return replace(self, weights=weights)

    @cached_property
    def bridge(self) -> TransformerBridge:
        """The same checkpoint as a TransformerBridge, for hooks: raw weights, eager attention, eval mode; errors of
        `load_weights`.

        It is booted from the files on first use, and shares no memory with `weights` or `tokenizer`: booting rewrites
        what it gets.
        """
        from transformer_lens.model_bridge import TransformerBridge

        if len(self.weights.devices) > 1:
            raise UserError("device_map: a TransformerBridge is on one device; leave device_map out")
        folder, dtype = self.files.folder, self.weights.dtype
        state = read_state(folder, where=lambda name: self.device, dtype=dtype)
        bridge: TransformerBridge = TransformerBridge.boot_transformers(
            str(folder),  # With a folder as the name, nothing asks the hub.
            hf_model=_build_model(folder, read_config(folder), state, dtype, self.device),
            tokenizer=copy.deepcopy(self.tokenizer),
            dtype=dtype,
            device=self.device,
        )
        return bridge


def describe(folder: Path, trust_remote_code: bool = False) -> Description:
    """Read a checkpoint's small files; a CheckpointUnusable for bad ones, a UserError for other architectures."""
    from circuits_over_time.edge_attribution_patching.model.architectures import read_shape

    if of_library(folder) is not None:
        weight_files(folder)  # Weights that can be read may lie there too. If not, the library is named, not a file.
    base = base_of(folder)
    try:
        shape = read_shape(read_config(base or folder))
    except ValueError as error:
        raise UserError(f"{(base or folder) / 'config.json'}: {error}") from None
    return Description(load_tokenizer(folder, trust_remote_code, base), shape)


def read_state(
    folder: Path,
    stop: threading.Event | None = None,
    where: Callable[[str], torch.device] | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint; an adapter's merged into its base model's, in float32. See `read_files`."""
    import torch

    if (base := base_of(folder)) is None:
        state, embed = read_files(folder, stop, where, dtype), ARCHITECTURES[read_config(folder).model_type].embed
        # What stands before all names where the model was a part of another module, as Lightning's `model.`.
        ends = f".{embed}.weight"
        prefix = next((name.removesuffix(ends) + "." for name in state if name.endswith(ends)), "")
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    cpu = torch.device("cpu")
    return merged_state(_build_model(base, read_config(base), read_state(base), torch.float32, cpu), folder)


def load_weights(
    folder: Path,
    dtype: str,
    device: torch.device,
    state: dict[str, torch.Tensor] | None = None,
    more: Sequence[torch.device] = (),
) -> tuple[ModelWeights, int]:
    """The weights in a checkpoint's folder, and how many parameters they hold.

    Args:
        dtype: the number format to load them in: float32, bfloat16, float16.
        state: the tensors of the folder (`read_state`), if they have been read. It is emptied.
        more: devices that layers go to besides, block by block; no device ever holds the whole model.

    It is a CheckpointUnusable if they cannot be loaded, some are missing, or one holds NaN or infinity, and a UserError
    if they do not fit on the device.
    """
    import torch

    from circuits_over_time.edge_attribution_patching.model.weights import read_tensors, read_weights, require_finite

    config, number = read_config(base_of(folder) or folder), getattr(torch, dtype)
    where = placement(config, number, (device, *more))
    with _memory_of(folder, dtype, device):
        if state is None:
            state = read_state(folder, where=where, dtype=number)
        tensors = {}
        for name in [name for name in state if not _BUFFER.search(name)]:
            tensor = state.pop(name)  # So that no more than one is there in two number formats.
            tensors[name] = tensor.to(where(name), number if tensor.is_floating_point() else None)
            del tensor
        try:
            require_finite(tensors)
        except FloatingPointError as error:
            raise CheckpointUnusable(f"{folder}: {with_way_out(error)}") from None
        # transformers takes longer to import its model code than to read a checkpoint, and most need none of it.
        if (weights := read_tensors(config, tensors)) is not None:
            unique = {id(tensor): tensor.numel() for tensor in tensors.values()}
            return weights, sum(unique.values())
        model = _build_model(folder, config, tensors, number, torch.device("cpu") if more else device)
        return read_weights(model, where), sum(parameter.numel() for parameter in model.parameters())


def placement(
    config: PretrainedConfig, dtype: torch.dtype, devices: Sequence[torch.device]
) -> Callable[[str], torch.device]:
    """The device of each tensor, by its name: that of its layer, and of what belongs to no layer the first."""
    from circuits_over_time.edge_attribution_patching.model.architectures import read_shape

    of_layers: list[torch.device] = []
    if len(devices) > 1:
        counts = layers_by_device(read_shape(config), dtype.itemsize, [total_bytes(device) for device in devices])
        of_layers = [device for device, count in zip(devices, counts, strict=True) for _ in range(count)]
    # Of `model.layers.{}.` the last part of the path: what stands before it may be missing, or something else.
    stem = ARCHITECTURES[config.model_type].block.split(".{}")[0].split(".")[-1]
    pattern = re.compile(rf"(?:^|\.){stem}\.(\d+)\.")

    def where(name: str) -> torch.device:
        found = pattern.search(name)
        return of_layers[int(found[1])] if found and int(found[1]) < len(of_layers) else devices[0]

    return where


def _scan_transformers_once() -> None:
    """Import `transformers.models` with what importing transformers has found in its 1,600 model files.

    Both look through all of these files. They share a cache, but name the folder differently, so they miss each other's
    answer (transformers 5.14 to 5.24). The second look costs a quarter of what it takes to import torch.
    """
    import transformers
    from transformers.utils import import_utils

    name = "transformers.models"
    spec = importlib.util.find_spec(name)
    known = "= _LazyModule(__name__, _file, define_import_structure(_file), module_spec=__spec__)\n"
    if name in sys.modules or spec is None or spec.origin is None or not Path(spec.origin).read_text().endswith(known):
        return
    # The line that is known, but for how it names the folder.
    structure = import_utils.define_import_structure(Path(transformers.__file__).parent / "models")
    sys.modules[name] = import_utils._LazyModule(name, spec.origin, structure, module_spec=spec)


def small_hashes(folder: Path, base: Path | None = None) -> dict[str, str]:
    """SHA-256 of the files besides the weights that a checkpoint's numbers depend on: its config and tokenizer."""
    holder = tokenizer_folder(folder, base)
    paths = {name: folder / name for name in ("config.json", ADAPTER)}
    paths |= {"base/config.json": base / "config.json"} if base is not None else {}
    paths |= {name: holder / name for name in TOKENIZER_FILES}
    return {name: sha256_at(path, stamp_of(path)) for name, path in paths.items() if path.is_file()}


def read_config(folder: Path) -> PretrainedConfig:
    """A model's config; a CheckpointUnusable if it is missing or damaged, a UserError for other architectures."""
    path = folder / "config.json"
    # A copy, since models are built with it, and write into it.
    return copy.deepcopy(_config_at(path, stamp_of(path) if path.is_file() else None))


@functools.cache
def _config_at(path: Path, stamp: Stamp | None) -> PretrainedConfig:
    """The config in a file that has this stamp. It is read only once, until it changes."""
    _scan_transformers_once()
    from transformers import AutoConfig

    folder = path.parent
    try:
        architecture = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except FileNotFoundError:
        held = contents(folder) if folder.is_dir() else "nothing"
        raise CheckpointUnusable(
            f"{path} is missing (the folder holds {held}); copy the config.json of the trained model there, which "
            "is all it takes"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = what_it_is(path) or f"does not name a model_type ({one_line(error)}); copy the model's config.json there"
        raise CheckpointUnusable(f"{path}: {why}") from None
    # transformers may not know it either, or want to run code that comes with it.
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{path}: model_type={architecture}: no reader for this architecture (supported: {known})")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointUnusable(f"{path}: cannot be read ({one_line(error)}); {COPY}") from error
    return config


def _build_model(
    folder: Path,
    config: PretrainedConfig,
    state: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    """A model of transformers from tensors, which may have names of older versions."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    _refuse_other_shapes(folder, kind, config, state)
    with _memory_of(folder, str(dtype).removeprefix("torch."), device):
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
        )
        model.to(device)
    if report["missing_keys"]:
        # transformers would carry on with random numbers instead.
        missing, there = (", ".join(sorted(names)[:3]) for names in (report["missing_keys"], state))
        raise CheckpointUnusable(
            f"{folder}: weights that its config.json asks for are missing ({missing}; it holds {there}); copy the "
            "config.json of the trained model there, or save the whole model"
        )
    if unread := sorted(name for name in report["unexpected_keys"] if not _BUFFER.search(name)):
        # And it would ignore these.
        some = ", ".join(unread[:3])
        raise CheckpointUnusable(f"{folder}: holds weights that its config.json has no place for ({some}); correct it")
    return cast("PreTrainedModel", model)


def _refuse_other_shapes(folder: Path, kind: Any, config: PretrainedConfig, state: Mapping[str, torch.Tensor]) -> None:
    """Name a tensor whose shape is not the config's. transformers' own line does not."""
    import torch

    with torch.device("meta"):  # A model without memory tells the shapes.
        expected = {name: tuple(tensor.shape) for name, tensor in kind(config).state_dict().items()}
    old_names = ARCHITECTURES[config.model_type].old_names
    for name, tensor in state.items():
        shape, found = expected.get(old_names.get(name, name)), tuple(tensor.shape)
        if shape not in (None, found):
            of_vocabulary = shape[:1] == (config.vocab_size,) and shape[1:] == found[1:]
            value = f" (vocab_size={config.vocab_size})" if of_vocabulary else ""
            way_out = f"vocab_size={found[0]} in it is right" if of_vocabulary else "it is another model's"
            raise CheckpointUnusable(
                f"{folder}: {name} has the shape {list(found)}, but config.json asks for {list(shape)}{value}; "
                f"{way_out}"
            )


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


def resolve_devices(device: str, device_map: Literal["auto"] | None) -> list[torch.device]:
    """The devices that a model's layers go to: with `device_map: auto` all CUDA GPUs, else that of `resolve_device`."""
    import torch

    first = resolve_device(device)
    if device_map is None:
        return [first]
    n = torch.cuda.device_count() if first.type == "cuda" else 1
    if n == 1:
        _say_one(str(first))
        return [first]
    return [torch.device("cuda", index) for index in range(n)]


@functools.cache
def _say_one(device: str) -> None:
    log.warning("device_map: auto: there is one device here, and the whole model goes to it (%s)", device)


def resolve_device(device: str) -> torch.device:
    """The device of a name, `auto` for CUDA, else Apple's GPU, else the CPU; a UserError if there is none."""
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
