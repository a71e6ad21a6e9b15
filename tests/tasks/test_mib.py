"""The benchmark's tasks from data sets with its columns, which lie here where the hub would have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.config.keys import PromptOptions
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.tasks import TASKS, mib
from circuits_over_time.utils.tasks.prompts import Pair
from get_circuits_over_time import ANALYSIS
from tests.support.mib_submission import TASKS as THEIR_TASKS
from tests.support.mib_submission import faults_of_submission
from tests.support.paths import TOY
from tests.support.task_tokenizers import three_digits


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which data sets are looked for first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    mib._rows.cache_clear()
    return tmp_path


def put(name: str, rows: list[dict[str, Any]], config: str | None = None) -> None:
    folder = Path("mib-bench") / name
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if config is not None:
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files: train.jsonl\n---\n")


def ioi_rows(n: int) -> tuple[list[Pair], list[dict[str, Any]]]:
    """Prompts of the suite's own task, and rows of the benchmark's data set with the same texts."""
    tokenizer = AutoTokenizer.from_pretrained(TOY / "step1350")
    pairs = TASKS["ioi"].pairs(tokenizer, n, 0, PromptOptions())
    rows = []
    for pair in pairs:
        right, wrong = (tokenizer.decode(answer).strip() for answer in (pair.answers, pair.wrong_answers))
        metadata = {"subject": wrong, "indirect_object": right, "random_c": wrong}
        corrupted = {"prompt": pair.corrupted, "choices": [right, wrong], "answerKey": 1}
        rows.append({"prompt": pair.clean, "metadata": metadata, "s2_io_flip_counterfactual": corrupted})
    return pairs, rows


def pairs_of(task: str, tokenizer: PreTrainedTokenizerBase, n: int | None = None) -> list[tuple[Any, ...]]:
    made = mib.TASKS[f"mib_{task}"].pairs(tokenizer, n, 0, PromptOptions())
    return [(one.clean, one.corrupted, one.answers, one.wrong_answers) for one in made]


def test_names_and_their_circuit_are_those_of_the_same_prompts_and_its_submission_is_valid(hub: Path) -> None:
    pairs, rows = ioi_rows(24)
    longer = {**rows[0], "metadata": {**rows[0]["metadata"], "subject": "nobody knows"}}
    put("ioi", [*rows, longer])
    expected = {(one.clean, one.corrupted, one.answers, one.wrong_answers) for one in pairs}
    tokenizer = AutoTokenizer.from_pretrained(TOY / "step1350")
    assert set(pairs_of("ioi", tokenizer)) == expected
    assert pairs_of("ioi", tokenizer, 5) == pairs_of("ioi", tokenizer)[:5]
    given = [f"model={TOY}", "checkpoints=[1350]", "device=cpu", "task=mib_ioi", "n_prompts=12", "n_random=0"]
    given += ["search.order=top_n", "search.mib=true", "eap.ig_steps=2", "export=[mib_folder]", "results_dir=found"]
    assert main(ANALYSIS, given) == 0
    assert Store(hub / "found").folder("baselines", "toy", "mib_ioi").read_table(1350)["cpr"].notna().all()
    submission = hub / "found" / "graphs" / "toy" / "mib_ioi" / "step001350.mib"
    assert faults_of_submission(submission, {"toy": Graph(4, 4, True)}) == []
    assert [path.name for path in submission.iterdir()] == ["ioi_toy"]


def test_letters_and_results_are_read_and_answers_of_several_tokens_left_out() -> None:
    tokenizer = three_digits()

    def choice(letters: str, key: int) -> dict[str, Any]:
        return {"prompt": f"{letters[0]}. red {letters[1]}. blue. Answer:", "answerKey": key} | {
            "choices": {"label": list(letters), "text": ["red", "blue"]}
        }

    put("copycolors_mcqa", [choice("AB", 1) | {"symbol_counterfactual": choice("CD", 1)}], "4_answer_choices")
    (found,) = pairs_of("mcqa", tokenizer)
    assert found[:2] == ("A. red B. blue. Answer:", "C. red D. blue. Answer:")
    assert [tokenizer.decode(ids) for ids in found[2:]] == ["B", "D"]

    problems = [("12+30=", 42, "11+22=", 33), ("900+900=", 1800, "900+11=", 911), ("1+1=", 2, None, None)]
    rows = [
        {"prompt": prompt, "label": label, "random_counterfactual": {"prompt": other, "label": result}}
        for prompt, label, other, result in problems
    ]
    put("arithmetic_addition", rows)
    (found,) = pairs_of("arithmetic_addition", tokenizer)
    assert found[:2] == ("12+30=", "11+22=")
    assert [tokenizer.decode(ids) for ids in found[2:]] == ["42", "33"]


def test_all_its_tasks_are_there_under_the_names_of_submissions() -> None:
    assert {name.removeprefix("mib_").replace("_", "-") for name in mib.TASKS} == set(THEIR_TASKS)


def test_what_is_no_such_data_set_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOY / "step1350")
    put("ioi", [{"prompt": "a", "s2_io_flip_counterfactual": {"prompt": "b"}}])
    with pytest.raises(UserError, match=r"^task: mib_ioi: row 0 of mib-bench/ioi has no 'metadata'$"):
        pairs_of("ioi", tokenizer)

    def offline(*given: object, **keys: object) -> None:
        raise ConnectionError("Couldn't reach 'mib-bench/arc_easy' on the Hub\nTraceback")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    message = r"^task: mib_arc_easy: the data set mib-bench/arc_easy cannot be loaded \(Couldn't reach .*\); connect"
    with pytest.raises(UserError, match=message) as refused:
        pairs_of("arc_easy", tokenizer)
    assert "\n" not in str(refused.value)
