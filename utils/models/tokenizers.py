"""The tokenizer of a checkpoint, from its own folder or the family's.

What `tokenizer.json` says is what is used. transformers chooses a class by other files, and some classes put rules of
their own in place of the file's; where these would give other tokens, the file counts, and a line says so. Prompts get
no tokens that a post-processor would add at their ends: a start token comes from `prepend_bos` alone.

All checkpoints with the same tokenizer files share one object.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from circuits_over_time.edge_attribution_patching.model.architecture_table import ARCHITECTURES

from ..base.errors import CheckpointUnusable, UserError, one_line
from ..base.files import read_json, sha256_at, stamp_of, what_it_is
from ..hub.checkpoint_files import TOKENIZER_FILES
from .weight_files import damaged_as_unusable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_KEYS = ("model_type", "tokenizer_class", "auto_map", "transformers_version")  # of config.json
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_tokenizers: dict[str, PreTrainedTokenizerBase] = {}
_tokenizers_lock = threading.Lock()

log = logging.getLogger(__name__)


def load_tokenizer(folder: Path, trust_remote_code: bool = False, base: Path | None = None) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer, from its folder, the one above or the base model's. Equal files give the same object.

    It is a CheckpointUnusable if there is none that can be loaded, and a UserError if it needs code that is not
    trusted.
    """
    holder = tokenizer_folder(folder, base)
    digest = hashlib.sha256(repr((str(holder), trust_remote_code) if trust_remote_code else "").encode())
    for name in TOKENIZER_FILES:
        if (path := holder / name).is_file():
            digest.update(f"{name} {sha256_at(path, stamp_of(path))}\n".encode())
    # AutoTokenizer looks up the class there if no file names it, and which versions need repairs.
    config = next(
        (found for place in (folder, base, holder) if place and (found := read_json(place / "config.json"))), {}
    )
    digest.update(repr([config.get(key) for key in _TOKENIZER_KEYS]).encode())
    key = digest.hexdigest()
    with _tokenizers_lock:
        if key not in _tokenizers:
            _tokenizers[key] = _read(holder, trust_remote_code, config)
        return _tokenizers[key]


class PlainTokenizer:
    """A tokenizer.json without transformers, to check prompts by, with the special tokens that files name."""

    def __init__(self, holder: Path) -> None:
        from tokenizers import Tokenizer

        self.name_or_path = str(holder)
        self._backend = Tokenizer.from_file(str(holder / "tokenizer.json"))
        self._backend.no_padding()
        self._backend.no_truncation()
        about = read_json(holder / "special_tokens_map.json") or {}
        about |= read_json(holder / "tokenizer_config.json") or {}
        for name in _SPECIAL:
            token = about.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            setattr(self, f"{name}_id", self._backend.token_to_id(token) if token else None)

        added = self._backend.get_added_tokens_decoder()
        special = {getattr(self, f"{name}_id") for name in _SPECIAL} - {None}
        self.special = special | {token for token, one in added.items() if one.special}

    def __call__(self, texts: str | Sequence[str], **_: object) -> dict[str, Any]:
        """The tokens of a text, or of each of several, without special tokens."""
        if isinstance(texts, str):
            return {"input_ids": self._backend.encode(texts, add_special_tokens=False).ids}
        return {"input_ids": [one.ids for one in self._backend.encode_batch(list(texts), add_special_tokens=False)]}

    def decode(self, tokens: int | Sequence[int]) -> str:
        tokens = [tokens] if isinstance(tokens, int) else list(tokens)
        return str(self._backend.decode(tokens, skip_special_tokens=False))

    def get_vocab(self) -> dict[str, int]:
        return dict(self._backend.get_vocab())


def plain_tokenizer(folder: Path) -> Any:
    """A checkpoint's tokenizer without transformers; None where it cannot be had so."""
    try:
        holder = tokenizer_folder(folder, None)
        about = read_json(holder / "tokenizer_config.json") or {}
        return None if "auto_map" in about else PlainTokenizer(holder)
    except Exception:  # The run says what is wrong with it.
        return None


class WordTokenizer:
    """Stands for an English byte-level tokenizer that is not here, to count tokens by: a word is a token, and numbers
    are cut into pairs of digits, as Pythia's tokenizer cuts years.
    """

    name_or_path = "words"
    bos_token_id = eos_token_id = unk_token_id = pad_token_id = None
    special: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self._vocabulary = {f"{number:02d}": number for number in range(100)}
        self._vocabulary |= {f"<{number}>": number for number in range(100, 1000)}  # For blocks of random tokens.

    def __call__(self, texts: Sequence[str], **_: object) -> dict[str, Any]:
        ids = self._vocabulary
        pieces = [re.findall(r" ?\d{1,2}| ?[^\W\d]+|\s|[^\w\s]", text) for text in texts]
        return {"input_ids": [[ids.setdefault(piece, len(ids)) for piece in of_text] for of_text in pieces]}

    def decode(self, tokens: int | Sequence[int]) -> str:
        names = list(self._vocabulary)
        return "".join(names[token] for token in ([tokens] if isinstance(tokens, int) else tokens))

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary


