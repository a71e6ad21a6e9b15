"""Tasks that a config builds from templates and lists of words."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.config.explain import checked
from circuits_over_time.utils.config.keys import TaskConfig, load_config
from circuits_over_time.utils.results.commands import how_to_make
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.tasks import Prompts, build_prompts, tasks_of
from circuits_over_time.utils.tasks.keys import PerformanceConfig
from get_circuits_over_time import ANALYSIS as CIRCUITS
from get_model_task_performance import ANALYSIS as PERFORMANCE
from tests.support.paths import CONFIGS, TOY
from tests.support.task_tokenizers import pythia, smollm2, word_level, words

NAMES = {"male": ["Paul", "John", "Mark"], "female": ["Mary", "Susan"]}
PRONOUNS = {
    "templates": ["So {name} is such a good {role}, isn't", "So {name} is very nice, isn't"],
    "swap": "name",
    "answers": {"male": "he", "female": ["she"]},
    "words": {"name": NAMES, "role": ["cook", "friend"]},
}
NUMBERS = {
    "templates": ["The war lasted from {place}"],
    "swap": "place",
    "answers": {"store": "house", "garden": ["office", "school"], "park": "house"},
}


def config_of(**tasks: Any) -> TaskConfig:
    return checked(PerformanceConfig, {"model": "x", "task": list(tasks), "tasks": tasks})


def build(keys: dict[str, Any], tokenizer: Any = None, n: int | None = None, seed: int = 0) -> Prompts:
    config = config_of(mine=keys)
    (task,) = tasks_of(config)
    return task.build(tokenizer or words(), n, seed, config)


def texts_of(tokenizer: Any, tokens: Any, mask: Any) -> list[set[str]]:
    return [{tokenizer.decode(t).strip() for t in row[keep]} for row, keep in zip(tokens, mask, strict=True)]


def test_the_prompts_are_all_products_of_templates_and_words_and_the_answers_those_of_the_two_kinds() -> None:
    prompts = build(PRONOUNS)
    every = {
        template.format(name=name, role=role)
        for template, role in itertools.product(PRONOUNS["templates"], ["cook", "friend"])
        for name in ("Paul", "John", "Mark", "Mary", "Susan")
    }
    assert {clean for clean, _ in prompts.texts} == every
    assert len(prompts) == len(every) == 15
    right = texts_of(words(), prompts.answers.right, prompts.answers.right_mask)
    wrong = texts_of(words(), prompts.answers.wrong, prompts.answers.wrong_mask)
    for (clean, corrupted), fact, a, w in zip(prompts.texts, prompts.meta.itertuples(), right, wrong, strict=True):
        own, other = ("male", "female") if fact.name in NAMES["male"] else ("female", "male")
        assert (fact.kind, a, w) == (own, {"male": {"he"}, "female": {"she"}}[own], {"he", "she"} - a)
        assert fact.corrupted_name in NAMES[other]
        assert corrupted == clean.replace(fact.name, fact.corrupted_name)
        assert clean == PRONOUNS["templates"][fact.template].format(name=fact.name, role=fact.role)
        assert (fact.role == "") == (fact.template == 1)


def test_kinds_take_turns_and_templates_come_equally_often() -> None:
    meta = build(PRONOUNS, n=8).meta
    assert meta["kind"].tolist() == ["male", "female"] * 4
    assert (meta.groupby(["kind", "template"]).size() == 2).all()


def test_more_prompts_of_a_seed_begin_with_the_same_ones_and_another_seed_has_others() -> None:
    few, many, others = (build(PRONOUNS, n=n, seed=seed).texts for n, seed in ((6, 3), (12, 3), (6, 4)))
    assert many[:6] == few != others


def test_without_a_list_of_words_the_kinds_are_the_words_and_none_is_swapped_for_one_with_the_same_answer() -> None:
    prompts = build(NUMBERS)
    assert sorted(prompts.meta["place"]) == ["garden", "park", "store"]
    assert "kind" not in prompts.meta
    exchanged = dict(zip(prompts.meta["place"], prompts.meta["corrupted_place"], strict=True))
    assert exchanged["store"] == exchanged["park"] == "garden"
    assert exchanged["garden"] in ("store", "park")
    right = texts_of(words(), prompts.answers.right, prompts.answers.right_mask)
    assert right[prompts.meta["place"].tolist().index("garden")] == {"office", "school"}


def test_a_phrase_is_swapped_for_one_of_as_many_words() -> None:
    phrases = {"near": ["next to", "behind", "in front of"], "far": ["across from", "near"]}
    keys = {
        "templates": ["The store {where} the house"],
        "swap": "where",
        "answers": {"near": "he", "far": "she"},
        "words": {"where": phrases},
    }
    meta = build(keys).meta
    assert {(a, b) for a, b in zip(meta["where"], meta["corrupted_where"], strict=True)} == {
        *(("next to", "across from"), ("behind", "near"), ("across from", "next to"), ("near", "behind"))
    }


def test_a_word_that_is_not_one_token_is_left_out_with_a_line_of_its_own_and_so_is_a_kind_without_answers(
    caplog: Any,
) -> None:
    caplog.set_level("INFO")
    keys = {**PRONOUNS, "answers": {"male": ["he", "xyzzy"], "female": "she", "other": "plugh"}}
    keys["words"] = {"name": {**NAMES, "other": ["Linda"]}, "role": ["cook", "frobnicator"]}
    for _ in range(2):  # Said once.
        meta = build(keys).meta
    assert set(meta["kind"]) == {"male", "female"}
    assert set(meta["role"]) == {"cook", ""}
    left_out = "is not one token under this tokenizer, and left out"
    assert [record.getMessage() for record in caplog.records] == [
        f"mine: 'xyzzy' of the answers {left_out}",
        f"mine: 'plugh' of the answers {left_out}",
        f"mine: 'frobnicator' of the words for {{role}} {left_out}",
    ]


def test_words_at_the_beginning_of_a_prompt_are_looked_up_without_a_space() -> None:
    keys = {
        "templates": ["{name} went to the store because"],
        "swap": "name",
        "answers": {"Paul": "he", "Mary": "she", "Kathleen": "she", "Timothy": "he"},
    }
    tokens = {name: len(pythia()(name)["input_ids"]) for name in keys["answers"]}
    assert tokens["Paul"] == tokens["Mary"] == 1 < tokens["Kathleen"]
    prompts = build(keys, pythia())
    assert set(prompts.meta["name"]) == {name for name, n in tokens.items() if n == 1}


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (lambda: word_level(["The So is such a good very nice, isn't he she cook"]), r"only 0 of 5 words for \{name\}"),
        (lambda: word_level(["The So is such a good, isn't he Mary cook"]), "only 1 of 2 answers"),
        (
            lambda: word_level(["The So is such a good very nice, isn't he she cook Paul John"]),
            r"only 0 of 2 kinds of \{name\} with an answer",
        ),
    ],
)
def test_a_tokenizer_that_leaves_too_few_words_is_refused(tokenizer: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        build(PRONOUNS, tokenizer())


def test_more_prompts_than_there_are_name_the_maximum() -> None:
    with pytest.raises(UserError, match="n_prompts: 16 prompts of mine asked for, but it can make only 15"):
        build(PRONOUNS, n=16)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"templates": []}, "tasks.mine.templates: the list is empty"),
    ({"templates": ["So {name} {is"]}, "tasks.mine.templates: 'So {name} {is': write slots as {name}"),
    ({"templates": ["So {name.x} is"]}, "tasks.mine.templates: 'So {name.x} is': write slots as"),
    ({"templates": ["So {name} is "]}, "and no space at the ends"),
    ({"templates": ["So he is"]}, "tasks.mine.templates: 'So he is' lacks the slot to swap, {name}"),
    ({"templates": ["So {name} is a {thing}"]}, "tasks.mine.words: role: no template has this slot"),
    ({"templates": ["So {name} is a {role} {x}"]}, "tasks.mine.words: x: there are none"),
    (
        {"words": {"name": ["Paul"], "role": ["cook"]}},
        "tasks.mine.words: name: the slot to swap has a list for each kind",
    ),
    ({"words": {"name": NAMES, "role": {"a": ["cook"]}}}, "tasks.mine.words: role: the slot to swap has a list"),
    ({"words": {"name": NAMES, "role": [" cook"]}}, "tasks.mine.words.role: ' cook': write words without spaces"),
    ({"words": {"name": NAMES, "role": ["cook", "cook"]}}, "tasks.mine.words.role: 'cook' is listed twice"),
    ({"words": {"name": NAMES, "role": [3]}}, "tasks.mine.words.role[0]: 3 is not text"),
    ({"answers": {"male": "he"}}, "tasks.mine.answers: the kind 'female' has no answer"),
    ({"answers": {"male": "he", "female": "she", "x": "it"}}, "tasks.mine.answers: the kind 'x' has no words"),
    ({"answers": {"male": "he", "female": "he"}}, "tasks.mine.answers: give two kinds with different answers"),
    ({"answers": {"male": "he too", "female": "she"}}, "tasks.mine.answers: 'he too' is more than one word"),
    ({"swop": "name"}, "tasks.mine.swop: unknown key"),
    ({"metric": "accuracy"}, "tasks.mine.metric: 'accuracy' cannot be used; set it to logit_diff or prob_diff or kl"),
]


@pytest.mark.parametrize(("change", "line"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_section_is_refused_in_a_line_that_names_its_key(
    change: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yml"
    tasks = {"mine": {**PRONOUNS, **change}}
    path.write_text(yaml.safe_dump({"model": str(TOY), "task": "mine", "tasks": tasks}))
    assert main(CIRCUITS, ["-c", str(path), f"results_dir={tmp_path / 'results'}"]) == 2
    said = capsys.readouterr().err.strip().split("\n")
    assert len(said) == 1
    assert said[0].startswith(f"{path}: ")
    assert line in said[0]
    assert not (tmp_path / "results").exists()


def test_a_task_of_ones_own_is_known_by_its_name_alone_and_none_may_have_a_built_in_ones() -> None:
    with pytest.raises(UserError, match=r"task: 'mime' is unknown; did you mean 'mine'\?"):
        tasks_of(config_of(mine=PRONOUNS).model_copy(update={"task": "mime"}))
    with pytest.raises(UserError, match=r"tasks\.ioi: there is a built-in task 'ioi'"):
        tasks_of(config_of(ioi=PRONOUNS))
    with pytest.raises(UserError, match=r"'a/b': a task's name has letters"):
        config_of(**{"a/b": PRONOUNS})


@pytest.mark.parametrize("path", ["tasks_toy", "tasks_real"])
@pytest.mark.parametrize("tokenizer", ["pythia", "smollm2", "toy"])
def test_the_tasks_of_the_configs_fit_real_tokenizers(path: str, tokenizer: str) -> None:
    from transformers import AutoTokenizer

    made = {"pythia": pythia, "smollm2": smollm2, "toy": lambda: AutoTokenizer.from_pretrained(TOY / "step1350")}
    config = load_config(PerformanceConfig, CONFIGS / f"{path}.yml", [])
    if path == "tasks_real" and tokenizer == "toy":
        pytest.skip("the toy family does not know its words")
    for task in tasks_of(config):
        prompts = task.build(made[tokenizer](), None, 0, config)
        assert len(prompts) >= 21, task.name


@pytest.mark.parametrize("tokenizer", [pythia, words])
def test_gendered_pronoun_is_such_a_task_and_has_the_prompts_that_it_always_had(tokenizer: Any) -> None:
    prompts = build_prompts("gendered_pronoun", tokenizer(), 3, 0)
    assert prompts.texts == [
        ("So Tyler is such a funny runner, isn't", "So Marie is such a funny runner, isn't"),
        ("So Karen is a very good cook, isn't", "So Kevin is a very good cook, isn't"),
        ("So Joshua is a really nice teacher, isn't", "So Sarah is a really nice teacher, isn't"),
    ]
    assert list(prompts.meta.columns) == ["name", "gender", "template", "role", "corrupted_name"]


def test_circuits_and_performance_of_a_task_from_a_config_and_what_its_results_depend_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, results = tmp_path / "mine.yml", f"results_dir={tmp_path / 'results'}"
    data = yaml.safe_load((CONFIGS / "tasks_toy.yml").read_text())
    data |= {"model": str(TOY), "checkpoints": [1350]}

    def run(analysis: Any, *overrides: str) -> int:
        path.write_text(yaml.safe_dump(data))
        return main(analysis, ["-c", str(path), results, *overrides])

    circuits = ("n_random=2", "eap.ig_steps=4", "task=[gender_of_name, ioi]", "n_prompts=20")
    assert run(CIRCUITS, *circuits) == 0
    assert run(PERFORMANCE, "task=[next_day, gender_of_name]") == 0
    store = Store(tmp_path / "results")
    baselines = store.read_tables("baselines").set_index("task")
    assert baselines.loc["gender_of_name", "status"] == "found"
    assert baselines.loc["gender_of_name", "n_prompts"] == 20
    groups = store.read_tables("prompt_groups", "toy", "gender_of_name")
    assert groups["group"].tolist() == ["all", "female", "male"]
    performance = store.read_tables("task_performance").set_index(["task", "run", "metric"])["value"]
    assert performance["next_day", "clean", "accuracy"] == 1
    assert performance["next_day", "corrupted", "accuracy"] < 0.2

    capsys.readouterr()
    script, *again = shlex.split(how_to_make(tmp_path / "results", "task_performance", "toy", "next_day"))[1:]
    assert script == "get_model_task_performance.py"
    assert main(PERFORMANCE, again) == 0
    assert "nothing to do" in capsys.readouterr().err

    # Only what a task's own prompts depend on binds its results.
    data["tasks"]["next_day"]["templates"].append("After {day},")
    capsys.readouterr()
    assert run(CIRCUITS, *circuits) == 0
    assert "nothing to do" in capsys.readouterr().err
    data["tasks"]["gender_of_name"]["answers"]["male"] = "it"
    assert run(CIRCUITS, *circuits) == 2
    assert "holds answers={" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1
