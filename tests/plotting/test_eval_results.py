"""Reading lm-evaluation-harness: names, old and new files, and the published Pythia results."""

import json
import math
from argparse import Namespace
from pathlib import Path

import pandas as pd
import pytest

from circuits_over_time.plotting import plot_task_performance
from circuits_over_time.plotting.parts.export import figure_main
from circuits_over_time.plotting.parts.published.eval_results import (
    read_evaluations,
    read_training_loss,
    step_and_model,
)
from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.plotting.plot_pythia_evals import FIGURE, choose
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.store import Store
from tests.support.paths import PYTHIA_EVALS
from tests.support.stored import write_table


def write(path: Path, results: dict, shots: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": results, "config": {"num_fewshot": shots}}))
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pythia-160m/zero-shot/160m_step1000.json", (1000, "pythia-160m")),
        ("pythia-1.4b/five-shot/1.4b_step0.json", (0, "pythia-1.4b")),
        ("evals/pythia-70m_step512.json", (512, "pythia-70m")),
        ("EleutherAI__pythia-160m/step3000/results_2024-05-01T10-00-00.json", (3000, "pythia-160m")),
        ("pythia-160m/step64/results.json", (64, "pythia-160m")),
        ("pythia-410m-step143000/results.json", (143_000, "pythia-410m")),
    ],
)
def test_step_and_model_come_from_the_names(tmp_path: Path, name: str, expected: tuple[int, str]) -> None:
    assert step_and_model(tmp_path / "all" / name, tmp_path / "all") == expected


def test_the_given_folder_may_be_the_models_own(tmp_path: Path) -> None:
    assert step_and_model(tmp_path / "pythia-1b" / "1b_step8.json", tmp_path / "pythia-1b") == (8, "pythia-1b")


def test_a_file_without_a_step_is_named(tmp_path: Path) -> None:
    write(tmp_path / "pythia-70m" / "last.json", {"piqa": {"acc": 0.5}})
    with pytest.raises(UserError, match=r"last\.json: neither the file's name nor its folders name a step"):
        read_evaluations(tmp_path)


def test_old_and_new_files_are_read_alike(tmp_path: Path) -> None:
    write(tmp_path / "m" / "m_step1.json", {"piqa": {"acc": 0.5, "acc_stderr": 0.01}})
    write(tmp_path / "m" / "m_step2.json", {"piqa": {"alias": "piqa", "acc,none": 0.6, "acc_stderr,none": 0.02}})
    table = read_evaluations(tmp_path)
    assert table[["step", "benchmark", "metric", "value", "stderr"]].to_numpy().tolist() == [
        [1, "piqa", "acc", 0.5, 0.01],
        [2, "piqa", "acc", 0.6, 0.02],
    ]


def test_mmlu_is_the_mean_over_subjects_where_all_are_there(tmp_path: Path) -> None:
    both = {"hendrycksTest-a": {"acc": 0.2, "acc_stderr": 0.03}, "hendrycksTest-b": {"acc": 0.4, "acc_stderr": 0.04}}
    write(tmp_path / "m" / "m_step1.json", both)
    write(tmp_path / "m" / "m_step2.json", {"hendrycksTest-a": {"acc": 0.9, "acc_stderr": 0.03}})
    mean = read_evaluations(tmp_path)[lambda table: table["benchmark"] == "mmlu"]
    assert mean[["step", "value", "stderr"]].to_numpy().tolist() == [[1, pytest.approx(0.3), pytest.approx(0.025)]]


def test_one_measurement_in_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m" / "step1" / "results_a.json", {"piqa": {"acc": 0.5}})
    write(tmp_path / "m" / "step1" / "results_b.json", {"piqa": {"acc": 0.6}})
    with pytest.raises(UserError, match=r"piqa acc of m step 1 \(0 shots\) is in two files"):
        read_evaluations(tmp_path)


def test_shots_are_kept_apart(tmp_path: Path) -> None:
    write(tmp_path / "m" / "zero-shot" / "m_step1.json", {"piqa": {"acc": 0.5}})
    write(tmp_path / "m" / "five-shot" / "m_step1.json", {"piqa": {"acc": 0.7}}, shots=5)
    table = read_evaluations(tmp_path)
    assert choose(table, 5, None)["value"].tolist() == [0.7]
    with pytest.raises(UserError, match="--shots: 3 given; the results are of 0, 5 shots"):
        choose(table, 3, None)
    with pytest.raises(UserError, match=r"--benchmark: no results of boolq \(there: piqa\)"):
        choose(table, 0, ["boolq"])


