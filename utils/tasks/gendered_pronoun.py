"""Gendered pronouns: the pronoun in a tag question agrees with the name (Mathwin et al. 2023).

"So Paul is such a good cook, isn't" -> " he", not " she". The corrupted prompt has a name of the other gender. Male and
female names alternate, and all templates come equally often.

`meta` columns: name, gender (male or female), template (index into TEMPLATES), role, corrupted_name.
"""

from functools import partial

from ..config.keys import TemplateKeys
from .prompts import Task
from .templates import pairs
from .word_lists import FEMALE_NAMES, MALE_NAMES, words

PRONOUNS: dict[str, str] = {"male": "he", "female": "she"}

NAMES_BY_GENDER: dict[str, tuple[str, ...]] = {"male": MALE_NAMES, "female": FEMALE_NAMES}

TEMPLATES: tuple[str, ...] = (
    "So {name} is such a good {role}, isn't",
    "So {name} is a really great {role}, isn't",
    "So {name} is a very good {role}, isn't",
    "So {name} is a really nice {role}, isn't",
    "So {name} is such a funny {role}, isn't",
    "So {name} is such a wonderful {role}, isn't",
)

ROLES: tuple[str, ...] = words(
    "cook friend athlete person teacher doctor driver singer dancer writer artist lawyer student leader player runner "
    "painter manager neighbor colleague"
)

_KEYS = TemplateKeys(
    templates=list(TEMPLATES),
    swap="name",
    answers=PRONOUNS,
    words={"name": {gender: list(names) for gender, names in NAMES_BY_GENDER.items()}, "role": list(ROLES)},
)
TASK = Task(
    "gendered_pronoun",
    partial(pairs, "gendered_pronoun", _KEYS, kind="gender"),
    "logit_diff",
    group="gender",
    label="Gendered pronoun",
)
