"""Indirect object identification (Wang et al. 2022, arXiv 2211.00593)."""

from utils.tasks.names import FEMALE_NAMES, MALE_NAMES

NAMES: tuple[str, ...] = MALE_NAMES + FEMALE_NAMES

# {first} and {second} are the two names in the order of the first clause, {subject} is the name repeated in the second.
# In ABBA prompts the repeated name is {second}, in BABA prompts it is {first}; the other name is the answer.
TEMPLATES: tuple[str, ...] = (
    "When {first} and {second} went to the {place}, {subject} gave a {object} to",
    "After {first} and {second} went to the {place}, {subject} gave a {object} to",
    "Then, {first} and {second} went to the {place}. {subject} gave a {object} to",
    "Then, {first} and {second} had a lot of fun at the {place}. {subject} gave a {object} to",
    "Then, {first} and {second} were working at the {place}. {subject} decided to give a {object} to",
    "Then, {first} and {second} were thinking about going to the {place}. {subject} wanted to give a {object} to",
    "When {first} and {second} got a {object} at the {place}, {subject} decided to give it to",
    "When {first} and {second} got a {object} at the {place}, {subject} decided to give the {object} to",
    "While {first} and {second} were working at the {place}, {subject} gave a {object} to",
    "While {first} and {second} were commuting to the {place}, {subject} gave a {object} to",
    "After the lunch, {first} and {second} went to the {place}. {subject} gave a {object} to",
    "Afterwards, {first} and {second} went to the {place}. {subject} gave a {object} to",
    "The {place} {first} and {second} went to had a {object}. {subject} gave it to",
    "Friends {first} and {second} found a {object} at the {place}. {subject} gave it to",
)

PLACES: tuple[str, ...] = (
    *("store", "garden", "restaurant", "school", "hospital", "office", "house", "station"),
    *("park", "library", "museum", "market", "hotel", "beach", "airport", "church"),
)

# Every object takes "a".
OBJECTS: tuple[str, ...] = (
    *("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack"),
    *("book", "ball", "pen", "letter", "key", "phone", "flower", "present"),
)
