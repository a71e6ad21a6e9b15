"""The gendered-pronoun task."""

import pytest

from circuits_over_time.utils.tasks import build_prompts, gendered_pronoun
from circuits_over_time.utils.tasks.word_lists import NAMES_BY_GENDER
from tests.support.task_tokenizers import TOKENIZERS, pythia, words

MALE_NAMES, FEMALE_NAMES = NAMES_BY_GENDER["male"], NAMES_BY_GENDER["female"]


def test_the_pronouns_are_pythias_344_and_703():
    prompts = build_prompts("gendered_pronoun", pythia(), 40, 0)
    male = prompts.meta["gender"] == "male"
    assert prompts.answers.right[:, 0].tolist() == [344 if is_male else 703 for is_male in male]
    assert prompts.answers.wrong[:, 0].tolist() == [703 if is_male else 344 for is_male in male]
    assert pythia().decode([344]) == " he"
    assert pythia().decode([703]) == " she"


def test_every_name_and_role_is_one_token_of_pythia_and_no_name_is_both_male_and_female():
    for word in (*MALE_NAMES, *FEMALE_NAMES, *gendered_pronoun.ROLES):
        assert len(pythia()(f" {word}")["input_ids"]) == 1, word
    assert not set(MALE_NAMES) & set(FEMALE_NAMES)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_corrupted_name_is_of_the_other_gender_and_nothing_else_changes(name):
    prompts = build_prompts("gendered_pronoun", TOKENIZERS[name](), 120, 0)
    for (clean, corrupted), fact in zip(prompts.texts, prompts.meta.itertuples(), strict=True):
        own, other = (MALE_NAMES, FEMALE_NAMES) if fact.gender == "male" else (FEMALE_NAMES, MALE_NAMES)
        assert fact.name in own
        assert fact.corrupted_name in other
        template = gendered_pronoun.TEMPLATES[fact.template]
        assert clean == template.format(name=fact.name, role=fact.role)
        assert corrupted == template.format(name=fact.corrupted_name, role=fact.role)
    assert ((prompts.clean != prompts.corrupted).sum(dim=1) == 1).all()


def test_genders_alternate_and_templates_come_equally_often():
    meta = build_prompts("gendered_pronoun", words(), 48, 0).meta
    assert meta["gender"].tolist() == ["male", "female"] * 24
    assert (meta.groupby(["template", "gender"]).size() == 4).all()


def test_the_published_prompt_is_among_them():
    published = "So Paul is such a good cook, isn't"
    total = 2 * 60 * len(gendered_pronoun.TEMPLATES) * len(gendered_pronoun.ROLES)
    prompts = build_prompts("gendered_pronoun", pythia(), total, 0)
    texts = [clean for clean, _ in prompts.texts]
    assert len(set(texts)) == total
    assert published in texts