@pytest.mark.parametrize(("content", "says"), [("{", "not JSON"), ("[1]", "holds no JSON results")])
def test_what_is_no_result_is_told(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "m_step1.json").write_text(content)
    with pytest.raises(UserError, match=says):
        read_evaluations(tmp_path)


def write_as_today(folder: Path, step: int, hour: int, results: dict, shots: dict[str, int], **more: object) -> Path:
    """A file as lm-evaluation-harness 0.4.13 writes it: the revision stands inside only."""
    path = folder / "EleutherAI__pythia-160m" / f"results_2026-05-01T{hour:02}-00-00.123456.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    model_args = {"pretrained": "EleutherAI/pythia-160m", "revision": f"step{step}", "dtype": "float32"}
    content = {
        "results": results,
        "groups": {},
        "configs": {task: {"task": task, "num_fewshot": n} for task, n in shots.items()},
        "versions": dict.fromkeys(shots, 1.0),
        "n-shot": shots,
        "config": {"model": "hf", "model_args": model_args, "model_revision": f"step{step}", "limit": None},
        "model_name": "EleutherAI/pythia-160m",
    }
    path.write_text(json.dumps(content | more))
    return path


def test_files_as_they_are_written_today_are_read(tmp_path: Path) -> None:
    arc = {"alias": "arc_easy", "acc,none": 0.3, "acc_stderr,none": 0.01, "sample_len": 2376, "name": "arc_easy"}
    gsm = {
        "exact_match,strict-match": 0.1,
        "exact_match_stderr,strict-match": 0.02,
        "exact_match,flexible-extract": 0.2,
        "exact_match_stderr,flexible-extract": 0.03,
    }
    write_as_today(tmp_path, 1000, 9, {"arc_easy": arc, "gsm8k": gsm}, {"arc_easy": 0, "gsm8k": 5})
    write_as_today(tmp_path, 2000, 10, {"arc_easy": arc | {"acc,none": 0.4}}, {"arc_easy": 0})
    # The same evaluation again, later on the day: the newest counts.
    write_as_today(tmp_path, 2000, 11, {"arc_easy": arc | {"acc,none": 0.5}}, {"arc_easy": 0})
    hidden = tmp_path / ".ipynb_checkpoints"
    hidden.mkdir()
    (hidden / "results-checkpoint.json").write_text("{")
    table = read_evaluations(tmp_path).sort_values(["step", "benchmark", "metric"])
    assert table.to_numpy().tolist() == [
        ["pythia-160m", 1000, 0, "arc_easy", "acc", 0.3, 0.01],
        ["pythia-160m", 1000, 5, "gsm8k", "exact_match,flexible-extract", 0.2, 0.03],
        ["pythia-160m", 1000, 5, "gsm8k", "exact_match,strict-match", 0.1, 0.02],
        ["pythia-160m", 2000, 0, "arc_easy", "acc", 0.5, 0.01],
    ]
    chosen = choose(table, 5, ["gsm8k"])
    assert sorted(chosen["metric"]) == ["exact_match,flexible-extract", "exact_match,strict-match"]


def test_a_line_for_each_filter(tmp_path: Path) -> None:
    gsm = {"exact_match,strict-match": 0.1, "exact_match,flexible-extract": 0.2}
    for hour, step in enumerate((1000, 2000)):
        write_as_today(tmp_path, step, hour, {"gsm8k": gsm}, {"gsm8k": 0})
    assert figure_main(FIGURE, ["-e", str(tmp_path), "--benchmark", "gsm8k", "-o", str(tmp_path / "out")]) == 0
    drawn = (tmp_path / "out" / "pythia_evals.html").read_text()
    assert "strict-match" in drawn
    assert "flexible-extract" in drawn


@pytest.mark.parametrize(
    "model_args",
    ["pretrained=EleutherAI/pythia-70m,revision=step512", {"pretrained": "runs/pythia-70m/step512"}],
)
def test_a_revision_or_a_folder_inside_names_step_and_model(model_args: object, tmp_path: Path) -> None:
    path = tmp_path / "out" / "results_2026-05-01T10-00-00.json"
    content = {"results": {"piqa": {"acc,none": 0.5}}, "config": {"model_args": model_args}}
    assert step_and_model(path, tmp_path / "out", content) == (512, "pythia-70m")


