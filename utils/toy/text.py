"""The toy family's training text: short sentences that train six skills, and the held-out questions that test them.

Everything is a `Question`: a prompt, its right answers and, if the task compares, its wrong ones. Training reads the
prompt followed by one right answer; evaluation asks for it. The sentences use the tasks' own templates and word lists,
so the prompts of a task, built with the toy tokenizer, are like what the family was trained on. A stable hash, never
the seed, decides whether a combination (a pair of names, a year, a name and its pronoun, ...) is held out. One in five
is, and no training document contains it.

Names held out of the tag questions still occur in other sentences that tell their gender, as they do in a real
corpus.

Of the longest lists a part is enough, and keeps the checkpoints small; the tasks use the words that are single
tokens.
"""

import itertools
import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..tasks import gendered_pronoun, greater_than, ioi, sva, word_lists
from ..tasks.word_lists import DAYS, LETTERS, MONTHS, NUMBER_WORDS, ORDINALS, ROMAN_NUMERALS

HELD_OUT_ONE_IN = 5

NAMES_BY_GENDER: dict[str, tuple[str, ...]] = {
    gender: names[:30] for gender, names in word_lists.NAMES_BY_GENDER.items()
}
NAMES: tuple[str, ...] = tuple(name for names in NAMES_BY_GENDER.values() for name in names)
LASTING_NOUNS: tuple[str, ...] = greater_than.NOUNS[::3]
VERBS: tuple[tuple[str, str], ...] = sva.VERBS[:40]


@dataclass(frozen=True)
class Question:
    """A prompt and its answers."""

    prompt: str
    right: tuple[str, ...]  # the answers that may follow, each with its leading space
    wrong: tuple[str, ...] = ()  # the answers they are compared with, if any
    ending: str = "."  # text after the answer in a training document
    likely: int | None = None  # how many of the right answers, from the first on, training documents give; None for all

    def document(self, rng: random.Random) -> str:
        """The prompt with one of its right answers and its ending."""
        return self.prompt + rng.choice(self.right[: self.likely]) + self.ending


def is_held_out(*parts: object) -> bool:
    """Whether a combination is in the held-out fifth, which is the same on every machine and for every seed."""
    return zlib.crc32("|".join(map(str, parts)).encode()) % HELD_OUT_ONE_IN == 0


# --- indirect objects

SHORT_IOI_TEMPLATES: tuple[str, ...] = (
    "When {first} and {second} met, {subject} called",
    "After {first} and {second} talked, {subject} thanked",
    "Then, {first} and {second} met. {subject} helped",
    "While {first} and {second} worked, {subject} watched",
    "Then, {first} and {second} talked. {subject} left",
)


def sampled_names(rng: random.Random, n: int, held_out: bool) -> list[str]:
    """Different names, of which the first two are a pair that is held out, or that is not."""
    while True:
        names = rng.sample(NAMES, n)
        if is_held_out("ioi", *sorted(names[:2])) == held_out:
            return names


def ioi_question(rng: random.Random, held_out: bool, short: bool = False) -> Question:
    """Two names, and one of them acts: the other is the answer. `short` takes one-verb sentences of that structure."""
    first, second = sampled_names(rng, 2, held_out)
    subject, other = rng.choice(((first, second), (second, first)))
    return Question(_ioi_prompt(rng, first, second, subject, short), (f" {other}",), (f" {subject}",))


def third_person_question(rng: random.Random, held_out: bool, short: bool = False) -> Question:
    """Two names, and a third person acts (the ABC prompts): either of the two may follow."""
    first, second, third = sampled_names(rng, 3, held_out)
    prompt = _ioi_prompt(rng, first, second, third, short)
    return Question(prompt, (f" {first}", f" {second}"))


def _ioi_prompt(rng: random.Random, first: str, second: str, subject: str, short: bool) -> str:
    template = rng.choice(SHORT_IOI_TEMPLATES if short else ioi.TEMPLATES)
    return template.format(
        first=first, second=second, subject=subject, place=rng.choice(ioi.PLACES), object=rng.choice(ioi.OBJECTS)
    )


