"""Reading lm-evaluation-harness: names, old and new files, and the published Pythia results."""

import json
import math
from pathlib import Path

import pytest

from circuits_over_time.plotting.plot_pythia_evals import choose
from circuits_over_time.plotting.published.eval_results import read_evaluations, step_and_model
from circuits_over_time.utils.base.errors import UserError
from tests.support.paths import PYTHIA_EVALS


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
