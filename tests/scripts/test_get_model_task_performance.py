"""Task metrics of a whole model, against a slow second implementation and through the script."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.plotting import plot_task_performance
from circuits_over_time.utils.models.family import LocalFamily
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.tasks import TASKS, build_prompts, greater_than
from circuits_over_time.utils.tasks.metrics import METRICS
from circuits_over_time.utils.tasks.performance import task_performance
from get_model_task_performance import ANALYSIS
from tests.support.drawings import drawings
from tests.support.paths import TOY_STEPS
from tests.support.random_models import ARCHITECTURES, random_model
from tests.support.task_tokenizers import task_texts, word_level, words
from tests.support.word_family import word_model

# --- a slow second implementation


def slow_values(model, tokens: torch.Tensor, right: set[int], wrong: set[int]) -> dict[str, float]:
    """The metrics of one prompt, from the model's own output in double precision."""
    logits = model(tokens[None]).logits[0, -1].double()
    p = logits.softmax(-1)
    mean = {name: sum(logits[i].item() for i in ids) / len(ids) for name, ids in (("right", right), ("wrong", wrong))}
    share = {name: sum(p[i].item() for i in ids) for name, ids in (("right", right), ("wrong", wrong))}
    return {
        "logit_diff": mean["right"] - mean["wrong"],
        "prob_diff": share["right"] - share["wrong"],
        "prob_mass": share["right"] + share["wrong"],
        "accuracy": float(max(logits[i] for i in right) > max(logits[i] for i in wrong)),
        "rank_0_rate": float(int(logits.argmax()) in right),
    }


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_metrics_equal_the_slow_reference(architecture: str, task: str) -> None:
    tokenizer = words()
    model = random_model(architecture, n_layers=2, vocab=len(tokenizer))
    prompts = build_prompts(task, tokenizer, 5, seed=1)
    table = task_performance(read_weights(model), prompts, TASKS[task].metrics, batch_size=2)
    assert set(table["metric"]) == set(TASKS[task].metrics)
    assert len(table) == 2 * len(TASKS[task].metrics)
    for run, ids in (("clean", prompts.clean), ("corrupted", prompts.corrupted)):
        slow = [
            slow_values(
                model,
                ids[i, : prompts.lengths[i]],
                set(prompts.answers.right[i][prompts.answers.right_mask[i]].tolist()),
                set(prompts.answers.wrong[i][prompts.answers.wrong_mask[i]].tolist()),
            )
            for i in range(len(prompts))
        ]
        for row in table[table["run"] == run].itertuples():
            values = [value[row.metric] for value in slow]
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
            assert row.value == pytest.approx(mean, abs=1e-5)
            assert row.se == pytest.approx(spread / math.sqrt(len(values)), abs=1e-5)
            assert row.n == 5


@pytest.mark.parametrize("task", ["ioi", "sva"])
def test_the_studys_metrics_equal_the_slow_reference(task: str) -> None:
    model, prompts = random_model(vocab=len(words())), build_prompts(task, words(), 5, seed=1)
    table = task_performance(read_weights(model), prompts, TASKS[task].metrics, batch_size=2, study=True)
    found = table[table["run"] == "clean"].set_index("metric")["value"]
    expected = dict.fromkeys(METRICS, 0.0)
    for row in range(5):
        logits = model(prompts.clean[row, : prompts.lengths[row]][None]).logits[0, -1].double()
        right, wrong = (
            tokens[row][mask[row]].tolist()
            for tokens, mask in (
                (prompts.answers.right, prompts.answers.right_mask),
                (prompts.answers.wrong, prompts.answers.wrong_mask),
            )
        )
        means = [sum(logits[token].item() for token in tokens) / len(tokens) for tokens in (right, wrong)]
        p = logits.softmax(-1)
        expected["accuracy"] += (means[0] > means[1]) / 5
        expected["rank_0_rate"] += (max(right + wrong, key=lambda token: logits[token].item()) in right) / 5
        expected["prob_mass"] += sum(p[token].item() for token in right) / 5
        expected["logit_diff"] += (means[0] - means[1]) / 5
        expected["prob_diff"] += (sum(p[token].item() for token in right) - sum(p[token].item() for token in wrong)) / 5
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name