def test_benchmarks_of_two_versions_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for hour, step in enumerate((1000, 2000)):
        write_as_today(tmp_path, step, hour, {"piqa": {"acc,none": 0.5}}, {"piqa": 0}, versions={"piqa": float(hour)})
    read_evaluations(tmp_path)
    assert "piqa was evaluated in versions 0.0, 1.0" in caplog.text


@pytest.mark.skipif(not PYTHIA_EVALS.is_dir(), reason="../shared/pythia_evals is not there")
def test_the_published_pythia_results_are_read_whole() -> None:
    table = read_evaluations(PYTHIA_EVALS)
    assert sorted(table["model"].unique()) == ["pythia-1.4b", "pythia-160m", "pythia-2.8b", "pythia-410m", "pythia-70m"]
    assert (table.groupby("model")["step"].nunique() == 27).all()
    assert (table["step"].min(), table["step"].max()) == (0, 143_000)
    mmlu = table[table["benchmark"] == "mmlu"]
    assert len(mmlu) == 5 * 27
    raw = json.loads((PYTHIA_EVALS / "pythia-160m" / "zero-shot" / "160m_step143000.json").read_text())["results"]
    row = table[
        (table["model"] == "pythia-160m") & (table["step"] == 143_000) & (table["benchmark"] == "lambada_openai")
    ]
    assert dict(zip(row["metric"], row["value"], strict=True))["acc"] == raw["lambada_openai"]["acc"]
    subjects = [value["acc"] for name, value in raw.items() if name.startswith("hendrycksTest-")]
    mean = mmlu[(mmlu["model"] == "pythia-160m") & (mmlu["step"] == 143_000)]["value"].iloc[0]
    assert len(subjects) == 57
    assert mean == pytest.approx(math.fsum(subjects) / 57)
    # Larger models predict LAMBADA's last words better at the end of training.
    final = table[(table["step"] == 143_000) & (table["benchmark"] == "lambada_openai") & (table["metric"] == "acc")]
    by_model = final.set_index("model")["value"]
    assert by_model["pythia-2.8b"] > by_model["pythia-1.4b"] > by_model["pythia-410m"] > by_model["pythia-160m"]


def trainer_state(folder: Path, *losses: tuple[int, float]) -> None:
    folder.mkdir(parents=True)
    history = [{"step": step, "loss": loss, "epoch": 0.1} for step, loss in losses]
    state = {"global_step": losses[-1][0], "log_history": [*history, {"step": losses[-1][0], "eval_loss": 9.0}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def test_the_loss_of_the_furthest_checkpoint_is_read(tmp_path: Path) -> None:
    trainer_state(tmp_path / "mine" / "checkpoint-10", (5, 3.0), (10, 2.0))
    trainer_state(tmp_path / "mine" / "checkpoint-20", (5, 3.0), (10, 2.0), (20, 1.5))
    table = read_training_loss(tmp_path / "mine")
    assert table[["model", "step", "value"]].to_numpy().tolist() == [
        ["mine", 5, 3.0],
        ["mine", 10, 2.0],
        ["mine", 20, 1.5],
    ]
    with pytest.raises(UserError, match=r"no trainer_state.json there holds a loss"):
        read_training_loss(tmp_path)


def test_the_loss_is_drawn_at_the_tokens_of_its_steps(tmp_path: Path) -> None:
    trainer_state(tmp_path / "mine" / "checkpoint-20", (5, 3.0), (20, 1.5))
    performance = pd.DataFrame(
        {"run": "clean", "metric": ["accuracy"], "unit": "share of prompts", "value": 0.5, "se": 0.1, "n": 8}
    )
    for step in (10, 20):
        write_table(Store(tmp_path / "r").folder("task_performance", "mine", "ioi"), step, performance, step * 7)
    arguments = ["-r", str(tmp_path / "r"), "-o", str(tmp_path / "f"), "--training", str(tmp_path / "mine")]
    assert figure_main(plot_task_performance.FIGURE, arguments) == 0
    figure = plot_task_performance.FIGURE.drawings(
        Results(Store(tmp_path / "r"), Namespace(training=[tmp_path / "mine"], metric=None, model=None, task=None))
    )["task_performance"].figure
    loss = next(trace for trace in figure.data if list(trace.y) == [3.0, 1.5])
    assert [x / 7 for x in loss.x] == [5, 20]
