"""Model families and their checkpoints: the one place that loads weights.

A family is named by
- a Pythia name: `pythia-14m` ... `pythia-12b`, `-deduped`, and the PolyPythias `pythia-160m-seed3`,
  `pythia-160m-data-seed1`, `pythia-160m-weight-seed1` (EleutherAI's repositories on the hub);
- a hub id `organisation/name` whose branches are checkpoints (`utils/models/hub.py`);
- a local folder of `step{n}` folders in `save_pretrained` format. Beside them, `family.json` holds
  `{"tokens_per_step": n}`; a tokenizer that all steps share may lie there too instead of in each step's folder.

A checkpoint is loaded with transformers from its files on disk, so it is the revision asked for, and then handed to
TransformerBridge: raw weights, eager attention, eval mode.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edge_attribution_patching.weights import ModelWeights, Shape, read_shape, read_weights
from utils.errors import UserError, suggest
from utils.files import folder_sha256
from utils.models import hub, local
from utils.models.device import resolve_device
from utils.models.schedules import PYTHIA_STEPS, TOKENS_PER_STEP, tokens_at

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PYTHIA_SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
_SIZE = "|".join(re.escape(size) for size in PYTHIA_SIZES)
_PYTHIA = re.compile(rf"(?:EleutherAI/)?(pythia-(?:{_SIZE})(?:-deduped|(?:-data|-weight)?-seed\d+)?)")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint in memory.

    Attributes:
        name: last part of the model's name or folder (`pythia-160m`, `toy`).
        step: training step.
        tokens: tokens seen in training.
        model: the weights, as they are on disk.
        tokenizer: as it is on disk (the bridge works on a copy of its own).
        device: where the weights are.
        provenance: `repository, revision, commit, sha256` of the weights; no commit for a local family.
    """

    name: str
    step: int
    tokens: int
    model: TransformerBridge
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    provenance: dict[str, Any]

    @cached_property
    def weights(self) -> ModelWeights:
        """The weights as the engine reads them."""
        return read_weights(self.model)


@dataclass(frozen=True)
class Description:
    """What is known of a checkpoint before its weights are read.

    Attributes:
        tokenizer: the same object where the files are the same.
        shape: from its config.
    """

    tokenizer: PreTrainedTokenizerBase
    shape: Shape


@dataclass(frozen=True)
class Family:
    """A model's published checkpoints.

    Attributes:
        name: last part of the model's name or folder, which names its results.
        source: the hub repository, or the local folder as it was given.
        steps: the published steps, sorted.
        tokens: tokens seen at each published step.
    """

    name: str
    source: str
    steps: tuple[int, ...]
    tokens: dict[int, int]

    @property
    def is_local(self) -> bool:
        """Whether the checkpoints are the user's own folder, not the hub's."""
        return isinstance(self, LocalFamily)

    def fetch(self, step: int) -> tuple[Path, dict[str, Any]]:
        """A checkpoint's folder on disk and its provenance, downloading it if need be."""
        raise NotImplementedError

    def prefetch(self, step: int) -> None:
        """Begin to fetch a checkpoint in the background; its errors come when it is loaded."""

    def free(self, step: int) -> None:
        """Delete a downloaded checkpoint's files."""

    def tokens_at(self, step: int) -> int:
        """Tokens seen in training up to a published step."""
        return self.tokens[step]

    def tokenizer(self, step: int) -> PreTrainedTokenizerBase:
        """A checkpoint's tokenizer."""
        return _load_tokenizer(self.fetch(step)[0])

    def describe(self, step: int) -> Description:
        """A checkpoint's tokenizer and shape.

        Raises:
            UserError: if its architecture has no reader.
        """
        from transformers import AutoConfig

        folder, _ = self.fetch(step)
        try:
            shape = read_shape(AutoConfig.from_pretrained(folder, local_files_only=True))
        except ValueError as error:
            raise UserError(f"model: {folder}: {error}") from None
        return Description(_load_tokenizer(folder), shape)

    def load(self, step: int, dtype: str = "float32", device: str = "auto") -> LoadedCheckpoint:
        """Load a checkpoint.

        Args:
            step: a published step.
            dtype: number format of the weights: float32, bfloat16, float16.
            device: see `resolve_device`.

        Raises:
            UserError: if it cannot be had or its files cannot be loaded.
        """
        where = resolve_device(device)
        folder, provenance = self.fetch(step)
        tokenizer = _load_tokenizer(folder)
        model = _load_bridge(folder, getattr(torch, dtype), where)
        return LoadedCheckpoint(self.name, step, self.tokens_at(step), model, tokenizer, where, provenance)


