"""Gendered pronouns: the tag question's pronoun agrees with the name (Mathwin et al. 2023)."""

from utils.tasks.names import FEMALE_NAMES, MALE_NAMES

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

ROLES: tuple[str, ...] = (
    *("cook", "friend", "athlete", "person", "teacher", "doctor", "driver", "singer", "dancer", "writer"),
    *("artist", "lawyer", "student", "leader", "player", "runner", "painter", "manager", "neighbor", "colleague"),
)