class PlainShape(NamedTuple):
    """Sizes of a model as config.json names them, read without transformers; `sys.maxsize` where it names none."""

    n_layers: int
    n_heads: int
    n_positions: int
    d_vocab: int
    d_model: int
    tied: bool  # whether the output layer is the embedding
    dtype: str  # of the weights as stored; empty without a config
    architecture: str  # as `model_type` says it
    n_kv_heads: int
    d_head: int
    d_mlp: int
    parallel: bool


def plain_shape(folder: Path) -> PlainShape:
    config = read_json(folder / "config.json") or {}

    def least(*names: str, usual: int = sys.maxsize) -> int:
        return min((size for name in names if isinstance(size := config.get(name), int)), default=usual)

    n_heads, d_model = least("num_attention_heads", "n_head"), least("hidden_size", "n_embd")
    architecture = str(config.get("model_type", ""))
    parallel = ARCHITECTURES[architecture].parallel if architecture in ARCHITECTURES else False
    return PlainShape(
        least("num_hidden_layers", "n_layer"),
        n_heads,
        least("max_position_embeddings", "n_positions"),
        least("vocab_size"),
        d_model,
        bool(config.get("tie_word_embeddings", True)),
        str(config.get("dtype") or config.get("torch_dtype") or "float32") if config else "",
        architecture,
        least("num_key_value_heads", usual=n_heads),
        least("head_dim", usual=d_model // max(1, n_heads)),
        least("intermediate_size", "n_inner", usual=4 * d_model),
        bool(config.get(parallel, True) if isinstance(parallel, str) else parallel),
    )


def tokenizer_folder(folder: Path, base: Path | None) -> Path:
    for place in (folder, folder.parent, base):
        if place is not None and any((place / name).is_file() for name in TOKENIZER_FILES[:2]):
            return place
    raise CheckpointUnusable(f"{folder}: has no tokenizer (tokenizer.json); save one there with save_pretrained")


def _read(holder: Path, trust_remote_code: bool, config: dict[str, Any]) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    file, about = holder / "tokenizer.json", read_json(holder / "tokenizer_config.json") or {}
    backend = None
    if file.is_file():
        with damaged_as_unusable(file):  # Also a kind of model that this version does not know.
            backend = Tokenizer.from_file(str(file))
    elif (what := what_it_is(holder / "tokenizer_config.json")) is not None:
        raise CheckpointUnusable(f"{holder / 'tokenizer_config.json'}: {what}")
    kind = str(config.get("model_type"))
    beside = not (holder / "config.json").is_file() and kind in CONFIG_MAPPING
    known = {"config": AutoConfig.for_model(kind)} if beside else {}
    chosen: PreTrainedTokenizerBase | None = None
    try:
        chosen = AutoTokenizer.from_pretrained(
            holder, local_files_only=True, trust_remote_code=trust_remote_code, **known
        )
    except Exception as error:  # Readers of damaged files raise nearly anything.
        if not trust_remote_code and "auto_map" in about:
            raise UserError(
                f"{holder}: the tokenizer needs code of its own; read it, and if you trust it pass "
                "trust_remote_code=true"
            ) from None
        if backend is None:
            raise CheckpointUnusable(
                f"{holder}: the tokenizer cannot be loaded ({one_line(error)}); copy or save its files again"
            ) from error
    if chosen is not None and (
        backend is None or "auto_map" in about or _rules(chosen.backend_tokenizer) == _rules(backend)
    ):
        return chosen
    assert backend is not None
    # Special tokens are told by other files, or by the class. One that is not in the vocabulary is not the model's.
    special = {name: str(getattr(chosen, name, None) or "") for name in _SPECIAL}
    special = {name: token for name, token in special.items() if backend.token_to_id(token) is not None}
    own = PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path=str(holder), **special)
    own.of_transformers = chosen  # `vocabulary.encode` says where it differs.
    return own


def _rules(backend: Any) -> dict[str, Any]:
    """What decides about the tokens of a text without special tokens."""
    spec = json.loads(backend.to_str())
    return {part: spec[part] for part in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
