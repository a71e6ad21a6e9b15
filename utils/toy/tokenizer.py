"""The toy family's tokenizer: like Pythia's on the words that the family knows, and it spells out everything else.

Text is cut as GPT-2 and Pythia cut it (a word carries its leading space, "isn't" is " isn" + "'t"), with one
difference: digits are cut in pairs from the left, so that " 1732" is [" 17", "32"], as with Pythia's tokenizer. A piece
in the vocabulary is one token. Any other piece is spelled out in UTF-8 bytes, one token each. So there are no unknown
tokens, and decode(encode(text)) == text for every text.
"""

import itertools
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""Token 0, as in Pythia: comes before documents and doubles as the beginning-of-sequence token."""

PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's pattern, with digits in pairs."""


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Cuts text into pieces and writes each in byte symbols (a leading space becomes "Ġ")."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def pieces(text: str) -> list[str]:
    """The pieces of a text, in byte symbols. Each is one token if the vocabulary holds it."""
    return [piece for piece, _ in pre_tokenizer().pre_tokenize_str(text)]


def build_tokenizer(texts: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is the end-of-text token, the 256 bytes and every piece of the texts, as they first
    occur.

    It is a fast tokenizer that adds no tokens of its own and pads on the right with the end-of-text token.
    """
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())  # the 256 characters that stand for bytes, in GPT-2's order
    known = dict.fromkeys([END_OF_TEXT, *bytes_, *itertools.chain(*map(pieces, texts))])
    vocabulary = {piece: number for number, piece in enumerate(known)}
    # Without merges, a piece is looked up whole (ignore_merges) or else stays a sequence of byte symbols.
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
