"""The tokenizers that the tests of the tasks run under: Pythia's own, and word-level ones built from lists of words."""

from collections.abc import Iterable
from functools import cache

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.support.paths import PYTHIA_TOKENIZER
from utils.tasks import gendered_pronoun, greater_than, ioi, sva

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
        *(sva.ANIMATE_SUBJECTS + sva.INANIMATE_SUBJECTS + sva.EMBEDDED_NOUNS + sva.REPORTERS),
        *(sva.INTRANSITIVE_VERBS + sva.TRANSITIVE_VERBS + sva.VERB_PHRASES + sva.VERBS),
    ]
    return [
        *(ioi.TEMPLATES + ioi.NAMES + ioi.PLACES + ioi.OBJECTS),
        *((greater_than.TEMPLATE, *greater_than.NOUNS, *(f"{number:02d}" for number in range(100)))),
        *(gendered_pronoun.TEMPLATES + gendered_pronoun.ROLES + tuple(gendered_pronoun.PRONOUNS.values())),
        *(word for pair in pairs for word in pair),
        *(structure.template for structure in sva.STRUCTURES),
        *(sva.REPORTING_VERBS + sva.ANIMATE_PREPOSITIONS + sva.INANIMATE_PREPOSITIONS),
    ]


def word_level(texts: Iterable[str], without: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer without spaces in its tokens, that knows the texts' words alone and adds a BOS token by default."""
    splitter = Split(Regex(PIECES), behavior="removed", invert=True)
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


TOKENIZERS = {"pythia": pythia, "words": words}
