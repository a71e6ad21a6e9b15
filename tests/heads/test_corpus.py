"""Sequences of running text, and function words."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.heads import corpus
from circuits_over_time.utils.heads.corpus import Corpus, tokens_sha256
from circuits_over_time.utils.heads.function_words import function_tokens, spellings
from circuits_over_time.utils.heads.keys import CspaConfig
from tests.support.paths import PYTHIA_TOKENIZER, TOY
from tests.support.random_models import tiny_tokenizer


def draw_sequences(*arguments, **keys) -> torch.Tensor:
    return torch.tensor(corpus.draw_sequences(*arguments, **keys))


def draw_beginnings(*arguments, **keys) -> torch.Tensor:
    return torch.tensor(corpus.draw_beginnings(*arguments, **keys))


KEYS_OF_FIELD = ("corpus_field", "corpus_column")


@pytest.fixture
def tokenizer(tmp_path: Path):
    """Words 1 to 96; end of text is 0."""
    return tiny_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Documents "1 1 1 1", "2 2 2 2", ..., apart from one of two lines."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(["95\n96", *(" ".join([str(word)] * 4) for word in range(1, 60))]) + "\n \n\n")
    return path


def test_text_file_is_packed_with_end_of_text_between_documents(tokenizer, text_file: Path) -> None:
    tokens = draw_sequences(Corpus(str(text_file)), tokenizer, 5, 10, seed=0)
    assert tokens.shape == (5, 10)
    for row in tokens.tolist():
        assert 0 in row
        pieces = " ".join(map(str, row)).split(" 0 ")
        assert all(len(set(piece.split()) - {"0"}) <= 1 or "95" in piece for piece in pieces)


def test_blocks_between_blank_lines_are_documents(text_file: Path) -> None:
    documents = list(Corpus(str(text_file)).documents(0))
    assert len(documents) == 60
    assert "95\n96" in documents


def test_sequences_are_seeded_and_distinct(tokenizer, text_file: Path) -> None:
    source = Corpus(str(text_file))
    tokens = draw_sequences(source, tokenizer, 12, 10, seed=0)
    assert torch.equal(tokens, draw_sequences(source, tokenizer, 12, 10, seed=0))
    assert not torch.equal(tokens, draw_sequences(source, tokenizer, 12, 10, seed=1))
    assert len({tuple(row) for row in tokens.tolist()}) == 12


def test_start_token_counts_among_the_tokens(tokenizer, text_file: Path) -> None:
    tokens = draw_sequences(Corpus(str(text_file)), tokenizer, 3, 10, seed=0, prepend_bos=True)
    assert tokens.shape == (3, 10)
    assert tokens[:, 0].tolist() == [tokenizer.bos_token_id] * 3


def test_start_token_has_to_exist(tokenizer, text_file: Path) -> None:
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="prepend_bos: the tokenizer has no start token"):
        draw_sequences(Corpus(str(text_file)), tokenizer, 3, 10, seed=0, prepend_bos=True)


def test_text_too_short_is_refused_with_what_there_is(tokenizer, text_file: Path) -> None:
    with pytest.raises(UserError, match=r"text.txt gives 2 sequences of 100 tokens, but 3 are needed"):
        draw_sequences(Corpus(str(text_file)), tokenizer, 3, 100, seed=0)


def test_long_document_is_not_all_there_is(tokenizer, tmp_path: Path) -> None:
    """Sequences are drawn from more than are needed, so a document of that many sequences gives only some of them."""
    path = tmp_path / "two.txt"
    path.write_text(" ".join(["1"] * 200) + "\n\n" + " ".join(["2"] * 200))
    for seed in range(5):
        tokens = draw_sequences(Corpus(str(path)), tokenizer, 10, 10, seed)
        assert {1, 2} <= set(tokens.flatten().tolist())


# --- the study's rule: beginnings of long documents


@pytest.fixture
def long_and_short(tmp_path: Path) -> Path:
    """Documents of word n, n times, for n from 1 to 30."""
    path = tmp_path / "lengths.txt"
    path.write_text("\n\n".join(" ".join([str(word)] * word) for word in range(1, 31)))
    return path


def test_beginnings_are_of_documents_longer_than_a_sequence(tokenizer, long_and_short: Path) -> None:
    tokens = draw_beginnings(Corpus(str(long_and_short)), tokenizer, 20, 10, seed=0)
    assert tokens.shape == (20, 10)
    assert all(len(set(row.tolist())) == 1 for row in tokens)
    assert sorted(tokens[:, 0].tolist()) == list(range(11, 31))


def test_the_start_token_counts_towards_the_length_of_a_document(tokenizer, long_and_short: Path) -> None:
    tokens = draw_beginnings(Corpus(str(long_and_short)), tokenizer, 21, 10, seed=0, prepend_bos=True)
    assert tokens[:, 0].tolist() == [tokenizer.bos_token_id] * 21
    assert sorted(tokens[:, 1].tolist()) == list(range(10, 31))


def test_a_window_asks_for_longer_documents_than_a_sequence(tokenizer, long_and_short: Path) -> None:
    source = Corpus(str(long_and_short))
    tokens = draw_beginnings(source, tokenizer, 5, 10, seed=0, window=25)
    assert tokens.shape == (5, 10)
    assert sorted(tokens[:, 0].tolist()) == list(range(26, 31))
    with pytest.raises(UserError, match="has 5 documents of more than 25 tokens, but 6 are needed"):
        draw_beginnings(source, tokenizer, 6, 10, seed=0, window=25)
    with pytest.raises(UserError, match="corpus_window: 9 tokens are fewer than seq_len=10"):
        draw_beginnings(source, tokenizer, 6, 10, seed=0, window=9)


def test_beginnings_come_in_the_seeded_order_of_the_documents(tokenizer, long_and_short: Path) -> None:
    source = Corpus(str(long_and_short))
    tokens = draw_beginnings(source, tokenizer, 8, 5, seed=3)
    first = [int(document.split()[0]) for document in source.documents(3) if len(document.split()) > 5][:8]
    assert tokens[:, 0].tolist() == first
    assert torch.equal(tokens[:3], draw_beginnings(source, tokenizer, 3, 5, seed=3))
    assert not torch.equal(tokens, draw_beginnings(source, tokenizer, 8, 5, seed=4))


def test_toy_documents_are_sentences_joined_until_they_are_long_enough() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOY / "step1350")
    tokens = draw_beginnings(Corpus("toy"), tokenizer, 6, 30, seed=0, prepend_bos=True)
    sentences = iter(Corpus("toy").documents(0))
    for row in tokens.tolist():
        joined = [tokenizer.bos_token_id]
        while len(joined) <= 30:
            joined += [tokenizer.eos_token_id] * (len(joined) > 1)
            joined += tokenizer(next(sentences), add_special_tokens=False)["input_ids"]
        assert row == joined[:30]


# --- where text comes from


def test_data_set_is_read_by_split_and_field(tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    pd.DataFrame({"body": [f"{word} {word}" for word in range(1, 50)]}).to_parquet(folder / "train.parquet")
    pd.DataFrame({"body": ["7 7 7"] * 9}).to_parquet(folder / "test.parquet")
    tokens = draw_sequences(Corpus(str(folder), "train", "body"), tokenizer, 10, 9, seed=0)
    assert len(set(tokens.flatten().tolist())) > 10
    tokens = draw_sequences(Corpus(str(folder), "test", "body"), tokenizer, 3, 9, seed=0)
    assert set(tokens.flatten().tolist()) == {0, 7}
    with pytest.raises(UserError, match=r"corpus_field: .* has no 'text'; its columns are body"):
        draw_sequences(Corpus(str(folder), "test"), tokenizer, 3, 9, seed=0)


def test_data_set_that_cannot_be_loaded_is_one_line(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str) -> None:
        raise ConnectionError("no\nway through")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    corpus._data_set.cache_clear()
    with pytest.raises(UserError, match=r"corpus: 'texts/none.txt' is not a text file.*no way through") as error:
        draw_sequences(Corpus("texts/none.txt"), tokenizer, 3, 9, seed=0)
    assert "\n" not in str(error.value)


def test_file_that_is_no_text_is_refused(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "bytes.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bytes.txt: cannot be read .*UTF-8"):
        draw_sequences(Corpus(str(path)), tokenizer, 3, 9, seed=0)


ROWS = [f"{word} {word} {word}" for word in range(1, 40)]


def of_rows(path: Path, tokenizer, **keys) -> list[list[int]]:
    return draw_sequences(Corpus(str(path), **keys), tokenizer, 10, 9, seed=0).tolist()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.bz2", "a.JSONL.xz"])
def test_files_with_rows_are_read_by_their_field_whatever_their_kind(name: str, tokenizer, tmp_path: Path) -> None:
    table = pd.DataFrame({"id": range(len(ROWS)), "text": ROWS})
    path = tmp_path / name
    if "json" in name.lower():
        lines = name != "a.json"
        table.to_json(path, orient="records", lines=lines, compression="infer" if name != "a.JSONL.xz" else "xz")
    elif "csv" in name:
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    (folder := tmp_path / "set").mkdir()
    table.to_parquet(folder / "train.parquet")
    assert of_rows(path, tokenizer) == of_rows(folder, tokenizer)
    table.rename(columns={"text": "body"}).to_parquet(tmp_path / "b.parquet")
    assert of_rows(tmp_path / "b.parquet", tokenizer, field="body") == of_rows(folder, tokenizer)


def test_rows_without_text_are_left_out_and_counted(tokenizer, tmp_path: Path, caplog) -> None:
    rows = [*({"text": row} for row in ROWS), *[{"text": None}] * 50, {"text": "  "}, {"id": 3}]
    path = tmp_path / "holes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = draw_sequences(Corpus(str(path)), tokenizer, 17, 9, seed=0)  # more than are cut from all text
    known = {word for row in ROWS for word in tokenizer(row, add_special_tokens=False)["input_ids"]}
    assert set(found.flatten().tolist()) <= known | {tokenizer.eos_token_id}
    assert f"corpus: 52 rows of {path} have no text in 'text'; left out" in caplog.messages


def test_compressed_text_is_text(tokenizer, text_file: Path) -> None:
    packed = text_file.with_suffix(".txt.gz")
    packed.write_bytes(gzip.compress(text_file.read_bytes()))
    one, other = (draw_sequences(Corpus(str(path)), tokenizer, 3, 9, seed=0) for path in (text_file, packed))
    assert torch.equal(one, other)


def test_json_is_never_prose(tokenizer, tmp_path: Path) -> None:
    (path := tmp_path / "rows.txt").write_text('{"text": "1 2 3"}\n{"text": "4 5 6"}\n')
    with pytest.raises(UserError, match=r"rows.txt is JSON, not text; call it .jsonl or .json, and its 'text' is read"):
        draw_sequences(Corpus(str(path)), tokenizer, 1, 2, seed=0)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt"])
def test_a_pointer_in_place_of_a_file_of_text_is_told(name: str, tokenizer, tmp_path: Path) -> None:
    (path := tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64)
    with pytest.raises(UserError, match="is a Git LFS pointer, not the file itself; fetch that with: git lfs pull"):
        draw_sequences(Corpus(str(path)), tokenizer, 1, 2, seed=0)


def test_toy_text_is_the_familys_sentences() -> None:
    first = [document for document, _ in zip(Corpus("toy").documents(0), range(40), strict=False)]
    again = [document for document, _ in zip(Corpus("toy").documents(0), range(40), strict=False)]
    assert first == again
    assert len(set(first)) > 30


def test_hash_tells_texts_apart() -> None:
    tokens = torch.tensor([[1, 2], [3, 4]])
    assert tokens_sha256(tokens) == tokens_sha256(tokens.int())
    assert tokens_sha256(tokens) != tokens_sha256(tokens + 1)


def test_function_words_are_the_listed_ones_that_are_single_tokens() -> None:
    if not PYTHIA_TOKENIZER.is_dir():
        pytest.skip("../shared/pythia_tokenizer is not here")
    tokenizer = AutoTokenizer.from_pretrained(PYTHIA_TOKENIZER)
    tokens = set(function_tokens(tokenizer).tolist())
    for text in (" the", "The", " of", ",", ".", " '", "'s", "\n", "\n\n", "<|endoftext|>", " nevertheless", " he"):
        assert tokenizer.encode(text, add_special_tokens=False)[0] in tokens
    for text in (" Mary", " keys", " 17", " war", " May", " US", " drink", " green"):
        assert tokenizer.encode(text, add_special_tokens=False)[0] not in tokens
    listed = set(spellings())
    special = set(tokenizer.all_special_ids)
    assert all(tokenizer.decode([token]) in listed or token in special for token in tokens)


def test_function_words_that_a_tokenizer_does_not_know_are_left_out(tokenizer) -> None:
    assert function_tokens(tokenizer).tolist() == [0]


def test_pythons_documentation_is_text_without_downloads(tokenizer) -> None:
    documents = list(Corpus("python_docs").documents(0))
    assert len(documents) == len(set(documents)) > 50
    assert sum(map(len, documents)) > 200_000
    assert sorted(documents) == sorted(Corpus("python_docs").documents(1))
    assert documents == list(Corpus("python_docs").documents(0)) != list(Corpus("python_docs").documents(1))
    assert any('"if" statement' in text for text in documents)


def test_a_python_without_its_documentation_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UserError) as error:
        next(Corpus("python_docs").documents(0))
    assert str(error.value) == (
        "corpus: python_docs: this Python comes without its documentation (pydoc_data.topics); name a text file"
    )


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".JSONL.zst"])
def test_the_field_of_a_file_with_rows_can_be_named_by_either_key(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"text{ending}"
    path.touch()
    named = [CspaConfig.model_validate({"model": "a", "corpus": str(path), key: "body"}) for key in KEYS_OF_FIELD]
    assert [config.corpus_field for config in named] == ["body", "body"]
    path = path.rename(tmp_path / "text.txt.gz")
    for key in KEYS_OF_FIELD:
        with pytest.raises(ValueError, match=r"corpus_field: .*text\.txt\.gz is text without rows; leave it out"):
            CspaConfig.model_validate({"model": "a", "corpus": str(path), key: "body"})
