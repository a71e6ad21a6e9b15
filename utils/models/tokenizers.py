"""The tokenizer of a checkpoint, from its own folder or the family's.

All checkpoints with the same tokenizer files share one object.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import CheckpointUnusable, UserError, one_line
from ..base.files import read_json, sha256_at, stamp_of
from ..hub.checkpoint_files import TOKENIZER_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_KEYS = ("model_type", "tokenizer_class", "auto_map", "transformers_version")  # of config.json
_tokenizers: dict[str, PreTrainedTokenizerBase] = {}
_tokenizers_lock = threading.Lock()


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer, from its folder or the one above. The same files give the same object.

    Raises:
        CheckpointUnusable: if there is none, or it cannot be loaded.
    """
    holder = tokenizer_folder(folder)
    digest = hashlib.sha256(repr((str(holder), trust_remote_code) if trust_remote_code else "").encode())
    for name, sha256 in small_hashes(folder).items():
        if name != "config.json":  # Of which only these keys count:
            digest.update(f"{name} {sha256}\n".encode())
    if (config := read_json(holder / "config.json")) is not None:
        # What AutoTokenizer looks up there: the class if no file names it, and which versions need repairs.
        digest.update(repr([config.get(key) for key in _TOKENIZER_KEYS]).encode())
    key = digest.hexdigest()
    with _tokenizers_lock:
        if key not in _tokenizers:
            _tokenizers[key] = read_tokenizer(holder, trust_remote_code)
        return _tokenizers[key]


def small_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files besides the weights that a checkpoint's numbers depend on: its config and tokenizer.

    Raises:
        CheckpointUnusable: if it has no tokenizer.
    """
    holder = tokenizer_folder(folder)
    paths = [folder / "config.json", *(holder / name for name in TOKENIZER_FILES)]
    return {path.name: sha256_at(path, stamp_of(path)) for path in paths if path.is_file()}


def tokenizer_folder(folder: Path) -> Path:
    """The folder that holds a checkpoint's tokenizer: its own, or the one above. Neither: CheckpointUnusable."""
    for holder in (folder, folder.parent):
        if any((holder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            return holder
    raise CheckpointUnusable(f"{folder}: has no tokenizer (tokenizer.json); save one there with save_pretrained")


def read_tokenizer(holder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """A new tokenizer from a folder.

    Raises:
        CheckpointUnusable: if it cannot be loaded.
        UserError: if it needs code of its own that is not trusted.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            holder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not trust_remote_code and "auto_map" in (read_json(holder / "tokenizer_config.json") or {}):
            raise UserError(
                f"{holder}: the tokenizer needs code of its own; read it, and if you trust it pass "
                "trust_remote_code=true"
            ) from None
        raise CheckpointUnusable(
            f"{holder}: the tokenizer cannot be loaded ({one_line(error)}); save it again"
        ) from error
    return tokenizer
