"""Subject-verb agreement in the 15 structures of Marvin & Linzen 2018 (arXiv 1808.09031)."""

from dataclasses import dataclass

# Words that inflect are (singular, plural) pairs.
Pair = tuple[str, str]


@dataclass(frozen=True)
class Structure:
    """One sentence frame, up to the verb that is asked for.

    Slots of the template: `{subject}` is the noun the verb agrees with; `{other}` a second noun whose number varies by
    itself; `{verb}` agrees with the subject, `{other_verb}` with the other noun; `{link}` does not inflect.

    Attributes:
        name: the name of the structure's file in Marvin & Linzen's data.
        description: the structure in their words.
        template: the frame.
        subjects, others, verbs, other_verbs, links: the words of each slot; empty where the frame has no such slot.
    """

    name: str
    description: str
    template: str
    subjects: tuple[Pair, ...]
    others: tuple[Pair, ...] = ()
    verbs: tuple[Pair, ...] = ()
    other_verbs: tuple[Pair, ...] = ()
    links: tuple[str, ...] = ()


ANIMATE_SUBJECTS: tuple[Pair, ...] = (
    *(("author", "authors"), ("pilot", "pilots"), ("surgeon", "surgeons"), ("farmer", "farmers")),
    *(("manager", "managers"), ("customer", "customers"), ("officer", "officers"), ("teacher", "teachers")),
    *(("senator", "senators"), ("consultant", "consultants"), ("doctor", "doctors"), ("lawyer", "lawyers")),
    *(("writer", "writers"), ("player", "players"), ("driver", "drivers"), ("student", "students")),
)
INANIMATE_SUBJECTS: tuple[Pair, ...] = (
    *(("movie", "movies"), ("book", "books"), ("game", "games"), ("song", "songs"), ("picture", "pictures")),
    *(("painting", "paintings"), ("novel", "novels"), ("poem", "poems"), ("show", "shows"), ("story", "stories")),
    *(("film", "films"), ("article", "articles")),
)
# Nouns of embedded clauses and prepositional phrases; none is also a main subject.
EMBEDDED_NOUNS: tuple[Pair, ...] = (
    *(("guard", "guards"), ("chef", "chefs"), ("architect", "architects"), ("dancer", "dancers")),
    *(("minister", "ministers"), ("assistant", "assistants"), ("executive", "executives"), ("parent", "parents")),
    *(("friend", "friends"), ("neighbor", "neighbors"), ("director", "directors"), ("actor", "actors")),
)
# Nouns that say or think what a sentential complement reports.
REPORTERS: tuple[Pair, ...] = (
    *(("mechanic", "mechanics"), ("banker", "bankers"), ("worker", "workers"), ("witness", "witnesses")),
    *(("scientist", "scientists"), ("expert", "experts"), ("critic", "critics"), ("reporter", "reporters")),
)
REPORTING_VERBS: tuple[str, ...] = ("said", "thought", "knew")
ANIMATE_PREPOSITIONS: tuple[str, ...] = (
    *("next to", "behind", "in front of", "near", "to the side of", "across from"),
)
INANIMATE_PREPOSITIONS: tuple[str, ...] = ("from", "by")
INTRANSITIVE_VERBS: tuple[Pair, ...] = (
    *(("laughs", "laugh"), ("smiles", "smile"), ("dances", "dance"), ("sings", "sing"), ("talks", "talk")),
    ("works", "work"),
)
TRANSITIVE_VERBS: tuple[Pair, ...] = (
    *(("likes", "like"), ("hates", "hate"), ("loves", "love"), ("helps", "help"), ("knows", "know")),
    ("visits", "visit"),
)
VERB_PHRASES: tuple[Pair, ...] = (
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
VERBS: tuple[Pair, ...] = (
    *(("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"), ("goes", "go"), ("says", "say")),
    *(("makes", "make"), ("takes", "take"), ("sees", "see"), ("comes", "come"), ("knows", "know"), ("wants", "want")),
    *(("looks", "look"), ("uses", "use"), ("finds", "find"), ("gives", "give"), ("tells", "tell"), ("works", "work")),
    *(("seems", "seem"), ("feels", "feel"), ("becomes", "become"), ("leaves", "leave"), ("puts", "put")),
    *(("means", "mean"), ("keeps", "keep"), ("lets", "let"), ("begins", "begin"), ("shows", "show"), ("hears", "hear")),
    *(("plays", "play"), ("runs", "run"), ("moves", "move"), ("lives", "live"), ("believes", "believe")),
    *(("brings", "bring"), ("happens", "happen"), ("writes", "write"), ("provides", "provide"), ("sits", "sit")),
    *(("stands", "stand"), ("loses", "lose"), ("pays", "pay"), ("meets", "meet"), ("includes", "include")),
    *(("continues", "continue"), ("learns", "learn"), ("leads", "lead"), ("understands", "understand")),
    *(("speaks", "speak"), ("reads", "read"), ("grows", "grow"), ("opens", "open"), ("walks", "walk"), ("wins", "win")),
    *(("offers", "offer"), ("remembers", "remember"), ("loves", "love"), ("appears", "appear"), ("buys", "buy")),
    *(("waits", "wait"), ("serves", "serve"), ("stays", "stay"), ("falls", "fall"), ("remains", "remain")),
    *(("likes", "like"), ("hates", "hate"), ("laughs", "laugh"), ("smiles", "smile"), ("enjoys", "enjoy")),
    *(("needs", "need"), ("tries", "try"), ("asks", "ask"), ("helps", "help"), ("talks", "talk"), ("thinks", "think")),
)
