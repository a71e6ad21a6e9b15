"""The tokenizers that the tests of the tasks run under: Pythia's own, and word-level ones built from lists of words."""

import re
from collections.abc import Iterable
from functools import cache

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE, Unigram, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from circuits_over_time.utils.tasks import gendered_pronoun, greater_than, ioi, sva
from tests.support.paths import PYTHIA_TOKENIZER, ROOT

PIECES = r"\d\d|[A-Za-z]+|[^\sA-Za-z\d]"


@cache
def _load_pythia() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(PYTHIA_TOKENIZER)


def pythia() -> PreTrainedTokenizerBase:
    if not PYTHIA_TOKENIZER.is_dir():
        pytest.skip("Pythia's tokenizer is missing (../shared/pythia_tokenizer, next to the repository)")
    return _load_pythia()


def task_texts() -> list[str]:
    """Texts that hold every word of every task."""
    pairs = [
        *(sva.WORDS["animate"] + sva.WORDS["inanimate"] + sva.WORDS["embedded"] + sva.WORDS["reporters"]),
        *(sva.WORDS["intransitive"] + sva.WORDS["transitive"] + sva.WORDS["verb_phrases"] + sva.VERBS),
    ]
    return [
        *(ioi.TEMPLATES + ioi.NAMES + ioi.PLACES + ioi.OBJECTS),
        *((greater_than.TEMPLATE, *greater_than.NOUNS, *(f"{number:02d}" for number in range(100)))),
        *(gendered_pronoun.TEMPLATES + gendered_pronoun.ROLES + tuple(gendered_pronoun.PRONOUNS.values())),
        *(word for pair in pairs for word in pair),
        *(structure.template for structure in sva.STRUCTURES),
        *(sva.WORDS["reporting_verbs"] + sva.WORDS["animate_prepositions"] + sva.WORDS["inanimate_prepositions"]),
    ]


def word_level(texts: Iterable[str], without: Iterable[str] = (), pieces: str = PIECES) -> PreTrainedTokenizerFast:
    """A tokenizer without spaces in its tokens, that knows the texts' words alone and adds a BOS token by default."""
    splitter = Split(Regex(pieces), behavior="removed", invert=True)
    words = dict.fromkeys(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
    words = {word: None for word in words if word not in set(without)}
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[BOS]", "[UNK]", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", bos_token="[BOS]", unk_token="[UNK]")


@cache
def words() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows every word of every task."""
    return word_level(task_texts())


def _byte_level(*before: Split | Digits) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of the tasks' words with their spaces and of all numbers up to 9999, cut up first as told."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence([*before, ByteLevel(add_prefix_space=False, use_regex=not before)])
    texts = [f"The {text}" for text in task_texts()] * 9 + [str(number) for number in range(1000)] * 9
    everyday = BpeTrainer(
        vocab_size=6000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, everyday)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end)


@cache
def single_digits() -> PreTrainedTokenizerFast:
    """Like SmolLM2's: a token for each digit, and for the space before the first."""
    return _byte_level(Digits(individual_digits=True), Split(Regex(r" ?[A-Za-z]+| "), behavior="isolated"))


@cache
def three_digits() -> PreTrainedTokenizerFast:
    """Like those of Llama 3 and OLMo 2: numbers are cut into three digits from the left, and the space is apart."""
    return _byte_level(Split(Regex(r" ?[A-Za-z]+|[0-9]{1,3}| "), behavior="isolated"))


@cache
def sentence_pieces() -> PreTrainedTokenizerFast:
    """Like Llama 2's: `▁` marks spaces, digits are tokens of their own, and a BOS token is added by default."""
    words = sorted({word for text in task_texts() for word in re.findall("[A-Za-z]+", text)})
    pieces = ["<unk>", "<s>", "</s>", "▁", *(f"▁{word}" for word in words), *"0123456789", *"'.,", "n", "t", "isn"]
    tokenizer = Tokenizer(Unigram([(piece, -float(bool(piece))) for piece in pieces], unk_id=0))
    tokenizer.pre_tokenizer = Sequence([Metaspace(), Split(Regex("[0-9]|[.,']"), behavior="isolated")])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


SMOLLM2 = ROOT / "model_cache" / "smollm2-135m" / "step2000000"


@cache
def _load_smollm2() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(SMOLLM2)


def smollm2() -> PreTrainedTokenizerBase:
    if not SMOLLM2.is_dir():
        pytest.skip("SmolLM2 is not unpacked (make real)")
    return _load_smollm2()


OTHERS = {"smollm2": smollm2, "digits": single_digits, "three": three_digits, "pieces": sentence_pieces}
"""Tokenizers that cut years before the last digit."""

TOKENIZERS = {"pythia": pythia, "words": words}
