"""Subject-verb agreement in the 15 structures of Marvin & Linzen 2018 (arXiv 1808.09031).

"The officers near the guard" -> verbs in the plural, not in the singular. In the corrupted prompt the subject has the
other number, and so does every verb that agrees with it ("The officer that likes the guard" -> "The officers that like
the guard"). Everything else stays, including the number of the other noun. Singular and plural subjects alternate, and
all structures come equally often until a small one has no prompts left.

`meta` columns: structure (its name), subject (in the singular), number (singular or plural, of the subject), other and
other_number (the second noun, in the singular, or empty), verbs (the right answers' words, separated by ";").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from ..config.keys import PromptOptions
from .prompts import Pair, Task
from .sampling import draw, unravel
from .vocabulary import continuations, require, say_left, single_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Words that inflect are (singular, plural) pairs.
Inflected = tuple[str, str]


def _inflected(text: str) -> tuple[Inflected, ...]:
    return tuple((singular, plural) for singular, plural in (word.split("/") for word in text.split()))


@dataclass(frozen=True)
class Structure:
    """One sentence frame, up to the verb that is asked for.

    Slots of the template: `{subject}` is the noun that the verb agrees with. `{other}` is a second noun, whose number
    varies independently. `{verb}` agrees with the subject and `{other_verb}` with the other noun. `{link}` does not
    inflect.

    Attributes:
        name: the name of the structure's file in Marvin & Linzen's data.
        description: the structure in their words.
        subjects, others, verbs, other_verbs, links: the words for each slot; empty if the frame has no such slot.
    """

    name: str
    description: str
    template: str
    subjects: tuple[Inflected, ...]
    others: tuple[Inflected, ...] = ()
    verbs: tuple[Inflected, ...] = ()
    other_verbs: tuple[Inflected, ...] = ()
    links: tuple[str, ...] = ()


ANIMATE_SUBJECTS: tuple[Inflected, ...] = _inflected(
    "author/authors pilot/pilots surgeon/surgeons farmer/farmers manager/managers customer/customers officer/officers "
    "teacher/teachers senator/senators consultant/consultants doctor/doctors lawyer/lawyers writer/writers "
    "player/players driver/drivers student/students"
)
INANIMATE_SUBJECTS: tuple[Inflected, ...] = _inflected(
    "movie/movies book/books game/games song/songs picture/pictures painting/paintings novel/novels poem/poems "
    "show/shows story/stories film/films article/articles"
)
# Nouns of embedded clauses and prepositional phrases; none is also a main subject.
EMBEDDED_NOUNS: tuple[Inflected, ...] = _inflected(
    "guard/guards chef/chefs architect/architects dancer/dancers minister/ministers assistant/assistants "
    "executive/executives parent/parents friend/friends neighbor/neighbors director/directors actor/actors"
)
# Nouns that say or think what a sentential complement reports.
REPORTERS: tuple[Inflected, ...] = _inflected(
    "mechanic/mechanics banker/bankers worker/workers witness/witnesses scientist/scientists expert/experts "
    "critic/critics reporter/reporters"
)
REPORTING_VERBS: tuple[str, ...] = ("said", "thought", "knew")
ANIMATE_PREPOSITIONS: tuple[str, ...] = ("next to", "behind", "in front of", "near", "to the side of", "across from")
INANIMATE_PREPOSITIONS: tuple[str, ...] = ("from", "by")
INTRANSITIVE_VERBS: tuple[Inflected, ...] = _inflected(
    "laughs/laugh smiles/smile dances/dance sings/sing talks/talk works/work"
)
TRANSITIVE_VERBS: tuple[Inflected, ...] = _inflected(
    "likes/like hates/hate loves/love helps/help knows/know visits/visit"
)
VERB_PHRASES: tuple[Inflected, ...] = (
    ("knows many different foreign languages", "know many different foreign languages"),
    ("likes to watch television shows", "like to watch television shows"),
    ("is twenty three years old", "are twenty three years old"),
    ("enjoys playing tennis with colleagues", "enjoy playing tennis with colleagues"),
    ("writes in a journal every day", "write in a journal every day"),
)

STRUCTURES: tuple[Structure, ...] = (
    Structure("simple_agrmt", "simple agreement", "The {subject}", ANIMATE_SUBJECTS),
    Structure(
        "sent_comp",
        "in a sentential complement",
        "The {other} {link} the {subject}",
        ANIMATE_SUBJECTS,
        others=REPORTERS,
        links=REPORTING_VERBS,
    ),
    Structure(
        "vp_coord", "short VP coordination", "The {subject} {verb} and", ANIMATE_SUBJECTS, verbs=INTRANSITIVE_VERBS
    ),
    Structure(
        "long_vp_coord", "long VP coordination", "The {subject} {verb} and", ANIMATE_SUBJECTS, verbs=VERB_PHRASES
    ),
    Structure(
        "prep_anim",
        "across a prepositional phrase (animate)",
        "The {subject} {link} the {other}",
        ANIMATE_SUBJECTS,
        others=EMBEDDED_NOUNS,
        links=ANIMATE_PREPOSITIONS,
    ),
    Structure(
        "prep_inanim",
        "across a prepositional phrase (inanimate)",
        "The {subject} {link} the {other}",
        INANIMATE_SUBJECTS,
        others=EMBEDDED_NOUNS,
        links=INANIMATE_PREPOSITIONS,
    ),
    Structure(
        "subj_rel",
        "across a subject relative clause",
        "The {subject} that {verb} the {other}",
        ANIMATE_SUBJECTS,
        others=EMBEDDED_NOUNS,
        verbs=TRANSITIVE_VERBS,
    ),
    *(
        Structure(
            f"obj_rel_{short}across_{kind}",
            f"across an object relative clause ({kind_description}{no_that})",
            f"The {{subject}} {that}the {{other}} {{other_verb}}",
            subjects,
            others=EMBEDDED_NOUNS,
            other_verbs=TRANSITIVE_VERBS,
        )
        for short, that, no_that in (("", "that ", ""), ("no_comp_", "", ", no that"))
        for kind, kind_description, subjects in (
            ("anim", "animate", ANIMATE_SUBJECTS),
            ("inanim", "inanimate", INANIMATE_SUBJECTS),
        )
    ),
    *(
        Structure(
            f"obj_rel_{short}within_{kind}",
            f"in an object relative clause ({kind_description}{no_that})",
            f"The {{other}} {that}the {{subject}}",
            EMBEDDED_NOUNS,
            others=heads,
        )
        for short, that, no_that in (("", "that ", ""), ("no_comp_", "", ", no that"))
        for kind, kind_description, heads in (
            ("anim", "animate", ANIMATE_SUBJECTS),
            ("inanim", "inanimate", INANIMATE_SUBJECTS),
        )
    ),
)

# Verbs asked for, third person singular and plural.
VERBS: tuple[Inflected, ...] = _inflected(
    "is/are was/were has/have does/do goes/go says/say makes/make takes/take sees/see comes/come knows/know "
    "wants/want looks/look uses/use finds/find gives/give tells/tell works/work seems/seem feels/feel becomes/become "
    "leaves/leave puts/put means/mean keeps/keep lets/let begins/begin shows/show hears/hear plays/play runs/run "
    "moves/move lives/live believes/believe brings/bring happens/happen writes/write provides/provide sits/sit "
    "stands/stand loses/lose pays/pay meets/meet includes/include continues/continue learns/learn leads/lead "
    "understands/understand speaks/speak reads/read grows/grow opens/open walks/walk wins/win offers/offer "
    "remembers/remember loves/love appears/appear buys/buy waits/wait serves/serve stays/stay falls/fall "
    "remains/remain likes/like hates/hate laughs/laugh smiles/smile enjoys/enjoy needs/need tries/try asks/ask "
    "helps/help talks/talk thinks/think"
)

NUMBERS: tuple[str, ...] = ("singular", "plural")
LEAST_VERBS = 2


def pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int, options: PromptOptions) -> list[Pair]:
    """n distinct agreement prompts over all structures.

    Raises:
        UserError: if too few words of a structure, or too few verbs, are single tokens in both numbers, or n exceeds
            the prompts there are.
    """
    structures = [_known(tokenizer, structure) for structure in STRUCTURES]
    verbs = _single_token_pairs(tokenizer, VERBS)
    require(len(verbs), len(VERBS), "sva", "verbs (in both numbers)", LEAST_VERBS)
    say_left(
        tokenizer, "sva", "words and phrases of prompts", *(len(_words(every)) for every in (structures, STRUCTURES))
    )
    say_left(tokenizer, "sva", "verbs asked for (in both numbers)", len(verbs), len(VERBS))
    tokens = single_tokens(tokenizer, [verb for pair in verbs for verb in pair], "sva", "verbs", LEAST_VERBS)
    answers = [tuple(tokens[pair[number]] for pair in verbs) for number in range(len(NUMBERS))]
    words = [";".join(pair[number] for pair in verbs) for number in range(len(NUMBERS))]
    # Every verb that is left counts as an answer, in the subject's number right and in the other wrong.
    sizes = [prod(_slot_sizes(structure)) for structure in structures]
    made: list[Pair] = []
    for number, stratum, index in draw("sva", [sizes] * len(NUMBERS), n, seed):
        structure = structures[stratum]
        choice = unravel(index, _slot_sizes(structure))
        clean, corrupted = (_fill(structure, choice, which) for which in (number, 1 - number))
        meta = {
            "structure": structure.name,
            "subject": structure.subjects[choice[0]][0],
            "number": NUMBERS[number],
            "other": structure.others[choice[1]][0] if structure.others else "",
            "other_number": NUMBERS[choice[2]] if structure.others else "",
            "verbs": words[number],
        }
        where = f"sva prompt {len(made)} ({structure.name})"
        made.append(Pair(clean, corrupted, answers[number], answers[1 - number], meta, where))
    return made


def _single_token_pairs(tokenizer: PreTrainedTokenizerBase, pairs: tuple[Inflected, ...]) -> tuple[Inflected, ...]:
    """The pairs of words or phrases whose every word, in both numbers, is one token."""
    known = continuations(tokenizer, [f" {word}" for pair in pairs for phrase in pair for word in phrase.split()])
    return tuple(pair for pair in pairs if all(f" {word}" in known for phrase in pair for word in phrase.split()))


def _known(tokenizer: PreTrainedTokenizerBase, structure: Structure) -> Structure:
    """A structure with the words that are single tokens, refused if one of its slots is left empty."""
    kept: dict[str, Any] = {}
    for slot in ("subjects", "others", "verbs", "other_verbs"):
        words = getattr(structure, slot)
        kept[slot] = _single_token_pairs(tokenizer, words)
        require(len(kept[slot]), len(words), f"sva ({structure.name})", f"{slot} (in both numbers)", min(1, len(words)))
    links = _single_token_pairs(tokenizer, tuple((link, link) for link in structure.links))
    require(len(links), len(structure.links), f"sva ({structure.name})", "links", min(1, len(structure.links)))
    return replace(structure, **kept, links=tuple(link for link, _ in links))


def _words(structures: Iterable[Structure]) -> set[Inflected | str]:
    """All that fills the slots of some structures."""
    slots = ("subjects", "others", "verbs", "other_verbs", "links")
    return {word for structure in structures for slot in slots for word in getattr(structure, slot)}


def _slot_sizes(structure: Structure) -> tuple[int, ...]:
    """How many choices of subject, other noun, its number, verb, other verb and link; 1 where there is no such slot."""
    others = (len(structure.others), len(NUMBERS)) if structure.others else (1, 1)
    slots = (structure.verbs, structure.other_verbs, structure.links)
    return (len(structure.subjects), *others, *(max(1, len(slot)) for slot in slots))


def _fill(structure: Structure, choice: list[int], number: int) -> str:
    """A structure's sentence with its subject in the given number (0 singular, 1 plural)."""
    subject, other, other_number, verb, other_verb, link = choice
    words = {"subject": structure.subjects[subject][number]}
    if structure.others:
        words["other"] = structure.others[other][other_number]
    if structure.verbs:
        words["verb"] = structure.verbs[verb][number]
    if structure.other_verbs:
        words["other_verb"] = structure.other_verbs[other_verb][other_number]
    if structure.links:
        words["link"] = structure.links[link]
    return structure.template.format(**words)


TASK = Task("sva", pairs, "prob_diff", group="structure", label="Subject-verb agreement")
