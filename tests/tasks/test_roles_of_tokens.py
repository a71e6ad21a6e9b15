"""Which role each token of a prompt has, against what the words say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerBase

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.config.keys import PromptOptions
from circuits_over_time.utils.tasks import TASKS, Prompts, Task
from circuits_over_time.utils.tasks.csv_task import table_task
from circuits_over_time.utils.tasks.roles import token_roles
from tests.support.task_tokenizers import pythia, single_digits, words


def with_roles(task: Task, tokenizer: PreTrainedTokenizerBase, n: int | None, *, prepend_bos: bool = False) -> Prompts:
    pairs = task.pairs(tokenizer, n, 0, PromptOptions())
    prompts = task.tokenise(tokenizer, pairs, prepend_bos)
    return replace(prompts, roles=token_roles(tokenizer, pairs, prompts))


def held(prompts: Prompts, row: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The text of the tokens of every role that a prompt has, but of `rest`."""
    roles = prompts.roles
    assert roles is not None
    of_token = roles.of_token[row, : int(prompts.lengths[row])]
    texts = {
        name: tokenizer.decode(prompts.clean[row, : len(of_token)][of_token == number]).strip()
        for number, name in enumerate(roles.names)
    }
    return {name: text for name, text in texts.items() if text and name != "rest"}


def test_tokens_of_ioi_have_the_roles_of_their_names() -> None:
    prompts = with_roles(TASKS["ioi"], words(), 8, prepend_bos=False)
    for row, meta in enumerate(prompts.meta.to_dict("records")):
        found = held(prompts, row, words())
        assert found["io"] == meta["io"]
        assert found["s1"] == found["s2"] == meta["s"]
        assert found["end"] == prompts.texts[row][0].split()[-1]
        assert len(found) == 5


@pytest.mark.parametrize("start", [False, True])
def test_tokens_of_greater_than_have_the_roles_of_the_first_year(start: bool) -> None:
    prompts = with_roles(TASKS["greater_than"], pythia(), 8, prepend_bos=start)
    for row, (noun, century, year) in enumerate(prompts.meta[["noun", "century", "year"]].itertuples(index=False)):
        assert held(prompts, row, pythia()) == {
            "noun": noun,
            "century": str(century),
            "digits": f"{year % 100:02d}",
            "end": str(century),
        }


def test_a_year_of_single_digits_has_its_last_one_apart() -> None:
    prompts = with_roles(TASKS["greater_than"], single_digits(), 3)
    found, year = held(prompts, 0, single_digits()), str(prompts.meta["year"][0])
    assert (found["century"].replace(" ", ""), found["digits"]) == (year[:3], year[3])


def test_slots_are_roles_and_the_last_token_is_the_end_whatever_else_it_is() -> None:
    for name, slots in (("gendered_pronoun", ("name", "role")), ("sva", ("subject", "other"))):
        prompts = with_roles(TASKS[name], words(), 60)
        for row, meta in enumerate(prompts.meta.to_dict("records")):
            found, text = held(prompts, row, words()), prompts.texts[row][0]
            for slot in slots:
                # The subject inflects, and where it ends the prompt it is its end.
                word = str(meta[slot])[:3]
                assert word in found.get(slot, found["end"]) or not meta[slot], (text, found)


def table(**columns: list[object]) -> dict[str, list[object]]:
    rows: dict[str, list[object]] = {
        "clean": ["So Paul is such a good cook, isn't", "So Mary is a really great friend, isn't"],
        "corrupted": ["So Mary is such a good cook, isn't", "So Paul is a really great friend, isn't"],
        "answers": [" he", " she"],
        "wrong_answers": [" she", " he"],
    }
    return rows | columns


def test_columns_of_a_table_name_words_characters_or_places_from_the_end() -> None:
    rows = table(role_name=["Paul", "3:7"], role_job=["cook", None], role_tail=["-3", -4])
    prompts = with_roles(table_task(rows, "own", "logit_diff"), pythia(), None)
    found = {prompts.texts[row][0][3:7]: held(prompts, row, pythia()) for row in range(2)}
    tokens = {text[3:7]: pythia().tokenize(text) for text, _ in prompts.texts}
    assert found["Paul"] | {"tail": ""} == {"name": "Paul", "job": "cook", "tail": "", "end": "'t"}
    assert found["Mary"]["name"] == "Mary"
    assert "job" not in found["Mary"]
    for name, back in (("Paul", -3), ("Mary", -4)):
        assert found[name]["tail"] == tokens[name][back].replace("Ġ", "")


def test_a_table_without_roles_has_places_from_the_end() -> None:
    prompts = with_roles(table_task(table(), "own", "logit_diff"), pythia(), None)
    assert prompts.roles is not None
    assert prompts.roles.names == ("rest", *(f"end-{back}" for back in range(7, 0, -1)), "end")


@pytest.mark.parametrize("cell", ["cat", "o", "-30", "5:900", "9:5"])
def test_a_role_that_is_not_in_the_prompt_is_refused(cell: str) -> None:
    task = table_task(table(role_name=[cell, cell]), "own", "logit_diff")
    with pytest.raises(UserError, match=r"own: row 1: role_name: .* write a word that is there once") as refusal:
        with_roles(task, pythia(), None)
    assert repr(cell) in str(refusal.value)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"role_cook": ["cook", None], "role_food": [None, "Mary"], "role_job": ["cook", None]},
            "cook and job are roles of",
        ),
        ({"role_name": ["Paul", None], "role_tail": ["-9", None]}, "name and tail are roles of one token; leave one"),
        ({"role_a@b": ["Paul", None]}, "role_a@b: a role is called by letters, digits and _ alone"),
    ],
)
def test_two_roles_of_a_token_and_names_that_are_none_are_refused(columns: dict[str, list[object]], said: str) -> None:
    task = table_task(table(**columns), "own", "logit_diff")
    with pytest.raises(UserError, match=r"positions: own: row 1: ") as refusal:
        with_roles(task, pythia(), None)
    assert said in str(refusal.value)


def test_no_role_is_called_like_those_of_other_tokens() -> None:
    with pytest.raises(UserError, match="end is the role of other tokens; give a column role_end or a slot"):
        with_roles(table_task(table(role_end=["cook", None]), "own", "logit_diff"), pythia(), None)