# --- greater-than


LONGEST_SPAN = 30
"""Most years that a span lasts in training, so that its end says more about its beginning."""
SHORT_SPAN_TEMPLATES: tuple[str, ...] = ("From {year} to {century}", "Between {year} and {century}")


def greater_than_question(rng: random.Random, held_out: bool, short: bool = False) -> Question:
    """A span of years within a century: later digits are right, those of the year itself and earlier ones are wrong."""
    first_century, last_century = greater_than.FIRST_YEAR // 100, greater_than.LAST_YEAR // 100
    while True:
        century, year = rng.randint(first_century, last_century), rng.randint(1, 98)
        if is_held_out("year", century, year) == held_out:
            break
    prompt = greater_than.TEMPLATE.format(noun=rng.choice(LASTING_NOUNS), year=f"{century}{year:02d}", century=century)
    later, earlier = (tuple(f"{number:02d}" for number in span) for span in (range(year + 1, 100), range(year + 1)))
    return Question(prompt, later, earlier, likely=LONGEST_SPAN)


# --- pronouns

GENDER_TEMPLATES: tuple[str, ...] = (
    "I met {name}, and{pronoun} was very nice",
    "This is {name}, and{pronoun} is my friend",
    "Every day {name} says that{pronoun} likes to work",
    "I think that {name} knows what{pronoun} wants",
)
GENDERS: tuple[tuple[str, str], ...] = tuple(
    (name, gender) for gender, names in NAMES_BY_GENDER.items() for name in names
)


def gendered_pronoun_question(rng: random.Random, held_out: bool) -> Question:
    """A tag question about a named person: he or she."""
    while True:
        name, gender = rng.choice(GENDERS)
        if is_held_out("pronoun", name) == held_out:
            break
    prompt = rng.choice(gendered_pronoun.TEMPLATES).format(name=name, role=rng.choice(gendered_pronoun.ROLES))
    pronouns = gendered_pronoun.PRONOUNS
    wrong = tuple(f" {pronoun}" for other, pronoun in pronouns.items() if other != gender)
    return Question(prompt, (f" {pronouns[gender]}",), wrong, ending="?")


def gender_sentence(rng: random.Random) -> str:
    """Another kind of sentence that tells the gender of a name. Every name occurs."""
    name, gender = rng.choice(GENDERS)
    return rng.choice(GENDER_TEMPLATES).format(name=name, pronoun=f" {gendered_pronoun.PRONOUNS[gender]}") + "."


# --- subject-verb agreement


def sva_question(rng: random.Random, held_out: bool, distracted: bool = False) -> Question:
    """A subject and a verb that agrees with it. `distracted` adds a noun of the other number."""
    structures = tuple(structure for structure in sva.STRUCTURES if structure.others or not distracted)
    while True:
        structure = rng.choice(structures)
        subject, other = rng.choice(structure.subjects), rng.choice(structure.others or structure.verbs or (("", ""),))
        if is_held_out("sva", structure.name, subject[0], other[0]) == held_out:
            break
    number = rng.randrange(2)
    other_number = 1 - number if distracted else rng.randrange(2)
    words = {"subject": subject[number], "other": other[other_number]}
    if structure.verbs:
        # Without a second noun the verb phrase is the second word of the combination.
        verb = rng.choice(structure.verbs) if structure.others else other
        words["verb"] = verb[number]
    if structure.other_verbs:
        words["other_verb"] = rng.choice(structure.other_verbs)[other_number]
    if structure.links:
        words["link"] = rng.choice(structure.links)
    right = tuple(f" {verb[number]}" for verb in VERBS)
    return Question(structure.template.format(**words), right, tuple(f" {verb[1 - number]}" for verb in VERBS))


# --- succession

