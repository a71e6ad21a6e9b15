"""The sentences the toy families learn from: what they ask, and what is held out."""

from __future__ import annotations

import random

import pytest
from transformers import PreTrainedTokenizerBase

from circuits_over_time.utils.tasks import ioi
from circuits_over_time.utils.toy import text as toy_text
from circuits_over_time.utils.toy.positions import position_question, position_texts
from circuits_over_time.utils.toy.tokenizer import build_tokenizer


@pytest.mark.parametrize("skill", toy_text.EVALUATED)
def test_sentences_have_no_spelled_out_words_and_answers_are_one_token(
    skill: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    rng = random.Random(0)
    for _ in range(300):
        question = toy_text.EVALUATED[skill](rng)
        tokens = tokenizer.tokenize(question.document(rng))
        spelled = [token for token in tokens if len(token) == 1 and token.isalpha() and token != "I"]
        assert not spelled or skill == "succession"  # There letters are counted.
        assert all(len(tokenizer(answer).input_ids) == 1 for answer in (*question.right, *question.wrong))
        assert not set(question.right) & set(question.wrong)


def test_questions_of_one_side_never_hold_what_the_other_side_holds() -> None:
    rng = random.Random(0)

    def pairs(held_out: bool) -> set[tuple[str, ...]]:
        drawn = [toy_text.ioi_question(rng, held_out) for _ in range(3000)]
        return {tuple(sorted((*question.right, *question.wrong))) for question in drawn}

    def prompts(draw, held_out: bool) -> set[str]:
        return {draw(rng, held_out).prompt for _ in range(3000)}

    assert not pairs(False) & pairs(True)
    for draw in (
        toy_text.greater_than_question,
        toy_text.gendered_pronoun_question,
        toy_text.succession_question,
        toy_text.sva_question,
    ):
        assert not prompts(draw, False) & prompts(draw, True)


def test_positions_are_asked_of_a_list_and_something_named_again() -> None:
    rng = random.Random(0)
    families = build_tokenizer((*toy_text.vocabulary_texts(), *position_texts()), 128)
    seen = set()
    for held_out in (False, True) * 300:
        question = position_question(rng, held_out)
        (right,), (wrong,) = question.right, question.wrong
        words = [word.strip(",.") for word in question.prompt.split()]
        names = list(dict.fromkeys(word for word in words if word in toy_text.NAMES))
        things = list(dict.fromkeys(word for word in words if word in ioi.OBJECTS))
        assert toy_text.is_held_out("ioi", *sorted(names)) == held_out
        by_place = [word for word in words if word in ("first", "second")]
        repeated = [word for word in (*names, *things) if words.count(word) == 2]
        if any(word in names for word in repeated):
            listed, named = names, repeated[0]
        elif len(things) == 2 and repeated:
            listed, named = things, repeated[0]
        else:
            listed, named = ["first", "second"], by_place[0]
        place = listed.index(named)
        if right.strip() in toy_text.NAMES:
            assert (right, wrong) == (f" {names[1 - place]}", f" {names[place]}")
        else:
            assert (right, wrong) == ((" first", " second") if place == 0 else (" second", " first"))
        seen.add((listed is names, listed is things, right.strip() in toy_text.NAMES))
        assert all(len(token) > 1 or not token.isalpha() for token in families.tokenize(question.document(rng))[1:])
    assert len(seen) == 4


def test_about_a_fifth_is_held_out() -> None:
    share = sum(toy_text.is_held_out("year", number) for number in range(5000)) / 5000
    assert share == pytest.approx(1 / toy_text.HELD_OUT_ONE_IN, abs=0.02)
