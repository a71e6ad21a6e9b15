"""Greater-than: a span of years ends later than it began (Hanna et al. 2023, arXiv 2305.00586).

The prompt shows the beginning of the second year, and the answers are the tokens that may end it. How much it shows
depends on how the tokenizer cuts years:

- Into the century and two digits (Pythia, GPT-2), the form of the paper: "The war lasted from the year 1732 to the year
  17" -> a two-digit token greater than 32. The corrupted prompt begins with the year 1701, which allows every answer
  above 01. The first and the last such year of each century are left out.
- Before the last digit, as tokenizers with a token for each digit (SmolLM2, Llama 2) and with tokens of up to three
  digits (Llama 3, OLMo 2) do: "... from the year 1732 to the year 173" -> a digit greater than 2. The corrupted prompt
  begins with the year 1730, which allows every answer above 0.

The years are those from 1100 to 1799 that are cut so and have both a right and a wrong answer. A year that is its own
corruption (1701, or 1730) makes no prompt.

`meta` columns: noun, century (17), year (1732). Roles of tokens: noun, century and digits (of the first year), end.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..base.errors import UserError
from ..config.keys import PromptOptions
from .prompts import Pair, Task
from .roles import slot_spans
from .sampling import draw, seeded, unravel
from .vocabulary import continuations, encode, known_texts, single_tokens, unknown_token
from .word_lists import STANDARD, STUDY, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# {century} is the beginning of the second year: its century, or all but its last digit.
TEMPLATE = "The {noun} lasted from the year {year} to the year {century}"

FIRST_YEAR, LAST_YEAR = 1100, 1799  # inclusive; years outside are rarely two tokens

NOUNS: tuple[str, ...] = words(STANDARD["greater_than"]["nouns"])

# What the corrupted year ends with, by the number of digits that the answer has: XX01 or XXX0.
CORRUPTED_DIGITS = {2: 1, 1: 0}

log = logging.getLogger(__name__)


def number_tokens(tokenizer: PreTrainedTokenizerBase, digits: int) -> dict[int, int]:
    """Number -> the token that is its digits without a space, for the numbers of so many digits in the vocabulary."""
    vocabulary = tokenizer.get_vocab()
    texts = {number: f"{number:0{digits}d}" for number in range(10**digits)}
    return {number: vocabulary[text] for number, text in texts.items() if text in vocabulary}


def valid_years(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The years 1100-1799 that are a century token and a two-digit token, without the first and last of a century."""
    digits = number_tokens(tokenizer, 2)
    carrier = "year"
    centuries = range(FIRST_YEAR // 100, LAST_YEAR // 100 + 1)
    century_tokens = continuations(tokenizer, [f" {century}" for century in centuries], carrier)
    years = range(FIRST_YEAR, LAST_YEAR + 1)
    base, *rows = encode(tokenizer, [carrier, *(f"{carrier} {year}" for year in years)])
    by_century: dict[int, list[int]] = {century: [] for century in centuries}
    for year, row in zip(years, rows, strict=True):
        century, number = divmod(year, 100)
        if row == [*base, century_tokens.get(f" {century}"), digits.get(number)]:
            by_century[century].append(year)
    return [year for of_century in by_century.values() for year in of_century[1:-1]]


def years_before_a_digit(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The years 1100-1799 whose last digit is a token of its own after the others, which do not depend on it, and which
    have a right answer: a greater digit that is a token.
    """
    digits = number_tokens(tokenizer, 1)
    years = range(FIRST_YEAR, LAST_YEAR + 1)
    texts = dict.fromkeys(number for year in years for number in (year, year // 10))
    rows = dict(zip(texts, encode(tokenizer, [f"year {number}" for number in texts]), strict=True))
    unknown = unknown_token(tokenizer)
    cut = {
        year
        for year in years
        if year % 10 in digits and unknown not in rows[year] and rows[year] == [*rows[year // 10], digits[year % 10]]
    }
    return [year for year in years if {year, year // 10 * 10} <= cut and year % 10 < max(digits)]


def form_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, list[int]]:
    """How many digits of a year the answer is under a tokenizer, 2 (as in the paper) where it can be, else 1; and the
    years that prompts can begin with. It is a UserError if the tokenizer cuts years in neither way.
    """
    if years := [year for year in valid_years(tokenizer) if year % 100 != CORRUPTED_DIGITS[2]]:
        return 2, years
    if years := [year for year in years_before_a_digit(tokenizer) if year % 10 != CORRUPTED_DIGITS[1]]:
        log.info("greater_than: this tokenizer cuts a year before its last digit, so that is what prompts ask for")
        return 1, years
    raise UserError(
        f"greater_than: this tokenizer cuts no year from {FIRST_YEAR} to {LAST_YEAR} into its century and two digits, "
        "nor before its last digit; use another model or leave the task out"
    )


def pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int, options: PromptOptions) -> list[Pair]:
    """n distinct prompts, uniform over nouns and years; a UserError if the tokenizer leaves too few."""
    digits, years = form_of(tokenizer)
    base, answers = 10**digits, number_tokens(tokenizer, digits)
    sets = {
        start: (
            tuple(token for number, token in answers.items() if number > start),
            tuple(token for number, token in answers.items() if number <= start),
        )
        for start in {year % base for year in years}
    }
    if options.prompt_set == "study":
        # Any noun, and the ends of the years in order, each with any of its centuries.
        generator, ends = seeded("greater_than", seed, "study"), sorted({year % base for year in years})
        nouns = sorted({*NOUNS, *words(STUDY["greater_than"]["more_nouns"])} - {STUDY["greater_than"]["without"]})
        nouns = known_texts(tokenizer, nouns, "greater_than", "nouns")
        by_end = {end: [year for year in years if year % base == end] for end in ends}
        chosen = [(generator.choice(nouns), generator.choice(by_end[ends[i % len(ends)]])) for i in range(n)]
    else:
        nouns = list(single_tokens(tokenizer, NOUNS, "greater_than", "nouns", 1))
        drawn = draw("greater_than", [[len(nouns) * len(years)]], n, seed)
        places = [unravel(number, (len(nouns), len(years))) for _, _, number in drawn]
        chosen = [(nouns[noun], years[year]) for noun, year in places]
    made: list[Pair] = []
    for noun, year in chosen:
        start = year // base
        firsts = (year, start * base + CORRUPTED_DIGITS[digits])
        clean, corrupted = (TEMPLATE.format(noun=noun, year=first, century=start) for first in firsts)
        meta = {"noun": noun, "century": year // 100, "year": year}
        (of_noun, (_, first, last), _) = slot_spans(TEMPLATE, {"noun": noun, "year": str(year), "century": str(start)})
        roles = (of_noun, ("century", first, last - digits), ("digits", last - digits, last))
        made.append(Pair(clean, corrupted, *sets[year % base], meta, f"greater_than prompt {len(made)}", roles))
    return made


TASK = Task("greater_than", pairs, "prob_diff", label="Greater-than")
