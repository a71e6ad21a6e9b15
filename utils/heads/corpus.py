"""Running text as sequences of equal length: from a file, a data set on the hub, Python's own documentation, or the toy
family's sentences.

Documents are the blocks of a text file between blank lines, the rows of a data set or file that have text, or Python's
topics. They are taken in a seeded order, tokenised, joined by the end-of-text token and cut into sequences, so a
sequence may begin and end inside a document. More sequences are cut than needed, and the ones to use are drawn from
them, so that a few long documents do not fill them all.

By the study's rule (Tigges et al. 2024, arXiv 2407.10827) a sequence is the beginning of a document, and only documents
with more tokens than a window count, so no document ends inside a sequence. The toy family's sentences are much
shorter. There a document is as many sentences, joined by the end-of-text token, as it takes to pass the window.
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import hashlib
import importlib
import json
import logging
import lzma
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import UserError
from ..base.files import what_it_is
from ..config.keys import StartToken
from ..toy import text as toy_text
from .keys import PYTHON_DOCS, TOY, kind_of_rows

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

POOL = 16
"""How many sequences to cut for each one that is drawn, if there is enough text."""

FIELD = "text"
_BLANK_LINES = re.compile(r"\n\s*\n")


def _zst_open(path: Path, mode: str, encoding: str) -> Any:
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError:
        raise UserError(f"corpus: {path}: to read it, run: pip install zstandard; or unpack it") from None
    return zstandard.open(path, mode, encoding=encoding)


_COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zst_open}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Where text comes from."""

    name: str  # a file, a data set on the hub (or a folder that `datasets` can read), `python_docs` or `toy`
    split: str = "train"
    field: str = FIELD

    def documents(self, seed: int) -> Iterator[str]:
        """The documents in seeded order; a UserError if there is no such text. Those of `toy` never end."""
        rng = random.Random(f"documents {seed}")
        if self.name == TOY:
            while True:
                yield _toy_document(rng)
        elif self.name == PYTHON_DOCS:
            topics = _python_topics()
            yield from rng.sample(topics, len(topics))
        elif (path := Path(self.name)).is_file() and kind_of_rows(path) is None:
            blocks = _blocks(path)
            yield from rng.sample(blocks, len(blocks))
        else:
            rows = _data_set(self.name, self.split, self.field)
            order = rng.sample(range(len(rows)), len(rows))
            skipped = 0
            try:
                for index in order:
                    if isinstance(text := rows[index][self.field], str) and text.strip():
                        yield text
                    else:
                        skipped += 1
            finally:  # Whoever has enough text closes this before the last row.
                if skipped:
                    log.warning("corpus: %d rows of %s have no text in '%s'; left out", skipped, self.name, self.field)


def draw_sequences(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    n: int,
    seq_len: int,
    seed: int,
    prepend_bos: StartToken = False,
    way_out: str = "(n_sequences + n_mean_sequences); name a longer text, or lower one of these or seq_len",
) -> list[list[int]]:
    """Distinct sequences of running text; with `prepend_bos` the tokenizer's start token begins each, and counts.

    A UserError if there is no such text, it is too short (then with the `way_out`), or there is no start token.
    """
    start, end = _start(tokenizer, prepend_bos), _end_of_text(tokenizer)
    width = seq_len - len(start)
    stream: list[int] = []
    for document in corpus.documents(seed):
        stream += _ids(tokenizer, document) + end
        if len(stream) >= POOL * n * width:
            break
    n_cut = len(stream) // width
    if n_cut < n:
        raise UserError(
            f"corpus: {corpus.name} gives {n_cut} sequences of {seq_len} tokens, but {n} are needed {way_out}"
        )
    drawn = random.Random(f"sequences {seed}").sample(range(min(n_cut, POOL * n)), n)
    return [start + stream[index * width : (index + 1) * width] for index in drawn]