def test_the_studys_numbers_of_prompts_count_where_none_is_given(word_family: Path, tmp_path: Path) -> None:
    given = [f"model={word_family}", "checkpoints=[0]", "task=[ioi, sva]", f"results_dir={tmp_path}", "device=cpu"]
    assert main(ANALYSIS, [*given, "task_metrics=study"]) == 0
    for task, n in (("ioi", 70), ("sva", 200)):
        assert set(Store(tmp_path).folder("task_performance", "words", task).read_table(0)["n"]) == {n}


def test_one_prompt_has_no_standard_error() -> None:
    prompts = build_prompts("ioi", words(), 1, seed=0)
    table = task_performance(read_weights(random_model(vocab=len(words()))), prompts, ["logit_diff"], batch_size=1)
    assert table["se"].isna().all()
    assert table["value"].notna().all()


def test_batch_size_changes_nothing() -> None:
    prompts = build_prompts("sva", words(), 12, seed=0)
    weights = read_weights(random_model(vocab=len(words())))
    one, many = (task_performance(weights, prompts, list(METRICS), batch_size=size) for size in (1, 12))
    pd.testing.assert_frame_equal(one, many, rtol=1e-5, atol=1e-6)


# --- the script


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that were loaded."""
    loaded: list[int] = []
    load = LocalFamily.load

    def watched(self: LocalFamily, step: int, *args):
        loaded.append(step)
        return load(self, step, *args)

    monkeypatch.setattr(LocalFamily, "load", watched)
    return loaded


def test_all_tasks_go_on_past_one_that_does_not_fit_the_tokenizer(
    word_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    family = shutil.copytree(word_family, tmp_path / "words")
    small = word_level(task_texts(), without=greater_than.NOUNS)
    for folder in family.glob("step*"):
        small.save_pretrained(folder)
    given = [f"model={family}", "n_prompts=2", f"results_dir={tmp_path / 'results'}", "device=cpu"]
    for _ in range(2):
        assert main(ANALYSIS, [*given, "task=all"]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines[-2].endswith("tasks that do not fit the model and were left out: 1")
        assert "words: greater_than: only 0 of 113 nouns are single tokens under this tokenizer" in lines[-1]
        assert Store(tmp_path / "results").tasks("task_performance", "words") == sorted({*TASKS} - {"greater_than"})
    assert not (tmp_path / "results" / "task_performance" / "words" / "greater_than").exists()
    assert main(ANALYSIS, [*given, "task=[all, greater_than]"]) == 2
    assert main(ANALYSIS, [*given, "task=greater_than"]) == 2


def test_a_family_that_says_no_tokens_is_measured_and_drawn_by_steps(word_family: Path, tmp_path: Path) -> None:
    family = shutil.copytree(word_family, tmp_path / "words")
    (family / "family.json").unlink()
    for folder in family.glob("step*"):
        folder.rename(family / folder.name.replace("step", "checkpoint-"))
    given = [f"model={family}", "n_prompts=2", f"results_dir={tmp_path / 'results'}", "device=cpu", "task=ioi"]
    assert main(ANALYSIS, given) == 0
    assert main(ANALYSIS, given) == 0
    table = Store(tmp_path / "results").read_tables("task_performance")
    assert table["tokens"].isna().all()
    drawing = drawings(plot_task_performance, Store(tmp_path / "results"))["task_performance"]
    first, last = drawing.figure.layout.xaxis.ticktext
    assert (first.strip("\N{NO-BREAK SPACE}"), last) == ("steps 0", "5")
    (family / "family.json").write_text('{"tokens_per_step": 10}')
    assert main(ANALYSIS, given) == 2


PROMPTS_CSV = """clean,corrupted,answers,wrong_answers
The war of Mary,The war of John, he; she, a
The war of Paul,The war of John, he; she, a
"""


def test_one_load_serves_all_tasks_and_a_prompts_csv(word_family: Path, tmp_path: Path, loads: list[int]) -> None:
    csv = tmp_path / "wars.csv"
    csv.write_text(PROMPTS_CSV)
    results = tmp_path / "results"
    given = [f"model={word_family}", f"task=[all, {csv}]", "n_prompts=2", "metric=prob_diff", f"results_dir={results}"]
    assert main(ANALYSIS, [*given, "device=cpu"]) == 0
    assert loads == [0, 5]
    store = Store(results)
    assert store.tasks("task_performance", "words") == sorted([*TASKS, "wars"])
    for name in (*TASKS, "wars"):
        assert store.folder("task_performance", "words", name).steps() == [0, 5]
        table = store.folder("task_performance", "words", name).read_table(5)
        assert list(table) == ["model", "step", "tokens", "run", "metric", "unit", "value", "se", "n"]
        assert set(table["tokens"]) == {50}
        assert set(table["run"]) == {"clean", "corrupted"}
        assert set(table["metric"]) == set(METRICS)
    assert main(ANALYSIS, [*given, "device=cpu"]) == 0
    assert loads == [0, 5]  # nothing was left to measure


def test_a_task_added_later_is_measured_alone(word_family: Path, tmp_path: Path, loads: list[int]) -> None:
    given = [f"model={word_family}", "n_prompts=3", f"results_dir={tmp_path}", "device=cpu"]
    assert main(ANALYSIS, [*given, "task=ioi", "checkpoints=[5]"]) == 0
    path = Store(tmp_path).folder("task_performance", "words", "ioi").file(5)
    before = path.stat().st_mtime_ns
    assert main(ANALYSIS, [*given, "task=[ioi, sva]"]) == 0
    assert loads == [5, 0, 5]
    assert path.stat().st_mtime_ns == before
    assert Store(tmp_path).folder("task_performance", "words", "ioi").steps() == [0, 5]


def test_results_are_those_of_the_checkpoint_and_the_seed(word_family: Path, tmp_path: Path) -> None:
    given = [
        f"model={word_family}",
        "task=greater_than",
        "n_prompts=6",
        "seed=3",
        f"results_dir={tmp_path}",
        "device=cpu",
    ]
    assert main(ANALYSIS, given) == 0
    weights = read_weights(word_model(5))
    prompts = build_prompts("greater_than", words(), 6, seed=3)
    expected = task_performance(weights, prompts, TASKS["greater_than"].metrics, batch_size=6)
    found = Store(tmp_path).folder("task_performance", "words", "greater_than").read_table(5)
    pd.testing.assert_frame_equal(found[list(expected)], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["task=ioy"], "task: 'ioy' is unknown; did you mean 'ioi'?"),
        (
            ["task=nowhere.csv"],
            "task: nowhere.csv: no such file; a task is a built-in one or a prompts CSV",
        ),
        (
            ["task=[all, x.csv, y/x.csv]", "metric=prob_diff"],
            "task: two tasks would both write to the folder 'x'; rename one",
        ),
        (
            ["task=nowhere.csv", "metric=prob_diff"],
            "task: nowhere.csv: no such file; a task is a built-in one or a prompts CSV",
        ),
    ],
)
def test_tasks_that_cannot_be_measured_are_refused_in_one_line(
    word_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], says: str
) -> None:
    assert main(ANALYSIS, [f"model={word_family}", f"results_dir={tmp_path}", "device=cpu", *overrides]) == 2
    assert capsys.readouterr().err.strip().splitlines() == [says]
    assert not list(tmp_path.rglob("*.csv"))


def test_more_prompts_than_there_are_are_refused_before_anything_is_measured(
    word_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "wars.csv"
    csv.write_text(PROMPTS_CSV)
    given = [
        f"model={word_family}",
        f"task=[ioi, {csv}]",
        "metric=prob_diff",
        "n_prompts=3",
        f"results_dir={tmp_path}/out",
    ]
    assert main(ANALYSIS, [*given, "device=cpu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "3 prompts" in line
    assert "only 2" in line
    assert not list((tmp_path / "out").rglob("*.csv"))


# --- the trained toy family


def test_the_toy_family_rises_from_chance_to_near_ceiling(toy_family: Path, tmp_path: Path) -> None:
    last = TOY_STEPS[-1]
    given = [f"model={toy_family}", "task=all", f"results_dir={tmp_path}", "device=cpu", f"checkpoints=[0, {last}]"]
    assert main(ANALYSIS, given) == 0
    table = Store(tmp_path).read_tables("task_performance", "toy")
    clean = table[table["run"] == "clean"].set_index(["task", "metric", "step"])["value"]
    for task in TASKS:
        assert clean[task, "prob_mass", 0] < 0.3, task
        assert 0.3 < clean[task, "accuracy", 0] < 0.7, task
        assert abs(clean[task, "prob_diff", 0]) < 0.1, task
        assert clean[task, "accuracy", last] > 0.9, task
        assert clean[task, "prob_diff", last] > 0.7, task
    corrupted = table[table["run"] == "corrupted"].set_index(["task", "metric", "step"])["value"]
    assert corrupted["ioi", "accuracy", last] < 0.1
    assert corrupted["gendered_pronoun", "accuracy", last] < 0.1
    assert corrupted["sva", "accuracy", last] < 0.1
