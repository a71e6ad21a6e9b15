"""The recipe of the default toy family, and the checkpoints that are kept of it."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoTokenizer, GPTNeoXForCausalLM, PreTrainedTokenizerBase

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.config.keys import load_config
from circuits_over_time.utils.toy.evaluation import Examination
from circuits_over_time.utils.toy.family import train_family
from circuits_over_time.utils.toy.keys import FamilyConfig
from circuits_over_time.utils.toy.training import new_model
from tests.support.paths import CONFIGS, ROOT, TOY_STEPS


def recipe(*overrides: str) -> FamilyConfig:
    return load_config(FamilyConfig, CONFIGS / "toy_family.yml", overrides)


@pytest.fixture(scope="module")
def trained_family() -> Path:
    """The recipe's family, trained first if model_cache does not hold it (minutes). Do not change it.

    Where model_cache/toy holds a family of another config, that one stays and model_cache/toy_of_tests is used.
    """
    folder = (ROOT / "model_cache").as_posix()
    for name in ("toy", "toy_of_tests"):
        with contextlib.suppress(UserError):
            return train_family(recipe(f"folder={folder}/{name}"))
    return train_family(recipe(f"folder={folder}/toy_of_tests", "overwrite=true"))


def test_checkpoints_stand_at_powers_of_two_and_then_at_equal_distances() -> None:
    config = recipe()
    assert config.steps[:9] == (0, 1, 2, 4, 8, 16, 32, 64, 128)
    assert {after - before for before, after in itertools.pairwise(config.steps[9:])} == {150}
    assert config.steps[-1] == config.optimizer.steps
    assert 16 <= len(config.steps) <= 20


def test_the_config_file_says_what_the_defaults_are() -> None:
    assert recipe() == FamilyConfig()


def assert_no_skill(skills: dict[str, float]) -> None:
    assert skills["induction_accuracy"] < 0.05
    assert skills["succession_accuracy"] < 0.1
    assert abs(skills["ioi_logit_diff"]) < 0.5


def assert_every_skill(skills: dict[str, float]) -> None:
    assert skills["ioi_accuracy"] >= 0.95
    assert skills["ioi_logit_diff"] > 3
    assert abs(skills["ioi_abc_logit_diff"]) < 0.5
    assert skills["greater_than_prob_diff"] > 0.7
    assert skills["gendered_pronoun_accuracy"] >= 0.9
    assert skills["sva_accuracy"] >= 0.95
    assert skills["induction_accuracy"] >= 0.9
    assert skills["succession_accuracy"] >= 0.9


# --- what is kept of it


def test_the_kept_checkpoints_are_of_this_recipe(toy_family: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config = recipe()
    shapes = {name: value.shape for name, value in new_model(config.model, len(tokenizer)).state_dict().items()}
    assert set(TOY_STEPS) <= set(config.steps)
    for step in TOY_STEPS:
        kept = toy_family / f"step{step}"
        assert AutoTokenizer.from_pretrained(kept).get_vocab() == tokenizer.get_vocab()
        assert {k: v.shape for k, v in GPTNeoXForCausalLM.from_pretrained(kept).state_dict().items()} == shapes


def test_the_first_kept_checkpoint_has_no_skill_and_the_last_has_all(
    toy_family: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    examination = Examination(tokenizer)
    first, _, last = (
        examination.results(GPTNeoXForCausalLM.from_pretrained(toy_family / f"step{step}", dtype="float32"))
        for step in TOY_STEPS
    )
    assert_no_skill(first)
    assert_every_skill(last)


# --- what it trains, on whichever processor this is (make test-long)


@pytest.mark.endurance
@pytest.mark.trained
def test_the_recipe_learns_every_skill(trained_family: Path) -> None:
    assert_every_skill(json.loads((trained_family / "family.json").read_text())["evaluation"])


@pytest.mark.endurance
@pytest.mark.trained
def test_the_recipe_starts_without_skills_and_its_family_is_small(trained_family: Path) -> None:
    table = pd.read_csv(trained_family / "evaluation.csv")
    assert_no_skill(table[table["step"] == 0].set_index("skill")["value"].to_dict())
    size = sum(path.stat().st_size for path in trained_family.rglob("*") if path.is_file())
    assert size < 60e6
