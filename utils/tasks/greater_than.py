"""Greater-than: a span of years ends later than it began (Hanna et al. 2023, arXiv 2305.00586).

"The war lasted from the year 1732 to the year 17" -> a two-digit token greater than 32. The corrupted prompt begins
with the year 1701, which allows every answer.

The years are those from 1100 to 1799 that are two tokens, the century and two digits. The first and the last such year
of each century are left out, so that there is always a right and a wrong answer. A year that is its own corruption
(1701) makes no prompt.

`meta` columns: noun, century (17), year (1732).
"""

from transformers import PreTrainedTokenizerBase

from utils.config.keys import PromptOptions
from utils.errors import UserError
from utils.tasks.prompts import Pair, Prompts, Task, assemble
from utils.tasks.sampling import draw, unravel
from utils.tasks.vocabulary import continuations, encode, single_tokens

TEMPLATE = "The {noun} lasted from the year {year} to the year {century}"

FIRST_YEAR, LAST_YEAR = 1100, 1799  # inclusive; years outside are rarely two tokens

# Hanna et al. 2023's nouns of things that last, less the eight that Pythia's tokenizer splits, plus "war".
NOUNS: tuple[str, ...] = (
    *("war", "accord", "affair", "agreement", "appraisal", "assaults", "assessment", "attack", "attempts", "campaign"),
    *("case", "challenge", "chaos", "clash", "collaboration", "coma", "competition", "confrontation", "consequence"),
    *("conspiracy", "construction", "consultation", "contact", "contract", "convention", "cooperation", "custody"),
    *("deal", "decline", "decrease", "demonstrations", "development", "disagreement", "disorder", "dispute"),
    *("domination", "dynasty", "effect", "effort", "employment", "endeavor", "engagement", "epidemic", "evaluation"),
    *("exchange", "existence", "expansion", "expedition", "experiments", "fall", "fame", "flights", "friendship"),
    *("growth", "hardship", "hostility", "illness", "impact", "imprisonment", "improvement", "incarceration"),
    *("increase", "invasion", "investigation", "journey", "kingdom", "marriage", "negotiation", "obstruction"),
    *("operation", "order", "outbreak", "outcome", "overhaul", "plague", "plan", "practice", "process", "program"),
    *("progress", "project", "pursuit", "quest", "raids", "reforms", "reign", "relationship", "retaliation", "riot"),
    *("rise", "rivalry", "romance", "rule", "sanctions", "shift", "siege", "stature", "stint", "strikes", "study"),
    *("test", "testing", "tests", "therapy", "tour", "tradition", "treaty", "trial", "trip", "unemployment"),
    *("voyage", "warfare", "work"),
)

CORRUPTED_DIGITS = 1  # the corrupted year is XX01


def two_digit_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """Number from 0 to 99 -> the token that is its two digits without a space, for those in the vocabulary."""
    found = {}
    for number in range(100):
        text = f"{number:02d}"
        token = tokenizer.convert_tokens_to_ids(text)
        # A text that is not a token comes back as the unknown token or as None.
        if isinstance(token, int) and tokenizer.convert_ids_to_tokens(token) == text:
            found[number] = token
    return found


def valid_years(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The years 1100-1799 that are a century token and a two-digit token, without the first and last of a century."""
    digits = two_digit_tokens(tokenizer)
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
    return [year for found in by_century.values() for year in found[1:-1]]


def build(tokenizer: PreTrainedTokenizerBase, n: int, seed: int, options: PromptOptions) -> Prompts:
    """n distinct greater-than prompts, uniform over nouns and years.

    Raises:
        UserError: if the tokenizer does not cut years into century and two digits, too few nouns are single tokens, or
            there are fewer than n prompts.
    """
    nouns = list(single_tokens(tokenizer, NOUNS, "greater_than", "nouns", 1))
    years = [year for year in valid_years(tokenizer) if year % 100 != CORRUPTED_DIGITS]
    if not years:
        raise UserError(
            f"greater_than: this tokenizer cuts no year from {FIRST_YEAR} to {LAST_YEAR} into its century and two "
            "digits; use another model or leave the task out"
        )
    digits = two_digit_tokens(tokenizer)
    sets = {
        start: (
            tuple(token for number, token in digits.items() if number > start),
            tuple(token for number, token in digits.items() if number <= start),
        )
        for start in {year % 100 for year in years}
    }
    pairs = []
    for _, _, number in draw("greater_than", [[len(nouns) * len(years)]], n, seed):
        noun_index, year_index = unravel(number, (len(nouns), len(years)))
        noun, year = nouns[noun_index], years[year_index]
        century, start = divmod(year, 100)
        clean, corrupted = (
            TEMPLATE.format(noun=noun, year=first, century=century)
            for first in (year, century * 100 + CORRUPTED_DIGITS)
        )
        pairs.append(Pair(clean, corrupted, *sets[start], {"noun": noun, "century": century, "year": year}))
    return assemble(tokenizer, pairs, lambda index: f"greater_than prompt {index}", options.prepend_bos)


TASK = Task("greater_than", build, "prob_diff")
