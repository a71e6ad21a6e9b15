"""Words that tasks share, and the toy family learns: English first names, and words that have a successor.

`study.toml` has those of the published study.
"""

import tomllib
from pathlib import Path
from typing import Any

STUDY: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("study.toml").read_text(encoding="utf-8"))


def words(text: str) -> tuple[str, ...]:
    """The words of a text, in order."""
    return tuple(text.split())


# First names by gender. After a space, every name is one token of the Pythia tokenizer. Names that both genders use are
# left out.
MALE_NAMES: tuple[str, ...] = words(
    "James John Robert Michael William David Richard Joseph Thomas Charles Christopher Daniel Matthew Anthony Mark "
    "Paul Steven Andrew Kenneth Joshua Kevin Brian George Timothy Edward Jason Jeffrey Ryan Jacob Nicholas Eric "
    "Jonathan Stephen Scott Benjamin Samuel Gregory Alexander Patrick Frank Jack Peter Adam Henry Nathan Douglas Kyle "
    "Walter Jeremy Keith Roger Simon Arthur Sean Justin Brandon Aaron Tyler Philip Oliver"
)
FEMALE_NAMES: tuple[str, ...] = words(
    "Mary Patricia Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Betty Sandra Margaret Ashley "
    "Emily Donna Michelle Carol Amanda Melissa Deborah Stephanie Rebecca Laura Helen Sharon Kathleen Amy Angela Anna "
    "Ruth Nicole Katherine Catherine Christine Janet Rachel Emma Maria Heather Diane Julie Victoria Christina Lauren "
    "Olivia Martha Alice Julia Marie Jane Megan Sara Katie Erin Claire Lucy Hannah"
)

# Words that come in order, each with a successor: what successor heads are tested on.
NUMBER_WORDS: tuple[str, ...] = words(
    "One Two Three Four Five Six Seven Eight Nine Ten Eleven Twelve Thirteen Fourteen Fifteen Sixteen Seventeen "
    "Eighteen Nineteen Twenty"
)
ORDINALS: tuple[str, ...] = words(
    "First Second Third Fourth Fifth Sixth Seventh Eighth Ninth Tenth Eleventh Twelfth Thirteenth Fourteenth "
    "Fifteenth Sixteenth Seventeenth Eighteenth Nineteenth Twentieth"
)
DAYS: tuple[str, ...] = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SHORT_DAYS: tuple[str, ...] = tuple(day[:3] for day in DAYS)
MONTHS: tuple[str, ...] = words("January February March April May June July August September October November December")
SHORT_MONTHS: tuple[str, ...] = tuple(month[:3] for month in MONTHS)
LETTERS: tuple[str, ...] = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
ROMAN_NUMERALS: tuple[str, ...] = words("I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX")