@dataclass(frozen=True)
class LocalFamily(Family):
    """A folder of `step{n}` folders."""

    folders: dict[int, Path]

    def fetch(self, step: int) -> tuple[Path, dict[str, Any]]:
        folder = self.folders[step]
        provenance = {"repository": self.source, "revision": folder.name, "commit": None, "sha256": self.sha256(step)}
        return folder, provenance

    def sha256(self, step: int) -> str:
        """Hash of a checkpoint's weights as they are on disk now."""
        return folder_sha256(self.folders[step])


@dataclass(frozen=True)
class HubFamily(Family):
    """A hub repository whose branches are checkpoints."""

    revisions: dict[int, str]
    downloads: Path
    _pending: dict[int, threading.Thread] = field(default_factory=dict, compare=False, repr=False)

    def folder(self, step: int) -> Path:
        """Where a checkpoint's files are downloaded to."""
        return self.downloads / f"step{step}"

    def fetch(self, step: int) -> tuple[Path, dict[str, Any]]:
        if (thread := self._pending.pop(step, None)) is not None:
            thread.join()
        return self.folder(step), hub.download(self.source, self.revisions[step], self.folder(step))

    def prefetch(self, step: int) -> None:
        if step not in self._pending and hub.read_manifest(self.folder(step)) is None:
            # A daemon, so that an interrupted run does not wait for gigabytes: a download goes on where it stopped.
            self._pending[step] = threading.Thread(target=self._try_to_download, args=(step,), daemon=True)
            self._pending[step].start()

    def free(self, step: int) -> None:
        shutil.rmtree(self.folder(step), ignore_errors=True)

    def _try_to_download(self, step: int) -> None:
        try:
            hub.download(self.source, self.revisions[step], self.folder(step))
        except UserError as error:
            log.debug("prefetch of step %d: %s", step, error)


def resolve_family(model: str, cache_dir: Path, tokens_per_step: int | None = None) -> Family:
    """Find a model's checkpoints.

    Args:
        model: a Pythia name, a hub id or a local folder (a folder called like a Pythia model: `./pythia-70m`).
        cache_dir: where hub checkpoints are downloaded to.
        tokens_per_step: for families that do not say themselves.

    Raises:
        UserError: if there is no such model, it has no checkpoints, or its tokens are unknown.
    """
    if match := _PYTHIA.fullmatch(model):
        return _pythia_family(f"EleutherAI/{match[1]}", cache_dir)
    path = Path(model).expanduser()
    if path.is_dir():
        return _local_family(model, path, tokens_per_step)
    if model.count("/") == 1 and not _looks_local(model, cache_dir):
        return _hub_family(model, cache_dir, tokens_per_step)
    if "/" in model or os.sep in model:
        raise UserError(
            f"model: the folder {model} does not exist; train a small family with: python make_toy_checkpoints.py, "
            "or name a Pythia model, a hub id or a folder of step{n} folders"
        )
    names = [f"pythia-{size}{variant}" for size in PYTHIA_SIZES for variant in ("", "-deduped")]
    raise UserError(
        f"model: '{model}' is no Pythia name, no hub id (organisation/name) and no folder"
        f"{suggest(model, names, 'Pythia names')}"
    )


