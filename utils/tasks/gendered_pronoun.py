"""Gendered pronouns: the pronoun in a tag question agrees with the name (Mathwin et al. 2023).

"So Paul is such a good cook, isn't" -> " he", not " she". The corrupted prompt has a name of the other gender. Male and
female names alternate, and all templates come equally often.

`meta` columns: name, gender (male or female), template (index into TEMPLATES), role, corrupted_name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.keys import PromptOptions, TemplateKeys
from .prompts import Pair, Task
from .templates import pairs as pairs_of
from .word_lists import NAMES_BY_GENDER, STANDARD, STUDY, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRONOUNS: dict[str, str] = {"male": "he", "female": "she"}

TEMPLATES: tuple[str, ...] = tuple(STANDARD["gendered_pronoun"]["templates"])
ROLES: tuple[str, ...] = words(STANDARD["gendered_pronoun"]["roles"])

_names = {gender: list(names) for gender, names in NAMES_BY_GENDER.items()}
_study = STUDY["gendered_pronoun"]
_KEYS = {
    "standard": TemplateKeys(
        templates=list(TEMPLATES), swap="name", answers=PRONOUNS, words={"name": _names, "role": list(ROLES)}
    ),
    "study": TemplateKeys(
        templates=_study["templates"],
        swap="name",
        answers=PRONOUNS,
        words={"name": {gender: list(words(_study[gender])) for gender in PRONOUNS}},
    ),
}


def pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int, options: PromptOptions) -> list[Pair]:
    """n distinct prompts; errors as of `templates.pairs`."""
    return pairs_of("gendered_pronoun", _KEYS[options.prompt_set], tokenizer, n, seed, options, kind="gender")


TASK = Task("gendered_pronoun", pairs, "logit_diff", group="gender", label="Gendered pronoun")
