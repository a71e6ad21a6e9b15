"""The subject-verb agreement task."""

import pytest

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.tasks import build_prompts, sva
from tests.support.task_tokenizers import TOKENIZERS, pythia, task_texts, word_level, words

EXAMPLES = {
    "simple_agrmt": ("The author", "The authors"),
    "sent_comp": ("The banker said the author", "The banker said the authors"),
    "vp_coord": ("The author laughs and", "The authors laugh and"),
    "long_vp_coord": (
        "The author likes to watch television shows and",
        "The authors like to watch television shows and",
    ),
    "prep_anim": ("The author next to the guard", "The authors next to the guard"),
    "prep_inanim": ("The movie from the guards", "The movies from the guards"),
    "subj_rel": ("The author that likes the guards", "The authors that like the guards"),
    "obj_rel_across_anim": ("The author that the guards like", "The authors that the guards like"),
    "obj_rel_across_inanim": ("The movie that the guard likes", "The movies that the guard likes"),
    "obj_rel_no_comp_across_anim": ("The author the guards like", "The authors the guards like"),
    "obj_rel_no_comp_across_inanim": ("The movie the guard likes", "The movies the guard likes"),
    "obj_rel_within_anim": ("The authors that the guard", "The authors that the guards"),
    "obj_rel_within_inanim": ("The movies that the guard", "The movies that the guards"),
    "obj_rel_no_comp_within_anim": ("The authors the guard", "The authors the guards"),
    "obj_rel_no_comp_within_inanim": ("The movies the guard", "The movies the guards"),
}


def inflections():
    pairs = (*sva.WORDS["animate"], *sva.WORDS["inanimate"], *sva.WORDS["embedded"], *sva.WORDS["reporters"])
    return (*pairs, *sva.WORDS["intransitive"], *sva.WORDS["transitive"], *sva.WORDS["verb_phrases"], *sva.VERBS)


def test_there_are_the_fifteen_structures():
    assert [structure.name for structure in sva.STRUCTURES] == list(EXAMPLES)
    assert len({structure.description for structure in sva.STRUCTURES}) == 15


def test_every_word_is_one_token_of_pythia():
    links = (*sva.WORDS["reporting_verbs"], *sva.WORDS["animate_prepositions"], *sva.WORDS["inanimate_prepositions"])
    for phrase in (*links, *(phrase for pair in inflections() for phrase in pair)):
        assert len(pythia()(f" {phrase}")["input_ids"]) == len(phrase.split()), phrase


def test_no_verb_is_singular_and_plural():
    singular, plural = zip(*sva.VERBS, strict=True)
    assert len({*singular, *plural}) == 2 * len(sva.VERBS)


@pytest.mark.parametrize("structure", EXAMPLES)
def test_each_structure_has_its_published_sentence_and_its_number_swapped(structure):
    # One word of each kind: 1 prompt in the three structures without a second noun, 2 in the others, in both numbers.
    tokenizer = word_level([*(text for pair in EXAMPLES.values() for text in pair), "bankers is are"])
    prompts = build_prompts("sva", tokenizer, 2 * (3 * 1 + 12 * 2), 0)
    mine = [text for text, name in zip(prompts.texts, prompts.meta["structure"], strict=True) if name == structure]
    singular, plural = EXAMPLES[structure]
    assert (singular, plural) in mine
    assert (plural, singular) in mine
    with pytest.raises(UserError, match="but it can make only 54"):
        build_prompts("sva", tokenizer, 55, 0)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_subject_changes_its_number_and_the_other_noun_keeps_it(name):
    prompts = build_prompts("sva", TOKENIZERS[name](), 300, 0)
    nouns = {**dict(sva.WORDS["animate"] + sva.WORDS["inanimate"] + sva.WORDS["embedded"] + sva.WORDS["reporters"])}
    for (clean, corrupted), fact in zip(prompts.texts, prompts.meta.itertuples(), strict=True):
        forms = [fact.subject, nouns[fact.subject]]
        own, swapped = forms if fact.number == "singular" else forms[::-1]
        assert own in clean.split()
        assert swapped in corrupted.split()
        assert own not in corrupted.split()
        if fact.other:
            other = fact.other if fact.other_number == "singular" else nouns[fact.other]
            assert other in clean.split()
            assert other in corrupted.split()
        # The subject, and in three structures the verb behind it.
        agrees = fact.structure in ("vp_coord", "long_vp_coord", "subj_rel")
        assert sum(a != b for a, b in zip(clean.split(), corrupted.split(), strict=True)) == 1 + agrees


@pytest.mark.parametrize("name", TOKENIZERS)
def test_answers_are_the_verbs_of_the_subjects_number(name):
    tokenizer = TOKENIZERS[name]()
    prompts = build_prompts("sva", tokenizer, 40, 0)
    singular, plural = zip(*sva.VERBS, strict=True)
    for row, fact in enumerate(prompts.meta.itertuples()):
        right, wrong = (singular, plural) if fact.number == "singular" else (plural, singular)
        assert tuple(tokenizer.decode(token).strip() for token in prompts.answers.right[row]) == right
        assert tuple(tokenizer.decode(token).strip() for token in prompts.answers.wrong[row]) == wrong
        assert fact.verbs == ";".join(right)


def test_numbers_alternate_and_structures_come_equally_often():
    meta = build_prompts("sva", words(), 15 * 2 * 3, 0).meta
    assert meta["number"].tolist() == ["singular", "plural"] * 45
    assert (meta.groupby(["structure", "number"]).size() == 3).all()
    assert meta["structure"].nunique() == 15


def test_a_structure_without_prompts_left_makes_way_for_the_others():
    meta = build_prompts("sva", words(), 3000, 0).meta
    simple = meta[meta["structure"] == "simple_agrmt"]
    assert len(simple) == 2 * len(sva.WORDS["animate"])
    assert len(meta) == 3000
    assert (meta["number"] == "plural").sum() == 1500


def test_a_verb_known_in_one_number_only_is_left_out_in_both():
    prompts = build_prompts("sva", word_level(task_texts(), without=["has"]), 2, 0)
    assert prompts.answers.right_mask.sum(dim=1).tolist() == [len(sva.VERBS) - 1] * 2
    assert not {"has", "have"} & set(";".join(prompts.meta["verbs"]).split(";"))


def test_a_tokenizer_with_one_verb_is_refused():
    # "knows" and "know" alone: enough for every structure's own verbs, too few to ask for.
    without = {word for pair in sva.VERBS for word in pair} - {"knows", "know"}
    with pytest.raises(
        UserError, match=r"^sva: only 1 of 75 verbs \(in both numbers\) are single tokens .* the task needs 2"
    ):
        build_prompts("sva", word_level(task_texts(), without=without), 1, 0)
