"""Function words: tokens that carry grammar rather than content, which CSPA never takes for a suppressed token.

English determiners, pronouns, prepositions, conjunctions, auxiliaries and particles, written as inside a sentence and
as at its beginning; pieces of contractions; punctuation; white space and control characters; and the tokenizer's
special tokens. For a given tokenizer, the ones that are single tokens count.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

WORDS: dict[str, str] = {
    "determiners": (
        "a an the this that these those such some any no every each either neither both all most much many "
        "more few fewer less several enough another other others own same"
    ),
    "pronouns": (
        "I me my mine myself you your yours yourself yourselves he him his himself she her hers herself it "
        "its itself we us our ours ourselves they them their theirs themselves one ones who whom whose which "
        "what whatever whoever whichever someone something anyone anything everyone everything nobody nothing "
        "none"
    ),
    "prepositions": (
        "about above across after against along amid among amongst around as at before behind below beneath "
        "beside besides between beyond by despite down during except for from in inside into like near of off "
        "on onto out outside over past per since than through throughout till to toward towards under "
        "underneath until unto up upon via with within without"
    ),
    "conjunctions": (
        "and but or nor so yet because although though while whereas if unless whether when whenever where "
        "wherever why how once however therefore thus hence moreover meanwhile nevertheless nonetheless "
        "otherwise instead"
    ),
    "auxiliaries": (
        "am is are was were be been being do does did doing done have has had having will would shall should "
        "can could may might must ought cannot aren isn wasn weren don doesn didn haven hasn hadn won wouldn "
        "shouldn couldn"
    ),
    "particles": (
        "not also too very just only even still again already always never ever often almost quite rather "
        "really perhaps maybe here there then now today well else away back far indeed"
    ),
}
CAPITALISED_CONTENT = ("may", "will", "mine")  # May, Will and Mine are a month, a name and a noun
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'ll", "'d", "'m", "n't", "’s", "’t", "’re", "’ve", "’ll", "’d", "’m")
PUNCTUATION = (*".,:;!?'\"`´‘’“”()[]{}<>-–—_/\\|*&%$#@~^+=…·•", "...", "--", "''", "``", '."', ',"', ").", "),")
WHITE_SPACE = ("\n", "\n\n", "\r", "\r\n", "\t", "\t\t", *(" " * n for n in range(1, 25)), "\u00a0")
CONTROL = (*map(chr, range(32)), "\x7f")


def spellings() -> Iterator[str]:
    """Everything in the list, with words in each of their forms. Some come more than once."""
    for words in WORDS.values():
        for word in words.split():
            for form in {word} if word in CAPITALISED_CONTENT else {word, word[0].upper() + word[1:]}:
                yield form
                yield f" {form}"
    for mark in (*CONTRACTIONS, *PUNCTUATION):
        yield mark
        yield f" {mark}"
    yield from WHITE_SPACE
    yield from CONTROL


def function_tokens(tokenizer: PreTrainedTokenizerBase, words: list[str] | None = None) -> Int[Tensor, " token"]:
    """The function words that are single tokens of a tokenizer, sorted, and its special tokens.

    `words` take the place of ours: each as it is, and after a space.
    """
    texts = set(spellings() if words is None else [*words, *(f" {word}" for word in words)])
    rows = tokenizer(sorted(texts), add_special_tokens=False)["input_ids"]
    single = {ids[0] for ids in rows if len(ids) == 1} - {tokenizer.unk_token_id}
    return torch.tensor(sorted(single | set(tokenizer.all_special_ids)), dtype=torch.long)
