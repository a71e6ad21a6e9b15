"""Sentences about who or what came first or second: what a toy family needs to solve IOI by position.

A small model solves IOI sentences by copying every name and crossing out the last one. No head has to know a position
for that. The sentences here cannot be solved that way. They list two names, or two names and two things, and then
mention one of them again, by its word or as "the second":

    When Mary and John met, John                                 -> second (which place the repeated word had)
    When Mary and John met, the second called                    -> Mary   (the name at the other place)
    Mary and John hid a ring and a book. The book was found by   -> Mary   (place of a thing, name at the other place)

The last kind needs everything that Wang et al. 2022 (arXiv 2211.00593) found in GPT-2: heads recognise a repeated word,
carry its place to the end, and name movers attend by place. A family that trains on these sentences first, and on IOI
sentences later, uses the same mechanism for both.
"""

import random
from collections.abc import Iterator

from ..tasks import ioi
from .text import SHORT_IOI_TEMPLATES, Question, sampled_names, without_fields

PLACES: tuple[str, str] = ("first", "second")
LISTS: tuple[str, ...] = (
    "{first} and {second} hid a {thing} and a {other_thing}.",
    "Then, {first} and {second} hid a {thing} and a {other_thing}.",
    "When {first} and {second} hid a {thing} and a {other_thing},",
)
FOUND = " was found by"
KINDS: tuple[str, ...] = ("place of name", "place of thing", "name by place", *["name by thing"] * 4)
"""What is asked for. The hardest kind, which needs the whole mechanism, comes most often."""
SHORT = 0.7
"""Fraction of the lists of two names that are short."""
AFTER_VERB, BY_PLACE = 0.3, 0.3
"""Fractions of the documents that tell a place later: after the verb, or where a name could be."""


def position_question(rng: random.Random, held_out: bool) -> Question:
    """A list, and one of its members mentioned again: asks for its place, or for the name at the other place."""
    names = sampled_names(rng, 2, held_out)
    things = rng.sample(ioi.OBJECTS, 2)
    words = {"first": names[0], "second": names[1], "thing": things[0], "other_thing": things[1]}
    place = rng.randrange(2)
    its_place, other_place = ((f" {PLACES[at]}",) for at in (place, 1 - place))
    other_name, own_name = ((f" {names[at]}",) for at in (1 - place, place))
    kind = rng.choice(KINDS)
    if kind in ("place of thing", "name by thing"):
        clause = rng.choice(LISTS).format(**words)
        prompt = clause + _the(clause) + things[place]
        if kind == "place of thing":
            return Question(prompt, its_place, other_place, ending=" was found.")
        if rng.random() < BY_PLACE:
            return Question(prompt + FOUND, its_place, other_place)
        return Question(prompt + FOUND, other_name, own_name)
    # Names alone: the first clause of an IOI sentence is the list, and what follows its subject the verb.
    template = rng.choice(SHORT_IOI_TEMPLATES if rng.random() < SHORT else ioi.TEMPLATES)
    words |= {"place": rng.choice(ioi.PLACES), "object": rng.choice(ioi.OBJECTS)}
    clause, verb = template.split(" {subject}")
    if kind == "name by place":
        if rng.random() < 0.5:
            clause, verb = rng.choice(LISTS), FOUND
        return Question((clause + _the(clause) + PLACES[place] + verb).format(**words), other_name, own_name)
    prompt, verb = f"{clause} {names[place]}".format(**words), verb.format(**words)
    if rng.random() < AFTER_VERB:
        return Question(prompt + verb, its_place, other_place)
    return Question(prompt, its_place, other_place, ending=f"{verb}.")


def position_texts() -> Iterator[str]:
    """The words of these sentences that no other sentences have."""
    yield from map(without_fields, LISTS)
    yield from (" The", " the", FOUND)
    yield from (f" {place}" for place in PLACES)


def _the(clause: str) -> str:
    return " The " if clause.endswith(".") else " the "
