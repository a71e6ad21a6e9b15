"""Gendered pronouns: the pronoun in a tag question agrees with the name (Mathwin et al. 2023).

"So Paul is such a good cook, isn't" -> " he", not " she". The corrupted prompt has a name of the other gender. Male and
female names alternate, and all templates come equally often.

`meta` columns: name, gender (male or female), template (index into TEMPLATES), role, corrupted_name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.keys import PromptOptions
from .prompts import Pair, Task
from .sampling import draw, seeded, unravel
from .vocabulary import single_tokens
from .word_lists import FEMALE_NAMES, MALE_NAMES, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


def pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int, options: PromptOptions) -> list[Pair]:
    """n distinct pronoun prompts.

    Raises:
        UserError: if a pronoun is not a single token, too few names or roles are, or there are fewer than n prompts.
    """
    pronouns = single_tokens(tokenizer, tuple(PRONOUNS.values()), "gendered_pronoun", "pronouns", len(PRONOUNS))
    genders = list(NAMES_BY_GENDER)
    names = [
        list(single_tokens(tokenizer, words, "gendered_pronoun", f"{gender} names", 1))
        for gender, words in NAMES_BY_GENDER.items()
    ]
    roles = list(single_tokens(tokenizer, ROLES, "gendered_pronoun", "roles", 1))
    groups = [[len(pool) * len(roles)] * len(TEMPLATES) for pool in names]
    others = seeded("gendered_pronoun", seed, "corrupted")
    made: list[Pair] = []
    for group, template, number in draw("gendered_pronoun", groups, n, seed):
        name_index, role_index = unravel(number, (len(names[group]), len(roles)))
        name, corrupted_name = names[group][name_index], others.choice(names[1 - group])
        role = roles[role_index]
        clean, corrupted = (TEMPLATES[template].format(name=word, role=role) for word in (name, corrupted_name))
        right, wrong = (pronouns[PRONOUNS[gender]] for gender in (genders[group], genders[1 - group]))
        meta = {"name": name, "gender": genders[group], "template": template, "role": role}
        meta |= {"corrupted_name": corrupted_name}
        made.append(Pair(clean, corrupted, (right,), (wrong,), meta, f"gendered_pronoun prompt {len(made)}"))
    return made


TASK = Task("gendered_pronoun", pairs, "logit_diff", group="gender", label="Gendered pronoun")
