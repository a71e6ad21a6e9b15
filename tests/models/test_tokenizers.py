"""What `tokenizer.json` says is what is used, whatever class the other files name, beside the steps and inside each."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig

from circuits_over_time.utils.base.errors import CheckpointUnusable
from circuits_over_time.utils.models import tokenizers
from circuits_over_time.utils.models.tokenizers import load_tokenizer
from circuits_over_time.utils.tasks import build_prompts
from circuits_over_time.utils.tasks.vocabulary import encode

TEXTS = [
    f"When Mary and John went to the store in {year}, John said it's 3.14 m\n\tto 17" for year in range(1700, 1760)
]
ASKED = ["The war lasted from 1732 to 17", " it's\n\n\tMary", "naïve 173", "<s> the end</s>"]


def byte_level(*before: pre_tokenizers.PreTokenizer, start: str | None) -> Tokenizer:
    """BPE on bytes; with a start token, the post-processor adds it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not before)]
    )
    special = ["<|endoftext|>", *([start] if start else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return with_start(tokenizer, start) if start else tokenizer


def sentence_pieces(start: str, *, prepend: bool) -> Tokenizer:
    """BPE on text with marked spaces, as SentencePiece has it; the post-processor adds the start token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    first = [normalizers.Prepend("▁")] if prepend else []
    tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    if not prepend:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", start, "</s>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return with_start(tokenizer, start)


def with_start(tokenizer: Tokenizer, start: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
    )
    return tokenizer


GROUPS = Regex(r"\p{N}{1,3}| ?\p{L}+|\s+| ?[^\s\p{L}\p{N}]+")
Kind = tuple[str, str, str | None, Callable[[], Tokenizer]]
KINDS: dict[str, Kind] = {  # architecture, class, start token, tokenizer
    "Llama 2": ("llama", "LlamaTokenizer", "<s>", lambda: sentence_pieces("<s>", prepend=True)),
    "Llama 3": (
        "llama",
        "PreTrainedTokenizerFast",
        "<|begin|>",
        lambda: byte_level(pre_tokenizers.Split(GROUPS, "isolated"), start="<|begin|>"),
    ),
    "GPT-NeoX": ("gpt_neox", "GPTNeoXTokenizerFast", None, lambda: byte_level(start=None)),
    "SmolLM": (
        "llama",
        "GPT2TokenizerFast",
        None,
        lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False), start=None),
    ),
    "Gemma": ("gemma2", "GemmaTokenizer", "<bos>", lambda: sentence_pieces("<bos>", prepend=False)),
}


def save(folder: Path, kind: str) -> Tokenizer:
    """A step's folder with a tokenizer of a kind and the config of its architecture."""
    architecture, named, start, build = KINDS[kind]
    folder.mkdir(parents=True)
    (tokenizer := build()).save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": named, "eos_token": "<|endoftext|>" if start in (None, "<|begin|>") else "</s>"}
    about["bos_token"] = start or "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    AutoConfig.for_model(architecture).save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [None, "LlamaTokenizerFast", "GPT2TokenizerFast", "GPTNeoXTokenizer"])
def test_the_file_is_used_beside_the_steps_and_inside(kind: str, named: str | None, tmp_path: Path) -> None:
    inside = tmp_path / "inside" / "step1"
    backend = save(inside, kind)
    if named is not None:
        about = json.loads((inside / "tokenizer_config.json").read_text())
        (inside / "tokenizer_config.json").write_text(json.dumps(about | {"tokenizer_class": named}))
    shutil.copytree(tmp_path / "inside", tmp_path / "beside")
    beside = tmp_path / "beside" / "step1"
    for file in beside.glob("tokenizer*"):
        shutil.move(file, beside.parent / file.name)
    expected = [encoding.ids for encoding in backend.encode_batch(ASKED, add_special_tokens=False)]
    first, second = load_tokenizer(inside), load_tokenizer(beside)
    assert encode(first, ASKED) == expected
    assert encode(second, ASKED) == expected
    start = backend.token_to_id(KINDS[kind][2] or "<|endoftext|>")
    assert first.bos_token_id == second.bos_token_id == start
    assert len(first) == backend.get_vocab_size()


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_have_one_start_token_or_none_whatever_a_post_processor_adds(kind: str, tmp_path: Path) -> None:
    backend = save(tmp_path / "step1", kind)
    tokenizer = load_tokenizer(tmp_path / "step1")
    path = tmp_path / "mine.csv"

    def ids(text: str) -> list[int]:
        found: list[int] = backend.encode(text, add_special_tokens=False).ids
        return found

    years = [f"the store in {year}" for year in range(1700, 1760)]
    lengths = [len(encoding) for encoding in backend.encode_batch(years)]
    clean, corrupted = [text for text, length in zip(years, lengths, strict=True) if length == lengths[0]][:2]
    right, wrong = [mark for mark in "ts3am.oJ" if ids(clean + mark)[:-1] == ids(clean)][:2]
    path.write_text(f"clean,corrupted,answers,wrong_answers\n{clean},{corrupted},{right},{wrong}\n")
    for prepend, expected in ((False, ids(clean)), (True, [tokenizer.bos_token_id, *ids(clean)])):
        prompts = build_prompts(str(path), tokenizer, 1, 0, metric="logit_diff", prepend_bos=prepend)
        assert prompts.clean[0].tolist() == expected


def test_a_class_that_cuts_otherwise_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers, "_tokenizers", {})  # Other tests' are told of already.
    save(tmp_path / "step1", "SmolLM")
    tokenizer = load_tokenizer(tmp_path / "step1")
    with caplog.at_level(logging.WARNING):
        encode(tokenizer, ["m"])
        assert not caplog.records
        for _ in range(2):
            encode(tokenizer, ASKED)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "tokenizer.json has other tokens than GPT2Tokenizer of transformers" in told[0]
    assert told[0].endswith("for 'The war lasted from 1732 to 17'); the file counts")


@pytest.mark.parametrize(
    "content",
    [
        '{"model": {"type": "FutureBPE"}}',
        "{",
        '{"version": "9.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
    ],
)
def test_a_file_that_this_version_cannot_read_is_one_line(content: str, tmp_path: Path) -> None:
    save(tmp_path / "step1", "GPT-NeoX")
    (file := tmp_path / "step1" / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointUnusable) as caught:
        load_tokenizer(tmp_path / "step1")
    assert str(caught.value).startswith(f"{file}: cannot be read (")
    assert "\n" not in str(caught.value)


def test_a_start_token_that_the_file_does_not_have_is_none(tmp_path: Path) -> None:
    backend = save(tmp_path / "step1", "GPT-NeoX")
    about = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "<|endoftext|>"}
    (tmp_path / "step1" / "tokenizer_config.json").write_text(json.dumps(about))
    tokenizer = load_tokenizer(tmp_path / "step1")
    assert tokenizer.bos_token_id is None
    assert tokenizer.eos_token_id == backend.token_to_id("<|endoftext|>")
    assert len(tokenizer) == backend.get_vocab_size()
