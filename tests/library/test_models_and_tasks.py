"""What the library is given: models by name, folder or in memory, tasks from tables, keywords; and its errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import circuits_over_time as cot
from circuits_over_time.utils.circuits.handle import Model, settings_of
from circuits_over_time.utils.circuits.keys import CircuitSettings
from tests.support.loading import same_tensors
from tests.support.paths import ROOT, TOY
from tests.support.random_models import random_model
from tests.support.task_tokenizers import words

HEADER = ["clean", "corrupted", "answers", "wrong_answers"]
NAMES = ("John", "Paul", "Mark", "Brian", "Kevin", "Eric", "Peter", "Scott")
TABLE = pd.DataFrame([(f"So {name} is", "So Karen is", " he", " she; store") for name in NAMES], columns=HEADER)


@pytest.fixture(scope="module")
def model() -> Model:
    """The trained checkpoint."""
    return cot.load(TOY, step=1350)


@pytest.fixture(scope="module")
def worded() -> Model:
    """A random model that knows the words of the table."""
    return cot.load(random_model(n_layers=2, vocab=len(words())), tokenizer=words())


def test_importing_the_library_loads_none_of_the_big_packages() -> None:
    code = "import sys, time; start = time.perf_counter(); import circuits_over_time\n"
    code += "taken = time.perf_counter() - start\n"
    code += (
        "print([name for name in ('torch', 'transformers', 'pandas', 'numpy', 'pydantic') if name in sys.modules])\n"
    )
    code += "print(taken < 2)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == ["[]", "True"]


def test_a_family_gives_its_last_step_unless_told(model: Model) -> None:
    last = cot.load(TOY)
    assert (last.name, last.step, last.tokens) == ("toy", 1350, model.tokens)
    assert same_tensors(last.weights, model.weights)
    assert repr(last) == "toy at step 1,350: 4 layers of 4 heads, 463 edges, float32 on cpu"


def test_one_checkpoint_by_its_folder_is_that_of_the_family(model: Model) -> None:
    alone = cot.load(TOY / "step1350")
    assert (alone.step, alone.tokens, alone.start_token) == (1350, model.tokens, model.start_token)
    assert same_tensors(alone.weights, model.weights)
    assert cot.load(TOY / "step1350", step=7).step == 7


@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2", "llama-grouped"])
def test_a_model_in_memory_is_the_folder_it_was_saved_to_and_stays_as_it_was(architecture: str, tmp_path: Path) -> None:
    network = random_model(architecture, n_layers=2, vocab=len(words()))
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    in_memory = cot.load(network, step=3, tokenizer=words())
    cot.find_circuit(in_memory, cot.task("ioi"), n_prompts=4, ig_steps=2, n_random=1, sizes=[20, 40])
    network.save_pretrained(tmp_path / "step3")
    words().save_pretrained(tmp_path / "step3")
    saved = cot.load(tmp_path / "step3")
    assert same_tensors(in_memory.weights, saved.weights)
    assert (in_memory.step, saved.step) == (3, 3)
    half = cot.load(network, tokenizer=words(), dtype="bfloat16")
    assert (half.weights.dtype, network.dtype, network.training) == (torch.bfloat16, torch.float32, True)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_data_frame_lists_and_a_csv_are_one_task(worded: Model, tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "mine.csv", index=False)
    lists = {column: TABLE[column].tolist() for column in HEADER}
    lists["wrong_answers"] = [[" she", " store"]] * len(TABLE)
    tasks = [cot.task(tmp_path / "mine.csv"), cot.task(TABLE, name="mine"), cot.task(**lists, name="mine")]
    tables = [cot.scores(worded, task, n_prompts=3, ig_steps=2) for task in tasks]
    for other in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], other)
    assert {task.name for task in tasks} == {"mine"}
    assert cot.task(TABLE, metric="prob_diff").primary == "prob_diff"


def test_keywords_are_the_yaml_keys_with_its_defaults(model: Model) -> None:
    assert settings_of(CircuitSettings, {}, model) == CircuitSettings(prepend_bos=False)
    short = settings_of(CircuitSettings, {"ig_steps": 5, "threshold": 0.9, "eap": {"n_folds": 3}}, model)
    assert (short.eap.ig_steps, short.eap.n_folds, short.search.threshold) == (5, 3, 0.9)
    assert settings_of(CircuitSettings, {"eap": {"n_folds": 3}, "ig_steps": 5}, model).eap == short.eap


def test_prompts_get_a_start_token_if_the_model_was_trained_with_one(model: Model) -> None:
    assert model.start_token is None
    told = Model(**{**vars(model), "start_token": True})
    first, second = (cot.attention(one, "The keys") for one in (model, told))
    assert second.tokens[1:] == first.tokens
    assert cot.attention(told, "The keys", start_token=False).tokens == first.tokens
    assert settings_of(CircuitSettings, {}, told).prepend_bos is True


def test_a_familys_own_word_says_whether_it_was_trained_with_a_start_token(tiny_family: Path, tmp_path: Path) -> None:
    own = shutil.copytree(tiny_family, tmp_path / "own")
    described = json.loads((own / "family.json").read_text())
    (own / "family.json").write_text(json.dumps(described | {"prepend_bos": True}))
    assert [cot.load(family, 10).start_token is True for family in (tiny_family, own)] == [False, True]


@pytest.mark.parametrize(
    ("keys", "error", "text"),
    [
        ({"n_prompts": 0}, ValueError, r"^n_prompts=0: not a number > 0 \(default: None\)$"),
        ({"n_prompts": "3"}, TypeError, r"^n_prompts='3': not a whole number"),
        ({"n_prompt": 3}, TypeError, "^n_prompt: there is no such keyword; did you mean 'n_prompts'"),
        ({"ig_steps": 0}, ValueError, "^eap.ig_steps=0: not 'auto' or a number > 0"),
        ({"order": "gredy"}, ValueError, "^search.order='gredy': not .*did you mean 'greedy'"),
        ({"results_dir": "x"}, TypeError, "^results_dir: there is no such keyword"),
        ({"model": "x"}, TypeError, "multiple values|no such keyword"),
        ({"n_prompts": 90_000}, ValueError, "^n_prompts: 90000 prompts of sva asked for, and as many others"),
        ({"sizes": [10**6]}, ValueError, "^search.sizes: 1000000 is more than the 463 edges"),
    ],
)
def test_keywords_are_refused_in_the_callers_words(model: Model, keys: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        cot.find_circuit(model, cot.task("sva"), **keys)
    assert type(caught.value) is error
    for word in ("command line", "yml", "key="):
        assert word not in str(caught.value)


def test_other_errors_are_errors_of_python(model: Model, worded: Model, tmp_path: Path) -> None:
    sva = cot.task("sva")
    (csv := tmp_path / "no_graph.csv").write_text("model,step,source,target,score\n")
    cases = [
        (lambda: cot.load("pythia-16m"), ValueError, "did you mean 'pythia-160m'"),
        (lambda: cot.load(TOY, step=3), ValueError, r"^step=3: not in toy \(nearest: 0, 750, 1350\)"),
        (lambda: cot.load(TOY, dtype="half"), ValueError, "^dtype='half': not 'float32', 'bfloat16'"),
        (lambda: cot.load(3), TypeError, "int is neither a name, a folder nor a Hugging Face model"),
        (lambda: cot.load(random_model()), TypeError, r"tokenizer: missing.*load\(model, tokenizer"),
        (lambda: cot.task("ioii"), ValueError, "'ioii' is unknown; did you mean 'ioi'"),
        (lambda: cot.task(), TypeError, "give a name, a CSV or a data frame"),
        (lambda: cot.task(clean=["a"], corrupted=["b"]), ValueError, "column 'answers' is missing"),
        (lambda: cot.task(TABLE.assign(clean=1)), ValueError, "row 1: clean is 1, not text"),
        (lambda: cot.task(TABLE.assign(answers=344)), ValueError, "row 1: answers is 344, not text; .*answers_as=ids"),
        (lambda: cot.task(TABLE, answers_as="ids"), ValueError, "row 1: answers is .*, not a token id"),
        (lambda: cot.task(TABLE, answers_as="id"), ValueError, "answers_as='id': not 'text' or 'ids'"),
        (lambda: cot.task("ioi", metric="accuracy"), ValueError, "metric='accuracy': not 'logit_diff' or"),
        (lambda: cot.scores(worded, cot.task(TABLE), n_prompts=9), ValueError, "9 prompts.*only 8; pass n_prompts=4"),
        (lambda: cot.evaluate(model, sva, ["a9.h1->logits"]), ValueError, "the graph has no node 'a9.h1'"),
        (lambda: cot.evaluate(model, sva, ["a3.h1-logits"]), ValueError, "a3.h1-logits: not an edge; write it as s"),
        (lambda: cot.evaluate(model, sva, ["m3->m1"]), ValueError, "m1 does not read m3"),
        (lambda: cot.evaluate(model, sva, 3), TypeError, "neither names of edges, nor a circuit"),
        (lambda: cot.evaluate(model, sva, tmp_path / "x.pt"), ValueError, "no such file"),
        (lambda: cot.find_circuit(model, "sva"), TypeError, r"'sva' is not a task; make one with cot.task"),
        (lambda: cot.find_circuit("toy", sva), TypeError, r"str is not a model; make one with cot.load"),
        (lambda: cot.head_scores(model, "inductio"), ValueError, "did you mean 'induction'"),
        (lambda: cot.head_scores(model, "cspa"), ValueError, r"^corpus: missing; pass corpus=\.\.\.$"),
        (lambda: cot.path_effects(model, sva, ["m9"]), ValueError, "'m9' is not a head"),
        (lambda: cot.path_effects(model, sva, None, ["a1.h0<q>", "a2.h0<k>"]), ValueError, "heads with one letter"),
        (lambda: cot.attention(model, ""), ValueError, "has 0 tokens"),
        (
            lambda: cot.read_circuit(csv),
            ValueError,
            r"no_graph.csv: holds no circuit \(a .csv like this names no model; say which it is of",
        ),
        (lambda: cot.results(tmp_path / "none"), ValueError, "holds no results"),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text) as caught:
            call()
        assert type(caught.value) is error


def test_a_metric_that_cannot_be_used_is_named(model: Model) -> None:
    def total(logits, prompts):
        return logits.sum()

    def best(logits, prompts):
        return logits.argmax(-1).float()

    with pytest.raises(ValueError, match=r"total returned a tensor of shape \(\); it must return one value per prompt"):
        cot.scores(model, cot.task("ioi", metric=total), n_prompts=5, ig_steps=1)
    with pytest.raises(ValueError, match="best has no gradient"):
        cot.scores(model, cot.task("ioi", metric=best), n_prompts=5, ig_steps=1)
