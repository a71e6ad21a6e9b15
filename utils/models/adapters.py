"""Adapters (LoRA and its kin): a folder that holds changes to a base model, which peft merges into it.

`adapter_config.json` names the base model: a folder, as it is or beside the adapter, or a hub id whose files are in the
user's hub cache. What is measured is the model as it was trained: where input and output embeddings are tied in the
base model but only one of them was adapted, they are untied.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import CheckpointUnusable, one_line
from ..base.files import read_json
from .weight_files import ADAPTER, weight_files

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

INSTALL = "pip install 'peft>=0.17,<1'"


def base_of(folder: Path) -> Path | None:
    """The folder of the base model that a folder adapts, or None; a CheckpointUnusable without peft or base."""
    if not (folder / ADAPTER).is_file():
        return None
    about = read_json(folder / ADAPTER) or {}
    base, revision = about.get("base_model_name_or_path"), about.get("revision")
    beside = "; to measure the weights beside it without the adapter, move its files away"
    hint = beside if any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin")) else ""
    if importlib.util.find_spec("peft") is None:
        raise CheckpointUnusable(f"{folder}: is an adapter ({ADAPTER}) of {base}; to merge it, run: {INSTALL}{hint}")
    if not isinstance(base, str) or not base:
        raise CheckpointUnusable(f"{folder / ADAPTER}: names no base model; add base_model_name_or_path{hint}")
    for place in (Path(base).expanduser(), folder / base, folder.parent / base):
        if (place / "config.json").is_file() and place.resolve() != folder.resolve():
            return place
    if base.count("/") == 1 and (cached := _in_hub_cache(base, revision)) is not None:
        return cached
    fetch = f"hf download {base}" + (f" --revision {revision}" if revision else "")
    way_out = f"run: {fetch}" if base.count("/") == 1 else "correct base_model_name_or_path"
    raise CheckpointUnusable(
        f"{folder}: is an adapter ({ADAPTER}), and its base model {base} is not on this machine; {way_out}{hint}"
    )


def _in_hub_cache(repository: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception:  # Not there, or not a hub id at all: the caller says what to do in either case.
        return None


def merged_state(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """The tensors of a base model, which is used up, with an adapter merged into it, if it fits."""
    import torch
    from peft import PeftModel

    # Tied as they are, a change to one embedding would be merged into the other as well (peft 0.21).
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft advises to untie them.
            merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload(safe_merge=True)
    except Exception as error:  # peft passes on errors of many kinds.
        raise CheckpointUnusable(
            f"{weight_files(folder)[0]}: the adapter cannot be merged into its base model ({one_line(error)}); check "
            f"base_model_name_or_path in {folder / ADAPTER}"
        ) from error
    return dict(merged.state_dict())
