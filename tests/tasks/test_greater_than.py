"""The greater-than task."""

import re

import pytest

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.tasks import build_prompts, greater_than
from tests.support.task_tokenizers import OTHERS, TOKENIZERS, pythia, task_texts, word_level, words


def pieces(text):
    return pythia().convert_ids_to_tokens(pythia()(text)["input_ids"])


def test_pythia_cuts_years_into_century_and_two_digits():
    assert pieces(" 1732") == ["Ġ17", "32"]


def test_every_noun_and_every_answer_is_one_token_of_pythia():
    for text in (*(f" {noun}" for noun in greater_than.NOUNS), *(f"{number:02d}" for number in range(100))):
        assert len(pieces(text)) == 1, text
    assert len(set(greater_than.NOUNS)) == len(greater_than.NOUNS)
    assert greater_than.number_tokens(pythia(), 2) == {n: pythia()(f"{n:02d}")["input_ids"][0] for n in range(100)}


def test_the_years_are_exactly_those_of_two_tokens_less_first_and_last_of_each_century():
    expected = []
    for century in range(11, 18):
        years = range(century * 100, century * 100 + 100)
        cut = [year for year in years if pieces(f" {year}") == [f"Ġ{century}", f"{year % 100:02d}"]]
        expected += [year for year in cut if year not in (min(cut), max(cut))]
    years = greater_than.valid_years(pythia())
    assert years == expected
    assert len(years) == 456
    assert 1732 in years
    assert 1700 not in years
    assert 1799 not in years


def test_years_of_a_tokenizer_that_knows_few_digits():
    tokenizer = word_level([greater_than.TEMPLATE, "war", "12 17 05 40 41"])
    # Two-digit tokens 05, 12, 17, 40, 41; centuries 12 and 17; first (05) and last (41) left out.
    assert greater_than.valid_years(tokenizer) == [1212, 1217, 1240, 1712, 1717, 1740]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompts_end_in_the_century_and_the_corrupted_year_is_xx01(name):
    prompts = build_prompts("greater_than", TOKENIZERS[name](), 200, 0)
    for (clean, corrupted), fact in zip(prompts.texts, prompts.meta.itertuples(), strict=True):
        assert clean == f"The {fact.noun} lasted from the year {fact.year} to the year {fact.year // 100}"
        assert corrupted == clean.replace(str(fact.year), f"{fact.century}01")
        assert fact.year % 100 != 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_answers_are_the_later_two_digit_tokens_and_wrong_ones_the_others(name):
    tokenizer = TOKENIZERS[name]()
    prompts = build_prompts("greater_than", tokenizer, 50, 1)
    for row, year in enumerate(prompts.meta["year"]):
        right = [tokenizer.decode(token) for token in prompts.answers.right[row][prompts.answers.right_mask[row]]]
        wrong = [tokenizer.decode(token) for token in prompts.answers.wrong[row][prompts.answers.wrong_mask[row]]]
        assert right == [f"{number:02d}" for number in range(year % 100 + 1, 100)]
        assert wrong == [f"{number:02d}" for number in range(year % 100 + 1)]


def test_nouns_and_years_vary():
    prompts = build_prompts("greater_than", words(), 300, 0)
    assert prompts.meta["noun"].nunique() > 80
    assert prompts.meta["century"].nunique() == 7
    assert all(
        re.fullmatch(r"The [a-z]+ lasted from the year 1\d{3} to the year 1\d", text) for text, _ in prompts.texts
    )


@pytest.mark.parametrize("name", OTHERS)
def test_a_year_that_is_cut_before_its_last_digit_is_shown_up_to_there(name):
    tokenizer = OTHERS[name]()
    prompts = build_prompts("greater_than", tokenizer, 200, 0)
    for (clean, corrupted), fact in zip(prompts.texts, prompts.meta.itertuples(), strict=True):
        assert clean == f"The {fact.noun} lasted from the year {fact.year} to the year {fact.year // 10}"
        assert corrupted == clean.replace(str(fact.year), f"{fact.year // 10}0")
        assert 1 <= fact.year % 10 <= 8
    # The pair differs in one token, the last digit of its first year.
    assert ((prompts.clean != prompts.corrupted).sum(dim=1) == 1).all()
    assert prompts.meta["noun"].nunique() > 50
    assert prompts.meta["year"].nunique() > 100


@pytest.mark.parametrize("name", OTHERS)
def test_answers_before_the_last_digit_are_the_greater_digits_and_end_the_year(name):
    tokenizer = OTHERS[name]()
    prompts = build_prompts("greater_than", tokenizer, 30, 1)
    for row, year in enumerate(prompts.meta["year"]):
        right = prompts.answers.right[row][prompts.answers.right_mask[row]].tolist()
        wrong = prompts.answers.wrong[row][prompts.answers.wrong_mask[row]].tolist()
        assert tokenizer.convert_ids_to_tokens(right) == [str(digit) for digit in range(year % 10 + 1, 10)]
        assert tokenizer.convert_ids_to_tokens(wrong) == [str(digit) for digit in range(year % 10 + 1)]
        shown = prompts.clean[row, : prompts.lengths[row]].tolist()
        for digit, token in enumerate(wrong + right):
            whole = prompts.texts[row][0] + str(digit)
            assert tokenizer(whole, add_special_tokens=False)["input_ids"] == [*shown, token]


def test_the_papers_form_is_taken_where_it_can_be_had():
    assert [greater_than.form_of(TOKENIZERS[name]())[0] for name in TOKENIZERS] == [2, 2]
    assert [greater_than.form_of(OTHERS[name]())[0] for name in ("digits", "three", "pieces")] == [1, 1, 1]


def test_every_year_with_a_right_and_a_wrong_digit_makes_prompts():
    digits, years = greater_than.form_of(OTHERS["digits"]())
    assert (digits, years) == (1, [year for year in range(1100, 1800) if year % 10 not in (0, 9)])
    prompts = build_prompts("greater_than", OTHERS["digits"](), 8000, 0)
    begun = zip(prompts.meta["year"], prompts.texts, strict=True)
    assert {(year, int(text.split()[6])) for year, (_, text) in begun} == {(year, year // 10 * 10) for year in years}


def test_years_cut_into_three_digits_from_the_right_have_no_form():
    tokenizer = word_level(task_texts(), pieces=r"\d(?=\d{3})|\d{3}|[A-Za-z]+|[^\sA-Za-z\d]")
    assert tokenizer.tokenize("the year 1732") == ["the", "year", "[UNK]", "[UNK]"]
    with pytest.raises(UserError, match="cuts no year from 1100 to 1799 into its century and two digits, nor before"):
        build_prompts("greater_than", tokenizer, 10, 0)