def draw_beginnings(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    n: int,
    seq_len: int,
    seed: int,
    prepend_bos: StartToken = False,
    window: int | None = None,
) -> list[list[int]]:
    """The beginnings of the first documents of more tokens than the window (the study's rule), with the start token.

    A UserError as of `draw_sequences`, and if the window, `seq_len` by default, is shorter than a sequence.
    """
    window = seq_len if window is None else window
    if window < seq_len:
        raise UserError(f"corpus_window: {window} tokens are fewer than seq_len={seq_len}; raise it or leave it out")
    start, joined, rows = _start(tokenizer, prepend_bos), list[int](), list[list[int]]()
    for document in corpus.documents(seed):
        joined += _ids(tokenizer, document)
        long = len(start) + len(joined) > window
        if long:
            rows.append((start + joined)[:seq_len])
        if len(rows) == n:
            break
        # Only sentences of the toy family are joined to one document.
        joined = joined + _end_of_text(tokenizer) if corpus.name == TOY and not long else []
    if len(rows) < n:
        raise UserError(
            f"corpus: {corpus.name} has {len(rows)} documents of more than {window} tokens, but {n} are needed (the "
            "larger of n_sequences and n_mean_sequences); name a longer text, or lower these or corpus_window"
        )
    return rows


def _start(tokenizer: PreTrainedTokenizerBase, prepend_bos: StartToken) -> list[int]:
    if prepend_bos is not True:  # `auto` that no family has resolved counts as no
        return []
    if tokenizer.bos_token_id is None:
        raise UserError("prepend_bos: the tokenizer has no start token; pass prepend_bos=false")
    return [tokenizer.bos_token_id]


def _end_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _ids(tokenizer: PreTrainedTokenizerBase, document: str) -> list[int]:
    return list(tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"])


def tokens_sha256(tokens: Int[Tensor, "sequence position"]) -> str:
    """Hash of the token ids, which shows whether two results are about the same text."""
    return hashlib.sha256(tokens.cpu().long().numpy().astype("<i8").tobytes()).hexdigest()


def _blocks(path: Path) -> list[str]:
    try:
        with _COMPRESSED.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError, EOFError, lzma.LZMAError) as error:
        raise UserError(
            f"corpus: {path}: {what_it_is(path) or f'cannot be read ({error}); name a UTF-8 text file'}"
        ) from None
    if text.startswith("version https://git-lfs"):
        raise UserError(f"corpus: {path}: {what_it_is(path)}")
    with contextlib.suppress(ValueError):
        if isinstance(json.loads(text.lstrip().partition("\n")[0]), dict | list):
            raise UserError(f"corpus: {path} is JSON, not text; call it .jsonl or .json, and its '{FIELD}' is read")
    return [block.strip() for block in _BLANK_LINES.split(text) if block.strip()]


def _python_topics() -> list[str]:
    """What `help()` says about each topic, about 700 kB of English with examples. It depends on Python's version."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise UserError(
            f"corpus: {PYTHON_DOCS}: this Python comes without its documentation (pydoc_data.topics); name a text file"
        ) from None
    # Several topics may share a text.
    return list(dict.fromkeys(topics[name] for name in sorted(topics)))


@functools.lru_cache(maxsize=1)
def _data_set(name: str, split: str, field: str) -> Any:
    import datasets  # Slow to import, and only data sets need it.

    file = kind_of_rows(path) if (path := Path(name)).is_file() else None
    try:
        data_files = {} if file is None else {"data_files": str(path.resolve())}
        rows = datasets.load_dataset(file or name, split=split, **data_files)
    except Exception as error:  # The library passes on errors of several others.
        reason = " ".join(str(error).split())[:200]
        if file is not None:
            why = what_it_is(path) or f"cannot be read as {file} ({reason}); correct or fetch it"
            raise UserError(f"corpus: {name}: {why}") from error
        raise UserError(
            f"corpus: '{name}' is not a text file, and split '{split}' of a data set of that name cannot be loaded "
            f"({reason}); name a text file, a data set on the hub (NeelNanda/pile-10k), python_docs or toy"
        ) from error
    if field not in rows.column_names:
        raise UserError(f"corpus_field: {name} has no '{field}'; its columns are {', '.join(rows.column_names)}")
    return rows


def _toy_document(rng: random.Random) -> str:
    kinds = [toy_text.ioi_question, toy_text.greater_than_question, toy_text.gendered_pronoun_question]
    kinds += [toy_text.sva_question, toy_text.succession_question]
    return rng.choice(kinds)(rng, False).document(rng)