def import_libraries() -> None:
    """Import what loading needs; importing this module leaves it out, so that a misspelt key is told at once."""
    import transformer_lens.model_bridge  # noqa: F401
    import transformers.models.gpt_neox.modeling_gpt_neox  # noqa: F401


def _pythia_family(repository: str, cache_dir: Path) -> HubFamily:
    try:
        revisions = {step: revision.name for step, revision in hub.published_revisions(repository).items()}
    except hub.HubUnreachable as error:
        log.warning("%s; taking the %d steps that Pythia publishes", error, len(PYTHIA_STEPS))
        revisions = {step: f"step{step}" for step in PYTHIA_STEPS}
    tokens = {step: tokens_at(step, TOKENS_PER_STEP) for step in revisions}
    return _on_hub(repository, revisions, tokens, cache_dir)


def _hub_family(repository: str, cache_dir: Path, tokens_per_step: int | None) -> HubFamily:
    revisions = hub.published_revisions(repository)
    tokens = {}
    for step, revision in revisions.items():
        if revision.tokens is None and tokens_per_step is None:
            raise UserError(
                f"tokens_per_step: {repository} does not say how many tokens a step has; pass tokens_per_step=N"
            )
        tokens[step] = revision.tokens if revision.tokens is not None else step * (tokens_per_step or 0)
    return _on_hub(repository, {step: revision.name for step, revision in revisions.items()}, tokens, cache_dir)


def _on_hub(repository: str, revisions: dict[int, str], tokens: dict[int, int], cache_dir: Path) -> HubFamily:
    name = repository.rpartition("/")[2]
    downloads = cache_dir / repository.replace("/", "--")
    return HubFamily(name, repository, tuple(sorted(revisions)), tokens, revisions, downloads)


def _looks_local(model: str, cache_dir: Path) -> bool:
    """A path that no hub id would be: its folder is there, is the downloads' folder, or is written as a path."""
    parent = Path(model).expanduser().parent
    return model.startswith((".", "~", "/")) or parent.is_dir() or parent == cache_dir


def _local_family(model: str, path: Path, tokens_per_step: int | None) -> LocalFamily:
    folders = local.step_folders(path)
    per_step = local.tokens_per_step(path, tokens_per_step)
    tokens = {step: tokens_at(step, per_step) for step in folders}
    return LocalFamily(path.resolve().name, model, tuple(folders), tokens, folders)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    holder = next((f for f in (folder, folder.parent) if any((f / name).is_file() for name in _TOKENIZER_FILES)), None)
    if holder is None:
        raise UserError(f"{folder}: holds no tokenizer (tokenizer.json); save one there with save_pretrained")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(holder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{holder}: the tokenizer cannot be loaded ({_first_line(error)}); save it again") from error
    return tokenizer


def _load_bridge(folder: Path, dtype: torch.dtype, device: torch.device) -> TransformerBridge:
    from safetensors import SafetensorError
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    way_out = "delete the folder and fetch or train it again"
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", local_files_only=True, output_loading_info=True
        )
        model, report = loaded
        model.to(device)
    except torch.OutOfMemoryError:
        kind = str(dtype).removeprefix("torch.")
        way_out = "pass dtype=bfloat16 or another device"
        raise UserError(f"device: {folder} as {kind} does not fit on {device}; {way_out}") from None
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError) as error:
        raise UserError(f"{folder}: the checkpoint cannot be loaded ({_first_line(error)}); {way_out}") from error
    if report["missing_keys"]:
        # transformers would go on with random numbers in their place.
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"{folder}: weights are missing ({some}); {way_out}")
    # Its own copy: booting reconfigures the tokenizer. A folder as name: no question goes to the hub.
    bridge: TransformerBridge = TransformerBridge.boot_transformers(
        str(folder), hf_model=model, tokenizer=_load_tokenizer(folder), dtype=dtype, device=device
    )
    return bridge


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().split("\n")[0].split())[:200] or type(error).__name__