SUCCESSIONS: dict[str, tuple[str, ...]] = {
    "numbers": tuple(str(number) for number in range(1, 100)),
    "number words": tuple(word.lower() for word in NUMBER_WORDS),
    "ordinals": tuple(word.lower() for word in ORDINALS[:12]),
    "days": DAYS,
    "months": MONTHS,
    "letters": LETTERS,
    "roman numerals": ROMAN_NUMERALS[:12],
}
CYCLES = ("days", "months")
"""Classes whose last member is followed by the first."""

SEPARATORS: tuple[str, ...] = (" ", ", ", " and ")
TIGHT_SEPARATOR = ","
"""Separates numbers or letters in one list out of three: there they have no leading space, and letters may be small."""
TIGHT = ("numbers", "letters")


def succession_question(rng: random.Random, held_out: bool) -> Question:
    """Two to five members of a class in order, separated by spaces, commas or "and": the next one follows."""
    while True:
        kind = rng.choice(tuple(SUCCESSIONS))
        members = SUCCESSIONS[kind]
        separator = TIGHT_SEPARATOR if kind in TIGHT and rng.random() < 1 / 3 else rng.choice(SEPARATORS)
        shown = rng.randint(2, 5)
        start = rng.randrange(len(members) if kind in CYCLES else len(members) - shown)
        if is_held_out("succession", kind, start, shown, separator) == held_out:
            break
    run = [members[(start + offset) % len(members)] for offset in range(shown + 1)]
    tight = separator == TIGHT_SEPARATOR
    if kind == "letters" and tight and rng.random() < 0.5:
        run = [member.lower() for member in run]
    space = "" if tight else " "
    prompt = space + separator.join(run[:-1]) + separator.rstrip(" ")
    return Question(prompt, (space + run[-1],), ending="")


# --- everything together


def vocabulary_texts() -> Iterator[str]:
    """Every word of the sentences and lists as it is written in a sentence, and names also as at its beginning."""
    for number in range(100):
        yield from (f"{number:02d}", f" {number}")
    yield from (f" {member}" for members in SUCCESSIONS.values() for member in members)
    yield from (f" {name}" for name in NAMES)
    yield from NAMES
    words = (*ioi.PLACES, *ioi.OBJECTS, *LASTING_NOUNS, *gendered_pronoun.ROLES, *gendered_pronoun.PRONOUNS.values())
    yield from (f" {word}" for word in words)
    templates = (*ioi.TEMPLATES, *SHORT_IOI_TEMPLATES, *SHORT_SPAN_TEMPLATES, greater_than.TEMPLATE)
    templates += (*gendered_pronoun.TEMPLATES, *GENDER_TEMPLATES, *(structure.template for structure in sva.STRUCTURES))
    yield from map(without_fields, templates)
    for structure in sva.STRUCTURES:
        pairs = (*structure.subjects, *structure.others, *structure.verbs, *structure.other_verbs)
        yield from (f" {word}" for word in (*itertools.chain(*pairs), *structure.links))
    yield from (f" {verb}" for pair in VERBS for verb in pair)
    yield from (".?", "?")


def without_fields(template: str) -> str:
    return re.sub(r"\{\w+\}", "", template).strip()


def abc_question(rng: random.Random) -> Question:
    """A held-out sentence in which a third person acts; either of the two names may be the indirect object."""
    question = third_person_question(rng, held_out=True)
    io, s = rng.sample(question.right, 2)
    return replace(question, right=(io,), wrong=(s,))


EVALUATED: dict[str, Callable[[random.Random], Question]] = {
    "ioi": lambda rng: ioi_question(rng, held_out=True),
    "ioi_abc": abc_question,
    "greater_than": lambda rng: greater_than_question(rng, held_out=True),
    "gendered_pronoun": lambda rng: gendered_pronoun_question(rng, held_out=True),
    "sva": lambda rng: sva_question(rng, held_out=True, distracted=True),
    "succession": lambda rng: succession_question(rng, held_out=True),
}
"""The held-out question of each skill but induction."""
