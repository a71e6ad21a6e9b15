"""Tasks from templates and lists of words, as a config describes them (`TemplateKeys`).

In the corrupted prompt the slot to swap has a word of a kind with other answers: "The capital of France is" becomes
"The capital of Italy is". Kinds take turns, and all templates come equally often until a small one has no prompts left.
Words and answers that are not one token under the tokenizer are left out; of a phrase, every word must be one.

`meta` columns: the swapped word (under its slot's name), kind (if words are listed by kind), template (its number), the
words of the other slots, and corrupted_SLOT, the word that the corrupted prompt has instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from ..config.keys import SLOT, USUAL_PROMPTS, PromptOptions, TemplateKeys, as_list
from .prompts import Pair, Task
from .roles import slot_spans
from .sampling import draw, seeded, unravel
from .vocabulary import CARRIER, continuations, require, say_left, say_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST = 2 * USUAL_PROMPTS
"""Of prompts, if nobody says how many: a circuit takes half of them to score edges, and half to evaluate."""


def template_task(name: str, keys: TemplateKeys) -> Task:
    """The task of a config, which names each word that the tokenizer leaves out."""
    group = "kind" if keys.swap in keys.words else None
    return Task(name, partial(pairs, name, keys, name_each=True), keys.metric, group=group, usual=None)


def pairs(
    name: str,
    keys: TemplateKeys,
    tokenizer: PreTrainedTokenizerBase,
    n: int | None,
    seed: int,
    options: PromptOptions,
    *,
    kind: str = "kind",
    name_each: bool = False,
) -> list[Pair]:
    """n distinct prompts, or all that there are, at most `MOST`.

    `kind` is the column of `meta` that says of which kind the swapped word is; `name_each` logs every word that is left
    out, and not only how many. It is a UserError if the tokenizer leaves a slot no word, or fewer than two kinds with
    different answers, or if there are fewer than n prompts.
    """
    swap, listed = keys.swap, {slot: as_list(words) for slot, words in keys.words.items() if slot != keys.swap}
    answers = _known(tokenizer, name, "answers", _joined(keys.answers), [(CARRIER, " ")], 2, name_each)
    tokens = {
        one: tuple(dict.fromkeys(answers[word] for word in as_list(words) if word in answers))
        for one, words in keys.answers.items()
    }
    words = {
        slot: list(_known(tokenizer, name, f"words for {{{slot}}}", all_, _places(keys.templates, slot), 1, name_each))
        for slot, all_ in {swap: _joined(keys.kinds), **listed}.items()
    }
    own = {one: [word for word in all_ if word in words[swap]] for one, all_ in keys.kinds.items() if tokens[one]}
    instead = _exchanges(own, tokens)
    own = {one: left for one, all_ in own.items() if (left := [word for word in all_ if instead[one, _length(word)]])}
    require(len(own), len(keys.kinds), name, f"kinds of {{{swap}}} with an answer", 2)

    slots = [[slot for slot in dict.fromkeys(SLOT.findall(template)) if slot != swap] for template in keys.templates]
    sizes = [[len(words[slot]) for slot in used] for used in slots]
    groups = [[len(pool) * prod(size) for size in sizes] for pool in own.values()]
    corruption = seeded(name, seed, "corrupted")
    made: list[Pair] = []
    for group, template, number in draw(name, groups, min(MOST, sum(map(sum, groups))) if n is None else n, seed):
        one, pool = list(own.items())[group]
        first, *rest = unravel(number, (len(pool), *sizes[template]))
        word = pool[first]
        other, corrupted_word = corruption.choice(instead[one, _length(word)])
        filled = {slot: words[slot][place] for slot, place in zip(slots[template], rest, strict=True)}
        text = keys.templates[template]
        clean, corrupted = (fill(text, {**filled, swap: swapped}) for swapped in (word, corrupted_word))
        roles = slot_spans(text, {**filled, swap: word})
        meta: dict[str, Any] = {swap: word, **({kind: one} if swap in keys.words else {}), "template": template}
        meta |= {slot: filled.get(slot, "") for slot in listed} | {f"corrupted_{swap}": corrupted_word}
        made.append(Pair(clean, corrupted, tokens[one], tokens[other], meta, f"{name} prompt {len(made)}", roles))
    return made


def fill(template: str, words: Mapping[str, str]) -> str:
    """A template with a word in each of its slots."""
    return SLOT.sub(lambda slot: words[slot[1]], template)


def _joined(by_kind: Mapping[str, Any]) -> list[str]:
    """The words of all kinds, each once."""
    return list(dict.fromkeys(word for words in by_kind.values() for word in as_list(words)))


def _length(phrase: str) -> int:
    return len(phrase.split())


def _exchanges(
    own: Mapping[str, Sequence[str]], tokens: Mapping[str, tuple[int, ...]]
) -> dict[tuple[str, int], list[tuple[str, str]]]:
    """(kind, number of words) -> the (kind, phrase) that may stand instead: as long, and of other answers."""
    return {
        (one, length): [
            (other, word)
            for other, pool in own.items()
            for word in pool
            if not set(tokens[one]) & set(tokens[other]) and _length(word) == length
        ]
        for one, phrases in own.items()
        for length in {_length(phrase) for phrase in phrases}
    }


def _places(templates: Iterable[str], slot: str) -> set[tuple[str, str]]:
    """Where the words of a slot stand: after which text, and what is between."""
    before = [template[: found.start()] for template in templates for found in re.finditer(rf"{{{slot}}}", template)]
    return {(CARRIER, " ") if text.endswith(" ") else (f"{CARRIER} {text[-1]}" if text else "", "") for text in before}


def _known(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    what: str,
    phrases: Sequence[str],
    places: Iterable[tuple[str, str]],
    least: int,
    name_each: bool,
) -> dict[str, int]:
    """The phrases of single-token words in all these places, with their first tokens; a UserError below `least`."""
    later = continuations(tokenizer, [f" {word}" for phrase in phrases for word in phrase.split()[1:]])
    kept = {phrase: 0 for phrase in phrases if all(f" {word}" in later for word in phrase.split()[1:])}
    for carrier, between in places:
        starts = continuations(tokenizer, [between + phrase.split()[0] for phrase in kept], carrier)
        kept = {phrase: starts[start] for phrase in kept if (start := between + phrase.split()[0]) in starts}
    for phrase in phrases if name_each else ():
        if phrase not in kept:
            say_once(tokenizer, f"{name}: {phrase!r} of the {what} is not one token under this tokenizer, and left out")
    require(len(kept), len(phrases), name, what, least)
    if not name_each:
        say_left(tokenizer, name, what, len(kept), len(phrases))
    return kept
